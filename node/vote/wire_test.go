package vote

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// On the way a vote grows no younger: its age travels, not its date.
func TestVotesSurviveTheWire(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		votes := rapid.SliceOfN(rapid.Custom(anyVote), 1, 5).Draw(t, "votes")
		votes[0].Reason, votes[0].Origin, votes[0].Sequence = strings.Repeat("r", MaxReason), strings.Repeat("o", MaxOrigin), maxSequence
		message, n := Encode(votes, epoch, 1<<20)
		if n != len(votes) {
			t.Fatalf("%d of %d encoded", n, len(votes))
		}
		later := epoch.Add(time.Hour) // the receiver's clock is an hour ahead
		got, err := Decode(message, later)
		if err != nil {
			t.Fatal(err)
		}
		for i := range got {
			got[i].Heard = got[i].Heard.Add(-time.Hour)
			if !got[i].Since.Equal(votes[i].Since) || !got[i].Heard.Equal(votes[i].Heard) {
				t.Fatalf("dates of %+v became those of %+v", votes[i], got[i])
			}
			got[i].Since, got[i].Heard = votes[i].Since, votes[i].Heard
		}
		if !slices.Equal(got, votes) {
			t.Fatalf("%+v became %+v", votes, got)
		}
	})
}

func TestEncodeKeepsToItsLimit(t *testing.T) {
	votes := make([]Vote, 100)
	for i := range votes {
		votes[i] = Vote{Key: keyOf("a"), Origin: "n1", State: Healthy, Repeat: time.Second, Since: epoch, Heard: epoch}
	}
	message, n := Encode(votes, epoch, 1000)
	if len(message) > 1000 || len(message) < 900 || n < 20 {
		t.Errorf("%d votes in %d bytes", n, len(message))
	}
	if got, err := Decode(message, epoch); err != nil || len(got) != n {
		t.Errorf("%d votes, %v", len(got), err)
	}
	if message, n := Encode(votes, epoch, 10); message != nil || n != 0 {
		t.Errorf("%d votes in %d bytes of ten", n, len(message))
	}
}

func TestDecodeRefuses(t *testing.T) {
	encoded := func(change func(*Vote)) []byte {
		v := Vote{Key: keyOf("a"), Origin: "n1", Sequence: 1, State: Healthy, Repeat: time.Second, Since: epoch, Heard: epoch}
		change(&v)
		message, _ := Encode([]Vote{v}, epoch, 1<<20)
		return message
	}
	good := encoded(func(*Vote) {})
	for _, c := range []struct {
		name    string
		message []byte
		want    string
	}{
		{"nothing", nil, "empty"},
		{"another version", append([]byte{2}, good[1:]...), "version 2"},
		{"a piece missing", good[:len(good)-1], "ends within"},
		{"a second vote begun", append(bytes.Clone(good), 1), "vote 2: it ends within"},
		{"an origin too long", encoded(func(v *Vote) { v.Origin = strings.Repeat("x", MaxOrigin+1) }), "length of origin"},
		{"no origin", encoded(func(v *Vote) { v.Origin = "" }), "no origin"},
		{"a reason too long", encoded(func(v *Vote) { v.Reason = strings.Repeat("x", MaxReason+1) }), "length of reason"},
		{"a reason that is not text", encoded(func(v *Vote) { v.Reason = "\xff" }), "not UTF-8"},
		{"a reason that moves the cursor", encoded(func(v *Vote) { v.Reason = "\x1b[2J" }), "control characters"},
		{"a state not known", encoded(func(v *Vote) { v.State = 9 }), "state 9"},
		{"no time to its repetition", encoded(func(v *Vote) { v.Repeat = 0 }), "never repeated"},
		{"a repetition too far off", encoded(func(v *Vote) { v.Repeat = 25 * time.Hour }), "time to its repetition is more"},
		{"a sequence that leaves no room", encoded(func(v *Vote) { v.Sequence = 1 << 63 }), "sequence is more"},
		{"too many", bytes.Join(slices.Insert(slices.Repeat([][]byte{good[1:]}, MaxVotes+1), 0, []byte{wireVersion}), nil), "more than 65536"},
	} {
		if votes, err := Decode(c.message, epoch); err == nil || votes != nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %d votes, %v", c.name, len(votes), err)
		}
	}
}

func FuzzDecode(f *testing.F) {
	v := Vote{Key: keyOf("a"), Origin: "n1", Sequence: 1, State: Unhealthy, Reason: "refused", Repeat: time.Second, Since: epoch, Heard: epoch}
	message, _ := Encode([]Vote{v, v}, epoch.Add(time.Minute), 1<<20)
	f.Add([]byte(nil))
	f.Add(message)
	f.Add(message[:20])
	f.Fuzz(func(t *testing.T, b []byte) {
		votes, err := Decode(b, epoch)
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
			if len(v.Reason) > MaxReason || len(v.Origin) > MaxOrigin || v.Repeat <= 0 || v.Heard.After(epoch) {
				t.Errorf("%+v passed", v)
			}
			Decide(table.Of(v.Key), NewMembers([]string{v.Origin}), epoch)
		}
		again, n := Encode(votes, epoch, 1<<30)
		if n != len(votes) {
			t.Fatalf("%d of %d encoded again", n, len(votes))
		}
		if len(votes) == 0 {
			return
		}
		twice, err := Decode(again, epoch)
		if err != nil || !slices.EqualFunc(votes, twice, func(a, b Vote) bool { return !newer(a, b) && !newer(b, a) && a.Key == b.Key && a.Origin == b.Origin }) {
			t.Errorf("%+v became %+v, %v", votes, twice, err)
		}
	})
}
