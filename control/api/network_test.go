package api

import (
	"crypto/tls"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/pyserve/pyserve/control/identity"
)

// pass lets time pass in a bubble.
func pass(d time.Duration) { time.Sleep(d) }

// peerTLS gives both sides' configurations of a control of some cluster.
func peerTLS(t *testing.T) (server, client *tls.Config) {
	t.Helper()
	authority, err := identity.Open(identity.Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	if server, client, err = authority.PeerTLS("c1"); err != nil {
		t.Fatal(err)
	}
	return server, client
}

func TestHandshakesThatDoNotEndKeepNoControlOut(t *testing.T) {
	server, client := peerTLS(t)
	l := loopback(t)
	s := newSecured(l, server)
	defer s.Close()
	for range maxHandshakes + 10 {
		slow, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer slow.Close()
	}
	conn, err := tls.Dial("tcp", l.Addr().String(), client)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	got, err := s.Accept()
	if err != nil || got.RemoteAddr().String() != conn.LocalAddr().String() {
		t.Fatalf("got %v, %v", got, err)
	}
	got.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := len(s.shaking); n > maxHandshakes {
		t.Errorf("%d handshakes are under way", n)
	}
}

func TestWhoHoldsTheMostHandshakesLosesItsOldest(t *testing.T) {
	var all []*handshake
	add := func(address string) {
		all = append(all, &handshake{from: comesFrom(net.TCPAddrFromAddrPort(netip.MustParseAddrPort(address)))})
	}
	add("10.0.0.2:1") // a control, and the oldest of all
	add("[::ffff:10.0.0.2]:2")
	for _, address := range []string{"[2001:db8::1]:1", "[2001:db8::2]:1", "10.0.0.3:1", "[2001:db8::3]:1", "[2001:db8:0:1::1]:1"} {
		add(address)
	}
	if i := mostCrowded(all); i != 2 {
		t.Errorf("the %dth is ended, of %v", i, all[i].from)
	}
	all = append(all[:2:2], all[3:]...)
	if i := mostCrowded(all); i != 0 {
		t.Errorf("the %dth is ended, of %v; two have two", i, all[i].from)
	}
}
