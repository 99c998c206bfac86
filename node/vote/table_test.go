package vote

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// anyVote draws from few keys, origins and sequences, so that votes meet.
func anyVote(t *rapid.T) Vote {
	return Vote{
		Key:      keyOf(fmt.Sprint(rapid.IntRange(0, 2).Draw(t, "key"))),
		Origin:   fmt.Sprint("n", rapid.IntRange(0, 4).Draw(t, "origin")),
		Sequence: uint64(rapid.IntRange(0, 3).Draw(t, "sequence")),
		State:    State(rapid.IntRange(1, 3).Draw(t, "state")),
		Reason:   rapid.SampledFrom([]string{"", "refused", "status 500"}).Draw(t, "reason"),
		Since:    epoch.Add(time.Duration(rapid.IntRange(0, 2).Draw(t, "since")) * time.Second),
		Repeat:   time.Duration(rapid.IntRange(1, 2).Draw(t, "interval")) * time.Second,
		Heard:    epoch.Add(-time.Duration(rapid.IntRange(0, 30).Draw(t, "age")) * time.Second),
	}
}

func tableOf(votes ...[]Vote) *Table {
	t := NewTable()
	t.Expect(keyOf("0"))
	for _, v := range votes {
		t.Merge(v, epoch)
	}
	return t
}

func TestMergeDependsOnNoOrderAndNoRepetition(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		votes := rapid.SliceOfN(rapid.Custom(anyVote), 1, 20).Draw(t, "votes")
		again := append(slices.Clone(votes), rapid.SliceOfN(rapid.SampledFrom(votes), 0, 10).Draw(t, "repeated")...)
		a, b := tableOf(votes), tableOf(rapid.Permutation(again).Draw(t, "order"))
		if !reflect.DeepEqual(a, b) {
			t.Fatalf("%v and %v", a, b)
		}
	})
}

func TestMergeIsAssociative(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		draw := func(name string) []Vote { return rapid.SliceOfN(rapid.Custom(anyVote), 0, 10).Draw(t, name) }
		a, b, c := draw("a"), draw("b"), draw("c")
		all := func(t *Table) []Vote { return slices.Concat(slices.Collect(maps.Values(t.votes))...) }
		left := tableOf(all(tableOf(a, b)), c)
		right := tableOf(a, all(tableOf(b, c)))
		if !reflect.DeepEqual(left, right) {
			t.Fatalf("%v and %v", left, right)
		}
	})
}

func TestMergeTellsWhatIsNew(t *testing.T) {
	key := keyOf("a")
	table := NewTable()
	table.Expect(key)
	v := Vote{Key: key, Origin: "n1", Sequence: 5, State: Healthy, Repeat: time.Second, Heard: epoch}
	step := func(what string, news bool, now time.Time, change func(*Vote)) {
		t.Helper()
		next := v
		change(&next)
		next.Heard = now
		if changed, refused := table.Merge([]Vote{next}, now); len(changed) > 0 != news || refused > 0 {
			t.Errorf("%s: changed %v, refused %d", what, changed, refused)
		}
	}
	step("the first", true, epoch, func(*Vote) {})
	step("a repetition", false, epoch.Add(time.Second), func(v *Vote) { v.Sequence = 6 })
	step("an older one", false, epoch.Add(2*time.Second), func(v *Vote) { v.Sequence, v.State = 4, Unhealthy })
	step("another word", true, epoch.Add(2*time.Second), func(v *Vote) { v.Sequence, v.State = 7, Unhealthy })
	step("the same after a silence", true, epoch.Add(time.Minute), func(v *Vote) { v.Sequence, v.State = 8, Unhealthy })
	step("on something else", false, epoch, func(v *Vote) { v.Key = keyOf("b") })
	if got := table.Of(key); len(got) != 1 || got[0].Sequence != 8 {
		t.Errorf("%+v", got)
	}
}

func TestVotesOnACheckToComeAreKeptForAWhile(t *testing.T) {
	key := keyOf("a")
	v := Vote{Key: key, Origin: "n1", State: Healthy, Repeat: time.Second, Heard: epoch}
	table := NewTable()
	table.Merge([]Vote{v}, epoch)
	table.Tidy(epoch.Add(keepStrays - 1))
	table.Expect(key)
	table.Tidy(epoch.Add(keepStrays))
	if len(table.Of(key)) != 1 {
		t.Error("the vote is gone though its check has come")
	}
	table.Tidy(epoch.Add(keepStale))
	if table.Len() != 0 {
		t.Error("a vote of ten minutes ago is kept")
	}
	table.Forget(key)
	table.Merge([]Vote{v}, epoch)
	table.Tidy(epoch.Add(keepStrays))
	if table.Len() != 0 || table.strays != 0 {
		t.Errorf("%d votes, %d strays", table.Len(), table.strays)
	}
}

