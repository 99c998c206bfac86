package vote

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// said are votes as one message holds them: of one origin and sequence, said at one time.
func said(t *rapid.T) []Vote {
	common := anyVote(t)
	common.Sequence = rapid.Uint64Range(uint64(epoch.UnixMicro()), maxSequence).Draw(t, "sequence")
	votes := rapid.SliceOfN(rapid.Custom(anyVote), 1, 20).Draw(t, "votes")
	for i := range votes {
		v := &votes[i]
		v.Origin, v.Sequence, v.Heard = common.Origin, common.Sequence, common.Heard
		v.Since = time.UnixMilli(min(v.Since.UnixMilli(), int64(v.Sequence/1000)))
		if i > 0 && rapid.Bool().Draw(t, "as the one before") {
			v.State, v.Reason, v.Repeat = votes[i-1].State, votes[i-1].Reason, votes[i-1].Repeat
		}
	}
	return votes
}

func TestVotesSurviveTheWire(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		votes := said(t)
		votes[0].Reason = strings.Repeat("r", MaxReason)
		message, n := Encode(votes, 1<<20)
		if n != len(votes) {
			t.Fatalf("%d of %d encoded", n, len(votes))
		}
		got, err := Decode(votes[0].Origin, message, votes[0].Heard)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.EqualFunc(got, votes, same) {
			t.Fatalf("%+v became %+v", votes, got)
		}
	})
}

func same(a, b Vote) bool {
	if !a.Since.Equal(b.Since) || !a.Heard.Equal(b.Heard) {
		return false
	}
	a.Since, a.Heard = b.Since, b.Heard
	return a == b
}

func TestVotesThatSayTheSameTakeLittleRoom(t *testing.T) {
	votes := make([]Vote, 300)
	for i := range votes {
		votes[i] = Vote{
			Key: keyOf(fmt.Sprint(i)), Sequence: uint64(epoch.UnixMicro()), State: Unhealthy, Reason: "connection refused",
			Repeat: time.Second, Since: epoch.Add(-time.Second),
		}
	}
	message, n := Encode(votes, 1<<20)
	if n != len(votes) || len(message) > 19*len(votes) {
		t.Errorf("%d votes take %d bytes", n, len(message))
	}
}

func TestEncodeKeepsToItsLimit(t *testing.T) {
	votes := make([]Vote, 100)
	for i := range votes {
		votes[i] = Vote{Key: keyOf("a"), Origin: "n1", Sequence: 1, State: Healthy, Repeat: time.Second, Since: epoch, Heard: epoch}
	}
	message, n := Encode(votes, 1000)
	if len(message) > 1000 || len(message) < 950 || n < 50 {
		t.Errorf("%d votes in %d bytes", n, len(message))
	}
	if got, err := Decode("n1", message, epoch); err != nil || len(got) != n {
		t.Errorf("%d votes, %v", len(got), err)
	}
	if message, n := Encode(votes, 10); message != nil || n != 0 {
		t.Errorf("%d votes in %d bytes of ten", n, len(message))
	}
	votes[40].Sequence++
	if _, n := Encode(votes, 1<<20); n != 40 {
		t.Errorf("%d votes in one message, of which the 41st is of another sequence", n)
	}
}

func TestDecodeRefuses(t *testing.T) {
	encoded := func(change func(*Vote)) []byte {
		v := Vote{Key: keyOf("a"), Sequence: 1, State: Healthy, Repeat: time.Second, Since: epoch}
		change(&v)
		message, _ := Encode([]Vote{v}, 1<<20)
		return message
	}
	good := encoded(func(*Vote) {})
	none := bytes.Clone(good[:len(good)-17])
	none[len(none)-1] = 0
	for _, c := range []struct {
		name    string
		message []byte
		want    string
	}{
		{"nothing", nil, "empty"},
		{"another version", append([]byte{1}, good[1:]...), "version 1"},
		{"a piece missing", good[:len(good)-1], "ends within"},
		{"a second group begun", append(bytes.Clone(good), 1), "after 1: it ends within"},
		{"a group of none", none, "no check"},
		{"a reason too long", encoded(func(v *Vote) { v.Reason = strings.Repeat("x", MaxReason+1) }), "length of reason"},
		{"a reason that is not text", encoded(func(v *Vote) { v.Reason = "\xff" }), "not UTF-8"},
		{"a reason that moves the cursor", encoded(func(v *Vote) { v.Reason = "\x1b[2J" }), "control characters"},
		{"a state not known", encoded(func(v *Vote) { v.State = 9 }), "state 9"},
		{"no time to its repetition", encoded(func(v *Vote) { v.Repeat = 0 }), "never repeated"},
		{"a repetition too far off", encoded(func(v *Vote) { v.Repeat = 25 * time.Hour }), "time to its repetition is more"},
		{"a sequence that leaves no room", encoded(func(v *Vote) { v.Sequence = 1 << 63 }), "sequence is more"},
		{"a state from before all time", append(bytes.Clone(good[:len(good)-1]), 1), "time since its state is more"},
	} {
		if votes, err := Decode("n1", c.message, epoch); err == nil || votes != nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %d votes, %v", c.name, len(votes), err)
		}
	}
}

func FuzzDecode(f *testing.F) {
	v := Vote{Key: keyOf("a"), Sequence: uint64(epoch.UnixMicro()), State: Unhealthy, Reason: "refused", Repeat: time.Second, Since: epoch}
	message, _ := Encode([]Vote{v, v}, 1<<20)
	f.Add([]byte(nil))
	f.Add(message)
	f.Add(message[:20])
	f.Fuzz(func(t *testing.T, b []byte) {
		votes, err := Decode("n1", b, epoch)
		if err != nil {
			if votes != nil || len(err.Error()) > 200 {
				t.Errorf("%d votes with the error %v", len(votes), err)
			}
			return
		}
		table := NewTable()
		table.Merge(votes, epoch)
		table.Tidy(epoch)
		for _, v := range votes {
			if len(v.Reason) > MaxReason || v.Repeat <= 0 {
				t.Errorf("%+v passed", v)
			}
			Decide(table.Of(v.Key), NewMembers([]string{v.Origin}), epoch)
		}
		again, n := Encode(votes, 1<<30)
		if n != len(votes) {
			t.Fatalf("%d of %d encoded again", n, len(votes))
		}
		if len(votes) == 0 {
			return
		}
		twice, err := Decode("n1", again, epoch)
		if err != nil || !slices.EqualFunc(votes, twice, same) {
			t.Errorf("%+v became %+v, %v", votes, twice, err)
		}
	})
}
