package splice

import (
	"net"
	"testing"
)

// connected is both ends of a TCP connection.
func connected(t testing.TB) (near, far *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dialed, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	accepted, err := l.Accept()
	if err != nil {
		dialed.Close()
		t.Fatal(err)
	}
	near, far = dialed.(*net.TCPConn), accepted.(*net.TCPConn)
	t.Cleanup(func() {
		near.Close()
		far.Close()
	})
	return near, far
}

// relayed is a path through a relay: what the test writes to source is to be moved from src to dst and to come out of sink.
type relayed struct{ source, src, dst, sink *net.TCPConn }

func newRelayed(t testing.TB) *relayed {
	t.Helper()
	r := new(relayed)
	r.source, r.src = connected(t)
	r.dst, r.sink = connected(t)
	return r
}
