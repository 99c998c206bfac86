package keyring

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

var someTime = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func key(b byte) []byte { return bytes.Repeat([]byte{b}, KeyBytes) }

// order is the keys of a ring by their first bytes.
func (r Ring) order() string {
	var out []byte
	for _, k := range r.Keys {
		out = append(out, k[0])
	}
	return string(out)
}

func TestAKeyIsHandedOutThenUsedThenAlone(t *testing.T) {
	r := Ring{Keys: [][]byte{key('a')}}
	var err error
	if r, err = r.Begin(key('b'), someTime); err != nil {
		t.Fatal(err)
	}
	story := []string{r.order() + " " + r.Stage.String()}
	for next, ok := r.Next(someTime); ok; next, ok = next.Next(someTime) {
		story = append(story, next.order()+" "+next.Stage.String())
		if err := next.Check(); err != nil {
			t.Error(err)
		}
	}
	if want := []string{"ab install", "ba use", "b settled"}; !slices.Equal(story, want) {
		t.Errorf("the steps are %q, want %q", story, want)
	}
}

func TestKeysThatWereThereGoWithTheOldOne(t *testing.T) {
	r, err := Ring{Keys: [][]byte{key('a'), key('b')}}.Begin(key('c'), someTime)
	use, _ := r.Next(someTime)
	end, _ := use.Next(someTime)
	if err != nil || r.order() != "abc" || use.order() != "cab" || end.order() != "c" {
		t.Errorf("%q, %q, %q, %v", r.order(), use.order(), end.order(), err)
	}
}

func TestASecondChangeIsRefusedWhileOneIsUnderWay(t *testing.T) {
	r, _ := Ring{Keys: [][]byte{key('a')}}.Begin(key('b'), someTime)
	use, _ := r.Next(someTime)
	for _, running := range []Ring{r, use} {
		if _, err := running.Begin(key('c'), someTime); !errors.Is(err, ErrRunning) {
			t.Errorf("%s: %v", running.Stage, err)
		}
	}
	if _, err := (Ring{Keys: [][]byte{key('a')}}).Begin(key('a'), someTime); err == nil {
		t.Error("a key that is there counts as new")
	}
}

func TestAKeyIsTakenBackAsLongAsNobodyUsesIt(t *testing.T) {
	before := Ring{Keys: [][]byte{key('a'), key('b')}}
	install, _ := before.Begin(key('c'), someTime)
	back, err := install.Cancel(someTime.Add(1))
	if err != nil || back.order() != "ab" || back.Stage != Settled || !back.Since.Equal(someTime.Add(1)) || install.order() != "abc" {
		t.Errorf("%q %s, %v; it was %q", back.order(), back.Stage, err, install.order())
	}
	use, _ := install.Next(someTime)
	for _, r := range []Ring{before, use} {
		if _, err := r.Cancel(someTime); !errors.Is(err, ErrNotHandedOut) {
			t.Errorf("%s: %v", r.Stage, err)
		}
	}
}

func TestWhoIsWaitedForAndWhoIsNot(t *testing.T) {
	r, _ := Ring{Keys: [][]byte{key('a')}}.Begin(key('b'), someTime)
	old := Ring{Keys: [][]byte{key('a')}}.Digest()
	for _, test := range []struct {
		member Member
		want   string
	}{
		{Member{Name: "a node that follows", Here: true, Digest: r.Digest()}, ""},
		{Member{Name: "a node that has not", Here: true, Digest: old}, "pending"},
		{Member{Name: "a node that says nothing", Here: true}, "pending"},
		{Member{Name: "a node that was here a moment ago", Awaited: true, Digest: r.Digest()}, "pending"},
		{Member{Name: "a node that is away", Digest: old}, "away"},
		{Member{Name: "a node that went with the keys", Digest: r.Digest()}, "away"},
		{Member{Name: "a control that follows", Control: true, Here: true, Digest: r.Digest()}, ""},
		{Member{Name: "a control that has not", Control: true, Here: true, Digest: old}, "pending"},
		{Member{Name: "a control that is away", Control: true, Digest: r.Digest()}, "pending"},
	} {
		pending, away := r.Waiting([]Member{test.member})
		got := strings.Repeat("pending", len(pending)) + strings.Repeat("away", len(away))
		if got != test.want {
			t.Errorf("%s: %q, want %q", test.member.Name, got, test.want)
		}
	}
}

func TestRingsThatAreNone(t *testing.T) {
	for name, r := range map[string]Ring{
		"no key": {}, "a short key": {Keys: [][]byte{key('a')[:31]}}, "a key twice": {Keys: [][]byte{key('a'), key('a')}},
		"a change of one key": {Keys: [][]byte{key('a')}, Stage: Use}, "no stage": {Keys: [][]byte{key('a'), key('b')}, Stage: 3},
		"too many": {Keys: make([][]byte, MaxKeys+1)},
	} {
		if r.Check() == nil {
			t.Errorf("%s: it is taken", name)
		}
	}
}

