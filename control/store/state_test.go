package store

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	"github.com/pyserve/pyserve/config"
	"github.com/pyserve/pyserve/config/bundle"
	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
	storev1 "github.com/pyserve/pyserve/proto/pyserve/store/v1"
)

// routes makes a bundle of routes with these bodies.
func routes(t interface{ Fatal(...any) }, bodies map[string]string) *bundle.Bundle {
	var resources []bundle.Resource
	for name, body := range bodies {
		resources = append(resources, bundle.Resource{Key: bundle.Key{Kind: config.KindRoute, Name: name}, Body: []byte(body)})
	}
	b, err := bundle.New(resources)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// releaseOf is a release whose signature nobody here looks at.
func releaseOf(epoch, revision uint64, b *bundle.Bundle) *fleetv1.Release {
	digest := b.Digest()
	return &fleetv1.Release{Epoch: epoch, Revision: revision, Digest: digest[:], Signature: make([]byte, 64)}
}

var someTime = time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)

// commitOf is the command that makes b the next revision of the state, as it comes out of the log.
func commitOf(t interface{ Fatal(...any) }, s *state, b *bundle.Bundle, document string) *storev1.Command {
	c, err := newCommit(&storev1.Revision{
		Release: releaseOf(s.epoch, s.next(), b), Parent: s.activeNumber(), Author: "admin", Message: "because",
		Created: timestamppb.New(someTime.Add(time.Duration(s.next()) * time.Second)),
	}, []byte(document), bundle.Between(s.activeBundle(), b), func(h sum) bool { return s.bodies[h] != nil })
	if err != nil {
		t.Fatal(err)
	}
	data, err := testSeal.encodeCommand(&storev1.Command{Action: &storev1.Command_CommitRevision{CommitRevision: c}})
	if err != nil {
		t.Fatal(err)
	}
	command, err := testSeal.decodeCommand(data)
	if err != nil {
		t.Fatal(err)
	}
	return command
}

func mustApply(t interface{ Fatal(...any) }, s *state, c *storev1.Command) {
	if err := s.apply(c); err != nil {
		t.Fatal(err)
	}
}

// checkBodies counts the references anew.
func checkBodies(t interface{ Fatal(...any) }, s *state) {
	want := map[sum]int{}
	if s.active != nil {
		for r := range s.active.bundle.All() {
			want[sha256.Sum256(r.Body)]++
		}
	}
	pastBytes := 0
	for _, v := range s.past {
		pastBytes += v.bytes
		for _, r := range v.back.Upserted {
			want[sha256.Sum256(r.Body)]++
		}
	}
	got := map[sum]int{}
	for h, held := range s.bodies {
		got[h] = held.refs
		if sha256.Sum256(held.data) != h {
			t.Fatal("a body lies under another's hash")
		}
	}
	if !maps.Equal(got, want) || pastBytes != s.pastBytes {
		t.Fatal(fmt.Sprintf("%d bodies are held, want %d, or with other counts; %d bytes, want %d", len(got), len(want), s.pastBytes, pastBytes))
	}
}

func written(t interface{ Fatal(...any) }, s *state) []byte {
	var out bytes.Buffer
	if err := s.capture().writeTo(&out); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// TestAnyHistoryIsKeptAndRestored commits random bundles and checks after each that nothing of what must be kept is
// lost, that nothing else is, and that a snapshot restores to the same.
func TestAnyHistoryIsKeptAndRestored(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := newState()
		committed := []*bundle.Bundle{nil}
		for i := range rapid.IntRange(1, 12).Draw(t, "revisions") {
			b := routes(t, rapid.MapOf(rapid.StringMatching(`[a-c]{0,2}`), rapid.StringMatching(`[x-z]?`)).Draw(t, "bundle"))
			mustApply(t, s, commitOf(t, s, b, fmt.Sprintf("document %d", i+1)))
			committed = append(committed, b)
			checkBodies(t, s)
		}
		name := rapid.StringMatching(`[a-z]{1,5}`).Draw(t, "node")
		mustApply(t, s, &storev1.Command{Action: &storev1.Command_PutNode{PutNode: &storev1.PutNode{Node: (&Node{Name: name}).toProto()}}})
		restored, err := readSnapshot(bytes.NewReader(written(t, s)))
		if err != nil {
			t.Fatal(err)
		}
		checkBodies(t, restored)
		if !bytes.Equal(written(t, restored), written(t, s)) {
			t.Fatal("the restored state is another one")
		}
		for _, one := range []*state{s, restored} {
			for number := uint64(1); number < uint64(len(committed)); number++ {
				v, way, err := one.find(number)
				if err != nil {
					t.Fatal(err)
				}
				b, err := rebuild(one.activeBundle(), way, v.Digest)
				if err != nil || b.Digest() != committed[number].Digest() {
					t.Fatalf("revision %d came out as %v, %v", number, b, err)
				}
				if document, err := decompress(v.packed); err != nil || string(document) != fmt.Sprintf("document %d", number) {
					t.Fatalf("revision %d has document %q, %v", number, document, err)
				}
			}
		}
	})
}

