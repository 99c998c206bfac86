package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/pyserve/pyserve/cluster"
	"github.com/pyserve/pyserve/cluster/gossiptest"
	"github.com/pyserve/pyserve/cluster/state"
	"github.com/pyserve/pyserve/node/health"
	"github.com/pyserve/pyserve/node/upstream"
	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
	"github.com/pyserve/pyserve/proto/voucher"
)

// fleet is nodes' health checks that talk over gossip, as membership joins the two, in fake time.
type fleet struct {
	t       *testing.T
	network *gossiptest.Network
	issuer  ed25519.PrivateKey
	dead    atomic.Bool // every backend
	nodes   []*watcher
}

type watcher struct {
	name     string
	cluster  *cluster.Cluster
	prober   *health.Prober
	registry *upstream.Registry

	mu   sync.Mutex                 // guards what follows
	down map[*upstream.Backend]bool // those that are unhealthy here
	last time.Time                  // when the last of them became so
}

func newFleet(t *testing.T, nodes, backends int) *fleet {
	f := &fleet{t: t, network: gossiptest.NewNetwork(1), issuer: ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, ed25519.SeedSize))}
	f.network.SetLatency(time.Millisecond)
	var names []string
	for i := range nodes {
		names = append(names, fmt.Sprint("n", i))
	}
	for i, name := range names {
		f.nodes = append(f.nodes, f.watcher(i, name))
	}
	for _, n := range f.nodes {
		n.prober.SetMembers(names)
		n.watch(t, backends)
	}
	return f
}

// watcher starts a node that watches nothing yet.
func (f *fleet) watcher(i int, name string) *watcher {
	n := &watcher{name: name, down: make(map[*upstream.Backend]bool)}
	n.prober = health.NewProber(health.Options{Self: name, Publish: func(message []byte) string {
		signed, err := n.cluster.Publish(cluster.TopicHealth, message)
		if err != nil {
			f.t.Error(err)
		}
		return signed
	}})
	n.registry = upstream.NewRegistry(upstream.Options{
		Added: n.prober.Watch, Removed: n.prober.Unwatch, Failed: n.prober.Failed, Changed: n.changed, DialContext: f.dial,
	})
	n.cluster = f.member(i, n)
	f.t.Cleanup(func() {
		n.registry.Close()
		n.prober.Close()
		if err := n.cluster.Stop(context.Background()); err != nil {
			f.t.Error(err)
		}
	})
	return n
}

func (f *fleet) member(i int, n *watcher) *cluster.Cluster {
	address := func(i int) string { return fmt.Sprintf("10.0.0.%d:7946", i+1) } // up to 254
	transport, err := f.network.Listen(address(i))
	if err != nil {
		f.t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.t.Fatal(err)
	}
	packed, err := voucher.KeyOf(key.Public())
	if err != nil {
		f.t.Fatal(err)
	}
	raw, err := voucher.Issue(f.issuer, "test", state.WireName(cluster.RoleNode, n.name), packed, time.Now().Add(24*time.Hour))
	if err != nil {
		f.t.Fatal(err)
	}
	c, err := cluster.New(cluster.Options{
		Name: n.name, Role: cluster.RoleNode, ClusterID: "test", Keys: [][]byte{bytes.Repeat([]byte{1}, 32)},
		Key: key, Issuer: f.issuer.Public().(ed25519.PublicKey), Voucher: raw, Transport: transport,
		Seeds: []string{address(0), address(1), address(2)}, State: n.prober.State,
		Receive: func(news cluster.News) {
			heard := health.Heard{From: news.From.Name, Message: news.Payload, Age: news.Age, Signed: news.Signed}
			_ = n.prober.Hear(heard) // at the end it watches nothing and has no room for what others say
		},
	})
	if err != nil {
		f.t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		f.t.Fatal(err)
	}
	return c
}

func (f *fleet) dial(context.Context, string, string) (net.Conn, error) {
	if f.dead.Load() {
		return nil, syscall.ECONNREFUSED
	}
	conn, other := net.Pipe()
	other.Close()
	return conn, nil
}

