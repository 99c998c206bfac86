package agent

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/pyserve/pyserve/config"
	"github.com/pyserve/pyserve/config/bundle"
	"github.com/pyserve/pyserve/node"
	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
)

func TestBundleIsServedOnlyAfterCommitAndThenLiesOnTheDisk(t *testing.T) {
	s := newScript(t)
	r := newRig(t, s, rigOptions{}).run()
	w := s.welcomed(t)
	b := bundleOf(t, "/a")
	release := s.sign(1, 1, b)
	checkPrepared(t, w.offer(t, 7, release, nil, b), 7)
	if r.node.Applied() != nil {
		t.Fatal("served before Commit")
	}
	w.commit(t, 6) // of something else
	w.commit(t, 7)
	if m := w.answer(t); !proto.Equal(m.GetCommitted().GetApplied(), release) {
		t.Fatalf("the answer is %v", m)
	}
	status := w.status(t, "the release", func(m *fleetv1.Status) bool { return proto.Equal(m.GetApplied(), release) })
	if status.GetListen() != r.node.ListenAddress() || status.GetGossipAddress() != "127.0.0.1:7946" || status.GetDraining() {
		t.Errorf("the status is %v", status)
	}
	r.stop()
	again := newRig(t, s, rigOptions{dir: r.dir})
	if !proto.Equal(again.node.Applied(), release) {
		t.Errorf("after a restart it serves %v", again.node.Applied())
	}
}

func TestAbortDropsWhatWasPrepared(t *testing.T) {
	s := newScript(t)
	r := newRig(t, s, rigOptions{}).run()
	w := s.welcomed(t)
	b, c := bundleOf(t, "/a"), bundleOf(t, "/b")
	checkPrepared(t, w.offer(t, 1, s.sign(1, 1, b), nil, b), 1)
	w.abort(t, 9) // of something else
	w.abort(t, 1)
	w.commit(t, 1) // too late
	// One that is still coming in is dropped too.
	w.begin(t, 2, s.sign(1, 1, b), nil)
	w.abort(t, 2)
	w.complete(t, 2, bundle.Between(nil, b))
	checkPrepared(t, w.offer(t, 3, s.sign(1, 2, c), nil, c), 3)
	if r.node.Applied() != nil {
		t.Error("something is served")
	}
	if left, _ := filepath.Glob(filepath.Join(r.dir, "bundles", "*")); len(left) != 2 {
		t.Errorf("the disk holds %v, want the bundle that is prepared now and its mark", left)
	}
}

func TestWhatWasPreparedIsDroppedWithItsStream(t *testing.T) {
	s := newScript(t)
	r := newRig(t, s, rigOptions{}).run()
	w := s.welcomed(t)
	b := bundleOf(t, "/a")
	checkPrepared(t, w.offer(t, 1, s.sign(1, 1, b), nil, b), 1)
	w.end <- nil
	again := s.welcomed(t)
	again.commit(t, 1)
	again.serve(t, 1, s.sign(1, 1, b), nil, b) // Prepare is free again
	if r.revision() != 1 {
		t.Errorf("serves revision %d", r.revision())
	}
}

func TestNewestOfferWins(t *testing.T) {
	s := newScript(t)
	r := newRig(t, s, rigOptions{}).run()
	w := s.welcomed(t)
	old, newer := bundleOf(t, "/old"), bundleOf(t, "/new")
	w.begin(t, 1, s.sign(1, 1, old), nil)
	w.begin(t, 2, s.sign(1, 2, newer), nil)
	w.complete(t, 1, bundle.Between(nil, old)) // of the one that was replaced
	w.complete(t, 2, bundle.Between(nil, newer))
	checkPrepared(t, w.answer(t), 2)
	// A prepared one is replaced too.
	checkPrepared(t, w.offer(t, 3, s.sign(1, 3, old), nil, old), 3)
	w.commit(t, 2)
	w.commit(t, 3)
	if m := w.answer(t); m.GetCommitted().GetNonce() != 3 {
		t.Errorf("got %v", m)
	}
	if r.revision() != 3 {
		t.Errorf("serves revision %d", r.revision())
	}
}

