package e2e

import (
	"context"
	"crypto/tls"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pyserve/pyserve/node/certtest"
)

// The environment of TestSoak: how long it lasts ("5m"), and the seed of an earlier run, which makes the same choices
// again, though not at the same moments.
const (
	soakVariable     = "SOAK"
	soakSeedVariable = "SOAK_SEED"
)

// soakTaste is how long it lasts without.
const soakTaste = 8 * time.Second

// TestSoak lets everything happen at the same time, to two clusters, one of which speaks TLS on both sides: every kind of
// traffic through both nodes of each, clients that break off, backends that are killed and come back, an apply every second.
// What must hold: no wrong byte and no answer of another request; no request lost that may be repeated while a backend is
// there; no tunnel cut whose route was not touched; and afterwards everything that was used is given back.
//
// It is not parallel to the other tests: it weighs its processes, and would starve theirs.
func TestSoak(t *testing.T) {
	length := soakTaste
	if text := os.Getenv(soakVariable); text != "" {
		var err error
		if length, err = time.ParseDuration(text); err != nil {
			t.Fatalf("%s: %v", soakVariable, err)
		}
	}
	seed := rand.Uint64()
	if text := os.Getenv(soakSeedVariable); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("%s: %v", soakSeedVariable, err)
		}
	}
	t.Logf("%s; to make the same choices again: %s=%d", length, soakSeedVariable, seed)
	// Parallel to each other, not to other tests: the group ends when both have.
	t.Run("clusters", func(t *testing.T) {
		t.Run("plain", func(t *testing.T) {
			t.Parallel()
			newSoak(t, seed, length, false).run()
		})
		t.Run("TLS", func(t *testing.T) {
			t.Parallel()
			newSoak(t, seed+1, length, true).run()
		})
	})
}

// soak is one cluster with its backends and its traffic.
type soak struct {
	t       *testing.T
	seed    uint64
	length  time.Duration
	cluster *cluster
	tls     *tls.Config // of clients; nil: plain
	bytes   []byte      // that all bodies are cut from

	// The route /mixed leads to all of these. The first is never killed, so that there is always one to turn to; a request
	// has two attempts, and so bears the death of any one other.
	mixed   []*mortal
	steady  *mortal // where /steady leads: never killed, and its route never touched
	outages outages

	serving atomic.Int32 // requests that the backends are at
	unheard sync.Map     // ids of requests whose head was cut: a backend must not see them
	begun   sync.Map     // ids of requests whose answers were begun, in several pieces

	done, excused tally // by kind of traffic
	mistakes      atomic.Int32
	stop          context.CancelFunc
}

func newSoak(t *testing.T, seed uint64, length time.Duration, secure bool) *soak {
	s := &soak{t: t, seed: seed, length: length, bytes: make([]byte, 4<<20)}
	rand.NewChaCha8([32]byte{byte(seed)}).Read(s.bytes)
	s.cluster = newCluster(t)
	var backends *tls.Config
	if secure {
		authority := certtest.New(t)
		pair := authority.Issue(t, "127.0.0.1")
		s.cluster.write("cert.pem", string(pair.ChainPEM))
		s.cluster.write("key.pem", string(pair.KeyPEM))
		s.cluster.write("ca.pem", string(authority.PEM))
		s.tls = &tls.Config{RootCAs: authority.Pool(), ServerName: "127.0.0.1"}
		backends = &tls.Config{Certificates: []tls.Certificate{pair.TLS}}
	}
	for _, name := range []string{"anchor", "m1", "m2"} {
		s.mixed = append(s.mixed, newMortal(s, name, backends))
	}
	s.steady = newMortal(s, "steady", nil)
	// A line for every retry would fill this process's memory.
	s.cluster.addNode("n1", "--log-level", "info")
	s.cluster.addNode("n2", "--log-level", "info", "--access-log", filepath.Join(s.cluster.dir, "access.log"), "--access-log-format", "json")
	for _, n := range s.cluster.nodes {
		s.cluster.start(n)
	}
	for _, n := range s.cluster.nodes {
		s.cluster.connected(n.name)
	}
	return s
}

// document is the i-th: what it says of /steady is always the same. The first has all that there ever is.
func (s *soak) document(i int) string {
	var b strings.Builder
	b.WriteString("server:\n  host: 127.0.0.1\n  reverse_proxy:\n    - path: /mixed\n      health_check: {type: tcp, interval: 1s}\n")
	if s.tls != nil {
		b.WriteString("      tls: {ca_file: ./ca.pem}\n")
	}
	b.WriteString(mixedPolicies(i))
	b.WriteString("      backends:\n")
	for k, m := range s.mixed {
		if k > 0 && i%5 == k { // now and then one is taken out
			continue
		}
		fmt.Fprintf(&b, "        - {host: 127.0.0.1, port: %d, ssl: %t, weight: %d}\n", m.port, s.tls != nil, 1+(i+k)%3)
	}
	fmt.Fprintf(&b, "    - {path: /steady, host: 127.0.0.1, port: %d}\n", s.steady.port)
	fmt.Fprintf(&b, "    - {path: /passing-%d, host: 127.0.0.1, port: %d}\n", i, s.steady.port)
	if s.tls != nil {
		b.WriteString("ssl:\n  enabled: true\n  cert_file: ./cert.pem\n  key_file: ./key.pem\n")
	}
	return b.String()
}

