// Package gossiptest is a network in memory for tests of gossip: it loses packets, delays them, and falls apart and
// heals as told. It runs under testing/synctest, where a hundred members and many minutes fit into a second.
//
// It carries; it does not know what. memberlist's own mock network can neither lose nor delay, and blocks its sender on
// a member that stopped.
package gossiptest

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/pyserve/pyserve/cluster/gossip"
)

// Network connects the transports that it makes. All methods are safe for concurrent use.
type Network struct {
	// mu guards what follows.
	mu      sync.Mutex
	rng     *rand.Rand
	loss    float64
	latency time.Duration
	hosts   map[string]*Transport
	// side is the part of a fallen-apart network that a host is in, and sides how many there ever were.
	side    map[string]int
	sides   int
	traffic Traffic
}

// Traffic is what was sent, lost packets included: what UDP and TCP carry, without their own headers and those of IP.
type Traffic struct {
	Packets, PacketBytes uint64
	// Streams count once, what both ends write adds to their bytes.
	Streams, StreamBytes uint64
}

// Since gives what was sent after earlier.
func (t Traffic) Since(earlier Traffic) Traffic {
	return Traffic{
		Packets: t.Packets - earlier.Packets, PacketBytes: t.PacketBytes - earlier.PacketBytes,
		Streams: t.Streams - earlier.Streams, StreamBytes: t.StreamBytes - earlier.StreamBytes,
	}
}

// Bytes are those of packets and streams.
func (t Traffic) Bytes() uint64 { return t.PacketBytes + t.StreamBytes }

// NewNetwork makes an empty network without loss or delay. The same seed loses the same packets of the same traffic.
func NewNetwork(seed uint64) *Network {
	return &Network{
		rng:   rand.New(rand.NewPCG(seed, seed)),
		hosts: make(map[string]*Transport),
		side:  make(map[string]int),
	}
}

// SetLoss makes each packet get lost with a probability of 0 to 1. Streams lose nothing.
func (n *Network) SetLoss(probability float64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.loss = probability
}

// SetLatency makes each packet, and each opening of a stream, take that long.
func (n *Network) SetLatency(d time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.latency = d
}

// Partition puts the hosts at those addresses out of reach of all others, and leaves them in reach of one another.
// Streams that are open stay open.
func (n *Network) Partition(addresses ...string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.sides++
	for _, a := range addresses {
		n.side[a] = n.sides
	}
}

// Traffic is what all hosts have sent so far.
func (n *Network) Traffic() Traffic {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.traffic
}

func (n *Network) count(add func(*Traffic)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	add(&n.traffic)
}

// Heal lets everyone reach everyone.
func (n *Network) Heal() {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.side)
}

// queue is how many packets wait for a host that does not read; more are lost, as in a socket's buffer.
const queue = 1024

// Listen adds a host at an address of the form "10.0.0.1:7946".
func (n *Network) Listen(address string) (*Transport, error) {
	addr, err := netip.ParseAddrPort(address)
	if err != nil {
		return nil, fmt.Errorf("cannot listen on %q: %w", address, err)
	}
	t := &Transport{
		network: n,
		addr:    net.UDPAddrFromAddrPort(addr),
		packets: make(chan *gossip.Packet, queue),
		streams: make(chan net.Conn),
		closed:  make(chan struct{}),
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.hosts[address] != nil {
		return nil, fmt.Errorf("cannot listen on %s: address already in use", address)
	}
	n.hosts[address] = t
	return t, nil
}

// path tells how a packet or stream gets from one address to another: whom it reaches and how late. No host: nobody
// listens there. Not reachable: silence.
func (n *Network) path(from, to string) (host *Transport, reachable bool, latency time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.hosts[to], n.side[from] == n.side[to], n.latency
}

func (n *Network) loses() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.loss > 0 && n.rng.Float64() < n.loss
}