func TestOnlyTheLastRevisionsAreKeptWhole(t *testing.T) {
	s := newState()
	const revisions = WholeRevisions + 50
	for i := range revisions {
		mustApply(t, s, commitOf(t, s, routes(t, map[string]string{"same": "same", "changing": fmt.Sprint(i)}), "document"))
	}
	checkBodies(t, s)
	if len(s.bodies) != 1+WholeRevisions {
		t.Errorf("%d bodies are held, want the one that stayed and one of each whole revision", len(s.bodies))
	}
	all := s.revisions()
	if len(all) != revisions || !all[0].Active || all[1].Active || all[0].Number != revisions {
		t.Fatalf("got %d revisions from %+v", len(all), all[0])
	}
	for i, r := range all {
		if whole := i < WholeRevisions; (r.Release != nil) != whole || r.Number != uint64(revisions-i) || r.Author != "admin" {
			t.Fatalf("revision %d is %+v", r.Number, r)
		}
	}
	if _, _, err := s.find(50); !errors.Is(err, ErrNotKept) {
		t.Errorf("got %v", err)
	}
	if _, _, err := s.find(51); err != nil {
		t.Errorf("got %v", err)
	}
	for _, number := range []uint64{0, revisions + 1} {
		if _, _, err := s.find(number); !errors.Is(err, ErrNotFound) {
			t.Errorf("revision %d: got %v", number, err)
		}
	}
	restored, err := readSnapshot(bytes.NewReader(written(t, s)))
	if err != nil || !bytes.Equal(written(t, restored), written(t, s)) {
		t.Fatalf("restored %v, %v", restored, err)
	}
	checkBodies(t, restored)
}

func TestHistoryThatHoldsTooMuchBecomesLinesSooner(t *testing.T) {
	s := newState()
	mustApply(t, s, commitOf(t, s, routes(t, map[string]string{"a": "a"}), ""))
	s.pastBytes = maxHistoryBytes // as though the past held so much
	mustApply(t, s, commitOf(t, s, routes(t, map[string]string{"b": "b"}), ""))
	if len(s.past) != 0 || len(s.lines) != 1 || s.activeNumber() != 2 {
		t.Fatalf("%d whole and %d lines", len(s.past), len(s.lines))
	}
}

func TestCommandCarriesOnlyBodiesThatAreNotHeld(t *testing.T) {
	s := newState()
	first := map[string]string{"a": "one", "b": "one", "c": "two"}
	c := commitOf(t, s, routes(t, first), "").GetCommitRevision()
	if len(c.GetBodies()) != 2 || len(c.GetUpserted()) != 3 {
		t.Errorf("the first command has %d bodies for %d resources", len(c.GetBodies()), len(c.GetUpserted()))
	}
	mustApply(t, s, commitOf(t, s, routes(t, first), ""))
	c = commitOf(t, s, routes(t, map[string]string{"a": "three", "b": "one"}), "").GetCommitRevision()
	if len(c.GetBodies()) != 1 || len(c.GetUpserted()) != 1 || len(c.GetRemoved()) != 1 {
		t.Errorf("a change is %v", c)
	}
	mustApply(t, s, commitOf(t, s, routes(t, map[string]string{"a": "three", "b": "one"}), ""))
	c = commitOf(t, s, routes(t, first), "").GetCommitRevision()
	if len(c.GetBodies()) != 0 || len(c.GetUpserted()) != 2 {
		t.Errorf("the way back is %v", c)
	}
}

