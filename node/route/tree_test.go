package route

import (
	"strconv"
	"testing"
)

// equalHashes are two segments that have the same hash below parent.
func equalHashes(tree *tree, parent int32) (one, other []byte) {
	seen := make(map[uint32]int)
	for i := 0; ; i++ {
		segment := []byte(strconv.Itoa(i))
		hash := tree.hash(parent, segment)
		if earlier, ok := seen[hash]; ok {
			return []byte(strconv.Itoa(earlier)), segment
		}
		seen[hash] = i
	}
}

func TestSegmentsOfEqualHashAreToldApart(t *testing.T) {
	tree := newTree(0)
	root := tree.newRoot()
	one, other := equalHashes(&tree, root)
	first := tree.newChild(root, one)
	if got := tree.child(root, other); got != 0 {
		t.Errorf("%q is found as %q", other, one)
	}
	second := tree.newChild(root, other)
	if got := tree.child(root, one); got != first {
		t.Errorf("%q is node %d, want %d", one, got, first)
	}
	if got := tree.child(root, other); got != second {
		t.Errorf("%q is node %d, want %d", other, got, second)
	}
}
