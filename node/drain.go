package node

import (
	"context"
	"errors"
	"sync"
	"time"

	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
)

// ErrStopping says that the node has begun to stop, which is not taken back.
var ErrStopping = errors.New("the node is stopping")

const (
	// lameDuck is how long a node that stops goes on accepting connections at most. Ready is false already, and who watches
	// it sends new ones elsewhere within an interval or two of its own checks; connections that come to a port which is
	// closed too early are requests that fail.
	lameDuck = 5 * time.Second
	// quiet is for how long none may have come for the port to be closed before that.
	quiet = time.Second
	// lookAgain is how often that is looked at.
	lookAgain = 50 * time.Millisecond
)

// Drain sends clients elsewhere while the node goes on: Ready is false from now on, each answer asks for another connection
// (HTTP/2 by GOAWAY), and the tunnels that live are ended evenly over the given time, WebSockets with a Close frame. Those for
// which the other nodes have no room (Options.PeerRoom) are kept until they have, or until the last tenth of the time. Whoever
// still comes is served, since nobody can know that all have heard of it; configurations are applied as ever. It does not
// wait. A second call sets another time for the tunnels that are left. The error is ErrStopping.
func (n *Node) Drain(over time.Duration) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.stopping.Load() {
		return ErrStopping
	}
	if !n.retired.Swap(true) {
		n.logger.Info("draining", "tunnels", n.tunnels.Len(), "over", over)
	}
	n.sendAway()
	n.tunnels.Retire(over, n.roomElsewhere())
	n.signal()
	return nil
}

// Undrain takes a Drain back. Tunnels whose turn has not come stay. The error is ErrStopping.
func (n *Node) Undrain() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.stopping.Load() {
		return ErrStopping
	}
	if !n.retired.Swap(false) {
		return nil
	}
	n.logger.Info("no longer draining")
	if live := n.live.Load(); live != nil {
		n.tunnels.Retain(live.keepsTunnel)
	} else {
		n.tunnels.Retain(func(any) bool { return true })
	}
	n.signal()
	return nil
}

// Load is what is under way: what a drain waits for.
func (n *Node) Load() *fleetv1.Load {
	load := &fleetv1.Load{Requests: n.meter.UnderWay(), Tunnels: uint64(n.tunnels.Len())}
	load.NoRoom = load.Tunnels > 0 && n.retired.Load() && n.peerRoom != nil && n.peerRoom() <= 0
	return load
}

// roomElsewhere is Options.PeerRoom, which the log tells of once where it holds the drain up.
func (n *Node) roomElsewhere() func() int {
	if n.peerRoom == nil {
		return nil
	}
	var tell sync.Once
	return func() int {
		room := n.peerRoom()
		if room <= 0 {
			tell.Do(func() {
				n.logger.Warn("the other nodes have no room for the clients of this one: its tunnels stay until they have, or until the drain ends", "tunnels", n.tunnels.Len())
			})
		}
		return room
	}
}

// Room is for how many more tunnels this node has file descriptors; each takes two. It is what the listener would accept, so a
// quarter of the process's stays free for everything else. 0 while nothing is served.
func (n *Node) Room() int {
	live := n.live.Load()
	if live == nil {
		return 0
	}
	return max(0, live.listener.Free()/2-n.tunnels.Len())
}

// sendAway is called with mu held, after Draining has become true.
func (n *Node) sendAway() {
	if live := n.live.Load(); live != nil {
		live.listener.GoAway()
	}
}

// Stop drains and ends: first Ready is false and clients are sent elsewhere, while connections are accepted until none came
// for a second, for five seconds or a quarter of ctx's time at most. Then it accepts no more, lets requests and tunnels end,
// cuts what is left when ctx ends, and releases everything. Tunnels are ended little by little before that, WebSockets with
// a Close frame to both sides. It returns when all of it has ended, with an error if requests had to be cut. Later calls
// wait for the first.
func (n *Node) Stop(ctx context.Context) error {
	if !n.beginStop() {
		<-n.stopped
		return nil
	}
	defer close(n.stopped)
	stop := context.AfterFunc(ctx, n.cut)
	defer stop()
	live := n.live.Load()
	if live != nil {
		n.awaitQuiet(ctx, live)
	}
	last := make(chan struct{}) // closed when no request is left that could become a tunnel
	var tunnels sync.WaitGroup
	tunnels.Go(func() {
		if ended := n.tunnels.CloseAfter(ctx, last); ended > 0 {
			n.logger.Info("tunnels were ended", "tunnels", ended)
		}
	})
	var err error
	if live != nil {
		err = live.listener.Drain(ctx)
	}
	n.drains.Wait()
	close(last)
	tunnels.Wait()
	if live != nil {
		n.live.Store(nil)
		live.drop()
	}
	n.generations.Wait()
	n.close()
	n.signal()
	return err
}

// beginStop reports whether it was this call that began it. After it no generation is prepared or applied.
func (n *Node) beginStop() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.stopping.Swap(true) {
		return false
	}
	if n.prepared != nil {
		n.discard()
	}
	n.sendAway()
	n.signal()
	return true
}

// awaitQuiet waits until clients have gone elsewhere, as far as that can be seen.
func (n *Node) awaitQuiet(ctx context.Context, g *Generation) {
	end := time.Now().Add(n.lameDuck)
	if deadline, ok := ctx.Deadline(); ok {
		if quarter := time.Now().Add(time.Until(deadline) / 4); quarter.Before(end) {
			end = quarter
		}
	}
	tick := time.NewTicker(lookAgain)
	defer tick.Stop()
	for now := time.Now(); now.Before(end) && now.Sub(g.listener.LastAccepted()) < n.quiet; now = time.Now() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}
