package forward

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/pyserve/pyserve/node/nodetest"
	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

// flood sends until the other side has had enough or limit bytes are sent, without reading, and returns how many were. Another
// connection is served in between, and what the process holds stays within bounds.
func flood(t *testing.T, p *proxy, c *framed, limit int, more func(i int) []byte) (sent int) {
	t.Helper()
	goroutines, heap := runtime.NumGoroutine(), heapInUse()
	for i := 0; sent < limit; i++ {
		piece := more(i)
		n, err := c.nc.Write(piece)
		if sent += n; err != nil {
			break
		}
		if i%64 == 0 {
			served(t, p)
			if n := metric(t, p, "pyserve_requests_in_flight"); n > maxStreams+1 {
				t.Fatalf("%v requests at once", n)
			}
			// Three for each request, two of them the test's own backend's, and as many for requests that end.
			if n := runtime.NumGoroutine(); n > goroutines+6*maxStreams+50 {
				t.Fatalf("%d goroutines, %d before", n, goroutines)
			}
		}
	}
	if now := heapInUse(); now > heap+48<<20 {
		t.Errorf("the heap grew from %d to %d KiB", heap>>10, now>>10)
	}
	served(t, p)
	return sent
}

func heapInUse() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapInuse
}

// cutOff wants the connection to have ended, with that error if it was told.
func cutOff(t *testing.T, c *framed, want ...http2.ErrCode) {
	t.Helper()
	for {
		f, err := c.ReadFrame()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal("the connection goes on")
		}
		if err != nil {
			return
		}
		if g, ok := f.(*http2.GoAwayFrame); ok && len(want) > 0 && g.ErrCode != want[0] {
			t.Errorf("GOAWAY %v, want %v", g.ErrCode, want[0])
		}
	}
}

// frames writes what build does to a buffer.
func frames(build func(*http2.Framer)) []byte {
	var out bytes.Buffer
	f := http2.NewFramer(&out, nil)
	f.AllowIllegalWrites = true
	build(f)
	return out.Bytes()
}

// CVE-2023-44487: requests that are reset at once cost the client nothing and count as none of its streams.
func TestHTTP2RapidReset(t *testing.T) {
	var inside, most atomic.Int64
	b := backend(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/served" {
			return
		}
		now := inside.Add(1)
		defer inside.Add(-1)
		for m := most.Load(); now > m && !most.CompareAndSwap(m, now); m = most.Load() {
		}
		<-r.Context().Done()
	})
	p := start(t, whole(portOf(b)))
	c := connectFrames(t, p)
	go io.Copy(io.Discard, c.nc)
	stream := uint32(1)
	flood(t, p, c, 4<<20, func(int) []byte {
		return frames(func(f *http2.Framer) {
			for range 50 {
				f.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: c.fields(ordinary("GET", "/")...), EndStream: true, EndHeaders: true})
				f.WriteRSTStream(stream, http2.ErrCodeCancel)
				stream += 2
			}
		})
	})
	if most.Load() > 2*maxStreams {
		t.Errorf("%d requests at once at the backend", most.Load())
	}
	c.nc.Close()
	nodetest.Eventually(t, "nothing is left", func() bool { return inside.Load() == 0 && metric(t, p, "pyserve_requests_in_flight") == 0 })
}

// MadeYouReset, CVE-2025-8671: the client makes the server reset, which must not make room for more of its requests either.
func TestHTTP2MadeToReset(t *testing.T) {
	var inside, most atomic.Int64
	b := backend(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/served" {
			return
		}
		now := inside.Add(1)
		defer inside.Add(-1)
		for m := most.Load(); now > m && !most.CompareAndSwap(m, now); m = most.Load() {
		}
		<-r.Context().Done()
	})
	p := start(t, whole(portOf(b)))
	c := connectFrames(t, p)
	go io.Copy(io.Discard, c.nc)
	stream := uint32(1)
	flood(t, p, c, 4<<20, func(int) []byte {
		return frames(func(f *http2.Framer) {
			for range 50 {
				f.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: c.fields(ordinary("GET", "/")...), EndStream: true, EndHeaders: true})
				f.WriteWindowUpdate(stream, 0)
				stream += 2
			}
		})
	})
	if most.Load() > 2*maxStreams {
		t.Errorf("%d requests at once at the backend", most.Load())
	}
	c.nc.Close()
	nodetest.Eventually(t, "nothing is left", func() bool { return inside.Load() == 0 && metric(t, p, "pyserve_requests_in_flight") == 0 })
}

