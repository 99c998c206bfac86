package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/gorilla/websocket"
	"google.golang.org/protobuf/types/known/durationpb"

	operatorv1 "github.com/pyserve/pyserve/proto/pyserve/operator/v1"
)

// leaves are the WebSockets of a node that was drained.
type leaves struct {
	Sockets int `json:"sockets"`
	// ByApply is how many ended because of an apply that had nothing to do with them.
	ByApply int           `json:"by_apply"`
	Drain   time.Duration `json:"drain"` // the deadline
	// InOrder were closed with 1001, and Broken in another way; Refused could not be opened again elsewhere.
	InOrder, Broken, Refused int
	// Seconds are how many came back in each second of the drain.
	Seconds []int         `json:"seconds"`
	Took    time.Duration `json:"took"`
}

const (
	leaveSockets  = 9000
	leaveDeadline = 30 * time.Second
	// leaveQuiet is how long is waited for what an apply might break.
	leaveQuiet = 2 * time.Second
	// dialAtOnce is how many handshakes are under way at a time.
	dialAtOnce = 64
)

// measureLeave drains one of two nodes that holds many WebSockets, whose clients go to the other.
func (b *bench) measureLeave(ctx context.Context, r *report) error {
	c, err := b.startCluster(ctx, "leave")
	if err != nil {
		return err
	}
	defer c.close()
	port, closeEcho, err := b.startEcho()
	if err != nil {
		return err
	}
	defer closeEcho()
	nodes, err := c.startRealNodes(ctx, "n", 2)
	defer func() { killAll(nodes) }()
	if err != nil {
		return err
	}
	doc := func(routes int) []byte { return document(routes, 33_000, "127.0.0.1", port) }
	if _, _, err := c.operator.apply(ctx, doc(2), time.Now()); err != nil {
		return err
	}
	for _, n := range nodes {
		if err := n.process.ready(ctx, n.admin); err != nil {
			return err
		}
	}
	l := &leaves{Sockets: b.sockets(), Drain: leaveDeadline}
	if b.options.rounds == 1 { // a look
		l.Sockets, l.Drain = 50, 2*time.Second
	}
	crowd := &crowd{path: "/service/000000", home: nodes[0].listen, elsewhere: nodes[1].listen}
	defer crowd.end()
	if err := crowd.gather(ctx, l.Sockets); err != nil {
		return err
	}
	note("%d WebSockets stand", l.Sockets)
	if _, _, err := c.operator.apply(ctx, doc(3), time.Now()); err != nil {
		return err
	}
	if err := pause(ctx, leaveQuiet); err != nil {
		return err
	}
	l.ByApply = len(crowd.told())
	began := time.Now()
	if err := c.operator.drain(ctx, nodes[0].name, l.Drain); err != nil {
		return err
	}
	l.Took = time.Since(began)
	l.sum(crowd.told()[l.ByApply:], began)
	r.Leaves = l
	return nil
}

// sockets is how many this process has descriptors for: one for each client and one for each connection of the backend.
func (b *bench) sockets() int {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return leaveSockets
	}
	return min(leaveSockets, int(limit.Max/2)-500)
}

// drain has a node drained and waits for it.
func (o *operator) drain(ctx context.Context, name string, over time.Duration) error {
	stream, err := o.client.Drain(ctx, &operatorv1.DrainRequest{Node: name, Deadline: durationpb.New(over)})
	for err == nil {
		var m *operatorv1.DrainEvent
		if m, err = stream.Recv(); err == nil && m.GetDone() {
			return nil
		}
	}
	return fmt.Errorf("drain %s: %w", name, err)
}

// startEcho is a backend for WebSockets.
func (b *bench) startEcho() (port int, stop func(), err error) {
	upgrader := websocket.Upgrader{CheckOrigin: func(*http.Request) bool { return true }, ReadBufferSize: 512, WriteBufferSize: 512}
	var conns sync.WaitGroup
	e, err := b.startServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, err := upgrader.Upgrade(w, r, nil)
		if err != nil {
			return
		}
		conns.Add(1)
		defer conns.Done()
		defer conn.Close()
		for {
			if _, _, err := conn.ReadMessage(); err != nil {
				return
			}
		}
	}))
	if err != nil {
		return 0, nil, err
	}
	return e.port, func() {
		e.close()
		conns.Wait()
	}, nil
}

