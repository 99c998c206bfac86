package main

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/gorilla/websocket"
	"google.golang.org/protobuf/types/known/durationpb"

	operatorv1 "github.com/pyserve/pyserve/proto/pyserve/operator/v1"
)

// leaves are the WebSockets of a node that was drained.
type leaves struct {
	Sockets int `json:"sockets"`
	// OverHTTP2 are those of them that are streams.
	OverHTTP2 int `json:"over_http2"`
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
	leaveSockets  = 10_000
	leaveDeadline = 30 * time.Second
	// leaveNodes are so many that the others have room for all: each lets its tunnels have three quarters of its descriptors.
	leaveNodes = 3
	// spareDescriptors are for all that is no WebSocket's, and for those whose handshake is under way, which have more.
	spareDescriptors = 500
	// leaveQuiet is how long is waited for what an apply might break.
	leaveQuiet = 2 * time.Second
	// dialAtOnce is how many handshakes are under way at a time.
	dialAtOnce = 64
)

// measureLeave drains one of three nodes that holds many WebSockets, whose clients go to the others.
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
	nodes, err := c.startRealNodes(ctx, "n", leaveNodes)
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
	l, err := b.planLeave()
	if err != nil {
		return err
	}
	crowd := newCrowd("/service/000000", nodes[0].listen, nodes[1].listen, nodes[2].listen)
	defer crowd.end()
	if err := crowd.gather(ctx, l.Sockets, l.OverHTTP2); err != nil {
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

// planLeave says how many WebSockets there are to be.
func (b *bench) planLeave() (*leaves, error) {
	if b.options.rounds == 1 { // a look
		return &leaves{Sockets: 50, OverHTTP2: 10, Drain: 2 * time.Second}, nil
	}
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return nil, fmt.Errorf("read the limit of descriptors: %w", err)
	}
	l := &leaves{Drain: leaveDeadline}
	l.Sockets, l.OverHTTP2 = socketsFor(limit.Max)
	return l, nil
}

// socketsFor is how many WebSockets a process has descriptors for, and how many of them have to be streams of HTTP/2 for that. One of
// HTTP/1.1 takes two of the node that has it, and two of this process, which is its client and its backend; a stream takes one.
func socketsFor(descriptors uint64) (all, overHTTP2 int) {
	free := int(min(descriptors, 10*leaveSockets)) - spareDescriptors
	all = max(0, min(leaveSockets, free))
	return all, min(all, max(0, 2*all-free))
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
	fmt.Fprintf(b, "\nOne of %d nodes holds %d WebSockets, %d of them over HTTP/2, and is drained over %v:\n\n"+
		"| closed with 1001, and opened at another node | otherwise | most in one second | paced rate | until nothing was left |\n|---:|---:|---:|---:|---:|\n"+
		"| %d | %d | %d | %.0f | %.1f s |\n", leaveNodes, l.Sockets, l.OverHTTP2, l.Drain, l.InOrder, l.Broken+l.Refused,
		slices.Max(append(l.Seconds, 0)), paced, l.Took.Seconds())
	fmt.Fprintf(b, "\nAn apply of another route before that ended %d of them: %s. All closed in order: %s.\n", l.ByApply, met(l.ByApply == 0),
		met(l.InOrder == l.Sockets))
}
