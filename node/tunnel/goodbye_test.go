package tunnel

import (
	"bytes"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// manner is how a guest behaves when it is sent a Close, or has said what it had to say.
type manner int

const (
	polite   manner = iota // answers, and closes first itself at the end
	rude                   // goes away without a word
	angry                  // resets
	mumbling               // stops in the middle of a frame, and waits
	deaf                   // does not read until it has said everything
	parting                // ends its side, and reads on
)

// manners are in the proportion that they are met in: those that are waited for are rare.
var manners = [...]manner{polite, polite, polite, polite, polite, rude, rude, angry, parting, mumbling, deaf}

// guest is one side of a WebSocket in the storm.
type guest struct {
	*net.TCPConn
	manner manner
	says   []byte       // all that it may say
	ends   map[int]bool // of says: where a frame has ended, and 0
	heard  []byte       // at its end
}

func newGuest(c net.Conn, masked bool, r *rand.Rand) *guest {
	g := &guest{TCPConn: c.(*net.TCPConn), manner: manners[r.IntN(len(manners))], ends: map[int]bool{0: true}}
	for range r.IntN(40) {
		size := r.IntN(1 << r.IntN(14))
		g.says = append(g.says, frame(0x82, masked, size)...)
		for i := len(g.says) - size; i < len(g.says); i++ {
			g.says[i] = byte(r.Uint32())
		}
		g.ends[len(g.says)] = true
	}
	if g.manner == mumbling {
		g.says = append(g.says, frame(0x82, masked, 200)[:1+r.IntN(100)]...)
	}
	return g
}

// speak says everything, in pieces of any size.
func (g *guest) speak(r *rand.Rand, masked bool) {
	for rest := g.says; len(rest) > 0; {
		n := min(1+r.IntN(9000), len(rest))
		if _, err := g.Write(rest[:n]); err != nil {
			return
		}
		rest = rest[n:]
	}
	switch g.manner {
	case polite:
		g.Write(frame(0x88, masked, 2))
	case parting:
		g.CloseWrite()
	case rude:
		g.Close()
	case angry:
		g.SetLinger(0)
		g.Close()
	}
}

// listen hears everything up to the end.
func (g *guest) listen(spoken <-chan struct{}) {
	if g.manner == deaf {
		<-spoken
	}
	var all bytes.Buffer
	io.Copy(&all, g.TCPConn) // however it ends
	g.heard = all.Bytes()
}

// understands checks that what g has heard is what the other has said, and perhaps a Close of the proxy's where a frame ends.
func (g *guest) understands(other *guest, masked bool) bool {
	said := append(bytes.Clone(other.says), frame(0x88, masked, 2)...)
	if bytes.HasPrefix(said, g.heard) {
		return true
	}
	for size := 1; size <= 8 && size <= len(g.heard); size++ {
		at := len(g.heard) - size
		if at <= len(other.says) && other.ends[at] && bytes.HasPrefix(other.says, g.heard[:at]) && isFarewell(g.heard[at:], masked) {
			return true
		}
	}
	return false
}

// isFarewell says that b is the proxy's Close, or the beginning of it.
func isFarewell(b []byte, masked bool) bool {
	want := closeFrame(!masked)
	if len(b) > len(want) {
		return false
	}
	if masked {
		for i := 2; i < len(b); i++ {
			if i < 6 {
				want[i] = b[i] // the key is anybody's guess
			} else {
				want[i] = []byte{0x03, 0xe9}[i-6] ^ b[i-4]
			}
		}
	}
	return bytes.HasPrefix(want, b)
}

// tight makes the kernel hold as little as it can of c.
func tight(c net.Conn) {
	c.(*net.TCPConn).SetReadBuffer(1)
	c.(*net.TCPConn).SetWriteBuffer(1)
}

// visit is one WebSocket of the storm. doomed is set to have it ended.
func visit(t *testing.T, s *Set, seed uint64, doomed *atomic.Bool) {
	a, near := tcpPair(t)
	b, far := tcpPair(t)
	r := rand.New(rand.NewPCG(seed, 3))
	if r.IntN(2) == 0 {
		for _, c := range []net.Conn{a, near, b, far} {
			tight(c)
		}
	}
	client, backend := newGuest(a, true, r), newGuest(b, false, r)
	ended := make(chan Summary, 1)
	if err := s.Start(Tunnel{
		Client: near, Backend: far, WebSocket: true, Owner: doomed, Ended: func(sum Summary) { ended <- sum },
	}); err != nil {
		a.Close()
		b.Close()
		return // the set is closed
	}
	var all sync.WaitGroup
	for _, g := range []*guest{client, backend} {
		masked := g == client
		spoken := make(chan struct{})
		own := rand.New(rand.NewPCG(seed, r.Uint64()))
		all.Go(func() {
			defer close(spoken)
			g.speak(own, masked)
		})
		all.Go(func() { g.listen(spoken) })
	}
	// Some do not end by themselves.
	timer := time.AfterFunc(time.Duration(r.IntN(50))*time.Millisecond, func() {
		doomed.Store(true)
		s.Retain(func(owner any) bool { return !owner.(*atomic.Bool).Load() })
	})
	defer timer.Stop()
	sum := <-ended
	for _, g := range []*guest{client, backend} {
		// What is on its way still may take its time: with a buffer this small TCP asks ever less often whether there is room.
		g.SetDeadline(time.Now().Add(time.Second))
	}
	all.Wait()
	client.Close()
	backend.Close()
	for _, g := range []*guest{client, backend} {
		other, passed := backend, sum.ToClient.Bytes
		if g == backend {
			other, passed = client, sum.ToBackend.Bytes
		}
		if !g.understands(other, other == client) {
			t.Errorf("seed %d: of %d bytes a %d guest has heard %d that are not what was said", seed, len(other.says), g.manner, len(g.heard))
		}
		if n := uint64(len(g.heard)); n > passed+8 || passed > uint64(len(other.says)+8) {
			t.Errorf("seed %d: %d bytes heard, %d passed, of %d", seed, n, passed, len(other.says))
		}
	}
}

// TestAStormOfFarewells: whenever a WebSocket is ended and however its sides behave, no byte is wrong, and a Close is put in
// only where a frame has ended, with nothing behind it.
func TestAStormOfFarewells(t *testing.T) {
	eachDriver(t, func(t *testing.T, newSet func(Options) *Set) {
		t.Parallel()
		s := newSet(Options{Spread: time.Millisecond})
		first := rand.Uint64()
		t.Logf("first seed: %d", first)
		stop := make(chan struct{})
		var watching sync.WaitGroup
		watching.Go(func() { neverLess(t, s, stop) })
		atOnce := make(chan struct{}, 60)
		var all sync.WaitGroup
		for i := range uint64(240) {
			atOnce <- struct{}{}
			all.Go(func() {
				visit(t, s, first+i, new(atomic.Bool))
				<-atOnce
			})
			if i == 200 {
				all.Go(func() { closeAtOnce(s) })
			}
		}
		all.Wait()
		waitFor(t, func() bool { return s.Len() == 0 })
		close(stop)
		watching.Wait()
	})
}

// neverLess wants the totals to grow, until stop is closed.
func neverLess(t *testing.T, s *Set, stop <-chan struct{}) {
	var before Totals
	for {
		now := s.Totals()
		if now.ToBackend.Bytes < before.ToBackend.Bytes || now.ToClient.Bytes < before.ToClient.Bytes ||
			now.ToBackend.Messages < before.ToBackend.Messages || now.ToClient.Messages < before.ToClient.Messages {
			t.Errorf("%v after %v", now, before)
			return
		}
		before = now
		select {
		case <-stop:
			return
		case <-time.After(time.Millisecond):
		}
	}
}