// ending is a WebSocket's.
type ending struct {
	at      time.Time
	inOrder bool
	back    bool // another could be opened elsewhere
}

// crowd is many WebSockets that say nothing, each held by a client that goes elsewhere when it is closed.
type crowd struct {
	path, home, elsewhere string
	over                  atomic.Bool
	group                 sync.WaitGroup

	mu      sync.Mutex // guards what follows
	open    map[*websocket.Conn]struct{}
	endings []ending
}

func (c *crowd) gather(ctx context.Context, count int) error {
	places, failed := make(chan struct{}, dialAtOnce), make(chan error, count)
	var dialling sync.WaitGroup
	for range count {
		places <- struct{}{}
		dialling.Go(func() {
			defer func() { <-places }()
			conn, err := c.dial(ctx, c.home)
			if err != nil {
				failed <- err
				return
			}
			c.group.Go(func() { c.hold(ctx, conn) })
		})
	}
	dialling.Wait()
	select {
	case err := <-failed:
		return err
	default:
		return nil
	}
}

func (c *crowd) dial(ctx context.Context, address string) (*websocket.Conn, error) {
	dialer := websocket.Dialer{HandshakeTimeout: readyTime, ReadBufferSize: 512, WriteBufferSize: 512}
	conn, _, err := dialer.DialContext(ctx, "ws://"+address+c.path, nil)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.open == nil {
		c.open = make(map[*websocket.Conn]struct{})
	}
	if c.over.Load() {
		conn.Close()
		return nil, errors.New("the measurement is over")
	}
	c.open[conn] = struct{}{}
	return conn, nil
}

// hold waits for the end of a WebSocket, and of the one that takes its place.
func (c *crowd) hold(ctx context.Context, conn *websocket.Conn) {
	for again := true; again; again = false {
		_, _, err := conn.ReadMessage()
		c.drop(conn)
		if c.over.Load() {
			return
		}
		e := ending{at: time.Now(), inOrder: websocket.IsCloseError(err, websocket.CloseGoingAway)}
		next, err := c.dial(ctx, c.elsewhere)
		e.back = err == nil
		c.mu.Lock()
		c.endings = append(c.endings, e)
		c.mu.Unlock()
		if err != nil {
			return
		}
		conn = next
	}
	conn.ReadMessage() // until end
	c.drop(conn)
}

func (c *crowd) drop(conn *websocket.Conn) {
	conn.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.open, conn)
}

func (c *crowd) told() []ending {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.endings)
}

func (c *crowd) end() {
	c.over.Store(true)
	c.mu.Lock()
	for conn := range c.open {
		conn.Close()
	}
	c.mu.Unlock()
	c.group.Wait()
}

func (l *leaves) sum(endings []ending, began time.Time) {
	for _, e := range endings {
		switch {
		case !e.inOrder:
			l.Broken++
		case !e.back:
			l.Refused++
		default:
			l.InOrder++
		}
		second := int(e.at.Sub(began) / time.Second)
		for len(l.Seconds) <= second {
			l.Seconds = append(l.Seconds, 0)
		}
		l.Seconds[second]++
	}
}

func (l *leaves) table(b *bytes.Buffer) {
	paced := float64(l.Sockets) / l.Drain.Seconds()
	fmt.Fprintf(b, "\nOne of two nodes holds %d WebSockets, and is drained over %v:\n\n"+
		"| closed with 1001, and opened at the other node | otherwise | most in one second | paced rate | until nothing was left |\n|---:|---:|---:|---:|---:|\n"+
		"| %d | %d | %d | %.0f | %.1f s |\n", l.Sockets, l.Drain, l.InOrder, l.Broken+l.Refused, slices.Max(append(l.Seconds, 0)), paced, l.Took.Seconds())
	fmt.Fprintf(b, "\nAn apply of another route before that ended %d of them: %s. All closed in order: %s.\n", l.ByApply, met(l.ByApply == 0),
		met(l.InOrder == l.Sockets))
}
