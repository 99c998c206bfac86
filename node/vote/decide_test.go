package vote

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// Each story gives the votes in the rank of their origins: "+" healthy, "-" unhealthy, "?" unsure, "o" healthy and too old to
// count, "." none; and after it the state and who was counted.
func TestDecide(t *testing.T) {
	key := keyOf("a")
	members := NewMembers(nodes(6))
	ranked := members.First(key, 6)
	for _, c := range []struct{ name, votes, want string }{
		{"nothing heard", "......", "undecided"},
		{"all three agree", "+++...", "healthy 0 1 2"},
		{"two of three", "+-+...", "healthy 0 1 2"},
		{"two of three the other way", "-+-...", "unhealthy 0 1 2"},
		{"one voice is no quorum, though it is all there is", "-.....", "undecided 0"},
		{"two that differ", "+-....", "undecided 0 1"},
		{"two that agree", "-.-...", "unhealthy 0 2"},
		{"who is unsure does not count", "?--...", "unhealthy 1 2"},
		{"two that are unsure leave no quorum", "??-...", "undecided 2"},
		{"what is old does not count", "o+-...", "undecided 1 2"},
		{"a stand-in fills a gap", ".+-..-", "unhealthy 1 2 5"},
		{"a fourth voice is not needed", "+-+--.", "healthy 0 1 2"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var votes []Vote
			for i, letter := range c.votes {
				v := Vote{Key: key, Origin: ranked[i], Repeat: time.Second, Heard: epoch, State: Healthy}
				switch letter {
				case '.':
					continue
				case '-':
					v.State, v.Reason = Unhealthy, "because "+fmt.Sprint(i)
				case '?':
					v.State = Unsure
				case 'o':
					v.Heard = epoch.Add(-v.Repeat*3/2 - Slack)
				}
				votes = append(votes, v)
			}
			got := Decide(votes, members, epoch)
			text := got.State.String()
			for _, v := range got.Counted {
				place, _ := members.Place(key, v.Origin)
				text += " " + fmt.Sprint(place)
			}
			if text != c.want {
				t.Errorf("%s, want %s", text, c.want)
			}
			if got.State == Unhealthy && got.Reason != "because "+fmt.Sprint(strings.Index(c.votes, "-")) {
				t.Errorf("the reason is %q", got.Reason)
			}
		})
	}
}

func TestVotesOfStrangersDoNotCount(t *testing.T) {
	key := keyOf("a")
	var votes []Vote
	for _, origin := range []string{"x", "y", "z"} {
		votes = append(votes, Vote{Key: key, Origin: origin, State: Unhealthy, Repeat: time.Second, Heard: epoch})
	}
	if got := Decide(votes, NewMembers(nodes(5)), epoch); got.State != Undecided || len(got.Counted) != 0 {
		t.Errorf("%+v", got)
	}
}

func TestCountHoldsUntilItsFirstVoteIsOld(t *testing.T) {
	key := keyOf("a")
	votes := []Vote{
		{Key: key, Origin: "n0", State: Healthy, Repeat: time.Second, Heard: epoch},
		{Key: key, Origin: "n1", State: Healthy, Repeat: 5 * time.Second, Heard: epoch},
	}
	c := Decide(votes, NewMembers(nodes(3)), epoch)
	if c.State != Healthy || !c.Until.Equal(epoch.Add(1500*time.Millisecond+Slack)) {
		t.Errorf("%v until %v", c.State, c.Until.Sub(epoch))
	}
	if c := Decide(votes, NewMembers(nodes(3)), c.Until); c.State != Undecided {
		t.Errorf("%v when one vote is old", c.State)
	}
}

// A state needs a quorum of those that are counted, so one voter alone never moves anybody.
func TestOneVoterDecidesNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		key, members := keyOf("a"), NewMembers(nodes(8))
		var votes []Vote
		for _, name := range nodes(8) {
			if state := State(rapid.IntRange(0, 3).Draw(t, name)); state != Undecided {
				votes = append(votes, Vote{Key: key, Origin: name, State: state, Repeat: time.Second, Heard: epoch})
			}
		}
		c := Decide(votes, members, epoch)
		n := map[State]int{}
		for _, v := range c.Counted {
			n[v.State]++
		}
		if c.State != Undecided && n[c.State] < Quorum || c.State == Undecided && max(n[Healthy], n[Unhealthy]) >= Quorum || n[Unsure] > 0 {
			t.Fatalf("%v by %v", c.State, n)
		}
	})
}
