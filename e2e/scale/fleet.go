package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/stats"

	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
)

// lightFleet is all light nodes of a cluster.
type lightFleet struct {
	addresses []string // of the controls
	shelf     *shelf
	nodes     []*lightNode

	received  counter
	connected atomic.Int64 // nodes that control has welcomed
	// When the first node began to serve something since forget, and the last, in nanoseconds since 1970; 0: none has.
	first, last atomic.Int64

	mu      sync.Mutex // guards what follows
	defects []error    // what nodes were sent and did not prove true
	breaks  map[string]int
}

// counter counts the bytes of the messages that nodes receive, with the five that gRPC puts before each. What HTTP/2
// and TLS add is not counted.
type counter struct{ bytes atomic.Int64 }

func (c *counter) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context   { return ctx }
func (c *counter) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }
func (c *counter) HandleConn(context.Context, stats.ConnStats)                       {}

// HandleRPC is called for everything that happens on a stream.
func (c *counter) HandleRPC(_ context.Context, s stats.RPCStats) {
	if in, ok := s.(*stats.InPayload); ok {
		c.bytes.Add(int64(in.WireLength))
	}
}

// committed is told when a node serves something new.
func (f *lightFleet) committed() {
	now := time.Now().UnixNano()
	f.first.CompareAndSwap(0, now)
	for {
		last := f.last.Load()
		if last >= now || f.last.CompareAndSwap(last, now) {
			return
		}
	}
}

// forget is called before something new is applied.
func (f *lightFleet) forget() {
	f.first.Store(0)
	f.last.Store(0)
}

func (f *lightFleet) wrong(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.defects = append(f.defects, err)
}

// lost is told why a stream broke.
func (f *lightFleet) lost(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.breaks == nil {
		f.breaks = map[string]int{}
	}
	f.breaks[err.Error()]++
}

// complaint is an error where a node was sent something that did not prove true.
func (f *lightFleet) complaint() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.defects) == 0 {
		return nil
	}
	return fmt.Errorf("%d offers did not prove true; the first: %w", len(f.defects), f.defects[0])
}

// close ends every stream.
func (f *lightFleet) close() { f.each(f.nodes, (*lightNode).disconnect) }

func (f *lightFleet) each(nodes []*lightNode, do func(*lightNode)) {
	var group sync.WaitGroup
	for _, n := range nodes {
		group.Go(func() { do(n) })
	}
	group.Wait()
}

// connect has all nodes open their streams, and waits until control has welcomed them.
func (f *lightFleet) connect(ctx context.Context) error {
	for _, n := range f.nodes {
		if n.cut == nil {
			n.connect()
		}
	}
	return f.awaitConnected(ctx)
}

// patience is how long anything may take that is not measured by a limit of its own.
const patience = 2 * time.Minute

func (f *lightFleet) awaitConnected(ctx context.Context) error {
	err := poll(ctx, 5*time.Millisecond, func() (bool, error) { return int(f.connected.Load()) == len(f.nodes), nil })
	if err != nil {
		f.mu.Lock()
		defer f.mu.Unlock()
		return fmt.Errorf("%d of %d nodes are connected: %w; streams broke because of %v", f.connected.Load(), len(f.nodes), err, f.breaks)
	}
	return nil
}

// poll asks again and again until the answer is yes.
func poll(ctx context.Context, every time.Duration, ask func() (bool, error)) error {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("not within %v", patience))
	defer cancel()
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		yes, err := ask()
		if yes || err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// enrolling is how many nodes enrol at a time.
const enrolling = 16

// grow enrols nodes until there are so many.
func (f *lightFleet) grow(ctx context.Context, count int, token string, believed *tls.Config) error {
	conn, err := grpc.NewClient("passthrough:///"+f.addresses[0], grpc.WithTransportCredentials(credentials.NewTLS(believed)))
	if err != nil {
		return err
	}
	defer conn.Close()
	client := fleetv1.NewEnrollmentClient(conn)
	first := len(f.nodes)
	nodes, errs := make([]*lightNode, count-first), make([]error, count-first)
	places := make(chan struct{}, enrolling)
	var group sync.WaitGroup
	for i := range nodes {
		places <- struct{}{}
		group.Go(func() {
			nodes[i], errs[i] = f.enroll(ctx, client, first+i, token, believed)
			<-places
		})
	}
	group.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	f.nodes = append(f.nodes, nodes...)
	return nil
}

// enroll trades the token for an identity, which lives in memory alone.
func (f *lightFleet) enroll(ctx context.Context, client fleetv1.EnrollmentClient, number int, token string, believed *tls.Config) (*lightNode, error) {
	name := fmt.Sprintf("light-%04d", number)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	request, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: name}}, key)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	response, err := client.Enroll(ctx, &fleetv1.EnrollRequest{Token: token, Name: name, CertificateRequest: request})
	if err != nil {
		return nil, fmt.Errorf("enrol %s: %w", name, err)
	}
	id := response.GetIdentity()
	f.shelf.believe(id.GetReleaseKey())
	shown := believed.Clone()
	shown.Certificates = []tls.Certificate{{Certificate: [][]byte{id.GetCertificate()}, PrivateKey: key}}
	return &lightNode{name: name, number: number, fleet: f, tls: shown, boot: rand.Text()}, nil
}
