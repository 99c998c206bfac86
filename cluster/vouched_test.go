package cluster

import (
	"bytes"
	"fmt"
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"github.com/pyserve/pyserve/cluster/gossip"
	"github.com/pyserve/pyserve/cluster/gossiptest"
	"github.com/pyserve/pyserve/cluster/state"
	"github.com/pyserve/pyserve/proto/voucher"
)

// intruder takes part with the right gossip key, under the wire name and with the metadata that it likes, and joins
// address(1).
func (w *world) intruder(i int, wire string, metadata []byte) *gossip.Gossip {
	w.t.Helper()
	transport, err := w.network.Listen(address(i))
	if err != nil {
		w.t.Fatal(err)
	}
	g, err := gossip.Start(gossip.Options{
		Name: wire, Label: "test", Keys: [][]byte{key}, Transport: transport, Logger: slog.New(slog.DiscardHandler),
		Metadata: func(netip.AddrPort) ([]byte, error) { return metadata, nil },
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		if err := g.Shutdown(); err != nil {
			w.t.Error(err)
		}
	})
	if err := g.Join(address(1)); err != nil {
		w.t.Fatal(err)
	}
	return g
}

// said is what a member says of itself, as anybody with the gossip key can read it.
func said(t *testing.T, c *Cluster) []byte {
	t.Helper()
	metadata, err := c.metadata(c.ownFacts(), c.gossip.AddrPort())
	if err != nil {
		t.Fatal(err)
	}
	return metadata
}

func TestAMemberWithoutAVoucherIsNotBelievedUntilItHasOne(t *testing.T) {
	gossiptest.Run(t, func(t *testing.T) {
		w := newWorld(t)
		a := w.start(1)
		var late []byte
		b := w.start(2, seeds(1), func(o *Options) {
			vouch(t, o)
			late, o.Voucher = o.Voucher, nil
		})
		time.Sleep(time.Minute)
		if view(a) != "n1 alive" || a.Dropped()[unvouched] == 0 {
			t.Errorf("n1 sees %s and counts %v", view(a), a.Dropped())
		}
		if view(b) != "n1 alive, n2 alive" {
			t.Errorf("n2 sees %s", view(b))
		}
		if err := b.SetVoucher(late); err != nil {
			t.Fatal(err)
		}
		awaitView(t, 30*time.Second, a, "n1 alive, n2 alive")
	})
}

func TestAVoucherForAnotherKeyIsNotTaken(t *testing.T) {
	gossiptest.Run(t, func(t *testing.T) {
		a := newWorld(t).start(1)
		if err := a.SetVoucher(voucherFor(t, a.options, issuer, farOff)); err == nil {
			t.Error("it is taken")
		}
	})
}

func TestAStrangerWithTheGossipKeyIsNotBelieved(t *testing.T) {
	gossiptest.Run(t, func(t *testing.T) {
		w := newWorld(t)
		a := w.start(1)
		stranger, other := Options{Name: "evil", Role: RoleNode, ClusterID: "test"}, Options{Name: "evil", Role: RoleNode, ClusterID: "other"}
		for i, metadata := range [][]byte{
			state.Metadata{}.EncodeUnsigned(),
			[]byte("?"),
			append(state.Metadata{Voucher: make([]byte, voucher.Size)}.EncodeUnsigned(), make([]byte, voucher.SignatureSize)...),
			append(state.Metadata{Voucher: voucherFor(t, other, issuer, farOff)}.EncodeUnsigned(), make([]byte, voucher.SignatureSize)...),
			append(state.Metadata{Voucher: voucherFor(t, stranger, issuer, time.Now())}.EncodeUnsigned(), make([]byte, voucher.SignatureSize)...),
		} {
			w.intruder(10+i, "node:evil", metadata)
		}
		time.Sleep(10 * time.Second)
		if view(a) != "n1 alive" {
			t.Errorf("n1 sees %s", view(a))
		}
		if counts := a.Dropped(); counts[unvouched] == 0 || counts[malformed] == 0 {
			t.Errorf("it counts %v", counts)
		}
	})
}

func TestACopiedVoucherIsOfNoUse(t *testing.T) {
	gossiptest.Run(t, func(t *testing.T) {
		w := newWorld(t)
		a, b := w.start(1), w.start(2, seeds(1))
		awaitView(t, 5*time.Second, a, "n1 alive, n2 alive")
		copied := said(t, b)
		kill(t, b)
		awaitView(t, time.Minute, a, "n1 alive, n2 dead")
		time.Sleep(10 * time.Second) // its name may come back from elsewhere by now
		w.intruder(3, "node:n2", copied)
		w.intruder(4, "node:n4", copied)
		bent := bytes.Clone(copied)
		bent[17]++ // the revision
		w.intruder(5, "node:n2", bent)
		time.Sleep(10 * time.Second)
		if view(a) != "n1 alive, n2 dead" || a.Dropped()[forged] == 0 || a.Dropped()[unvouched] == 0 {
			t.Errorf("n1 sees %s and counts %v", view(a), a.Dropped())
		}
	})
}