func TestDeltaLeadsFromWhatIsServed(t *testing.T) {
	s := newScript(t)
	r := newRig(t, s, rigOptions{}).run()
	w := s.welcomed(t)
	a, b, c := bundleOf(t, "/a"), bundleOf(t, "/b"), bundleOf(t, "/c")
	w.serve(t, 1, s.sign(1, 1, a), nil, a)
	w.serve(t, 2, s.sign(1, 2, b), a, b)
	// Against what is not served any more.
	if m := w.offer(t, 3, s.sign(1, 3, c), a, c); m.GetNeedFull().GetNonce() != 3 || !strings.Contains(m.GetNeedFull().GetReason(), bundle.ErrBase.Error()) {
		t.Fatalf("the answer is %v", m)
	}
	// Against the right base, and with a body that is another one.
	delta := bundle.Between(b, c)
	for i := range delta.Upserted {
		delta.Upserted[i].Body = append([]byte{}, delta.Upserted[i].Body...)
		delta.Upserted[i].Body[0] ^= 1
	}
	w.begin(t, 4, s.sign(1, 3, c), b)
	w.complete(t, 4, delta)
	if m := w.answer(t); m.GetNeedFull().GetNonce() != 4 || !strings.Contains(m.GetNeedFull().GetReason(), "digest") {
		t.Fatalf("the answer is %v", m)
	}
	if r.revision() != 2 {
		t.Fatalf("serves revision %d", r.revision())
	}
	w.serve(t, 5, s.sign(1, 3, c), nil, c)
}

// What this cluster's control did not sign is never served; and asking for it again, which brings the same, would be a
// circle of whole bundles.
func TestBundleThatIsNotSignedIsRefused(t *testing.T) {
	s := newScript(t)
	r := newRig(t, s, rigOptions{}).run()
	w := s.welcomed(t)
	a, b := bundleOf(t, "/a"), bundleOf(t, "/b")
	w.serve(t, 1, s.sign(1, 1, a), nil, a)
	_, foreign, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	good := s.sign(1, 2, b)
	replayed := proto.CloneOf(good)
	replayed.Revision = 3
	other := bundle.Sign(foreign, 1, 2, b.Digest())
	for i, release := range []*fleetv1.Release{other, replayed, {Epoch: 1, Revision: 2, Digest: good.GetDigest()}, {}, nil} {
		nonce := uint64(10 + 2*i)
		m := w.offer(t, nonce, release, nil, b)
		if len(m.GetPrepared().GetRefusals()) != 1 {
			t.Errorf("whole, release %d: the answer is %v, want a refusal", i, m)
		}
		w.commit(t, nonce)
		m = w.offer(t, nonce+1, release, a, b)
		if i < 3 && len(m.GetPrepared().GetRefusals()) != 1 { // the last two have no digest either
			t.Errorf("delta, release %d: the answer is %v, want a refusal", i, m)
		}
		w.commit(t, nonce+1)
	}
	checkRefused(t, w.offer(t, 30, other, nil, b), 30, "", bundle.ErrSignature.Error())
	// A good signature on another content.
	checkRefused(t, w.offer(t, 31, good, nil, a), 31, "", "digest")
	w.status(t, "the refusal", func(m *fleetv1.Status) bool { return len(m.GetRefusals()) == 1 })
	if r.revision() != 1 {
		t.Errorf("serves revision %d", r.revision())
	}
}

func TestNodeNeverGoesBackToALowerEpoch(t *testing.T) {
	s := newScript(t)
	r := newRig(t, s, rigOptions{}).run()
	w := s.welcomed(t)
	a, b := bundleOf(t, "/a"), bundleOf(t, "/b")
	w.serve(t, 1, s.sign(3, 5, a), nil, a)
	checkRefused(t, w.offer(t, 2, s.sign(2, 9, b), nil, b), 2, "", "of epoch 2, and the node has one of epoch 3")
	w.serve(t, 3, s.sign(4, 1, b), nil, b)
	r.stop()

	// Nor where the one that it has could not be served.
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	newRig(t, s, rigOptions{dir: r.dir, listen: taken.Addr().String()}).run()
	again := s.welcomed(t)
	checkRefused(t, again.offer(t, 1, s.sign(3, 5, a), nil, a), 1, "", "of epoch 3, and the node has one of epoch 4")
}

