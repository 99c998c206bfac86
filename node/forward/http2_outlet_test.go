package forward

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"

	"github.com/pyserve/pyserve/node/nodetest"
)

// sink is a connection that keeps what is written, by piece.
type sink struct {
	net.Conn
	mu     sync.Mutex
	pieces [][]byte
}

func (s *sink) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pieces = append(s.pieces, bytes.Clone(p))
	return len(p), nil
}

func (s *sink) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.pieces)
}

func (s *sink) all() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return bytes.Join(s.pieces, nil)
}

// openHead is a head that a body is to follow, endedHead one without.
func openHead(stream uint32, size int) []byte {
	return frames(func(f *http2.Framer) {
		f.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: make([]byte, size), EndHeaders: true})
	})
}

func dataFrame(stream uint32, size int) []byte {
	return frames(func(f *http2.Framer) { f.WriteData(stream, true, make([]byte, size)) })
}

func TestOutletSendsAHeadWithWhatFollows(t *testing.T) {
	endedHead := frames(func(f *http2.Framer) {
		f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte("x"), EndHeaders: true, EndStream: true})
	})
	unendedHead := frames(func(f *http2.Framer) {
		f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte("x")})
	})
	settings := frames(func(f *http2.Framer) { f.WriteSettings() })
	for name, c := range map[string]struct {
		writes [][]byte
		pieces int
	}{
		"head and body":              {[][]byte{openHead(1, 10), dataFrame(1, 5)}, 1},
		"two heads and their bodies": {[][]byte{openHead(1, 10), openHead(3, 10), dataFrame(1, 5), dataFrame(3, 5)}, 2},
		"a frame before the head":    {[][]byte{append(bytes.Clone(settings), openHead(1, 10)...), dataFrame(1, 5)}, 1},
		"another frame behind it":    {[][]byte{openHead(1, 10), settings, dataFrame(1, 5)}, 2},
		"a head without a body":      {[][]byte{endedHead, settings}, 2},
		"a head that goes on":        {[][]byte{unendedHead, settings}, 2},
		"a head that is cut":         {[][]byte{openHead(1, 10)[:5], openHead(1, 10)[5:], dataFrame(1, 5)}, 2},
		"a head behind a cut body":   {[][]byte{dataFrame(1, 100)[:50], append(dataFrame(1, 100)[50:], openHead(3, 10)...), dataFrame(3, 5)}, 2},
		"a large body":               {[][]byte{openHead(1, 10), dataFrame(1, 2*holdSize)}, 2},
		"a large head":               {[][]byte{openHead(1, holdSize), dataFrame(1, 5)}, 2},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				to := &sink{}
				o := newOutlet(newPipedFront(t, nil, nil), to)
				defer o.end()
				for _, p := range c.writes {
					if n, err := o.Write(p); n != len(p) || err != nil {
						t.Fatal(n, err)
					}
				}
				if n := to.count(); n != c.pieces {
					t.Errorf("%d writes, want %d", n, c.pieces)
				}
				if !bytes.Equal(to.all(), bytes.Join(c.writes, nil)) {
					t.Errorf("%x", to.all())
				}
			})
		})
	}
}

func TestOutletHoldsAHeadNoLongerThanForAMoment(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		to := &sink{}
		o := newOutlet(newPipedFront(t, nil, nil), to)
		defer o.end()
		o.Write(openHead(1, 10))
		time.Sleep(holdTime - time.Nanosecond)
		if to.count() != 0 {
			t.Error("the head was not held")
		}
		o.Write(openHead(3, 10)) // which prolongs nothing
		time.Sleep(2 * time.Nanosecond)
		synctest.Wait()
		if want := append(openHead(1, 10), openHead(3, 10)...); !bytes.Equal(to.all(), want) {
			t.Errorf("%x", to.all())
		}
		if o.Write(dataFrame(1, 5)); to.count() != 2 {
			t.Errorf("%d writes", to.count())
		}
	})
}

func TestOutletSendsALoneHeadAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		to := &sink{}
		o := newOutlet(newPipedFront(t, nil, nil), to)
		defer o.end()
		o.alone()
		if o.Write(openHead(1, 10)); to.count() != 1 {
			t.Error("the head was held")
		}
		if o.Write(openHead(3, 10)); to.count() != 1 {
			t.Error("the next head was not held")
		}
	})
}

func TestOutletWritesNothingAfterItsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		to := &sink{}
		o := newOutlet(newPipedFront(t, nil, nil), to)
		o.Write(openHead(1, 10))
		o.end()
		time.Sleep(time.Hour)
		if n, err := o.Write(dataFrame(1, 5)); n != 0 || !errors.Is(err, net.ErrClosed) {
			t.Error(n, err)
		}
		if to.count() != 0 {
			t.Errorf("%x", to.all())
		}
	})
}

// Whoever waits for the head alone is not kept waiting for the moment that outlet holds heads: here it never ends.
func TestHTTP2HeadsWithoutABodyGoOutAtOnce(t *testing.T) {
	for name, begin := range map[string]string{
		"a head before its body": "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n",
		"early hints":            "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				client := connectPiped(t, newPipedFront(t, func(w *wire) {
					nodetest.ReadHead(w.in)
					io.WriteString(w, begin)
					io.Copy(io.Discard, w)
				}, nil))
				client.open(1, true, ordinary("GET", "/")...)
				begun := time.Now()
				f := client.next(http2.FrameHeaders, 1).(*http2.MetaHeadersFrame)
				if status := f.PseudoValue("status"); !strings.Contains(begin, status) {
					t.Error(status)
				}
				if took := time.Since(begun); took != 0 {
					t.Errorf("it took %v", took)
				}
			})
		})
	}
}

// The library has limits for a client that does not answer, and none for one that does not read.
func TestHTTP2AClientThatReadsNothingIsCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newPipedFront(t, nil, nil)
		ours, theirs := net.Pipe()
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			f.Serve(theirs, nil, netip.Addr{}, nil)
		}()
		begun := time.Now()
		io.WriteString(ours, http2.ClientPreface)
		client := http2.NewFramer(ours, nil)
		for client.WriteSettings() == nil && time.Since(begun) < time.Hour {
			time.Sleep(time.Second)
		}
		if took := time.Since(begun); took < stallTimeout || took > 2*stallTimeout {
			t.Errorf("cut after %v, want %v", took, stallTimeout)
		}
		ours.Close()
		<-ended
	})
}
