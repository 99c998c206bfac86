package e2e

import (
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
	"testing"
)

// portRange hands out ports, each once. They lie below those that kernels take client ports from, so that no connection
// of the load sits on one before its process has bound it.
type portRange struct {
	mu   sync.Mutex // guards next
	next int
}

const (
	firstPort = 12_000
	lastPort  = 32_000
)

// Two runs on one machine begin at different places.
var ports = &portRange{next: firstPort + rand.N(lastPort-firstPort)}

func (r *portRange) take() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.next++; r.next > lastPort {
		r.next = firstPort
	}
	return r.next
}

// freePort gives a port of 127.0.0.1 that is free for TCP and UDP.
func freePort(t testing.TB) int {
	t.Helper()
	for range 1000 {
		port := ports.take()
		if isFree(port) {
			return port
		}
	}
	t.Fatal("no port is free")
	return 0
}

func isFree(port int) bool {
	address := local(port)
	l, err := net.Listen("tcp", address)
	if err != nil {
		return false
	}
	defer l.Close()
	packets, err := net.ListenPacket("udp", address)
	if err != nil {
		return false
	}
	packets.Close()
	return true
}

func local(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

// hold listens on a port of its own until the test ends or the returned function is called.
func hold(t testing.TB) (address string, release func()) {
	t.Helper()
	l, err := net.Listen("tcp", local(freePort(t)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l.Addr().String(), func() { l.Close() }
}

// port is the port of host:port.
func port(address string) int {
	_, text, _ := net.SplitHostPort(address)
	n, _ := strconv.Atoi(text)
	return n
}
