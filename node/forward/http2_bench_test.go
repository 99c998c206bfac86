package forward

import (
	"bufio"
	"log/slog"
	"net"
	"testing"

	"golang.org/x/net/http2"

	"github.com/pyserve/pyserve/node/nodetest"
)

// BenchmarkHTTP2SmallGet is one request after another over one connection, all of it on this machine: client, front and backend.
// The client and the backend do next to nothing.
func BenchmarkHTTP2SmallGet(b *testing.B) {
	answer := []byte(sized("hello"))
	backend := nodetest.NewRawBackend(b, func(c net.Conn) {
		in := bufio.NewReader(c)
		for {
			line, err := in.ReadSlice('\n')
			if err != nil {
				return
			}
			if len(line) == 2 {
				if _, err := c.Write(answer); err != nil {
					return
				}
			}
		}
	})
	p := startWith(b, settings{options: Options{Logger: slog.New(slog.DiscardHandler)}}, whole(backend.Port()))
	c := connectFrames(b, p)
	c.nc.SetDeadline(noDeadline)
	c.ReadMetaHeaders = nil
	c.SetReuseFrames()
	c.sent(c.WriteWindowUpdate(0, 1<<30))
	block := c.fields(ordinary("GET", "/index.html", "accept", "*/*", "accept-encoding", "gzip", "user-agent", "bench/1")...)
	again := c.fields(ordinary("GET", "/index.html", "accept", "*/*", "accept-encoding", "gzip", "user-agent", "bench/1")...)
	stream := uint32(1)
	b.ReportAllocs()
	for b.Loop() {
		c.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: block, EndStream: true, EndHeaders: true})
		for ended := false; !ended; {
			f, err := c.ReadFrame()
			if err != nil {
				b.Fatal(err)
			}
			h := f.Header()
			ended = h.StreamID == stream && h.Flags.Has(http2.FlagDataEndStream)
		}
		block = again
		stream += 2
	}
}
