package tunnel

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"
)

// ending is how a side stops sending.
type ending int

const (
	finishes ending = iota // a FIN, and it goes on reading
	closes
	resets
)

// party is one side of a tunnel in the storm. All of what it sends follows from its seed.
type party struct {
	*net.TCPConn
	seed   uint64
	size   int // of what is sent, if nothing comes between
	early  int // of that, what the tunnel is given at its beginning
	ending ending

	received int // of the other's bytes
	whole    bool
}

func newParty(c net.Conn, r *rand.Rand) *party {
	p := &party{TCPConn: c.(*net.TCPConn), seed: r.Uint64(), size: r.IntN(1 << r.IntN(21))}
	if r.IntN(3) == 0 {
		p.ending = ending(r.IntN(3))
	}
	if r.IntN(3) == 0 {
		p.early = r.IntN(min(p.size, 50<<10) + 1)
	}
	return p
}

// stream is what a party with this seed sends, from the first byte.
func stream(seed uint64) io.Reader {
	return rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16)})
}

// speak sends in pieces of any size, and ends.
func (p *party) speak() {
	r := rand.New(rand.NewPCG(p.seed, 1))
	from := stream(p.seed)
	io.CopyN(io.Discard, from, int64(p.early))
	for left := p.size - p.early; left > 0; {
		piece := make([]byte, min(1+r.IntN(40<<10), left))
		io.ReadFull(from, piece)
		if _, err := p.Write(piece); err != nil {
			return // the other has gone
		}
		left -= len(piece)
	}
	switch p.ending {
	case finishes:
		p.CloseWrite()
	case resets:
		p.SetLinger(0)
		p.Close()
	case closes:
		p.Close()
	}
}

// listen reads to the end, and holds each byte against what the other is to send.
func (p *party) listen(seed uint64) error {
	r := rand.New(rand.NewPCG(p.seed, 2))
	from := stream(seed)
	got, want := make([]byte, 1+r.IntN(64<<10)), make([]byte, 64<<10)
	for {
		n, err := p.Read(got)
		io.ReadFull(from, want[:n])
		if !bytes.Equal(got[:n], want[:n]) {
			return fmt.Errorf("wrong bytes between %d and %d", p.received, p.received+n)
		}
		p.received += n
		switch {
		case errors.Is(err, io.EOF):
			p.whole = true
			return nil
		case errors.Is(err, syscall.ECONNRESET), errors.Is(err, net.ErrClosed):
			return nil
		case err != nil:
			return err
		}
	}
}

// squall is one tunnel of the storm.
func squall(t *testing.T, s *Set, seed uint64) {
	a, near := tcpPair(t)
	b, far := tcpPair(t)
	r := rand.New(rand.NewPCG(seed, 0))
	client, backend := newParty(a, r), newParty(b, r)
	ended := make(chan Summary, 1)
	early := func(p *party) []byte {
		b := make([]byte, p.early)
		io.ReadFull(stream(p.seed), b)
		return b
	}
	if err := s.Start(Tunnel{
		Client: near, Backend: far, FromClient: early(client), FromBackend: early(backend), Ended: func(sum Summary) { ended <- sum },
	}); err != nil {
		t.Error(err)
		return
	}
	var all sync.WaitGroup
	for _, both := range [][2]*party{{client, backend}, {backend, client}} {
		me, other := both[0], both[1]
		me.SetDeadline(time.Now().Add(20 * time.Second))
		all.Go(me.speak)
		all.Go(func() {
			if err := me.listen(other.seed); err != nil {
				t.Errorf("seed %d: %v", seed, err)
			}
		})
	}
	all.Wait()
	client.Close()
	backend.Close()
	sum := <-ended
	passed := [2]uint64{sum.ToBackend.Bytes, sum.ToClient.Bytes}
	received, sizes := [2]uint64{uint64(backend.received), uint64(client.received)}, [2]uint64{uint64(client.size), uint64(backend.size)}
	if client.ending == finishes && backend.ending == finishes {
		if sum.Err != nil || received != sizes || passed != sizes || !client.whole || !backend.whole {
			t.Errorf("seed %d: %v of %v bytes received, %v passed, %v", seed, received, sizes, passed, sum.Err)
		}
		return
	}
	for d := range 2 {
		if received[d] > passed[d] || passed[d] > sizes[d] {
			t.Errorf("seed %d: %v received, %v passed, %v sent", seed, received, passed, sizes)
		}
	}
}

// TestAStormOfEndings: whatever ends when, no byte is wrong, none is missing where both sides end in order, and every tunnel
// ends.
func TestAStormOfEndings(t *testing.T) {
	eachDriver(t, func(t *testing.T, newSet func(Options) *Set) {
		s := newSet(Options{})
		first := rand.Uint64()
		t.Logf("first seed: %d", first)
		atOnce := make(chan struct{}, 50)
		var all sync.WaitGroup
		for i := range uint64(400) {
			atOnce <- struct{}{}
			all.Go(func() {
				squall(t, s, first+i)
				<-atOnce
			})
		}
		all.Wait()
		waitFor(t, func() bool { return s.Len() == 0 })
	})
}
