package gossip

import (
	"context"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// firstByteWait is how long a connection may say nothing, and maxUnknown how many may do so at a time.
	firstByteWait = 5 * time.Second
	maxUnknown    = 128
	// tlsHandshake is the first byte of every TLS connection. memberlist's begin with the mark of its label, 0xf4.
	tlsHandshake = 0x16
)

// doorman tells by the first byte of a connection whom it is for, so that members need one port: memberlist, or whoever
// takes TLS. What it does not know it gives to memberlist, which closes it.
type doorman struct {
	arrivals <-chan net.Conn
	streams  chan net.Conn
	takeTLS  func(net.Conn) // nil: nobody
	wait     time.Duration
	// unknown are places for connections that have said nothing yet.
	unknown chan struct{}
	refused atomic.Uint64
	asking  sync.WaitGroup
}

func newDoorman(arrivals <-chan net.Conn, takeTLS func(net.Conn)) *doorman {
	return &doorman{
		arrivals: arrivals, streams: make(chan net.Conn), takeTLS: takeTLS,
		wait: firstByteWait, unknown: make(chan struct{}, maxUnknown),
	}
}

// run lets connections in until stopped is closed, and closes what comes after ctx has ended: memberlist's listener waits
// for somebody to take what it accepted.
func (d *doorman) run(ctx context.Context, stopped <-chan struct{}) {
	defer d.asking.Wait()
	for {
		select {
		case <-stopped:
			return
		case conn := <-d.arrivals:
			select {
			case d.unknown <- struct{}{}:
				d.asking.Go(func() {
					defer func() { <-d.unknown }()
					d.ask(ctx, conn)
				})
			default:
				d.refused.Add(1)
				_ = conn.Close()
			}
		}
	}
}

// ask reads the first byte and hands the connection over.
func (d *doorman) ask(ctx context.Context, conn net.Conn) {
	release := context.AfterFunc(ctx, func() { _ = conn.Close() })
	first := make([]byte, 1)
	err := conn.SetReadDeadline(time.Now().Add(d.wait))
	if err == nil {
		_, err = conn.Read(first)
	}
	if err == nil {
		err = conn.SetReadDeadline(time.Time{})
	}
	if !release() || err != nil {
		_ = conn.Close()
		return
	}
	known := &knownConn{Conn: conn, first: first}
	if first[0] == tlsHandshake {
		if d.takeTLS == nil {
			d.refused.Add(1)
			_ = conn.Close()
			return
		}
		d.takeTLS(known)
		return
	}
	select {
	case d.streams <- known:
	case <-ctx.Done():
		_ = conn.Close()
	}
}

// knownConn gives its first byte again.
type knownConn struct {
	net.Conn
	first []byte
}

// Read reads.
func (c *knownConn) Read(p []byte) (int, error) {
	if len(c.first) == 0 || len(p) == 0 {
		return c.Conn.Read(p)
	}
	n := copy(p, c.first)
	c.first = c.first[n:]
	return n, nil
}
