package main

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gorilla/websocket"
)

// ending is a WebSocket's.
type ending struct {
	at      time.Time
	inOrder bool
	back    bool // another could be opened elsewhere
}

// crowd is many WebSockets that say nothing, each held by a client that goes elsewhere when it is closed.
type crowd struct {
	path, home string
	elsewhere  []string // by turns
	turn       atomic.Uint32
	streams    *streams
	over       atomic.Bool
	group      sync.WaitGroup

	mu      sync.Mutex // guards what follows
	open    map[*websocket.Conn]struct{}
	endings []ending
}

func newCrowd(path, home string, elsewhere ...string) *crowd {
	return &crowd{path: path, home: home, elsewhere: elsewhere, streams: newStreams(), open: make(map[*websocket.Conn]struct{})}
}

// gather opens so many, some of them over HTTP/2.
func (c *crowd) gather(ctx context.Context, count, overHTTP2 int) error {
	direct := &websocket.Dialer{HandshakeTimeout: readyTime, ReadBufferSize: 512, WriteBufferSize: 512}
	streamed := &websocket.Dialer{HandshakeTimeout: readyTime, ReadBufferSize: 512, WriteBufferSize: 512, NetDialContext: c.streams.dial}
	places, failed := make(chan struct{}, dialAtOnce), make(chan error, count)
	var dialling sync.WaitGroup
	for i := range count {
		by := direct
		if i < overHTTP2 {
			by = streamed
		}
		places <- struct{}{}
		dialling.Go(func() {
			defer func() { <-places }()
			conn, err := c.dial(ctx, by, c.home)
			if err != nil {
				failed <- err
				return
			}
			c.group.Go(func() { c.hold(ctx, by, conn) })
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

func (c *crowd) dial(ctx context.Context, by *websocket.Dialer, address string) (*websocket.Conn, error) {
	conn, _, err := by.DialContext(ctx, "ws://"+address+c.path, nil)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over.Load() {
		conn.Close()
		return nil, errors.New("the measurement is over")
	}
	c.open[conn] = struct{}{}
	return conn, nil
}

// hold waits for the end of a WebSocket, and of the one that takes its place.
func (c *crowd) hold(ctx context.Context, by *websocket.Dialer, conn *websocket.Conn) {
	_, _, err := conn.ReadMessage()
	c.drop(conn)
	if c.over.Load() {
		return
	}
	e := ending{at: time.Now(), inOrder: websocket.IsCloseError(err, websocket.CloseGoingAway)}
	conn, err = c.dial(ctx, by, c.elsewhere[int(c.turn.Add(1))%len(c.elsewhere)])
	e.back = err == nil
	c.mu.Lock()
	c.endings = append(c.endings, e)
	c.mu.Unlock()
	if err != nil {
		return
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
	c.streams.close()
}
