package upstream

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"
)

func TestDialsSpreadOverTheAddresses(t *testing.T) {
	inFakeTime(t, newNames("10.0.0.1", "10.0.0.2", "10.0.0.3"), func(t *testing.T, n *named) {
		for range 30 {
			n.reach(t)
		}
		if got := n.dialled(); !maps.Equal(got, map[string]int{"10.0.0.1:80": 10, "10.0.0.2:80": 10, "10.0.0.3:80": 10}) {
			t.Errorf("dialled %v, want 10 each", got)
		}
		n.down["10.0.0.2:80"] = syscall.ECONNREFUSED
		for range 30 {
			n.reach(t)
		}
		if got := n.dialled(); got["10.0.0.1:80"] != 15 || got["10.0.0.3:80"] != 15 {
			t.Errorf("dialled %v with one down, want 15 for each of the others", got)
		}
	})
}

func TestBothFamiliesAreTried(t *testing.T) {
	for _, dead := range []string{"10.0.0.1:80", "[2001:db8::1]:80"} {
		inFakeTime(t, newNames("::ffff:10.0.0.1", "2001:db8::1"), func(t *testing.T, n *named) {
			n.down[dead] = syscall.ENETUNREACH
			for range 4 {
				if got := n.ask(t); got == dead {
					t.Errorf("answered by %s, which is down", got)
				}
				if took := n.reach(t); took != 0 {
					t.Errorf("%s down: a dial took %v", dead, took)
				}
			}
		})
	}
}

func TestSilentAddressCostsItsHeadStart(t *testing.T) {
	inFakeTime(t, newNames("10.0.0.1", "10.0.0.2"), func(t *testing.T, n *named) {
		n.silent["10.0.0.1:80"] = true
		var took []time.Duration
		for range 4 {
			took = append(took, n.reach(t))
		}
		slices.Sort(took)
		if !slices.Equal(took, []time.Duration{0, 0, attemptDelay, attemptDelay}) {
			t.Errorf("dials took %v, want half of them %v", took, attemptDelay)
		}
	})
}

func TestAllAddressesSilentIsATimeout(t *testing.T) {
	inFakeTime(t, newNames("10.0.0.1", "10.0.0.2"), func(t *testing.T, n *named) {
		n.silent["10.0.0.1:80"], n.silent["10.0.0.2:80"] = true, true
		begin := time.Now()
		if _, err := n.Dial(t.Context()); !errors.Is(err, context.DeadlineExceeded) || time.Since(begin) != 5*time.Second {
			t.Errorf("%v after %v, want the connect timeout of 5s", err, time.Since(begin))
		}
	})
}

// A reason that changed with each probe would be told as news each time.
func TestErrorDoesNotDependOnTheTurn(t *testing.T) {
	inFakeTime(t, newNames("10.0.0.1", "10.0.0.2", "2001:db8::1"), func(t *testing.T, n *named) {
		n.down["[2001:db8::1]:80"], n.down["10.0.0.1:80"], n.down["10.0.0.2:80"] = syscall.ENETUNREACH, syscall.ECONNREFUSED, syscall.EHOSTUNREACH
		for range 6 {
			if _, err := n.Dial(t.Context()); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("got %v, want what the first address that there is a way to says", err)
			}
		}
	})
	inFakeTime(t, newNames("2001:db8::1", "2001:db8::2"), func(t *testing.T, n *named) {
		n.down["[2001:db8::1]:80"], n.down["[2001:db8::2]:80"] = syscall.ENETUNREACH, syscall.ENETUNREACH
		if _, err := n.Dial(t.Context()); !errors.Is(err, syscall.ENETUNREACH) {
			t.Errorf("got %v", err)
		}
	})
}

// closing notes that a connection was closed.
type closing struct {
	net.Conn
	closed chan string
	name   string
}

func (c *closing) Close() error {
	c.closed <- c.name
	return nil
}

func TestConnectionThatLostTheRaceIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		closed := make(chan string, 1)
		delays := map[string]time.Duration{"a": 400 * time.Millisecond, "b": 50 * time.Millisecond}
		dial := func(_ context.Context, _, address string) (net.Conn, error) { // does not heed its context in time
			<-time.After(delays[address])
			return &closing{closed: closed, name: address}, nil
		}
		conn, err := dialAny(t.Context(), dial, []string{"a", "b"}, 0)
		if err != nil {
			t.Fatal(err)
		}
		if won := conn.(*closing).name; won != "b" {
			t.Errorf("%s won", won)
		}
		select {
		case lost := <-closed:
			if lost != "a" {
				t.Errorf("%s was closed", lost)
			}
		default:
			t.Error("the late connection is open")
		}
	})
}

func TestEveryAddressIsTriedOnceInEachTurn(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n, turn := rapid.IntRange(2, 20).Draw(t, "n"), rapid.Uint64().Draw(t, "turn")
		seen := make(map[int]bool)
		for i := range n {
			p := position(n, turn, i)
			if p < 0 || p >= n || seen[p] {
				t.Fatalf("position %d of attempt %d is out of range or was there before", p, i)
			}
			seen[p] = true
		}
	})
}

func TestFamiliesAlternate(t *testing.T) {
	var found []netip.Addr
	for _, text := range []string{"10.0.0.3", "::ffff:10.0.0.2", "10.0.0.1", "2001:db8::2", "2001:db8::1", "10.0.0.1"} {
		found = append(found, netip.MustParseAddr(text))
	}
	want := []string{"[2001:db8::1]:80", "10.0.0.1:80", "[2001:db8::2]:80", "10.0.0.2:80", "10.0.0.3:80"}
	if got := dialable(found, "80"); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// What a name costs over an address is to be seen here: no network, only the choice of where to dial.
func BenchmarkDial(b *testing.B) {
	conn, _ := net.Pipe()
	dial := func(context.Context, string, string) (net.Conn, error) { return conn, nil }
	for name, found := range map[string][]string{"address": nil, "name of one": {"10.0.0.1"}, "name of three": {"10.0.0.1", "10.0.0.2", "10.0.0.3"}} {
		b.Run(fmt.Sprint("host=", name), func(b *testing.B) {
			spec := Spec{Host: "10.0.0.1", Port: 80}
			if found != nil {
				spec.Host = "api.internal"
			}
			backend := acquire(b, newRegistry(b, Options{DialContext: dial, Resolver: newNames(found...)}), spec)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := backend.Dial(b.Context()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
