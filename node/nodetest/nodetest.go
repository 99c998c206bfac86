// Package nodetest holds what the tests of the node lane share: backends that speak raw bytes, clients that send them, and
// resources without a document. Everything listens on the loopback only. Certificates are made by certtest.
package nodetest

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pyserve/pyserve/config"
	"github.com/pyserve/pyserve/config/bundle"
	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

// patience bounds every wait in a test that uses real sockets.
const patience = time.Minute

// RawBackend is a TCP server that gives each connection to a function of the test, in a goroutine of its own.
type RawBackend struct {
	listener net.Listener
	running  sync.WaitGroup

	mu    sync.Mutex // guards conns
	conns map[net.Conn]struct{}
}

// NewRawBackend serves until Close, which the test's end calls. The connection is closed after serve returns.
func NewRawBackend(t testing.TB, serve func(net.Conn)) *RawBackend {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b := &RawBackend{listener: l, conns: make(map[net.Conn]struct{})}
	b.running.Go(func() { b.accept(serve) })
	t.Cleanup(b.Close)
	return b
}

func (b *RawBackend) accept(serve func(net.Conn)) {
	for {
		c, err := b.listener.Accept()
		if err != nil {
			return
		}
		b.mu.Lock()
		b.conns[c] = struct{}{}
		b.mu.Unlock()
		b.running.Go(func() {
			defer b.forget(c)
			serve(c)
		})
	}
}

func (b *RawBackend) forget(c net.Conn) {
	c.Close()
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.conns, c)
}

// Port is where it listens.
func (b *RawBackend) Port() uint32 { return uint32(b.listener.Addr().(*net.TCPAddr).Port) }

// Close is the death of the process: the port is closed and every connection is cut.
func (b *RawBackend) Close() {
	b.listener.Close()
	b.mu.Lock()
	for c := range b.conns {
		c.Close()
	}
	b.mu.Unlock()
	b.running.Wait()
}

// ReadHead reads one message's head, the empty line included, exactly as it was sent.
func ReadHead(r *bufio.Reader) (string, error) {
	var head strings.Builder
	for {
		line, err := r.ReadString('\n')
		head.WriteString(line)
		if err != nil {
			return head.String(), fmt.Errorf("read head: %w", err)
		}
		if line == "\r\n" {
			return head.String(), nil
		}
	}
}

// Recorder is a backend that answers every request with the same bytes and keeps the heads it was sent.
type Recorder struct {
	*RawBackend
	heads chan string
}

// NewRecorder answers with answer, which holds head and body. Requests must have no body.
func NewRecorder(t testing.TB, answer string) *Recorder {
	t.Helper()
	heads := make(chan string, 1024)
	r := &Recorder{heads: heads}
	r.RawBackend = NewRawBackend(t, func(c net.Conn) {
		in := bufio.NewReader(c)
		for {
			head, err := ReadHead(in)
			if err != nil {
				return
			}
			heads <- head
			if _, err := io.WriteString(c, answer); err != nil {
				return
			}
		}
	})
	return r
}

// Head is the next request's head.
func (r *Recorder) Head(t testing.TB) string {
	t.Helper()
	select {
	case head := <-r.heads:
		return head
	case <-time.After(patience):
		t.Fatal("the backend was sent nothing")
		return ""
	}
}

// Requests is how many heads have come that Head did not take.
func (r *Recorder) Requests() int { return len(r.heads) }

// Exchange sends raw to address on a connection of its own and returns everything that comes back until the other side
// closes; the request should ask for that.
func Exchange(t testing.TB, address, raw string) string {
	t.Helper()
	c := Dial(t, address)
	defer c.Close()
	if _, err := io.WriteString(c, raw); err != nil {
		t.Fatal(err)
	}
	var answer bytes.Buffer
	if _, err := io.Copy(&answer, c); err != nil && answer.Len() == 0 {
		t.Fatalf("read the answer: %v", err)
	}
	return answer.String()
}

// Dial opens a connection that does not outlive the test, nor hang it.
func Dial(t testing.TB, address string) net.Conn {
	t.Helper()
	c, err := net.DialTimeout("tcp", address, patience)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// Eventually polls condition until it holds. It is for what happens in other processes' and the kernel's own time; where
// a channel can say it, a channel is better.
func Eventually(t testing.TB, what string, condition func() bool) {
	t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !condition() {
		select {
		case <-deadline.C:
			t.Fatalf("never came true: %s", what)
		case <-tick.C:
		}
	}
}

// Build makes resources without a document, one call for each thing that a test wants served.
type Build struct{ config.Resources }

// NewBuild listens on an address of the loopback that the kernel chooses.
func NewBuild() *Build {
	return &Build{config.Resources{
		Listener:     &resourcev1.Listener{Host: "127.0.0.1"},
		Certificates: make(map[string]*resourcev1.Certificate),
		Routes:       make(map[string]*resourcev1.Route),
		Pools:        make(map[string]*resourcev1.Pool),
	}}
}

// Route adds a prefix route that strips its path, with a pool of its own name over ports of the loopback that are not
// probed.
func (b *Build) Route(path string, ports ...uint32) *Build {
	pool := &resourcev1.Pool{HealthCheck: &resourcev1.HealthCheck{Type: resourcev1.HealthCheckType_HEALTH_CHECK_TYPE_NONE}}
	for _, port := range ports {
		pool.Backends = append(pool.Backends, &resourcev1.Backend{Host: "127.0.0.1", Port: port, Weight: 1})
	}
	b.Pools[path] = pool
	b.Routes[path] = &resourcev1.Route{Path: path, Match: resourcev1.PathMatch_PATH_MATCH_PREFIX, StripPath: true, Pool: path}
	return b
}

// Serve makes the listener speak TLS with a certificate.
func (b *Build) Serve(chain, key []byte) *Build {
	b.Certificates[config.CertificateName] = &resourcev1.Certificate{ChainPem: chain, KeyPem: key}
	b.Listener.Certificate = config.CertificateName
	return b
}

// Bundle is what a node takes.
func (b *Build) Bundle(t testing.TB) *bundle.Bundle {
	t.Helper()
	made, err := bundle.Encode(&b.Resources)
	if err != nil {
		t.Fatal(err)
	}
	return made
}
