package gossip_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/pyserve/pyserve/cluster/gossip"
	"github.com/pyserve/pyserve/cluster/gossiptest"
)

// memberlist waits for nobody when it shuts down; a probe under way ends within a few probe intervals.
func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/hashicorp/memberlist.(*Memberlist).probeNode"))
}

var key = bytes.Repeat([]byte{1}, 32)

func start(t *testing.T, n *gossiptest.Network, i int, change func(*gossip.Options)) *gossip.Gossip {
	t.Helper()
	transport, err := n.Listen(fmt.Sprintf("10.0.0.%d:7946", i))
	if err != nil {
		t.Fatal(err)
	}
	options := gossip.Options{
		Name:      fmt.Sprint("m", i),
		Label:     "test",
		Keys:      [][]byte{key},
		Transport: transport,
		Metadata:  func(netip.AddrPort) ([]byte, error) { return []byte("first"), nil },
		Logger:    slog.New(slog.DiscardHandler),
	}
	if change != nil {
		change(&options)
	}
	g, err := gossip.Start(options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Shutdown(); err != nil {
			t.Error(err)
		}
	})
	return g
}

func join(t *testing.T, g, to *gossip.Gossip) {
	t.Helper()
	if err := g.Join(to.Address()); err != nil {
		t.Fatal(err)
	}
	// The other side answers before it has merged what it got.
	synctest.Wait()
}

// view writes what one member sees, by name; who is gone is there once.
func view(g *gossip.Gossip) string {
	var lines []string
	for _, p := range g.Peers() {
		state := "there"
		if p.Gone {
			state = "gone"
		}
		lines = append(lines, fmt.Sprintf("%s %s %s", p.Name, state, p.Metadata))
	}
	slices.Sort(lines)
	return strings.Join(lines, ", ")
}

func expect(t *testing.T, g *gossip.Gossip, want string) {
	t.Helper()
	if got := view(g); got != want {
		t.Errorf("seen: %s\nwant: %s", got, want)
	}
}