// CVE-2024-27316: fields without an end.
func TestHTTP2ContinuationFlood(t *testing.T) {
	for name, piece := range map[string]func(*framed) []byte{
		"fields": func(c *framed) []byte { return c.fields("x-a", strings.Repeat("a", 1000)) },
		// CVE-2019-9516: names and values without a length still cost something.
		"short fields": func(*framed) []byte { return bytes.Repeat([]byte{0, 1, 'a', 0}, 1000) },
		"empty frames": func(*framed) []byte { return nil },
	} {
		t.Run(name, func(t *testing.T) {
			p := start(t, whole(mirror(t).Port()))
			c := connectFrames(t, p)
			c.sent(c.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: c.fields(ordinary("GET", "/")...)}))
			sent := flood(t, p, c, 8<<20, func(int) []byte {
				fragment := piece(c)
				return frames(func(f *http2.Framer) { f.WriteContinuation(1, false, fragment) })
			})
			if sent >= 8<<20 {
				t.Error("there was no end to it")
			}
			cutOff(t, c)
		})
	}
}

// One string of a header, never at its end: neither decoder may gather all of it.
func TestHTTP2AStringWithoutEnd(t *testing.T) {
	p := start(t, whole(mirror(t).Port()))
	c := connectFrames(t, p)
	// A literal whose value says to be two gigabytes long.
	begin := append(c.fields(ordinary("GET", "/")...), 0, 1, 'a', 0x7f, 0x80, 0x80, 0x80, 0x80, 0x08)
	c.sent(c.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: begin}))
	piece := bytes.Repeat([]byte{'a'}, 16000)
	sent := flood(t, p, c, 16<<20, func(int) []byte {
		return frames(func(f *http2.Framer) { f.WriteContinuation(1, false, piece) })
	})
	if sent >= 16<<20 {
		t.Error("there was no end to it")
	}
	cutOff(t, c)
}

// A byte of HPACK may stand for four thousand: the size that counts is that of the fields.
func TestHTTP2HeaderBomb(t *testing.T) {
	b := nodetest.NewRecorder(t, emptyAnswer)
	p := start(t, whole(b.Port()))
	c := connectFrames(t, p)
	heap := heapInUse()
	for i := range 20 {
		stream := uint32(2*i + 1)
		block := c.fields(ordinary("GET", "/", "x-bomb", strings.Repeat("b", 3900))...)
		indexed := c.fields("x-bomb", strings.Repeat("b", 3900)) // in the table by now
		if len(indexed) > 2 {
			t.Fatal("not in the table")
		}
		block = append(block, bytes.Repeat(indexed, 12000)...) // 47 MB
		c.sent(c.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: block, EndStream: true, EndHeaders: true}))
		if o := c.await(stream); o.status != "431" || !strings.Contains(o.body, "head too long") {
			t.Fatalf("%v %q", o, o.body)
		}
	}
	if now := heapInUse(); now > heap+16<<20 {
		t.Errorf("the heap grew from %d to %d KiB", heap>>10, now>>10)
	}
	served(t, p)
	if n := b.Requests(); n != 1 { // that of served
		t.Errorf("%d requests reached the backend", n)
	}
}

func many(n int, pair ...string) (out []string) {
	for range n {
		out = append(out, pair...)
	}
	return out
}

// A table that is emptied and filled again and again is bounded by what it is emptied to.
func TestHTTP2ATableThatIsResized(t *testing.T) {
	p := start(t, whole(mirror(t).Port()))
	c := connectFrames(t, p)
	for i := range 50 {
		c.encode.SetMaxDynamicTableSize(uint32(i % 2 * 4096))
		stream := uint32(2*i + 1)
		c.open(stream, true, ordinary("GET", "/", "x-a", strings.Repeat("a", i*70))...)
		if o := c.await(stream); o.status != "200" {
			t.Fatal(o)
		}
	}
	// More than was announced is an error of the connection (RFC 7541 section 4.2).
	c.block.Reset()
	encode := hpack.NewEncoder(&c.block)
	encode.SetMaxDynamicTableSizeLimit(1 << 20)
	encode.SetMaxDynamicTableSize(1 << 20)
	encode.WriteField(hpack.HeaderField{Name: ":method", Value: "GET"})
	c.sent(c.WriteHeaders(http2.HeadersFrameParam{StreamID: 201, BlockFragment: c.block.Bytes(), EndStream: true, EndHeaders: true}))
	cutOff(t, c, http2.ErrCodeCompression)
}