// mixedPolicies are those of /mixed in the i-th document: every one that clients must not notice, in changing company.
func mixedPolicies(i int) string {
	ways := []string{"round_robin", "least_request", "random", "p2c_ewma", "ring_hash, hash: {on: path}", "maglev, hash: {on: client_ip}"}
	text := fmt.Sprintf("      load_balancing: {policy: %s}\n", ways[i%len(ways)])
	for k, policy := range []string{
		"circuit_breaker: {max_connections: 5000, max_requests: 10000, max_pending: 10}",
		"outlier_detection: {consecutive_failures: 3, base_ejection_time: 300ms}",
		"retries: {attempts: 3, on: [connect_failure], budget_percent: 1000}",
		"rate_limit: {requests: 1000000, key: route}",
		"request_headers: {set: {X-Soak: \"{path}\"}, remove: [X-Nothing]}",
		"response_headers: {add: {X-Soak: \"{client_ip}\"}}",
		"sticky: {cookie: soak}",
		"slow_start: 1s",
	} {
		if i%(k+2) == 0 { // all of them in the first
			text += "      " + policy + "\n"
		}
	}
	return text
}

// run is the whole story.
func (s *soak) run() {
	s.cluster.mustApply(s.document(0))
	before := s.levels()
	ctx, stop := context.WithCancel(s.t.Context())
	defer stop()
	s.stop = stop
	var running sync.WaitGroup
	s.traffic(ctx, &running)
	running.Go(func() { s.killAndRevive(ctx) })
	weights := s.weigh(ctx, &running)
	applies := s.applyAllTheTime(ctx)
	stop()
	s.wait(&running)
	for _, m := range s.mixed {
		m.revive()
	}
	s.cluster.mustApply(s.document(0))

	s.t.Logf("%d applies, %d outages; done: %s; excused: %s", applies, s.outages.count(), &s.done, &s.excused)
	s.checkVariety()
	s.settles(before)
	weights.check(s.t, s.length)
}

// wait waits for the traffic's end: the longest exchange has a minute.
func (s *soak) wait(running *sync.WaitGroup) {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		running.Wait()
	}()
	timeout := time.NewTimer(4 * patience)
	defer timeout.Stop()
	select {
	case <-ended:
	case <-timeout.C:
		s.t.Fatalf("the traffic does not end; done: %s", &s.done)
	}
}

// applyAllTheTime applies another document every second, until the time is over or too much has gone wrong.
func (s *soak) applyAllTheTime(ctx context.Context) (applied int) {
	over := time.NewTimer(s.length)
	defer over.Stop()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-over.C:
			return applied
		case <-ctx.Done():
			return applied
		case <-tick.C:
			applied++
			s.cluster.mustApply(s.document(applied))
		}
	}
}

// killAndRevive kills one backend after the other, each for a while.
func (s *soak) killAndRevive(ctx context.Context) {
	r := rand.New(rand.NewPCG(s.seed, 1))
	for pause(ctx, between(r, 50*time.Millisecond, 500*time.Millisecond)) {
		m := s.mixed[1+r.IntN(len(s.mixed)-1)]
		revived := s.outages.begin()
		m.kill(r.IntN(2) == 0)
		pause(ctx, between(r, 20*time.Millisecond, time.Second))
		m.revive()
		revived()
	}
}

// mistake is something that must never be. After a few of them the run is at its end.
func (s *soak) mistake(format string, args ...any) {
	n := s.mistakes.Add(1)
	if n <= 10 {
		s.t.Errorf(format, args...)
	}
	if n == 10 {
		s.stop()
	}
}

// checkVariety wants every kind of traffic to have been there: what did not happen was not tested.
func (s *soak) checkVariety() {
	for _, k := range append(kindsOfHTTP1(), kindsOfHTTP2()...) {
		if s.done.of(k.name) == 0 {
			s.t.Errorf("%q was never done", k.name)
		}
	}
	if s.done.of(longTunnel) == 0 {
		s.t.Errorf("%q was never done", longTunnel)
	}
	if s.outages.count() == 0 {
		s.t.Error("no backend was killed")
	}
}

// outages tells when backends of the route /mixed were not there.
type outages struct {
	mu   sync.Mutex // guards list
	list []outage
}

type outage struct{ from, to time.Time } // to is zero while it lasts

// begin is called before a backend dies, and what it returns when it is there again.
func (o *outages) begin() (over func()) {
	o.mu.Lock()
	defer o.mu.Unlock()
	i := len(o.list)
	o.list = append(o.list, outage{from: time.Now()})
	return func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.list[i].to = time.Now()
	}
}

// since is how many outages there were at any time since began.
func (o *outages) since(began time.Time) (n int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for i := len(o.list) - 1; i >= 0 && (o.list[i].to.IsZero() || o.list[i].to.After(began)); i-- {
		n++
	}
	return n
}

func (o *outages) count() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.list)
}

// pause waits, unless ctx ends before.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

func between(r *rand.Rand, least, most time.Duration) time.Duration {
	return least + time.Duration(r.Int64N(int64(most-least)))
}