// await is expect within a time, of the fake clock.
func await(t *testing.T, within time.Duration, g *gossip.Gossip, want string) {
	t.Helper()
	for deadline := time.Now().Add(within); time.Now().Before(deadline); {
		if view(g) == want {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	expect(t, g, want)
}

func TestMembersThatLeaveOrDieAreToldOnce(t *testing.T) {
	gossiptest.Run(t, func(t *testing.T) {
		n := gossiptest.NewNetwork(1)
		a, b, c := start(t, n, 1, nil), start(t, n, 2, nil), start(t, n, 3, nil)
		join(t, b, a)
		join(t, c, a)
		await(t, time.Second, a, "m1 there first, m2 there first, m3 there first")

		if err := b.Leave(t.Context(), []byte("last")); err != nil {
			t.Fatal(err)
		}
		if err := b.Shutdown(); err != nil {
			t.Fatal(err)
		}
		await(t, time.Second, a, "m1 there first, m2 gone last, m3 there first")
		expect(t, a, "m1 there first, m3 there first")

		n.Partition(c.Address())
		await(t, 30*time.Second, a, "m1 there first, m3 gone first")
		expect(t, a, "m1 there first")
		n.Heal()
		join(t, c, a)
		await(t, 10*time.Second, a, "m1 there first, m3 there first")
	})
}

func TestLeaveSaysWhetherSomeoneWasTold(t *testing.T) {
	gossiptest.Run(t, func(t *testing.T) {
		n := gossiptest.NewNetwork(1)
		a, b := start(t, n, 1, nil), start(t, n, 2, nil)
		if err := b.Leave(t.Context(), make([]byte, gossip.MaxMetadata+1)); err == nil {
			t.Error("metadata that memberlist panics at is announced")
		}
		join(t, b, a)
		n.Partition(b.Address())
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		begun := time.Now()
		if err := b.Leave(ctx, []byte("last")); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("without anyone in reach: %v", err)
		}
		if took := time.Since(begun); took > 2*time.Second {
			t.Errorf("Leave took %s", took)
		}
	})
}

func TestAnnounceReachesTheOthers(t *testing.T) {
	gossiptest.Run(t, func(t *testing.T) {
		n := gossiptest.NewNetwork(1)
		a, b := start(t, n, 1, nil), start(t, n, 2, nil)
		join(t, b, a)
		time.Sleep(2 * time.Second)
		drain(a.Changed())
		if err := b.Announce(t.Context(), []byte("second")); err != nil {
			t.Fatal(err)
		}
		<-a.Changed()
		expect(t, a, "m1 there first, m2 there second")
		if err := b.Announce(t.Context(), make([]byte, gossip.MaxMetadata+1)); err == nil {
			t.Error("metadata that memberlist panics at is announced")
		}
	})
}

func drain(ch <-chan struct{}) {
	select {
	case <-ch:
	default:
	}
}

func TestJoinSaysWhyNot(t *testing.T) {
	gossiptest.Run(t, func(t *testing.T) {
		n := gossiptest.NewNetwork(1)
		a := start(t, n, 1, nil)
		b := start(t, n, 2, func(o *gossip.Options) { o.Keys = [][]byte{bytes.Repeat([]byte{2}, 32)} })
		c := start(t, n, 3, func(o *gossip.Options) { o.Label = "another" })
		if err := a.Join(b.Address()); !errors.Is(err, gossip.ErrForeignKey) {
			t.Errorf("another key: %v", err)
		}
		if err := a.Join(c.Address()); !errors.Is(err, gossip.ErrForeignCluster) {
			t.Errorf("another label: %v", err)
		}
		err := a.Join("10.0.0.9:7946")
		if err == nil || err.Error() != "cannot join 10.0.0.9:7946: connection refused" {
			t.Errorf("nobody there: %v", err)
		}
		for _, g := range []*gossip.Gossip{a, b, c} {
			if !g.Alone() {
				t.Errorf("%s sees %s", g.Address(), view(g))
			}
		}
	})
}

func TestAnOldKeyIsStillRead(t *testing.T) {
	gossiptest.Run(t, func(t *testing.T) {
		n := gossiptest.NewNetwork(1)
		a := start(t, n, 1, nil)
		b := start(t, n, 2, func(o *gossip.Options) { o.Keys = [][]byte{key, bytes.Repeat([]byte{2}, 32)} })
		join(t, b, a)
		if a.Alone() {
			t.Error("the member with two keys is not seen")
		}
	})
}

func TestMembersThatAreNotAcceptedStayOut(t *testing.T) {
	gossiptest.Run(t, func(t *testing.T) {
		n := gossiptest.NewNetwork(1)
		a := start(t, n, 1, func(o *gossip.Options) {
			o.Accept = func(name string, _ netip.AddrPort, _ []byte) error { return errors.New("unwelcome: " + name) }
		})
		b := start(t, n, 2, nil)
		join(t, b, a)
		time.Sleep(5 * time.Second)
		expect(t, a, "m1 there first")
	})
}

func TestANameTakenIsReported(t *testing.T) {
	gossiptest.Run(t, func(t *testing.T) {
		n := gossiptest.NewNetwork(1)
		a, b := start(t, n, 1, nil), start(t, n, 2, nil)
		c := start(t, n, 3, func(o *gossip.Options) { o.Name = "m2" })
		join(t, b, a)
		join(t, c, a)
		want := gossip.Conflict{Name: "m2", Holder: b.Address(), Claimant: c.Address()}
		if got := <-a.Conflicts(); got != want {
			t.Errorf("%+v, want %+v", got, want)
		}
		expect(t, a, "m1 there first, m2 there first")
	})
}

func TestStartRefusesKeysThatAreNotAES256(t *testing.T) {
	for _, keys := range [][][]byte{nil, {key[:16]}, {key, nil}} {
		if _, err := gossip.Start(gossip.Options{Name: "m", Keys: keys, Logger: slog.New(slog.DiscardHandler)}); err == nil {
			t.Errorf("%d keys are taken", len(keys))
		}
	}
}

func TestSocketsTakeOnePortForBoth(t *testing.T) {
	options := gossip.Options{
		Name:      "m1",
		Label:     "test",
		Keys:      [][]byte{key},
		Bind:      netip.MustParseAddrPort("127.0.0.1:0"),
		Advertise: netip.MustParseAddr("127.0.0.1"),
		Timing:    gossip.Timing{ProbeInterval: 100 * time.Millisecond},
		Logger:    slog.New(slog.DiscardHandler),
	}
	a, err := gossip.Start(options)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Shutdown()
	options.Name, options.Bind = "m2", netip.MustParseAddrPort(a.Address())
	_, err = gossip.Start(options)
	if want := "cannot listen on " + a.Address() + ": address already in use"; err == nil || err.Error() != want {
		t.Errorf("a port in use: %v, want %s", err, want)
	}
	options.Bind = netip.MustParseAddrPort("127.0.0.1:0")
	b, err := gossip.Start(options)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Shutdown()
	if err := b.Join(a.Address()); err != nil {
		t.Fatal(err)
	}
	if b.Alone() {
		t.Error("the first member is not seen")
	}
}
