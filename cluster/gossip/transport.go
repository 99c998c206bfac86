package gossip

import (
	"context"
	"fmt"
	"log"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

// Transport carries packets and streams between members. The names are aliases so that a transport, as tests have one,
// can be written without importing memberlist.
type (
	Transport = memberlist.NodeAwareTransport
	Packet    = memberlist.Packet
	Address   = memberlist.Address
)

// socketTransport is memberlist's own, but for streams that end with the transport and not with their timeout, and for a
// doorman at its TCP port.
type socketTransport struct {
	*memberlist.NetTransport
	ctx     context.Context
	cancel  context.CancelFunc
	doorman *doorman
	// stopped ends the doorman, and running waits for it.
	stopped chan struct{}
	running sync.WaitGroup
	once    sync.Once
}

// openTransport gives the transport of the options or opens sockets, and what ends its streams.
func openTransport(o Options, logger *log.Logger) (Transport, context.CancelFunc, error) {
	if o.Transport != nil {
		return o.Transport, func() {}, nil
	}
	sockets, err := listen(o, logger)
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	t := &socketTransport{
		NetTransport: sockets, ctx: ctx, cancel: cancel, doorman: newDoorman(sockets.StreamCh(), o.TakeTLS), stopped: make(chan struct{}),
	}
	t.running.Go(func() { t.doorman.run(ctx, t.stopped) })
	return t, cancel, nil
}

// StreamCh carries the connections of members.
func (t *socketTransport) StreamCh() <-chan net.Conn { return t.doorman.streams }

// Shutdown closes the sockets. The doorman goes last: while somebody may still come, somebody has to take it.
func (t *socketTransport) Shutdown() error {
	t.cancel()
	err := t.NetTransport.Shutdown()
	t.once.Do(func() { close(t.stopped) })
	t.running.Wait()
	return err
}

// portTries is how often a port is picked anew when the one that TCP got is taken for UDP.
const portTries = 10

func listen(o Options, logger *log.Logger) (*memberlist.NetTransport, error) {
	tries := 1
	if o.Bind.Port() == 0 {
		tries = portTries
	}
	var failure error
	for range tries {
		sockets, err := memberlist.NewNetTransport(&memberlist.NetTransportConfig{
			BindAddrs: []string{o.Bind.Addr().String()},
			BindPort:  int(o.Bind.Port()),
			Logger:    logger,
		})
		if err == nil {
			return sockets, nil
		}
		failure = fmt.Errorf("cannot listen on %s: %s", o.Bind, listenReason(err))
	}
	return nil, failure
}

// listenReason is the last part of "failed to start TCP listener on … port …: listen tcp …: bind: address already in
// use"; memberlist keeps only the text.
func listenReason(err error) string {
	text := err.Error()
	if i := strings.LastIndex(text, ": "); i >= 0 {
		return text[i+2:]
	}
	return text
}

// advertise settles the address that others are told, which memberlist asks for by host and port. A Transport of the
// options knows its own.
func advertise(c *memberlist.Config, t Transport, o Options) (netip.AddrPort, error) {
	sockets, ok := t.(*socketTransport)
	if !ok {
		ip, port, err := t.FinalAdvertiseAddr("", 0)
		if err != nil {
			return netip.AddrPort{}, fmt.Errorf("cannot tell the address to advertise: %w", err)
		}
		addr, _ := netip.AddrFromSlice(ip)
		c.BindPort = port
		return netip.AddrPortFrom(addr.Unmap(), uint16(port)), nil
	}
	c.BindPort = sockets.GetAutoBindPort()
	c.AdvertiseAddr, c.AdvertisePort = o.Advertise.String(), c.BindPort
	return netip.AddrPortFrom(o.Advertise.Unmap(), uint16(c.BindPort)), nil
}

// DialAddressTimeout opens a stream that lives no longer than the transport.
func (t *socketTransport) DialAddressTimeout(a Address, timeout time.Duration) (net.Conn, error) {
	dialer := net.Dialer{Timeout: timeout}
	conn, err := dialer.DialContext(t.ctx, "tcp", a.Addr)
	if err != nil {
		return nil, err
	}
	forget := context.AfterFunc(t.ctx, func() { _ = conn.Close() })
	return &stream{Conn: conn, forget: forget}, nil
}

// DialTimeout is DialAddressTimeout without a name.
func (t *socketTransport) DialTimeout(address string, timeout time.Duration) (net.Conn, error) {
	return t.DialAddressTimeout(Address{Addr: address}, timeout)
}

// stream takes its transport's hand off the connection when it is closed.
type stream struct {
	net.Conn
	forget func() bool
}

// Close closes the connection.
func (s *stream) Close() error {
	s.forget()
	return s.Conn.Close()
}