func (n *watcher) watch(t *testing.T, backends int) {
	check := &resourcev1.HealthCheck{
		Type: resourcev1.HealthCheckType_HEALTH_CHECK_TYPE_TCP, Interval: durationpb.New(5 * time.Second),
		Timeout: durationpb.New(2 * time.Second), UnhealthyThreshold: 3, HealthyThreshold: 2,
	}
	for i := range backends {
		spec := upstream.Spec{Host: fmt.Sprintf("10.1.%d.%d", i/250, i%250), Port: 80, Check: check}
		if _, err := n.registry.Acquire(spec); err != nil {
			t.Fatal(err)
		}
	}
}

func (n *watcher) changed(b *upstream.Backend) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if b.Verdict().State == upstream.Unhealthy {
		n.down[b] = true
		n.last = time.Now()
	} else {
		delete(n.down, b)
	}
}

func (n *watcher) downs() (int, time.Time) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.down), n.last
}

// dropped sums up what was lost of messages everywhere, by reason.
func (f *fleet) dropped() map[string]uint64 {
	sum := make(map[string]uint64)
	for _, n := range f.nodes {
		for reason, count := range n.cluster.Dropped() {
			if count > 0 {
				sum[reason] += count
			}
		}
	}
	return sum
}

// BURST=10x100/0,10x1000/5 says how many nodes and backends, and how many packets in a hundred are lost; `make bench-cluster` does.
// Three failures in a row at 5 s are 15 s; what it takes beyond that is gossip's.
func TestABurstOfDeathsIsKnownToAll(t *testing.T) {
	for size := range strings.SplitSeq(cmp.Or(os.Getenv("BURST"), "5x100/0,10x200/10"), ",") {
		t.Run(size, func(t *testing.T) {
			var nodes, backends, loss int
			if _, err := fmt.Sscanf(size, "%dx%d/%d", &nodes, &backends, &loss); err != nil {
				t.Fatalf("BURST: %q is not NODESxBACKENDS/LOSS: %v", size, err)
			}
			gossiptest.Run(t, func(t *testing.T) { burst(t, nodes, backends, loss) })
		})
	}
}

// burstLimit is what the last of so many deaths may take: threshold × interval, a second on the way, and what all news of it takes
// where it is more than gossip carries at once, some 300 deaths a second.
func burstLimit(backends int) time.Duration {
	return 17*time.Second + time.Duration(backends)*3*time.Millisecond
}

func burst(t *testing.T, nodes, backends, loss int) {
	f := newFleet(t, nodes, backends)
	f.network.SetLoss(float64(loss) / 100)
	time.Sleep(2 * time.Minute)
	before := f.network.Traffic()
	time.Sleep(time.Minute)
	rest := f.network.Traffic().Since(before)
	f.dead.Store(true)
	killed, before := time.Now(), f.network.Traffic()
	var slowest time.Duration
	for _, n := range f.nodes {
		for down, _ := n.downs(); down < backends; down, _ = n.downs() {
			if time.Since(killed) > 2*time.Minute {
				t.Fatalf("%s knows of %d of %d deaths after two minutes", n.name, down, backends)
			}
			time.Sleep(100 * time.Millisecond)
		}
	}
	for _, n := range f.nodes {
		_, last := n.downs()
		slowest = max(slowest, last.Sub(killed))
	}
	if limit := burstLimit(backends); slowest > limit {
		t.Errorf("the last node knows of all %d deaths after %s, want %s", backends, slowest, limit)
	}
	within := f.network.Traffic().Since(before)
	seconds := time.Since(killed).Seconds()
	each := float64(nodes) * 1000
	t.Logf("%d backends that die at once are dead to each of %d nodes within %s, at %d %% loss; each sends %.1f KB a second of packets meanwhile, "+
		"%.1f before, and %.1f of full exchanges; lost: %v", backends, nodes, slowest.Round(100*time.Millisecond), loss,
		float64(within.PacketBytes)/seconds/each, float64(rest.PacketBytes)/60/each, float64(rest.StreamBytes)/60/each, f.dropped())
}
