package listener

import (
	"crypto/tls"
	"errors"
	"net"
	"runtime/debug"
	"time"
)

const (
	firstPause = 5 * time.Millisecond
	lastPause  = time.Second
	// noticeEvery bounds how often the log repeats what goes on.
	noticeEvery = 10 * time.Second
)

// accept is the one goroutine that takes connections. A second one, which would need a socket of its own (SO_REUSEPORT; two
// goroutines on one socket take turns), was measured to serve no more connections of one request each, on two cores. It
// would also leave the port open to other processes of the same user.
func (l *Listener) accept() {
	var r resumption
	full, failed := notice{every: noticeEvery}, notice{every: noticeEvery}
	for pause := firstPause; l.room(&full); {
		tcp, err := l.take()
		if err == nil {
			pause = firstPause
			l.lastAccepted.Store(time.Now().UnixNano())
			l.conns.Add(1)
			l.assign(accepted{tcp: tcp, config: r.config(l.tls())})
			continue
		}
		<-l.slots
		if !l.sitOut(err, pause, &failed) {
			return
		}
		pause = min(2*pause, lastPause)
	}
}

// room takes a slot. It waits for one at the limit, and returns false when the listener leaves.
func (l *Listener) room(full *notice) bool {
	select {
	case l.slots <- struct{}{}:
		return true
	default:
	}
	if times, due := full.due(time.Now()); due {
		l.logger.Warn("the limit of connections is reached; more wait until one ends",
			"listen", l.Address(), "limit", cap(l.slots), "times", times)
	}
	select {
	case l.slots <- struct{}{}:
		return true
	case <-l.leaving:
		return false
	}
}

// sitOut waits after a failed accept: out of file descriptors or memory, or a client that has gone. None of them is a reason
// to accept no more, and all of them come back at once if asked again at once. It returns false when the listener leaves.
func (l *Listener) sitOut(err error, pause time.Duration, failed *notice) bool {
	if errors.Is(err, net.ErrClosed) {
		return false // by Drain: nobody else has the socket
	}
	if times, due := failed.due(time.Now()); due {
		l.logger.Error("accepting a connection failed", "listen", l.Address(), "error", err, "times", times)
	}
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-l.leaving:
		return false
	}
}

// notice says when to log what may happen thousands of times in a second.
type notice struct {
	every time.Duration
	next  time.Time
	times int // since the last line
}

// due counts one more. When a line is due, times is how often it happened since the last one.
func (n *notice) due(now time.Time) (times int, due bool) {
	n.times++
	if now.Before(n.next) {
		return 0, false
	}
	times, n.times = n.times, 0
	n.next = now.Add(n.every)
	return times, true
}

// accepted is a connection.
type accepted struct {
	tcp    *net.TCPConn
	config *tls.Config          // what it is to speak; nil: no TLS
	wake   func() (sleeps bool) // of Front, for one that sleeps; nil: it has not slept
}

const (
	// maxResting is how many goroutines wait for work. Those that are more end, with their stacks.
	maxResting = 64
	// restTime is how long they wait.
	restTime = 5 * time.Second
)

// assign has a goroutine serve a connection: one that has done so before if one waits, since a new one would have to grow its
// stack, copying it three times, for a first request.
func (l *Listener) assign(a accepted) {
	select {
	case l.spare <- a:
	default:
		l.workers.Go(func() { l.work(a) })
	}
}

func (l *Listener) work(a accepted) {
	limit := time.NewTimer(l.restTime)
	defer limit.Stop()
	for serving := true; serving; a, serving = l.rest(limit) {
		l.serve(a)
	}
}

// rest waits for the next connection. False: there are enough that wait, or none came in time, or there will be none.
func (l *Listener) rest(limit *time.Timer) (accepted, bool) {
	defer l.resting.Add(-1)
	if l.resting.Add(1) > maxResting {
		return accepted{}, false
	}
	limit.Reset(l.restTime)
	select {
	case a := <-l.spare:
		return a, true
	case <-limit.C:
		return accepted{}, false
	case <-l.leaving:
		return accepted{}, false
	}
}

// serve is what a goroutine does for a connection, until it ends or sleeps.
func (l *Listener) serve(a accepted) {
	for l.speak(&a) {
		if l.sleepers.add(a) {
			return // it is another goroutine's from now on
		}
	}
	<-l.slots
	l.conns.Done()
}

// speak has Front speak, and says whether the connection sleeps. Its frame stays while one idles that cannot sleep, so what only a
// handshake needs is kept out of it.
func (l *Listener) speak(a *accepted) (sleeps bool) {
	defer l.recovered(a.tcp)
	if a.wake != nil {
		return a.wake()
	}
	client, ok := l.announced(a.tcp)
	switch {
	case !ok:
		return false
	case a.config != nil:
		l.serveTLS(a.tcp, client, a.config)
		return false
	}
	a.wake = l.front.Serve(a.tcp, a.tcp, client, l.plainIsStale)
	return a.wake != nil
}

// recovered must be deferred itself: one connection's panic is not the others' end.
func (l *Listener) recovered(tcp *net.TCPConn) {
	if cause := recover(); cause != nil {
		l.logger.Error("serving a connection panicked", "client", tcp.RemoteAddr(), "panic", cause, "stack", string(debug.Stack()))
		tcp.Close() // mostly open still, and if not, an error is no news
	}
}