// Transport is one host of a Network.
type Transport struct {
	network *Network
	addr    *net.UDPAddr
	packets chan *gossip.Packet
	streams chan net.Conn
	closed  chan struct{}
	once    sync.Once
}

var _ gossip.Transport = (*Transport)(nil)

// Address is the host:port of the host.
func (t *Transport) Address() string { return t.addr.String() }

// FinalAdvertiseAddr gives the host's address, whatever is asked for.
func (t *Transport) FinalAdvertiseAddr(string, int) (net.IP, int, error) {
	return t.addr.IP, t.addr.Port, nil
}

// PacketCh carries what arrives.
func (t *Transport) PacketCh() <-chan *gossip.Packet { return t.packets }

// StreamCh carries the streams that others open.
func (t *Transport) StreamCh() <-chan net.Conn { return t.streams }

// WriteTo sends a packet.
func (t *Transport) WriteTo(b []byte, address string) (time.Time, error) {
	return t.WriteToAddress(b, gossip.Address{Addr: address})
}

// WriteToAddress sends a packet, which may get lost like any.
func (t *Transport) WriteToAddress(b []byte, to gossip.Address) (time.Time, error) {
	now := time.Now()
	t.network.count(func(sent *Traffic) { sent.Packets++; sent.PacketBytes += uint64(len(b)) })
	host, reachable, latency := t.network.path(t.Address(), to.Addr)
	if host == nil || !reachable || t.network.loses() {
		return now, nil
	}
	packet := &gossip.Packet{Buf: append([]byte(nil), b...), From: t.addr}
	if latency == 0 {
		host.receive(packet)
	} else {
		time.AfterFunc(latency, func() { host.receive(packet) })
	}
	return now, nil
}

func (t *Transport) receive(p *gossip.Packet) {
	p.Timestamp = time.Now()
	select {
	case <-t.closed:
	case t.packets <- p:
	default:
	}
}

// DialTimeout opens a stream.
func (t *Transport) DialTimeout(address string, timeout time.Duration) (net.Conn, error) {
	return t.DialAddressTimeout(gossip.Address{Addr: address}, timeout)
}

// DialAddressTimeout opens a stream: refused where nobody listens, and after the timeout where nobody is in reach.
func (t *Transport) DialAddressTimeout(to gossip.Address, timeout time.Duration) (net.Conn, error) {
	host, reachable, latency := t.network.path(t.Address(), to.Addr)
	if reachable && host == nil {
		return nil, errors.New("connection refused")
	}
	expired := time.NewTimer(timeout)
	defer expired.Stop()
	if !reachable {
		return nil, t.wait(timeout, errors.New("i/o timeout"))
	}
	if err := t.wait(latency, nil); err != nil {
		return nil, err
	}
	left, right := net.Pipe()
	ours, theirs := counted{left, t.network}, counted{right, t.network}
	select {
	case host.streams <- theirs:
		t.network.count(func(sent *Traffic) { sent.Streams++ })
		return ours, nil
	case <-host.closed:
		return nil, errors.New("connection refused")
	case <-expired.C:
		return nil, errors.New("i/o timeout")
	case <-t.closed:
		return nil, net.ErrClosed
	}
}

// counted is one end of a stream.
type counted struct {
	net.Conn
	network *Network
}

// Write counts what was taken.
func (c counted) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.network.count(func(sent *Traffic) { sent.StreamBytes += uint64(n) })
	return n, err
}

// wait waits and then gives result, or another error as soon as the host is shut down.
func (t *Transport) wait(d time.Duration, result error) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return result
	case <-t.closed:
		return net.ErrClosed
	}
}

// Shutdown takes the host off the network; its address is free again.
func (t *Transport) Shutdown() error {
	t.once.Do(func() {
		close(t.closed)
		t.network.mu.Lock()
		defer t.network.mu.Unlock()
		delete(t.network.hosts, t.Address())
	})
	return nil
}
