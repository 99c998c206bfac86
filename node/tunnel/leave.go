package tunnel

import (
	"crypto/rand"
	"errors"
	"fmt"
	"time"
)

const (
	// finishTime is for the frame that is under way when a WebSocket is to be closed: nothing can be said before its end.
	finishTime = 2 * time.Second
	// answerTime is for the peers' own Close frames after that.
	answerTime = 3 * time.Second
	// goingAway is the status 1001 (RFC 6455 section 7.4.1).
	goingAway = 1001
)

// longAgo is a deadline that wakes who waits.
var longAgo = time.Unix(1, 0)

// closing is when a WebSocket that is being closed has to be through with what.
type closing struct {
	finish, answer time.Time
}

// leave tells dst that this end is going away: it passes on the rest of the frame that is under way, sends a Close frame,
// and throws away what src still sends until that has answered with a Close of its own (RFC 6455 section 7.1.2). After a
// Close frame nothing more may be sent, so what src says from then on has no way to go.
//
// Where one of the peers has begun to close by itself, the two are left to finish it. What goes wrong here ends this
// direction only: the other still has something to tell its side, and is bounded in time as well.
func (f *flow) leave() {
	if !f.link.webSocket {
		return
	}
	defer f.release()
	rest, ok := f.finishFrame()
	if ok {
		_, err := f.dst.Write(closeFrame(f.toClient))
		ok = err == nil
	}
	switch {
	case ok:
		f.awaitClose(rest)
	case !f.frames.closed():
		// dst could not be told, so there is no answer to wait for.
		f.halted.Store(true)
		if f.opposite.awaiting.Load() {
			f.dst.SetReadDeadline(longAgo) // an error means that it is closed, which wakes as well
		}
	}
}

// finishFrame passes frames on until a Close can be sent, and returns what was read beyond; ok says that it can. While the
// peers close by themselves it goes on until that is done.
func (f *flow) finishFrame() (rest []byte, ok bool) {
	at := f.link.leaving.Load()
	for {
		theirs := f.opposite.closeSent.Load()
		switch {
		case f.frames.over():
			return nil, false
		case f.frames.between() && !theirs:
			return rest, true
		}
		if len(rest) == 0 {
			f.release()
			limit := at.finish
			if theirs {
				limit = at.answer
			}
			var err error
			if f.src.SetReadDeadline(limit) != nil {
				return nil, false
			}
			rest, err = f.receive()
			switch {
			case errors.Is(err, errLeave) && !theirs && f.opposite.closeSent.Load():
				continue // meanwhile there is a Close, and so there is longer
			case err != nil:
				return nil, false
			}
		}
		n := f.frames.next(rest)
		written, err := f.dst.Write(rest[:n])
		f.bytes.Add(uint64(written))
		f.count()
		if err != nil {
			return nil, false
		}
		rest = rest[n:]
	}
}

// awaitClose reads until src's Close frame has come, beginning with rest.
func (f *flow) awaitClose(rest []byte) {
	f.frames.scan(rest)
	f.awaiting.Store(true) // before the deadline and before halted is read: whoever halts now sees it, or is seen
	if f.src.SetReadDeadline(f.link.leaving.Load().answer) != nil || f.opposite.halted.Load() {
		return
	}
	for !f.frames.over() {
		f.release()
		b, err := f.receive()
		if err != nil {
			return
		}
		f.frames.scan(b)
	}
}

// closeFrame is what the proxy says in place of the side that does not get it: unmasked in that of a server, masked in that of
// a client.
func closeFrame(toClient bool) []byte {
	const head, status = finBit | opClose, 2
	if toClient {
		return []byte{head, status, goingAway >> 8, goingAway & 0xff}
	}
	var key [maskBytes]byte
	rand.Read(key[:]) // never fails; section 5.3 wants keys that cannot be foretold
	return []byte{
		head, maskBit | status, key[0], key[1], key[2], key[3], goingAway>>8 ^ key[0], goingAway&0xff ^ key[1],
	}
}

// leave has both directions tell their sides, each in its own goroutine, and returns at once.
func (l *link) leave() {
	if l.ended.Load() {
		return // a cut holds the lock for as long as TLS takes to close
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended.Load() || l.leaving.Load() != nil {
		return
	}
	now := time.Now()
	at := &closing{finish: now.Add(finishTime), answer: now.Add(finishTime + answerTime)}
	l.leaving.Store(at)
	for _, c := range []interface {
		SetReadDeadline(time.Time) error
		SetWriteDeadline(time.Time) error
	}{l.toBackend.src, l.toClient.src} {
		// A deadline in the past wakes who reads; who writes to a peer that does not read must end as well.
		err := c.SetWriteDeadline(at.answer)
		if err == nil {
			err = c.SetReadDeadline(longAgo)
		}
		if err != nil {
			l.endLocked(fmt.Errorf("close in order: %w", err))
			return
		}
	}
}