func TestNodeThatIsSentElsewhereGoesWithoutAComplaint(t *testing.T) {
	s := newScript(t)
	r := newRig(t, s, rigOptions{}).run()
	w := s.welcomed(t)
	a := bundleOf(t, "/a")
	w.serve(t, 1, s.sign(1, 1, a), nil, a)
	w.send(t, &fleetv1.ToNode{Message: &fleetv1.ToNode_Redirect{Redirect: &fleetv1.Redirect{}}})
	s.welcomed(t)
	if !r.log.has("control is stopping; going to another one") || r.log.has("no stream to control") {
		t.Error("the log does not tell it so")
	}
	if r.revision() != 1 {
		t.Errorf("serves revision %d", r.revision())
	}
}

func TestPauseThatControlAsksForIsTheNextAlone(t *testing.T) {
	b := backoff{shortest: otherPause}
	for range 1000 {
		b.once(time.Millisecond)
		if d := b.next(); d < 0 || d > time.Millisecond {
			t.Fatalf("paused %s, asked was a millisecond at most", d)
		}
	}
	b.once(-time.Second)
	if d := b.next(); d != 0 {
		t.Errorf("paused %s", d)
	}
	b.once(time.Hour)
	if d := b.next(); d > longestPause {
		t.Errorf("paused %s, more than ever", d)
	}
	if d := b.next(); d < 10*time.Millisecond {
		t.Errorf("the pause after it is %s", d)
	}
}

// A control that has lost what it had stored begins again with lower numbers.
func TestNodeNeverGoesBackToAnOlderRevision(t *testing.T) {
	s := newScript(t)
	r := newRig(t, s, rigOptions{}).run()
	w := s.welcomed(t)
	a, b := bundleOf(t, "/a"), bundleOf(t, "/b")
	w.serve(t, 1, s.sign(1, 5, a), nil, a)
	checkRefused(t, w.offer(t, 2, s.sign(1, 4, b), nil, b), 2, "", "the node serves revision 5 of the same epoch")
	if r.revision() != 5 {
		t.Errorf("serves revision %d", r.revision())
	}
	w.serve(t, 3, s.sign(2, 4, b), nil, b) // in another epoch it may
}