// A message takes ten times as much room as a vote, and nobody is told of one that counts no longer.
func TestMessagesAreKeptAsLongAsTheirVotesCount(t *testing.T) {
	key := keyOf("a")
	v := Vote{Key: key, Origin: "n1", Sequence: 1, State: Healthy, Repeat: time.Second, Heard: epoch}
	table := NewTable()
	table.Expect(key)
	table.Merge([]Vote{v}, epoch)
	table.Sign([]Vote{v}, "message")
	other := v
	other.Sequence = 2
	table.Sign([]Vote{other}, "of a vote that is not there")
	table.Tidy(v.FreshUntil().Add(-1))
	if got := table.Of(key)[0].Signed; got != "message" {
		t.Errorf("it came in %q", got)
	}
	table.Tidy(v.FreshUntil())
	if got := table.Of(key); len(got) != 1 || got[0].Signed != "" {
		t.Errorf("it is kept: %+v", got)
	}
}

// Whatever is heard, what is kept is bounded, and the count of strays is right.
func TestTableIsBounded(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		table := NewTable()
		now := epoch
		t.Repeat(map[string]func(*rapid.T){
			"merge": func(t *rapid.T) {
				v := anyVote(t)
				v.Origin = fmt.Sprint("n", rapid.IntRange(0, 40).Draw(t, "many"))
				v.Heard = now
				table.Merge([]Vote{v}, now)
			},
			"expect": func(t *rapid.T) { table.Expect(anyVote(t).Key) },
			"forget": func(t *rapid.T) { table.Forget(anyVote(t).Key) },
			"tidy": func(t *rapid.T) {
				now = now.Add(time.Duration(rapid.IntRange(0, 90).Draw(t, "seconds")) * time.Second)
				table.Tidy(now)
			},
			"": func(t *rapid.T) {
				strays := 0
				for key, votes := range table.votes {
					if len(votes) > maxOrigins {
						t.Fatalf("%d votes on one check", len(votes))
					}
					if !table.expected[key] {
						strays += len(votes)
					}
				}
				if strays != table.strays {
					t.Fatalf("%d strays, counted as %d", strays, table.strays)
				}
			},
		})
	})
}

func TestFloodOfUnknownChecksIsRefused(t *testing.T) {
	table := NewTable()
	table.Expect(keyOf("mine"))
	refused := 0
	for i := range maxStrays + 100 {
		_, n := table.Merge([]Vote{{Key: keyOf(fmt.Sprint(i)), Origin: "n1", State: Healthy, Repeat: time.Second, Heard: epoch}}, epoch)
		refused += n
	}
	if refused != 100 || table.Len() != maxStrays {
		t.Errorf("%d refused, %d kept", refused, table.Len())
	}
	if _, n := table.Merge([]Vote{{Key: keyOf("mine"), Origin: "n1", State: Healthy, Repeat: time.Second, Heard: epoch}}, epoch); n != 0 {
		t.Error("a vote on a check of our own was refused")
	}
}

func TestMessagesOfWhichAVoteCountsStill(t *testing.T) {
	table := NewTable()
	hear := func(key string, state State, signed string, age time.Duration) {
		table.Merge([]Vote{{Key: keyOf(key), Origin: "n1", State: state, Repeat: time.Second, Heard: epoch.Add(-age), Signed: signed}}, epoch)
	}
	hear("a", Healthy, "mixed", time.Second)
	hear("b", Unhealthy, "mixed", time.Second)
	hear("c", Healthy, "mixed", time.Second)
	hear("d", Unsure, "doubt", 0)
	hear("e", Healthy, "well", 0)
	hear("f", Healthy, "also well", 0)
	hear("g", Unsure, "", 0) // nobody can prove it
	hear("h", Unsure, "old", time.Minute-1)
	bad, good := table.Messages(epoch)
	if want := []Told{{"doubt", epoch}, {"mixed", epoch.Add(-time.Second)}}; !slices.Equal(bad, want) {
		t.Errorf("with bad news: %v, want %v", bad, want)
	}
	if want := []Told{{"also well", epoch}, {"well", epoch}}; !slices.Equal(good, want) {
		t.Errorf("without: %v, want %v", good, want)
	}
}

// It is made anew for each full exchange, under the lock that every probe takes.
func BenchmarkMessages(b *testing.B) {
	table, signed := NewTable(), ""
	for i := range 30_000 {
		if i%27 == 0 {
			signed = fmt.Sprintf("%-600d", i)
		}
		v := Vote{
			Key: keyOf(fmt.Sprint(i % 10_000)), Origin: fmt.Sprint("n", i/10_000), Sequence: 1, State: Healthy, Repeat: time.Hour, Heard: epoch, Signed: signed,
		}
		table.Expect(v.Key)
		table.Merge([]Vote{v}, epoch)
	}
	b.ReportAllocs()
	for b.Loop() {
		table.Messages(epoch)
	}
}
