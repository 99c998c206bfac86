package store

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"
)

// fabric joins stores of one test without sockets, and can cut any of them off.
type fabric struct {
	mu        sync.Mutex
	listeners map[string]*fabricListener
	cut       map[string]bool
	links     map[net.Conn][2]string
}

func newFabric() *fabric {
	return &fabric{listeners: map[string]*fabricListener{}, cut: map[string]bool{}, links: map[net.Conn][2]string{}}
}

type fabricAddr string

func (fabricAddr) Network() string  { return "fabric" }
func (a fabricAddr) String() string { return string(a) }

type fabricListener struct {
	fabric   *fabric
	address  string
	incoming chan net.Conn
	once     sync.Once
	closed   chan struct{}
}

func (l *fabricListener) Accept() (net.Conn, error) {
	select {
	case conn := <-l.incoming:
		return conn, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *fabricListener) Close() error {
	l.once.Do(func() {
		close(l.closed)
		l.fabric.mu.Lock()
		defer l.fabric.mu.Unlock()
		if l.fabric.listeners[l.address] == l {
			delete(l.fabric.listeners, l.address)
		}
		l.fabric.breakLinks(l.address)
	})
	return nil
}

func (l *fabricListener) Addr() net.Addr { return fabricAddr(l.address) }

func (f *fabric) network(address string) *Network {
	return &Network{
		Listen: func() (net.Listener, error) {
			f.mu.Lock()
			defer f.mu.Unlock()
			if f.listeners[address] != nil {
				return nil, fmt.Errorf("%s: address already in use", address)
			}
			l := &fabricListener{fabric: f, address: address, incoming: make(chan net.Conn), closed: make(chan struct{})}
			f.listeners[address] = l
			return l, nil
		},
		Dial: func(to string, timeout time.Duration) (net.Conn, error) { return f.dial(address, to, timeout) },
	}
}

func (f *fabric) dial(from, to string, timeout time.Duration) (net.Conn, error) {
	f.mu.Lock()
	l := f.listeners[to]
	if l == nil || f.cut[from] || f.cut[to] {
		f.mu.Unlock()
		return nil, errors.New("no way to " + to)
	}
	here, there := net.Pipe()
	f.links[here], f.links[there] = [2]string{from, to}, [2]string{from, to}
	f.mu.Unlock()
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	select {
	case l.incoming <- there:
		return here, nil
	case <-l.closed:
	case <-timer.C:
	}
	here.Close()
	return nil, errors.New("no answer from " + to)
}

// breakLinks ends the connections of an address. The caller holds mu.
func (f *fabric) breakLinks(address string) {
	for conn, ends := range f.links {
		if ends[0] == address || ends[1] == address {
			conn.Close()
			delete(f.links, conn)
		}
	}
}

// isolate cuts a store off from all others, or joins it again.
func (f *fabric) isolate(address string, cut bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.cut[address] = cut
	f.breakLinks(address)
}

// trio is several stores of one log.
type trio struct {
	t      testing.TB
	fabric *fabric
	mu     sync.Mutex // guards stores: forwarding reads it
	stores map[string]*Store
	dirs   map[string]string
}

// newTrio opens the first store and lets the others join.
func newTrio(t testing.TB, names ...string) *trio {
	t.Helper()
	c := &trio{t: t, fabric: newFabric(), stores: map[string]*Store{}, dirs: map[string]string{}}
	t.Cleanup(c.closeAll)
	c.open(names[0], "")
	first := c.get(names[0])
	if err := first.PutServer(t.Context(), c.server(names[0], first.ID())); err != nil {
		t.Fatal(err)
	}
	for _, name := range names[1:] {
		c.join(name)
	}
	return c
}

func (c *trio) server(name, id string) Server {
	return Server{ID: id, Name: name, RaftAddress: name + ":1", Endpoint: name + ":2", Joined: someTime}
}

func (c *trio) get(name string) *Store {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.stores[name]
}

// options are those of a store of that name.
func (c *trio) options(name, id string) Options {
	if c.dirs[name] == "" {
		c.dirs[name] = c.t.TempDir()
	}
	return Options{
		Dir: c.dirs[name], Name: name, Server: id, Network: c.fabric.network(name + ":1"), Forward: c.forward, Key: testKey,
		Now: func() time.Time { return someTime },
	}
}

func (c *trio) forward(ctx context.Context, leader Server, command []byte) error {
	s := c.get(leader.Name)
	if s == nil {
		return ErrNotLeader
	}
	return s.Take(ctx, command)
}

func (c *trio) open(name, id string) *Store {
	c.t.Helper()
	s, err := Open(context.Background(), c.options(name, id))
	if err != nil {
		c.t.Fatal(err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stores[name] = s
	return s
}

// join lets a store with an empty disk in.
func (c *trio) join(name string) *Store {
	c.t.Helper()
	id := NewServerID(name)
	leader := c.leader()
	if err := leader.Admit(c.t.Context(), c.server(name, id)); err != nil {
		c.t.Fatal(err)
	}
	s := c.open(name, id)
	c.promote(id)
	if err := s.Joined(c.t.Context()); err != nil {
		c.t.Fatal(err)
	}
	return s
}

func (c *trio) promote(id string) {
	c.t.Helper()
	eventually(c.t, id+" has its vote", func() bool { return c.leader().Promote(c.t.Context(), id) == nil })
}

// leader waits until one of the stores leads.
func (c *trio) leader() *Store {
	c.t.Helper()
	var found *Store
	eventually(c.t, "one leads", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, s := range c.stores {
			if s.Leads() {
				found = s
			}
		}
		return found != nil
	})
	return found
}

// commit has whoever leads commit a revision, once.
func (c *trio) commit(bodies map[string]string, document string) (r Revision) {
	c.t.Helper()
	request := NewRequestID()
	var err error
	eventually(c.t, document+" is committed", func() bool {
		leader := c.leader()
		p := proposal(leader, routes(c.t, bodies), document)
		p.Request = request
		r, err = leader.Commit(c.t.Context(), p)
		return err == nil
	})
	return r
}

// stop closes a store without handing anything over.
func (c *trio) stop(name string) {
	c.t.Helper()
	c.mu.Lock()
	s := c.stores[name]
	delete(c.stores, name)
	c.mu.Unlock()
	if err := s.Close(); err != nil {
		c.t.Error(err)
	}
}

func (c *trio) closeAll() {
	for _, s := range c.stores {
		if err := s.Close(); err != nil {
			c.t.Error(err)
		}
	}
}

func (c *trio) nameOf(s *Store) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	for name, other := range c.stores {
		if other == s {
			return name
		}
	}
	return ""
}

// eventually waits for what other goroutines bring about.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	ticker := time.NewTicker(time.Millisecond)
	defer ticker.Stop()
	for deadline := time.Now().Add(20 * time.Second); !ok(); <-ticker.C {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not in time", what)
		}
	}
}
