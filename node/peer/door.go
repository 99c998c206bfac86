package peer

import (
	"net"
	"sync"
	"sync/atomic"
)

// door is a listener whose connections are brought to it. Those over a bound are closed.
type door struct {
	waiting chan net.Conn
	closed  chan struct{}
	once    sync.Once
	places  chan struct{}
	refused atomic.Uint64
}

func newDoor() *door {
	return &door{
		waiting: make(chan net.Conn, maxConnections), closed: make(chan struct{}), places: make(chan struct{}, maxConnections),
	}
}

func (d *door) take(conn net.Conn) {
	select {
	case <-d.closed:
		_ = conn.Close()
		return
	default:
	}
	select {
	case d.places <- struct{}{}: // so waiting has room too
		d.waiting <- &visitor{Conn: conn, leave: func() { <-d.places }}
	default:
		d.refused.Add(1)
		_ = conn.Close()
	}
}

// drain closes what nobody accepted before Close.
func (d *door) drain() {
	for {
		select {
		case conn := <-d.waiting:
			_ = conn.Close()
		default:
			return
		}
	}
}

// Accept gives the next connection.
func (d *door) Accept() (net.Conn, error) {
	select {
	case conn := <-d.waiting:
		return conn, nil
	case <-d.closed:
		return nil, net.ErrClosed
	}
}

// Close ends Accept.
func (d *door) Close() error {
	d.once.Do(func() { close(d.closed) })
	return nil
}

// Addr is for the listener's interface: the address is that of whoever brings the connections.
func (d *door) Addr() net.Addr { return &net.TCPAddr{} }

// visitor gives its place back when it is closed.
type visitor struct {
	net.Conn
	once  sync.Once
	leave func()
}

// Close closes the connection.
func (v *visitor) Close() error {
	v.once.Do(v.leave)
	return v.Conn.Close()
}
