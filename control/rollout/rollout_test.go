package rollout

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

var states = map[string]State{
	"offered": Offered, "prepared": Prepared, "committed": Committed,
	"refused": Refused, "away": Away,
}

var steps = map[Step]string{Wait: "wait", Commit: "commit", Abort: "abort", Finished: "finished"}

// TestStories plays the scripts in testdata: "nodes a b", then "NODE STATE [note]", "begin-commit" and "expire" drive
// the machine, and "next STEP", "reason TEXT" and "complete BOOL" say what must hold.
func TestStories(t *testing.T) {
	scripts, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(scripts) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, script := range scripts {
		t.Run(strings.TrimSuffix(filepath.Base(script), ".txt"), func(t *testing.T) { play(t, script) })
	}
}

func play(t *testing.T, script string) {
	f, err := os.Open(script)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var r *Rollout
	lines := bufio.NewScanner(f)
	for number := 1; lines.Scan(); number++ {
		line, _, _ := strings.Cut(lines.Text(), "#")
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		rest := strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(line), words[0]))
		want, got := rest, ""
		switch words[0] {
		case "nodes":
			r = New(words[1:])
			continue
		case "begin-commit":
			r.BeginCommit()
			continue
		case "expire":
			got = strings.Join(r.Expire(), " ")
		case "next":
			got = steps[r.Next()]
		case "reason":
			got = r.Reason()
		case "complete":
			got = fmt.Sprint(r.Complete())
		default:
			state, ok := states[words[1]]
			if !ok {
				t.Fatalf("%s:%d: unknown state %q", script, number, words[1])
			}
			r.Observe(words[0], state, strings.Join(words[2:], " "))
			continue
		}
		if got != want {
			t.Fatalf("%s:%d: %s: got %q, want %q", script, number, words[0], got, want)
		}
	}
}

// TestNothingIsCommittedUnlessEveryPresentNodePrepared drives the machine at random and checks the one promise that
// the rest stands on.
func TestNothingIsCommittedUnlessEveryPresentNodePrepared(t *testing.T) {
	names := []string{"a", "b", "c"}
	rapid.Check(t, func(t *rapid.T) {
		r := New(names)
		seen := map[string]State{}
		for range rapid.IntRange(0, 12).Draw(t, "events") {
			name := rapid.SampledFrom(names).Draw(t, "node")
			state := rapid.SampledFrom([]State{Prepared, Refused, Away}).Draw(t, "state")
			if r.Observe(name, state, "") {
				seen[name] = state
			}
			if r.Next() != Commit {
				continue
			}
			for _, name := range names {
				if s := seen[name]; s != Prepared && s != Away {
					t.Fatalf("commit while %s is %v", name, s)
				}
			}
		}
	})
}