func TestAMemberMayComeBackAtAnotherAddress(t *testing.T) {
	gossiptest.Run(t, func(t *testing.T) {
		w := newWorld(t)
		a, b := w.start(1), w.start(2, seeds(1))
		awaitView(t, 5*time.Second, a, "n1 alive, n2 alive")
		kill(t, b)
		awaitView(t, time.Minute, a, "n1 alive, n2 dead")
		time.Sleep(10 * time.Second)
		w.start(3, seeds(1), named("n2"), func(o *Options) { o.Key, o.Voucher = b.options.Key, b.options.Voucher })
		awaitView(t, 30*time.Second, a, "n1 alive, n2 alive")
	})
}

func TestANameThatWasGivenToALaterKeyIsNotTheFirstHoldersAnyMore(t *testing.T) {
	gossiptest.Run(t, func(t *testing.T) {
		w := newWorld(t)
		a, first := w.start(1), w.start(2, seeds(1))
		awaitView(t, 5*time.Second, a, "n1 alive, n2 alive")
		stop(t, first)
		second := w.start(3, seeds(1), named("n2"), func(o *Options) {
			o.Key = issuer
			o.Voucher = voucherFor(t, *o, issuer, farOff.Add(time.Hour))
		})
		awaitView(t, 30*time.Second, a, "n1 alive, n2 alive")
		stop(t, second)
		awaitView(t, 30*time.Second, a, "n1 alive, n2 left")
		w.start(4, seeds(1), named("n2"), func(o *Options) { o.Key, o.Voucher = first.options.Key, first.options.Voucher })
		time.Sleep(time.Minute)
		awaitView(t, 0, a, "n1 alive, n2 left")
	})
}

func TestAMemberWhoseVoucherEndsIsListedNoMore(t *testing.T) {
	gossiptest.Run(t, func(t *testing.T) {
		w := newWorld(t)
		a := w.start(1)
		w.start(2, seeds(1), func(o *Options) {
			vouch(t, o)
			o.Voucher = voucherFor(t, *o, o.Key, time.Now().Add(time.Hour))
		})
		awaitView(t, 5*time.Second, a, "n1 alive, n2 alive")
		time.Sleep(59 * time.Minute)
		awaitView(t, 0, a, "n1 alive, n2 alive")
		time.Sleep(5 * time.Minute)
		awaitView(t, 0, a, "n1 alive, n2 dead")
	})
}

// message is one in the name of a member, signed by the key of somebody.
func message(t *testing.T, o Origin, sequence uint64, signer *Cluster) []byte {
	t.Helper()
	unsigned := state.Message{Origin: o, Sequence: sequence, Topic: TopicHealth, Payload: []byte("lie")}.EncodeUnsigned()
	signature, err := voucher.Sign(signer.options.Key, state.SignedMessage("test", unsigned))
	if err != nil {
		t.Fatal(err)
	}
	return append(unsigned, signature...)
}