// CVE-2019-9512 and CVE-2019-9515: frames that have to be answered, from a client that does not read.
func TestHTTP2FloodsOfFramesThatAreAnswered(t *testing.T) {
	for name, one := range map[string]func(*http2.Framer){
		"PING":     func(f *http2.Framer) { f.WritePing(false, [8]byte{}) },
		"SETTINGS": func(f *http2.Framer) { f.WriteSettings() },
		// CVE-2019-9514: every frame for a stream that is closed is answered by a reset.
		"frames for closed streams": func(f *http2.Framer) { f.WriteWindowUpdate(1, 0) },
	} {
		t.Run(name, func(t *testing.T) {
			p := start(t, whole(mirror(t).Port()))
			c := connectFrames(t, p)
			c.open(1, true, ordinary("GET", "/")...)
			many := frames(func(f *http2.Framer) {
				for range 1000 {
					one(f)
				}
			})
			const limit = 64 << 20
			if sent := flood(t, p, c, limit, func(int) []byte { return many }); sent >= limit {
				t.Error("there was no end to it")
			}
			c.nc.Close()
		})
	}
}

// CVE-2019-9518: frames that carry nothing.
func TestHTTP2FloodOfEmptyData(t *testing.T) {
	p := start(t, whole(mirror(t).Port()))
	c := connectFrames(t, p)
	c.open(1, false, ordinary("POST", "/")...)
	empty := frames(func(f *http2.Framer) {
		for range 50 {
			f.WriteData(1, false, nil)
		}
	})
	const limit = 8 << 20
	if sent := flood(t, p, c, limit, func(int) []byte { return empty }); sent >= limit {
		t.Error("there was no end to it")
	}
	cutOff(t, c)
}

// CVE-2019-9511 and CVE-2019-9513: windows and priorities that change all the time cost time, and nothing that stays.
func TestHTTP2FloodsOfFramesThatAreNot(t *testing.T) {
	for name, one := range map[string]func(*http2.Framer){
		"PRIORITY":      func(f *http2.Framer) { f.WritePriority(3, http2.PriorityParam{StreamDep: 5, Weight: 1}) },
		"unknown frame": func(f *http2.Framer) { f.WriteRawFrame(0xbe, 0, 0, []byte("x")) },
		"PING answers":  func(f *http2.Framer) { f.WritePing(true, [8]byte{1}) },
	} {
		t.Run(name, func(t *testing.T) {
			p := start(t, whole(mirror(t).Port()))
			c := connectFrames(t, p)
			many := frames(func(f *http2.Framer) {
				for range 1000 {
					one(f)
				}
			})
			flood(t, p, c, 2<<20, func(int) []byte { return many })
			c.open(1, true, ordinary("GET", "/")...)
			if o := c.await(1); o.status != "200" {
				t.Error(o)
			}
		})
	}
}

// More streams at once than were announced are refused, and the others go on.
func TestHTTP2MoreStreamsThanAnnounced(t *testing.T) {
	release := make(chan struct{})
	b := backend(t, func(w http.ResponseWriter, r *http.Request) { <-release })
	p := start(t, whole(portOf(b)))
	c := connectFrames(t, p)
	if n := c.server[http2.SettingMaxConcurrentStreams]; n != maxStreams {
		t.Fatalf("%d streams announced", n)
	}
	for i := range uint32(maxStreams) {
		c.open(2*i+1, true, ordinary("GET", "/")...)
	}
	over := uint32(2*maxStreams + 1)
	c.open(over, true, ordinary("GET", "/")...)
	if o := c.await(over); o.reset == nil || *o.reset != http2.ErrCodeRefusedStream && *o.reset != http2.ErrCodeProtocol {
		t.Error(o)
	}
	close(release)
	if o := c.await(2*maxStreams - 1); o.status != "200" {
		t.Error(o)
	}
}

// A client that does not even read its socket stops the whole connection, where no stream can be reset any more.
func TestHTTP2AClientWhoseSocketIsFull(t *testing.T) {
	ended := make(chan struct{})
	b, _ := scripted(t, func(w *wire) {
		nodetest.ReadHead(w.in)
		io.WriteString(w, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
		chunk := "1000\r\n" + strings.Repeat("x", 0x1000) + "\r\n"
		for {
			if _, err := io.WriteString(w, chunk); err != nil {
				close(ended)
				return
			}
		}
	})
	p := start(t, within(&resourcev1.Timeouts{Idle: seconds(short)}, whole(b.Port())))
	c := newFramed(t, nodetest.Dial(t, p.address), http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1<<31 - 1})
	c.sent(c.WriteWindowUpdate(0, 1<<30))
	c.open(1, true, ordinary("GET", "/")...)
	wait(t, "the backend's connection ends", ended)
}
