package upstream

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// names is a resolver that answers every name as told.
type names struct {
	mu      sync.Mutex
	found   []netip.Addr
	err     error
	delay   time.Duration
	asked   []time.Time
	pending int
	most    int // of those pending at once
}

func newNames(found ...string) *names {
	n := &names{}
	n.set(nil, found...)
	return n
}

// after makes answers take their time.
func (n *names) after(delay time.Duration) *names {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.delay = delay
	return n
}

func (n *names) set(err error, found ...string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.err, n.found = err, nil
	for _, f := range found {
		n.found = append(n.found, netip.MustParseAddr(f))
	}
}

func (n *names) LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error) {
	n.mu.Lock()
	n.asked = append(n.asked, time.Now())
	n.pending++
	n.most = max(n.most, n.pending)
	delay := n.delay
	n.mu.Unlock()
	if delay > 0 {
		select {
		case <-time.After(delay):
		case <-ctx.Done():
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.pending--
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if network != "ip" {
		return nil, &net.DNSError{Err: "asked for " + network, Name: host}
	}
	return slices.Clone(n.found), n.err
}

// lookups are the moments at which names were asked for.
func (n *names) lookups() []time.Time {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.asked)
}

var (
	errGone    = &net.DNSError{Err: "no such host", Name: "api.internal", Server: "10.0.0.53:53", IsNotFound: true}
	errServers = &net.DNSError{Err: "server misbehaving", Name: "api.internal", Server: "10.0.0.53:53", IsTemporary: true}
)

// memory is a network whose every address is a backend that answers with its own name.
type memory struct {
	mu     sync.Mutex
	down   map[string]error // what dials of an address end with
	silent map[string]bool  // addresses whose dials end with their context
	dials  []string
	open   map[string]int // connections, by address
}

func newMemory() *memory {
	return &memory{down: make(map[string]error), silent: make(map[string]bool), open: make(map[string]int)}
}

func (m *memory) dial(ctx context.Context, _, address string) (net.Conn, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.dials = append(m.dials, address)
	if m.silent[address] {
		m.mu.Unlock()
		<-ctx.Done()
		m.mu.Lock()
		return nil, ctx.Err()
	}
	if err := m.down[address]; err != nil {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: err}
	}
	client, server := net.Pipe()
	m.open[address]++
	go m.serve(server, address)
	return client, nil
}

// serve answers GETs by the address. A request for /slow has the second half of its answer after a second.
func (m *memory) serve(c net.Conn, address string) {
	defer func() {
		c.Close()
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.open[address]--; m.open[address] == 0 {
			delete(m.open, address)
		}
	}()
	for in := bufio.NewReader(c); ; {
		req, err := http.ReadRequest(in)
		if err != nil {
			return
		}
		fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", len(address))
		if req.URL.Path == "/slow" {
			io.WriteString(c, address[:1])
			<-time.After(time.Second)
			io.WriteString(c, address[1:])
			continue
		}
		io.WriteString(c, address)
	}
}

// connections are the open ones, by address.
func (m *memory) connections() map[string]int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return maps.Clone(m.open)
}

// dialled counts the dials of each address since the last call.
func (m *memory) dialled() map[string]int {
	m.mu.Lock()
	defer m.mu.Unlock()
	counts := make(map[string]int)
	for _, d := range m.dials {
		counts[d]++
	}
	m.dials = nil
	return counts
}

// journal is a logger and what it was told from Info upwards.
type journal struct{ strings.Builder }

func (j *journal) logger() *slog.Logger { return slog.New(slog.NewTextHandler(j, nil)) }

// told counts the lines with these words, once what was told is complete.
func (j *journal) told(words string) int {
	synctest.Wait()
	return strings.Count(j.String(), words)
}

// named is a backend api.internal:80 in fake time, over a network in memory and a resolver that answers as told.
type named struct {
	*Backend
	*names
	*memory
	journal *journal
}

// inFakeTime runs a story about such a backend, whose first lookup has begun and, unless it takes time, ended.
func inFakeTime(t *testing.T, resolver *names, story func(t *testing.T, n *named)) {
	synctest.Test(t, func(t *testing.T) {
		n := &named{names: resolver, memory: newMemory(), journal: &journal{}}
		r := NewRegistry(Options{
			Resolver: n.names, DialContext: n.memory.dial, Logger: n.journal.logger(),
			Random: func(n int64) int64 { return n / 2 },
		})
		defer r.Close()
		n.Backend = acquire(t, r, Spec{Host: "api.internal", Port: 80})
		synctest.Wait()
		story(t, n)
	})
}

// ask makes a request and returns the address that answered.
func (n *named) ask(t *testing.T) string {
	t.Helper()
	return ask(t, n.Backend, "/")
}

// reach dials and hangs up.
func (n *named) reach(t *testing.T) (took time.Duration) {
	t.Helper()
	begin := time.Now()
	conn, err := n.Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	synctest.Wait()
	return time.Since(begin)
}

// pass lets fake time pass.
func pass(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}
