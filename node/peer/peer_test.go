package peer

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/pyserve/pyserve/config/bundle"
	"github.com/pyserve/pyserve/control/identity"
	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
	peerv1 "github.com/pyserve/pyserve/proto/pyserve/peer/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds every wait for something that comes over a socket.
const patience = 30 * time.Second

func newAuthority(t *testing.T, now func() time.Time) *identity.Authority {
	t.Helper()
	a, err := identity.Open(identity.Options{Dir: t.TempDir(), Now: now})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// enrol gives a node of the authority.
func enrol(t *testing.T, a *identity.Authority, name string) Identity {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	request, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	issued, err := a.IssueNode(name, request)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(issued.GetCertificate())
	if err != nil {
		t.Fatal(err)
	}
	ca, err := x509.ParseCertificate(issued.GetCaCertificate())
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(ca)
	return Identity{
		ClusterID:   a.ClusterID(),
		Certificate: tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf},
		Authorities: pool, ReleaseKey: issued.GetReleaseKey(),
	}
}

// holdings is what a node serves.
type holdings struct {
	mu      sync.Mutex // guards what follows
	release *fleetv1.Release
	bundle  *bundle.Bundle
}

func (h *holdings) set(release *fleetv1.Release, b *bundle.Bundle) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.release, h.bundle = release, b
}

func (h *holdings) get() (*fleetv1.Release, *bundle.Bundle) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.release, h.bundle
}

// accepting hands what connects to a port to take until the test's end, and gives the address.
func accepting(t *testing.T, take func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			take(conn)
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		<-done
	})
	return l.Addr().String()
}

