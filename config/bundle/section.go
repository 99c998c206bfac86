package bundle

import (
	"fmt"
	"iter"
	"slices"
	"strings"

	"github.com/pyserve/pyserve/config"
)

// Section is what a bundle holds of one kind, in the order of names. The zero value is empty.
type Section struct {
	resources []Resource
	sums      []sum
}

// Section gives the resources of a kind.
func (b *Bundle) Section(kind config.Kind) Section {
	begin, _ := slices.BinarySearchFunc(b.resources, kind, func(r Resource, kind config.Kind) int {
		return strings.Compare(string(r.Kind), string(kind))
	})
	length, _ := slices.BinarySearchFunc(b.resources[begin:], kind, func(r Resource, kind config.Kind) int {
		if r.Kind == kind {
			return -1
		}
		return 1
	})
	end := begin + length
	return Section{b.resources[begin:end], b.sums[begin:end]}
}

// Len is how many resources the section has.
func (s Section) Len() int { return len(s.resources) }

// At is the resource at a place, counted from 0.
func (s Section) At(i int) Resource { return s.resources[i] }

// Find is the place of a name.
func (s Section) Find(name string) (at int, ok bool) {
	return slices.BinarySearchFunc(s.resources, name, func(r Resource, name string) int { return strings.Compare(r.Name, name) })
}

// Unchanged gives for each place of s the one at which old, a section of the same kind, holds the same body under the same
// name, and -1 where it does not. It is one pass over both, and reads no body.
func (s Section) Unchanged(old Section) []int32 {
	same := make([]int32, len(s.resources))
	j := 0
	var pace Pace
	for i := range s.resources {
		pace.Step()
		order := -1
		for ; j < len(old.resources); j++ {
			if order = strings.Compare(old.resources[j].Name, s.resources[i].Name); order >= 0 {
				break
			}
		}
		same[i] = -1
		if order == 0 && old.sums[j] == s.sums[i] {
			same[i] = int32(j)
		}
	}
	return same
}

// Without gives the names of s that other, a section of the same kind, does not have.
func (s Section) Without(other Section) iter.Seq[string] {
	return func(yield func(string) bool) {
		j := 0
		var pace Pace
		for i := range s.resources {
			pace.Step()
			name := s.resources[i].Name
			for j < len(other.resources) && other.resources[j].Name < name {
				j++
			}
			if (j == len(other.resources) || other.resources[j].Name != name) && !yield(name) {
				return
			}
		}
	}
}

// Known is an error where the bundle holds something that this version does not know: a node that cannot serve the whole
// must not serve a part.
func (b *Bundle) Known() error {
	for i := range b.resources {
		switch r := &b.resources[i]; r.Kind {
		case config.KindRoute, config.KindPool, config.KindCertificate:
		case config.KindListener:
			if r.Name != config.ListenerName {
				return fmt.Errorf("the bundle holds a listener %q; this version knows only %q", r.Name, config.ListenerName)
			}
		default:
			return fmt.Errorf("the bundle holds a resource of kind %.64q, which this version does not know", r.Kind)
		}
	}
	return nil
}