func TestForgedMessagesAreDroppedAndCounted(t *testing.T) {
	gossiptest.Run(t, func(t *testing.T) {
		w := newWorld(t)
		box := newMailbox()
		a, b := w.start(1, box.open), w.start(2, seeds(1))
		awaitView(t, 5*time.Second, a, "n1 alive, n2 alive")
		evil := w.intruder(3, "node:evil", nil)
		far := uint64(1) << 62
		for _, m := range map[string][]byte{
			"another's name": message(t, nodeNamed("n2"), far, a),
			"no such name":   message(t, nodeNamed("evil"), far, a),
			"its own":        message(t, nodeNamed("n1"), far, b),
			"nonsense":       bytes.Repeat([]byte{1}, 500),
		} {
			if err := evil.Tell(m); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(10 * time.Second)
		if counts := a.Dropped(); counts[forged] == 0 || counts[unvouched] == 0 || counts[malformed] == 0 {
			t.Errorf("it counts %v", counts)
		}
		if len(box.received) > 0 {
			t.Errorf("it got %v", box.received)
		}
		publish(t, b, "truth")
		await(t, 5*time.Second, "what n2 says itself", func() bool { return box.got("node n2 1 truth") == 1 })
	})
}

// What is told again, by whomever, is as old as what its origin has said since, whatever is claimed.
func TestAMessageToldAgainIsNoNewsAndNoYounger(t *testing.T) {
	gossiptest.Run(t, func(t *testing.T) {
		w := newWorld(t)
		box := newMailbox()
		a, b := w.start(1, box.open), w.start(2, seeds(1))
		awaitView(t, 5*time.Second, a, "n1 alive, n2 alive")
		withheld := message(t, nodeNamed("n2"), b.messages.next(time.Now()), b)
		time.Sleep(time.Minute)
		truth := publish(t, b, "truth")
		await(t, 5*time.Second, "the message", func() bool { return box.got("node n2 1 truth") == 1 })
		for _, m := range [][]byte{[]byte(truth), withheld} {
			a.merge(state.AppendTold(nil, state.Told{Message: m}))
			a.receive(m)
		}
		if box.got("node n2 1 truth") != 1 || box.got("node n2 1 lie") != 1 {
			t.Errorf("it got %v", box.received)
		}
		box.mu.Lock()
		defer box.mu.Unlock()
		if age := box.news[1].Age; age < time.Minute {
			t.Errorf("what was withheld for a minute counts as said %v ago", age)
		}
	})
}

// A member that control vouched for cannot put words into the mouth of another one at a full exchange, and its lie costs one proof.
func TestForgedWordsInAnExchangeAreDroppedAndCounted(t *testing.T) {
	gossiptest.Run(t, func(t *testing.T) {
		w := newWorld(t)
		box := newMailbox()
		a, b, liar := w.start(1, box.open), w.start(2, seeds(1)), w.start(3, seeds(1))
		awaitView(t, 5*time.Second, a, "n1 alive, n2 alive, n3 alive")
		now := uint64(time.Now().UnixMicro())
		var exchange []byte
		add := func(m []byte) { exchange = state.AppendTold(exchange, state.Told{Message: m}) }
		add(message(t, nodeNamed("n3"), now, liar)) // its own word counts
		add(message(t, nodeNamed("gone"), now, liar))
		for i := range uint64(100) {
			add(message(t, nodeNamed("n2"), now+i, liar))
		}
		bent := []byte(publish(t, b, "true"))
		add(append(bent[:len(bent)-70], bent[len(bent)-69:]...))
		a.merge(exchange)
		if box.got("node n3 1 lie") != 1 || box.got("node n2 1 lie") != 0 {
			t.Errorf("it got %v", box.received)
		}
		if counts := a.Dropped(); counts[forged] != 1 || counts[unvouched] != 1 {
			t.Errorf("it counts %v", counts)
		}
		a.merge([]byte("nonsense"))
		if a.Dropped()[malformed] != 1 {
			t.Errorf("it counts %v", a.Dropped())
		}
	})
}

// An exchange with what was heard before proves nothing anew.
func TestAnExchangeWithNothingNewCostsNoProof(t *testing.T) {
	gossiptest.Run(t, func(t *testing.T) {
		w := newWorld(t)
		box := newMailbox()
		a, b := w.start(1, box.open), w.start(2, seeds(1))
		awaitView(t, 5*time.Second, a, "n1 alive, n2 alive")
		exchange := state.AppendTold(nil, state.Told{Message: []byte(publish(t, b, "news"))})
		await(t, 5*time.Second, "the message", func() bool { return box.got("node n2 1 news") == 1 })
		a.vouched.forget(nodeNamed("n2")) // a proof would fail
		a.merge(exchange)
		if n := a.Dropped()[unvouched]; n != 0 || box.got("node n2 1 news") != 1 {
			t.Errorf("%d proofs, %v", n, box.received)
		}
	})
}

// Whatever comes with the right key, what is kept is bounded by what control vouched for.
func TestAFloodWithTheRightKeyTakesNoMemory(t *testing.T) {
	gossiptest.Run(t, func(t *testing.T) {
		w := newWorld(t)
		a, b := w.start(1), w.start(2, seeds(1))
		awaitView(t, 5*time.Second, a, "n1 alive, n2 alive")
		for i := range 20000 {
			name := fmt.Sprint("evil", i)
			_ = a.accept("node:"+name, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), 7946), said(t, b)[:34])
			a.receive(message(t, nodeNamed(name), uint64(i), b)[:i%90])
		}
		for i := range 300 {
			a.receive(message(t, nodeNamed(fmt.Sprint("evil", i)), uint64(i), b))
		}
		if n := len(a.vouched.holders); n != 1 {
			t.Errorf("%d holders of vouchers are kept, want that of n2", n)
		}
		if a.messages.ledger.Len() > 0 {
			t.Errorf("%d messages are remembered", a.messages.ledger.Len())
		}
		if counts := a.Dropped(); counts[unvouched] < 20300 || counts[malformed] < 19000 {
			t.Errorf("it counts %v", counts)
		}
		awaitView(t, 0, a, "n1 alive, n2 alive")
	})
}

func nodeNamed(name string) Origin { return Origin{Role: RoleNode, Name: name} }