// serving is a node that gives what h holds.
func serving(t *testing.T, id Identity, name string, h *holdings, now func() time.Time) (Node, *Server) {
	t.Helper()
	s := NewServer(ServerOptions{Identity: func() Identity { return id }, Holding: h.get, Logger: slog.New(slog.DiscardHandler), Now: now})
	t.Cleanup(func() {
		if err := s.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return Node{Name: name, Address: accepting(t, s.Take)}, s
}

// made makes a bundle of bodies, by name.
func made(t *testing.T, bodies map[string][]byte) *bundle.Bundle {
	t.Helper()
	var resources []bundle.Resource
	for name, body := range bodies {
		resources = append(resources, bundle.Resource{Key: bundle.Key{Kind: "pool", Name: name}, Body: body})
	}
	b, err := bundle.New(resources)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func sign(a *identity.Authority, epoch, revision uint64, b *bundle.Bundle) *fleetv1.Release {
	return bundle.Sign(a.ReleaseKey(), epoch, revision, b.Digest())
}

// failures keeps what Fetch was told of nodes.
type failures map[string]error

func fetchWith(t *testing.T, id Identity, base *bundle.Bundle, nodes ...Node) (*Fetched, failures, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	failed := make(failures)
	got, err := Fetch(ctx, FetchOptions{
		Identity: id, Nodes: nodes, Base: base, Now: time.Now,
		Accept: func(*fleetv1.Release) error { return nil },
		Failed: func(n Node, err error) { failed[n.Name] = err },
	})
	return got, failed, err
}

func TestABundleIsFetchedWhole(t *testing.T) {
	a := newAuthority(t, nil)
	large := make([]byte, 3*partBytes+1)
	if _, err := rand.Read(large); err != nil {
		t.Fatal(err)
	}
	bodies := map[string][]byte{"large": large, "empty": {}, "exact": make([]byte, partBytes)}
	for i := range 2*partEntries + 1 {
		bodies[fmt.Sprint("small", i)] = []byte(fmt.Sprint(i))
	}
	b := made(t, bodies)
	h := &holdings{}
	h.set(sign(a, 1, 7, b), b)
	node, _ := serving(t, enrol(t, a, "n2"), "n2", h, nil)
	got, failed, err := fetchWith(t, enrol(t, a, "n1"), nil, node)
	if err != nil {
		t.Fatal(err, failed)
	}
	if got.Bundle.Digest() != b.Digest() || got.Release.GetRevision() != 7 || got.From != "n2" {
		t.Errorf("got revision %d from %s", got.Release.GetRevision(), got.From)
	}
}

func TestOnlyWhatIsMissingIsFetched(t *testing.T) {
	a := newAuthority(t, nil)
	base := made(t, map[string][]byte{"a": []byte("same"), "b": []byte("old"), "gone": []byte("gone")})
	next := made(t, map[string][]byte{"a": []byte("same"), "b": []byte("newer"), "renamed": []byte("gone"), "twice": []byte("newer")})
	h := &holdings{}
	h.set(sign(a, 1, 2, next), next)
	node, _ := serving(t, enrol(t, a, "n2"), "n2", h, nil)
	got, failed, err := fetchWith(t, enrol(t, a, "n1"), base, node)
	if err != nil {
		t.Fatal(err, failed)
	}
	if got.Bundle.Digest() != next.Digest() || got.Bodies != 1 || got.Bytes != len("newer") {
		t.Errorf("fetched %d bodies of %d bytes", got.Bodies, got.Bytes)
	}
}

func TestTheNewestOfSeveralIsTakenWhereSomeAreNotThere(t *testing.T) {
	a := newAuthority(t, nil)
	older, newer := made(t, map[string][]byte{"a": []byte("1")}), made(t, map[string][]byte{"a": []byte("2")})
	first, second, nothing := &holdings{}, &holdings{}, &holdings{}
	first.set(sign(a, 1, 1, older), older)
	second.set(sign(a, 1, 2, newer), newer)
	n2, _ := serving(t, enrol(t, a, "n2"), "n2", first, nil)
	n3, _ := serving(t, enrol(t, a, "n3"), "n3", second, nil)
	n4, _ := serving(t, enrol(t, a, "n4"), "n4", nothing, nil)
	gone := Node{Name: "n5", Address: accepting(t, func(c net.Conn) { _ = c.Close() })}
	got, failed, err := fetchWith(t, enrol(t, a, "n1"), nil, gone, n4, n2, n3)
	if err != nil || got.Release.GetRevision() != 2 || got.From != "n3" {
		t.Errorf("got %+v, %v", got, err)
	}
	if len(failed) != 2 || failed["n4"] == nil || failed["n5"] == nil {
		t.Errorf("told of %v", failed)
	}
}

// liar is a peer that gives what it likes.
type liar struct {
	peerv1.UnimplementedPeerServer
	release  *fleetv1.Release
	manifest []*peerv1.ManifestEntry
	body     []byte
	cut      bool
}

func (l *liar) Head(context.Context, *peerv1.HeadRequest) (*peerv1.HeadResponse, error) {
	return &peerv1.HeadResponse{Release: l.release}, nil
}

func (l *liar) Manifest(_ *peerv1.ManifestRequest, stream grpc.ServerStreamingServer[peerv1.ManifestResponse]) error {
	return stream.Send(&peerv1.ManifestResponse{Entries: l.manifest})
}

func (l *liar) Resources(m *peerv1.ResourcesRequest, stream grpc.ServerStreamingServer[peerv1.ResourcesResponse]) error {
	for range m.GetSha256() {
		if err := stream.Send(&peerv1.ResourcesResponse{Data: l.body, Last: !l.cut}); err != nil || l.cut {
			return err
		}
	}
	return nil
}

// lying is a node with a good certificate that is not to be believed.
func lying(t *testing.T, id Identity, name string, l *liar) Node {
	t.Helper()
	server := grpc.NewServer(grpc.Creds(credentials.NewTLS(serverTLS(func() Identity { return id }, time.Now))))
	peerv1.RegisterPeerServer(server, l)
	door := newDoor()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(door)
	}()
	t.Cleanup(func() {
		server.Stop()
		<-done
	})
	return Node{Name: name, Address: accepting(t, door.take)}
}

func entriesOf(b *bundle.Bundle) (out []*peerv1.ManifestEntry) {
	for e := range b.Manifest() {
		out = append(out, &peerv1.ManifestEntry{Kind: string(e.Kind), Name: e.Name, Sha256: e.Sum[:]})
	}
	return out
}

func TestNothingThatIsNotWhatControlSignedIsTaken(t *testing.T) {
	a, other := newAuthority(t, nil), newAuthority(t, nil)
	b, another := made(t, map[string][]byte{"a": []byte("body")}), made(t, map[string][]byte{"a": []byte("other")})
	good := sign(a, 1, 7, b)
	flipped := []byte("bodz")
	raised := &fleetv1.Release{Epoch: 1, Revision: 8, Digest: good.GetDigest(), Signature: good.GetSignature()}
	moved := &fleetv1.Release{Epoch: 2, Revision: 7, Digest: good.GetDigest(), Signature: good.GetSignature()}
	for what, c := range map[string]struct {
		liar liar
		want error
	}{
		"unsigned":                {liar{release: &fleetv1.Release{Epoch: 1, Revision: 7, Digest: good.GetDigest()}}, bundle.ErrSignature},
		"signed by another":       {liar{release: sign(other, 1, 7, b)}, bundle.ErrSignature},
		"a raised revision":       {liar{release: raised}, bundle.ErrSignature},
		"another epoch":           {liar{release: moved}, bundle.ErrSignature},
		"no release":              {liar{}, nil},
		"another manifest":        {liar{release: good, manifest: entriesOf(another)}, bundle.ErrManifest},
		"a manifest twice":        {liar{release: good, manifest: append(entriesOf(b), entriesOf(b)...)}, bundle.ErrManifest},
		"a flipped bit":           {liar{release: good, manifest: entriesOf(b), body: flipped}, ErrDamaged},
		"a body without its end":  {liar{release: good, manifest: entriesOf(b), body: []byte("body"), cut: true}, nil},
		"nothing in place of one": {liar{release: good, manifest: entriesOf(b), cut: true}, nil},
	} {
		t.Run(what, func(t *testing.T) {
			node := lying(t, enrol(t, a, "n2"), "n2", &c.liar)
			got, failed, err := fetchWith(t, enrol(t, a, "n1"), nil, node)
			if got != nil || !errors.Is(err, ErrNothing) {
				t.Fatalf("got %+v, %v", got, err)
			}
			if failed["n2"] == nil || c.want != nil && !errors.Is(failed["n2"], c.want) {
				t.Errorf("told: %v, want %v", failed["n2"], c.want)
			}
		})
	}
}

func TestAfterALiarTheNextIsAsked(t *testing.T) {
	a := newAuthority(t, nil)
	b := made(t, map[string][]byte{"a": []byte("body")})
	h := &holdings{}
	h.set(sign(a, 1, 7, b), b)
	bad := lying(t, enrol(t, a, "n2"), "n2", &liar{release: sign(a, 1, 7, b), manifest: entriesOf(b), body: []byte("bodz")})
	good, _ := serving(t, enrol(t, a, "n3"), "n3", h, nil)
	got, failed, err := fetchWith(t, enrol(t, a, "n1"), nil, bad, good)
	if err != nil || got.From != "n3" || !errors.Is(failed["n2"], ErrDamaged) {
		t.Errorf("got %+v, %v, told of %v", got, err, failed)
	}
}

func TestStrangersGetNothing(t *testing.T) {
	a, other := newAuthority(t, nil), newAuthority(t, nil)
	b := made(t, map[string][]byte{"a": []byte("secret")})
	h := &holdings{}
	h.set(sign(a, 1, 7, b), b)
	node, _ := serving(t, enrol(t, a, "n2"), "n2", h, nil)

	foreign := enrol(t, other, "n1")
	foreign.Authorities, foreign.ReleaseKey, foreign.ClusterID = enrol(t, a, "x").Authorities, enrol(t, a, "x").ReleaseKey, a.ClusterID()
	bare := enrol(t, a, "n1")
	bare.Certificate = tls.Certificate{}
	for what, id := range map[string]Identity{"of another cluster": foreign, "without a certificate": bare} {
		if got, _, err := fetchWith(t, id, nil, node); err == nil {
			t.Errorf("a stranger %s got %+v", what, got)
		}
	}
}

func TestACertificateThatHasEndedGetsNothing(t *testing.T) {
	ahead := func() time.Time { return time.Now().Add(48 * time.Hour) }
	a := newAuthority(t, nil)
	b := made(t, map[string][]byte{"a": []byte("secret")})
	h := &holdings{}
	h.set(sign(a, 1, 7, b), b)
	node, _ := serving(t, enrol(t, a, "n2"), "n2", h, ahead)
	if got, _, err := fetchWith(t, enrol(t, a, "n1"), nil, node); err == nil {
		t.Errorf("it got %+v", got)
	}
}

func TestANodeThatAnswersForAnotherIsNotAsked(t *testing.T) {
	a := newAuthority(t, nil)
	b := made(t, map[string][]byte{"a": []byte("body")})
	h := &holdings{}
	h.set(sign(a, 1, 7, b), b)
	node, _ := serving(t, enrol(t, a, "n2"), "n3", h, nil)
	_, failed, err := fetchWith(t, enrol(t, a, "n1"), nil, node)
	if err == nil || !strings.Contains(failed["n3"].Error(), "node n2 answers in place of node n3") {
		t.Errorf("%v, told %v", err, failed)
	}
}

func TestConnectionsAndCallsAreBounded(t *testing.T) {
	a := newAuthority(t, nil)
	b := made(t, map[string][]byte{"a": []byte("body")})
	h := &holdings{}
	h.set(sign(a, 1, 7, b), b)
	node, s := serving(t, enrol(t, a, "n2"), "n2", h, nil)
	for range maxTransfers {
		s.transfers <- struct{}{}
	}
	_, failed, err := fetchWith(t, enrol(t, a, "n1"), nil, node)
	if err == nil || !strings.Contains(failed["n2"].Error(), "too many nodes ask at once") || s.Busy() != 1 {
		t.Errorf("%v, told %v, counted %d", err, failed, s.Busy())
	}
	for range maxTransfers {
		<-s.transfers
	}

	d := newDoor()
	var ends []net.Conn
	for range maxConnections + 1 {
		ours, theirs := net.Pipe()
		d.take(theirs)
		ends = append(ends, ours)
	}
	if _, err := ends[maxConnections].Read(make([]byte, 1)); err == nil || d.refused.Load() != 1 {
		t.Errorf("one too many: %v, %d counted", err, d.refused.Load())
	}
	d.drain()
	ours, theirs := net.Pipe()
	d.take(theirs) // there is room again
	if d.refused.Load() != 1 {
		t.Error("places are not given back")
	}
	_ = ours.Close()
	d.drain()
}

func TestTooManyBodiesAtOnceAreRefused(t *testing.T) {
	a := newAuthority(t, nil)
	b := made(t, map[string][]byte{"a": []byte("body")})
	h := &holdings{}
	h.set(sign(a, 1, 7, b), b)
	node, _ := serving(t, enrol(t, a, "n2"), "n2", h, nil)
	id := enrol(t, a, "n1")
	conn, err := grpc.NewClient("passthrough:///"+node.Address, grpc.WithTransportCredentials(credentials.NewTLS(clientTLS(id, "n2", time.Now))))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ask := func(sums ...[]byte) error {
		digest := b.Digest()
		stream, err := peerv1.NewPeerClient(conn).Resources(t.Context(), &peerv1.ResourcesRequest{Digest: digest[:], Sha256: sums})
		if err != nil {
			t.Fatal(err)
		}
		_, err = stream.Recv()
		return err
	}
	for want, sums := range map[string][][]byte{
		"more than 4096": make([][]byte, maxWanted+1),
		"has 32 bytes":   {[]byte("short")},
		"no such":        {bytes.Repeat([]byte{1}, 32)},
	} {
		if err := ask(sums...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}