// TestNobodyIsEverOutOfHearing plays changes among members that follow in any order, go away, and come back to whatever
// the ring is then: no two that are here can ever fail to understand each other.
func TestNobodyIsEverOutOfHearing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ring := Ring{Keys: [][]byte{key(0)}}
		fresh := byte(0)
		has := make([]Ring, 4)
		members := make([]Member, len(has))
		take := func(i int) { has[i], members[i].Digest = ring, ring.Digest() }
		for i := range has {
			members[i] = Member{Name: string(rune('a' + i)), Control: i == 0, Here: true}
			take(i)
		}
		t.Repeat(map[string]func(*rapid.T){
			"begin": func(t *rapid.T) {
				if next, err := ring.Begin(key(fresh+1), someTime); err == nil {
					fresh++
					ring = next
				}
			},
			"cancel": func(*rapid.T) {
				if next, err := ring.Cancel(someTime); err == nil {
					ring = next
				}
			},
			"step": func(t *rapid.T) {
				if pending, _ := ring.Waiting(members); len(pending) == 0 {
					if next, ok := ring.Next(someTime); ok {
						ring = next
					}
				}
			},
			"follow": func(t *rapid.T) {
				if i := rapid.IntRange(0, len(has)-1).Draw(t, "member"); members[i].Here {
					take(i)
				}
			},
			"go": func(t *rapid.T) { members[rapid.IntRange(1, len(has)-1).Draw(t, "node")].Here = false },
			"return": func(t *rapid.T) {
				i := rapid.IntRange(1, len(has)-1).Draw(t, "node")
				members[i].Here = true
				take(i)
			},
			"": func(t *rapid.T) {
				for i := range has {
					for j := range has {
						if members[i].Here && members[j].Here && !slices.ContainsFunc(has[j].Keys, func(k []byte) bool { return bytes.Equal(k, has[i].Keys[0]) }) {
							t.Fatalf("%s does not understand %s: %q and %q, at %q %s", members[j].Name, members[i].Name, has[j].order(), has[i].order(), ring.order(), ring.Stage)
						}
					}
				}
			},
		})
	})
}

// TestNobodyIsOutOfHearingOfAControlThatLags plays changes where nodes get the keys from either of two controls. One of them
// restarts, lags behind what is decided, and hands out what it has; nodes go from one to the other, so that some go back a step.
func TestNobodyIsOutOfHearingOfAControlThatLags(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const controls, all = 2, 6
		ring, fresh := Ring{Keys: [][]byte{key(0)}}, byte(0)
		has, members, at := make([]Ring, all), make([]Member, all), make([]int, all)
		for i := range all {
			has[i], at[i] = ring, i%controls
			members[i] = Member{Name: string(rune('a' + i)), Control: i < controls, Here: true, Digest: ring.Digest()}
		}
		node := func(t *rapid.T) int { return rapid.IntRange(controls, all-1).Draw(t, "node") }
		t.Repeat(map[string]func(*rapid.T){
			"begin": func(*rapid.T) {
				if next, err := ring.Begin(key(fresh+1), someTime); err == nil && members[1].Here {
					fresh++
					ring = next
				}
			},
			"cancel": func(*rapid.T) {
				if next, err := ring.Cancel(someTime); err == nil {
					ring = next
				}
			},
			"step": func(*rapid.T) {
				if pending, _ := ring.Waiting(members); len(pending) == 0 {
					if next, ok := ring.Next(someTime); ok {
						ring = next
					}
				}
			},
			"a control follows": func(t *rapid.T) {
				if i := rapid.IntRange(0, controls-1).Draw(t, "control"); members[i].Here {
					has[i], members[i].Digest = ring, ring.Digest()
				}
			},
			"a node is told and says so": func(t *rapid.T) {
				if i := node(t); members[i].Here {
					has[i] = has[at[i]]
					members[i].Digest = has[i].Digest()
				}
			},
			"a control restarts": func(*rapid.T) {
				if members[1].Here = !members[1].Here; members[1].Here {
					members[1].Digest = has[1].Digest()
				}
				for i := controls; i < all; i++ {
					if at[i] == 1 {
						members[i].Here = false
					}
				}
			},
			"a node goes": func(t *rapid.T) { members[node(t)].Here = false },
			"a node comes": func(t *rapid.T) {
				i, control := node(t), rapid.IntRange(0, controls-1).Draw(t, "control")
				if members[control].Here {
					at[i], has[i] = control, has[control]
					members[i].Here, members[i].Digest = true, nil
				}
			},
			"": func(t *rapid.T) {
				for i := range all {
					for j := range all {
						if members[i].Here && members[j].Here && !slices.ContainsFunc(has[j].Keys, func(k []byte) bool { return bytes.Equal(k, has[i].Keys[0]) }) {
							t.Fatalf("%s does not understand %s: %q and %q, at %q %s", members[j].Name, members[i].Name, has[j].order(), has[i].order(), ring.order(), ring.Stage)
						}
					}
				}
			},
		})
	})
}