func TestDiskThatTakesNothingIsARefusal(t *testing.T) {
	s := newScript(t)
	r := newRig(t, s, rigOptions{}).run()
	w := s.welcomed(t)
	a, b := bundleOf(t, "/a"), bundleOf(t, "/b")
	w.serve(t, 1, s.sign(1, 1, a), nil, a)
	bundles := filepath.Join(r.dir, "bundles")
	if err := os.Rename(bundles, bundles+".away"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(bundles, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	checkRefused(t, w.offer(t, 2, s.sign(1, 2, b), a, b), 2, "--data-dir", "write revision 2 to disk")
	if r.revision() != 1 {
		t.Errorf("serves revision %d", r.revision())
	}
	if err := os.Remove(bundles); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(bundles+".away", bundles); err != nil {
		t.Fatal(err)
	}
	w.serve(t, 3, s.sign(1, 2, b), a, b)
}

func TestDiskThatFailsAtCommitDoesNotKeepTheNodeFromServing(t *testing.T) {
	s := newScript(t)
	r := newRig(t, s, rigOptions{}).run()
	w := s.welcomed(t)
	b := bundleOf(t, "/a")
	checkPrepared(t, w.offer(t, 1, s.sign(1, 1, b), nil, b), 1)
	if err := os.RemoveAll(filepath.Join(r.dir, "bundles")); err != nil {
		t.Fatal(err)
	}
	w.commit(t, 1)
	if m := w.answer(t); m.GetCommitted().GetApplied().GetRevision() != 1 {
		t.Errorf("the answer is %v", m)
	}
	eventually(t, "the log tells", func() bool { return r.log.has("serving a revision that is not on disk") })
}

func TestNodeThatDrainsSaysWhatItServes(t *testing.T) {
	s := newScript(t)
	r := newRig(t, s, rigOptions{}).run()
	w := s.welcomed(t)
	a, b := bundleOf(t, "/a"), bundleOf(t, "/b")
	w.serve(t, 1, s.sign(1, 1, a), nil, a)
	checkPrepared(t, w.offer(t, 2, s.sign(1, 2, b), a, b), 2)
	if err := r.node.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.commit(t, 2)
	if m := w.answer(t); m.GetCommitted() == nil || m.GetCommitted().GetApplied().GetRevision() == 2 {
		t.Errorf("a node that drains says %v", m)
	}
	w.status(t, "draining", (*fleetv1.Status).GetDraining)
	checkRefused(t, w.offer(t, 3, s.sign(1, 3, a), nil, a), 3, "", "stopping")
}

// One resource may be larger than gRPC's 4 MiB: a pool of very many backends, for one.
func TestLargeResourceArrives(t *testing.T) {
	s := newScript(t)
	newRig(t, s, rigOptions{}).run()
	w := s.welcomed(t)
	large := bundle.Resource{Key: bundle.Key{Kind: "novelty", Name: "large"}, Body: make([]byte, 6<<20)}
	b, err := bundle.New([]bundle.Resource{large})
	if err != nil {
		t.Fatal(err)
	}
	checkRefused(t, w.offer(t, 1, s.sign(1, 1, b), nil, b), 1, "", `of kind "novelty", which this version does not know`)
}

func TestBundleLargerThanItsLimitIsRefused(t *testing.T) {
	s := newScript(t)
	r := newRig(t, s, rigOptions{})
	for name, o := range map[string]*offer{
		"bytes":     {head: &fleetv1.Offer{Nonce: 4}, size: bundle.MaxBytes},
		"resources": {head: &fleetv1.Offer{Nonce: 4}, delta: bundle.Delta{Removed: make([]bundle.Key, 2*bundle.MaxResources)}},
	} {
		t.Run(name, func(t *testing.T) {
			sent := &recorder{}
			c := &conversation{agent: r.Agent, stream: sent, offer: o}
			if err := c.part(&fleetv1.OfferPart{Nonce: 4, Removed: []*fleetv1.ResourceKey{{Kind: "route", Name: "one more"}}}); err != nil {
				t.Fatal(err)
			}
			if len(sent.sent) != 1 || c.offer != nil {
				t.Fatalf("said %v", sent.sent)
			}
			checkRefused(t, sent.sent[0], 4, "", "larger than 256 MiB")
		})
	}
}

// backends makes verdicts; the same number is the same verdict.
func backends(n int, state fleetv1.BackendState, reason string) []node.BackendStatus {
	var out []node.BackendStatus
	for i := range n {
		out = append(out, node.BackendStatus{
			Route: "/", Address: fmt.Sprintf("127.0.0.1:%d", i), State: state, Reason: reason, Since: time.Unix(1, 0),
		})
	}
	return out
}

func TestStatusCarriesOnlyBackendsThatChanged(t *testing.T) {
	sent := &recorder{}
	c := &conversation{stream: sent}
	told := func(full bool, of []node.BackendStatus) (got []*fleetv1.Status) {
		t.Helper()
		sent.sent = nil
		if err := c.sendBackends(&fleetv1.Status{Listen: "x", BackendsFull: full}, slices.Values(of)); err != nil {
			t.Fatal(err)
		}
		for _, m := range sent.sent {
			if size := proto.Size(m); size > 2*statusBytes {
				t.Errorf("a status has %d bytes", size)
			}
			got = append(got, m.GetStatus())
		}
		return got
	}
	check := func(what string, got []*fleetv1.Status, full bool, backends int) {
		t.Helper()
		n := 0
		for i, m := range got {
			n += len(m.GetBackends())
			if m.GetBackendsFull() != (full && i == 0) || m.GetListen() != "x" {
				t.Errorf("%s: message %d is full: %t", what, i, m.GetBackendsFull())
			}
		}
		if n != backends {
			t.Errorf("%s: told %d backends, want %d", what, n, backends)
		}
	}
	three := backends(3, 2, "")
	check("the first", told(true, three), true, 3)
	check("the same", told(false, backends(3, 2, "")), false, 0)
	changed := backends(3, 2, "")
	changed[1].State, changed[1].Reason = 3, "refused \xff"
	got := told(false, changed)
	check("one changed", got, false, 1)
	if got[0].GetBackends()[0].GetReason() != "refused \uFFFD" {
		t.Errorf("told %v", got)
	}
	check("one came", told(false, append(backends(4, 2, "")[3:], changed...)), false, 1)
	check("two went", told(false, backends(2, 2, "")), true, 2)
	check("as many, but others", told(false, backends(4, 2, "")[2:]), true, 2)
	check("none", told(false, nil), true, 0)
	// Names of routes can be long.
	many := backends(3000, 2, "")
	for i := range many {
		many[i].Route = strings.Repeat("r", 2000)
	}
	got = told(true, many)
	if check("many", got, true, 3000); len(got) < 5 {
		t.Errorf("%d messages for 6 MB", len(got))
	}
}

func TestMessagesThatSayNothingAreIgnored(t *testing.T) {
	s := newScript(t)
	newRig(t, s, rigOptions{}).run()
	w := s.welcomed(t)
	for _, m := range []*fleetv1.ToNode{
		{}, {Message: &fleetv1.ToNode_OfferPart{OfferPart: &fleetv1.OfferPart{Last: true}}}, {Message: &fleetv1.ToNode_Commit{Commit: &fleetv1.Commit{}}},
		{Message: &fleetv1.ToNode_Abort{Abort: &fleetv1.Abort{}}}, {Message: &fleetv1.ToNode_Offer{}}, {Message: &fleetv1.ToNode_Welcome{}},
		{Message: &fleetv1.ToNode_Offer{Offer: &fleetv1.Offer{Nonce: 5, BaseDigest: []byte("short")}}},
	} {
		w.send(t, m)
	}
	w.complete(t, 5, bundle.Delta{})
	if m := w.answer(t); m.GetNeedFull().GetNonce() != 5 {
		t.Errorf("the answer is %v", m)
	}
	b := bundleOf(t, "/a")
	w.serve(t, 6, s.sign(1, 1, b), nil, b)
}

// FuzzOffer feeds offers to a node that serves something: whatever comes, it answers once and serves what it served.
func FuzzOffer(f *testing.F) {
	f.Add([]byte{}, []byte{})
	if head, err := proto.Marshal(&fleetv1.Offer{Nonce: 1, Release: &fleetv1.Release{Digest: make([]byte, 32)}, BaseDigest: make([]byte, 32)}); err == nil {
		part, _ := proto.Marshal(&fleetv1.OfferPart{Nonce: 1, Last: true, Upserted: []*fleetv1.Resource{{Kind: string(config.KindRoute), Name: "/", Body: []byte{1}}}})
		f.Add(head, part)
	}
	key := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)).Public().(ed25519.PublicKey)
	f.Fuzz(func(t *testing.T, head, part []byte) {
		o, p := &fleetv1.Offer{}, &fleetv1.OfferPart{}
		if proto.Unmarshal(head, o) != nil || proto.Unmarshal(part, p) != nil {
			t.Skip()
		}
		sent := &recorder{}
		a := &Agent{options: Options{Logger: (&logBuffer{}).logger()}, troubles: map[string]string{}}
		a.identity.Store(&Identity{ReleaseKey: key})
		c := &conversation{agent: a, stream: sent}
		for _, m := range []*fleetv1.ToNode{
			{Message: &fleetv1.ToNode_Offer{Offer: o}}, {Message: &fleetv1.ToNode_OfferPart{OfferPart: p}}, {Message: &fleetv1.ToNode_Commit{Commit: &fleetv1.Commit{Nonce: o.GetNonce()}}},
		} {
			if err := c.handle(context.Background(), m); err != nil {
				t.Fatal(err)
			}
		}
		if len(sent.sent) > 1 || c.prepared != nil || a.applied != nil {
			t.Errorf("something unsigned was taken: %v", sent.sent)
		}
	})
}

func TestAQuestionIsAnsweredByTheLiveGeneration(t *testing.T) {
	s := newScript(t)
	newRig(t, s, rigOptions{}).run()
	w := s.welcomed(t)
	question := &fleetv1.ToNode{Message: &fleetv1.ToNode_Question{Question: &fleetv1.Question{
		Id: 5, Head: []byte("GET /a/x?y HTTP/1.1\r\nHost: a\r\n\r\n"),
	}}}
	w.send(t, question)
	if a := w.answer(t).GetAnswer(); a.GetId() != 5 || a.GetStatus() != 503 || a.GetRevision() != 0 {
		t.Errorf("before the first bundle: %v", a)
	}
	b := bundleOf(t, "/a")
	w.serve(t, 1, s.sign(1, 1, b), nil, b)
	w.send(t, question)
	if a := w.answer(t).GetAnswer(); a.GetId() != 5 || a.GetRoute() != "/a" || a.GetForward().GetPath() != "/x?y" || a.GetRevision() != 1 {
		t.Errorf("got %v", a)
	}
}