func TestRefusedCommandChangesNothing(t *testing.T) {
	s := newState()
	mustApply(t, s, commitOf(t, s, routes(t, map[string]string{"a": "one"}), "document"))
	before := written(t, s)
	next := routes(t, map[string]string{"a": "two"})
	bad := func(change func(*storev1.CommitRevision)) *storev1.Command {
		c := commitOf(t, s, next, "document")
		change(c.GetCommitRevision())
		return c
	}
	node := func(n *storev1.Node) *storev1.Command {
		return &storev1.Command{Action: &storev1.Command_PutNode{PutNode: &storev1.PutNode{Node: n}}}
	}
	token := func(m *storev1.Token) *storev1.Command {
		return &storev1.Command{Action: &storev1.Command_PutToken{PutToken: &storev1.PutToken{Token: m}}}
	}
	for name, c := range map[string]*storev1.Command{
		"another parent":   bad(func(c *storev1.CommitRevision) { c.Revision.Parent = 0 }),
		"another number":   bad(func(c *storev1.CommitRevision) { c.Revision.Release.Revision = 7 }),
		"another epoch":    bad(func(c *storev1.CommitRevision) { c.Revision.Release.Epoch = 2 }),
		"another digest":   bad(func(c *storev1.CommitRevision) { c.Revision.Release.Digest = make([]byte, 32) }),
		"no digest":        bad(func(c *storev1.CommitRevision) { c.Revision.Release.Digest = nil }),
		"no time":          bad(func(c *storev1.CommitRevision) { c.Revision.Created = nil }),
		"no body":          bad(func(c *storev1.CommitRevision) { c.Bodies = nil }),
		"no hash":          bad(func(c *storev1.CommitRevision) { c.Upserted[0].Sha256 = nil }),
		"damaged document": bad(func(c *storev1.CommitRevision) { c.Document = []byte{0xff} }),
		"long message":     bad(func(c *storev1.CommitRevision) { c.Revision.Message = strings.Repeat("a", MaxMessageBytes+1) }),
		"long author":      bad(func(c *storev1.CommitRevision) { c.Revision.Author = strings.Repeat("a", maxNameBytes+1) }),
		"odd removal": bad(func(c *storev1.CommitRevision) {
			c.Removed = append(c.Removed, &fleetv1.ResourceKey{Kind: "route", Name: "nobody"})
		}),
		"no revision":         {Action: &storev1.Command_CommitRevision{}},
		"node without a name": node(&storev1.Node{KeyHash: make([]byte, 32), Enrolled: timestamppb.New(someTime)}),
		"node without a key":  node(&storev1.Node{Name: "n", Enrolled: timestamppb.New(someTime)}),
		"node without a time": node(&storev1.Node{Name: "n", KeyHash: make([]byte, 32)}),
		"no node":             node(nil),
		"token without an id": token(&storev1.Token{Kind: "join", Hash: make([]byte, 32), Created: timestamppb.New(someTime)}),
		"token of no kind":    token(&storev1.Token{Id: "a", Hash: make([]byte, 32), Created: timestamppb.New(someTime)}),
		"token without hash":  token(&storev1.Token{Id: "a", Kind: "join", Created: timestamppb.New(someTime)}),
	} {
		if err := s.apply(c); err == nil {
			t.Errorf("%s was applied", name)
		}
		if !bytes.Equal(written(t, s), before) {
			t.Fatalf("%s changed the state", name)
		}
	}
	checkBodies(t, s)
	mustApply(t, s, commitOf(t, s, next, "document"))
}

func TestDocumentThatUnpacksToTooMuchIsRefused(t *testing.T) {
	if _, err := compress(make([]byte, MaxDocumentBytes+1)); err == nil {
		t.Error("it was packed")
	}
	half, err := compress(make([]byte, MaxDocumentBytes))
	if err != nil {
		t.Fatal(err)
	}
	if document, err := decompress(half); err != nil || len(document) != MaxDocumentBytes {
		t.Fatalf("got %d bytes, %v", len(document), err)
	}
	if _, err := decompress(half[:len(half)/2]); err == nil {
		t.Error("half of it was unpacked")
	}
}

func TestCommandIsReadAsItWasWrittenOrNotAtAll(t *testing.T) {
	data, err := testSeal.encodeCommand(&storev1.Command{Action: &storev1.Command_RemoveNode{RemoveNode: &storev1.RemoveNode{Name: "n1"}}})
	if err != nil {
		t.Fatal(err)
	}
	if c, err := testSeal.decodeCommand(data); err != nil || c.GetRemoveNode().GetName() != "n1" {
		t.Fatalf("got %v, %v", c, err)
	}
	for i := range data {
		for bit := range 8 {
			damaged := bytes.Clone(data)
			damaged[i] ^= 1 << bit
			if _, err := testSeal.decodeCommand(damaged); err == nil {
				t.Fatalf("bit %d of byte %d flipped and nobody noticed", bit, i)
			}
		}
		if _, err := testSeal.decodeCommand(data[:i]); err == nil {
			t.Fatalf("cut to %d bytes and nobody noticed", i)
		}
	}
	if _, err := testSeal.decodeCommand(sealed(t, &storev1.Command{Version: 1})); err == nil {
		t.Error("a command without an action was read")
	}
	if _, err := testSeal.decodeCommand(sealed(t, &storev1.Command{Action: &storev1.Command_RemoveNode{}})); err == nil {
		t.Error("a command without a version was read")
	}
	if _, err := testSeal.decodeCommand(sealed(t, &storev1.Command{Version: commandVersion + 1})); !errors.Is(err, errTooNew) {
		t.Errorf("got %v", err)
	}
}
