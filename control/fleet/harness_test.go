package fleet

import (
	"crypto/ed25519"
	"log/slog"
	"maps"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/pyserve/pyserve/config"
	"github.com/pyserve/pyserve/config/bundle"
	"github.com/pyserve/pyserve/control/fleettest"
	"github.com/pyserve/pyserve/control/rollout"
	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var releaseKey = ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))

// newTarget makes the target of a revision; bodies are by name.
func newTarget(t testing.TB, revision uint64, bodies map[string]string) *Target {
	t.Helper()
	var resources []bundle.Resource
	for _, name := range slices.Sorted(maps.Keys(bodies)) {
		resources = append(resources, bundle.Resource{Key: bundle.Key{Kind: config.KindRoute, Name: name}, Body: []byte(bodies[name])})
	}
	b, err := bundle.New(resources)
	if err != nil {
		t.Fatal(err)
	}
	return &Target{Release: bundle.Sign(releaseKey, 1, revision, b.Digest()), Bundle: b}
}

func newFleet(options Options) *Fleet {
	if options.Logger == nil {
		options.Logger = slog.New(slog.DiscardHandler)
	}
	options.Welcome = func() *fleetv1.Welcome { return &fleetv1.Welcome{ControlName: "c1"} }
	return New(options)
}

// server gives how the fleet serves the streams of a node.
func (f *Fleet) server(name string) func(fleettest.Stream) error {
	return func(s fleettest.Stream) error {
		_, err := f.Serve(name, s)
		return err
	}
}

// connect makes nodes that do as they are told and waits until nothing moves any more.
func connect(f *Fleet, nodes ...*fleettest.Node) {
	for _, n := range nodes {
		n.Connect(f.server(n.Name))
	}
	synctest.Wait()
}

// open connects a node that the test plays itself, up to its Welcome.
func open(t *testing.T, f *Fleet, name string, applied *fleetv1.Release) *fleettest.Conn {
	t.Helper()
	c := fleettest.Open(f.server(name))
	c.Say(fleettest.Hello(name, applied))
	if m := c.Hear(); m.GetWelcome().GetControlName() != "c1" {
		t.Fatalf("the answer to Hello is %v, want a Welcome", m)
	}
	return c
}

// hearOffer takes a whole offer in, and gives its head and what it carries.
func hearOffer(t *testing.T, c *fleettest.Conn) (*fleetv1.Offer, bundle.Delta) {
	t.Helper()
	head := c.Hear().GetOffer()
	if head == nil {
		t.Fatal("no offer came")
	}
	var delta bundle.Delta
	if base, err := bundle.ParseDigest(head.GetBaseDigest()); err == nil {
		delta.Base = base
	}
	for {
		part := c.Hear().GetOfferPart()
		if part == nil || part.GetNonce() != head.GetNonce() {
			t.Fatalf("got %v within offer %d", part, head.GetNonce())
		}
		fleettest.Take(&delta, part)
		if part.GetLast() {
			return head, delta
		}
	}
}

// silent fails the test if control says anything in the bubble's present.
func silent(t *testing.T, c *fleettest.Conn) {
	t.Helper()
	synctest.Wait()
	select {
	case m := <-c.Heard():
		t.Fatalf("control says %v, want nothing", m)
	default:
	}
}

func checkProgress(t *testing.T, f *Fleet, name string, target *Target, want rollout.State) {
	t.Helper()
	synctest.Wait()
	if got, note := f.Progress(name, target); got != want {
		t.Fatalf("%s is in state %d (%s), want %d", name, got, note, want)
	}
}

// pass lets time pass in the bubble, which takes none outside of it.
func pass(d time.Duration) { time.Sleep(d) }

// story runs a test in a bubble, with a fleet that is closed in the end.
func story(t *testing.T, options Options, tell func(t *testing.T, f *Fleet)) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(options)
		defer f.Close()
		tell(t, f)
	})
}
