package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"net"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// http2Client is one HTTP/2 connection with some streams, each with one exchange at a time. It is written on frames, not
// on a client library, so that the load does not cost more than what is measured.
type http2Client struct {
	exchange
	recorder *recorder
	out      *bufio.Writer
	in       *bufio.Reader
	framer   *http2.Framer
	encoder  *hpack.Encoder
	block    bytes.Buffer // what encoder writes
	nextID   uint32
	streams  map[uint32]*http2Stream
}

type http2Stream struct {
	began time.Time
	ok    bool // the status is 200
	got   int  // bytes of the body
}

// streams is a worker that keeps all streams of one connection busy.
func streams(t target, e exchange, r *recorder) error {
	conn, err := t.dial()
	if err != nil {
		return err
	}
	defer conn.Close()
	c := newHTTP2Client(conn, e, r)
	if err := c.begin(); err != nil {
		return err
	}
	for r.running() {
		if c.in.Buffered() == 0 { // nothing more to answer at the moment
			if err := c.out.Flush(); err != nil {
				return err
			}
		}
		f, err := c.framer.ReadFrame()
		if err != nil {
			return fmt.Errorf("read a frame: %w", err)
		}
		if err := c.take(f); err != nil {
			return err
		}
	}
	return nil
}

func newHTTP2Client(conn net.Conn, e exchange, r *recorder) *http2Client {
	c := &http2Client{
		exchange: e, recorder: r, nextID: 1, streams: map[uint32]*http2Stream{},
		out: bufio.NewWriterSize(conn, 16<<10), in: bufio.NewReaderSize(conn, 64<<10),
	}
	c.framer = http2.NewFramer(c.out, c.in)
	c.framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	c.framer.SetReuseFrames()
	c.encoder = hpack.NewEncoder(&c.block)
	return c
}

func (c *http2Client) begin() error {
	if _, err := c.out.WriteString(http2.ClientPreface); err != nil {
		return err
	}
	if err := c.framer.WriteSettings(http2.Setting{ID: http2.SettingEnablePush, Val: 0}); err != nil {
		return err
	}
	const window = 1 << 30 // more than any measurement receives, so that it is never raised again
	if err := c.framer.WriteWindowUpdate(0, window); err != nil {
		return err
	}
	for range http2Streams {
		if err := c.request(&http2Stream{}); err != nil {
			return err
		}
	}
	return nil
}

// request opens a stream, with the record of one that has ended.
func (c *http2Client) request(s *http2Stream) error {
	c.block.Reset()
	fields := []hpack.HeaderField{
		{Name: ":method", Value: c.method}, {Name: ":scheme", Value: "https"},
		{Name: ":authority", Value: hostName}, {Name: ":path", Value: c.path},
	}
	for _, f := range fields {
		if err := c.encoder.WriteField(f); err != nil {
			return err
		}
	}
	*s = http2Stream{began: time.Now()}
	c.streams[c.nextID] = s
	err := c.framer.WriteHeaders(http2.HeadersFrameParam{
		StreamID: c.nextID, BlockFragment: c.block.Bytes(), EndStream: true, EndHeaders: true,
	})
	c.nextID += 2
	return err
}

// take handles a frame of the proxy's.
func (c *http2Client) take(f http2.Frame) error {
	switch f := f.(type) {
	case *http2.MetaHeadersFrame:
		s, err := c.stream(f)
		if err != nil {
			return err
		}
		s.ok = s.ok || f.PseudoValue("status") == "200" // the second one holds trailers
		return c.ended(f.StreamID, s, f.StreamEnded())
	case *http2.DataFrame:
		s, err := c.stream(f)
		if err != nil {
			return err
		}
		data := f.Data()
		if len(data) > len(c.want)-s.got || !bytes.Equal(data, c.want[s.got:s.got+len(data)]) {
			return errWrongBody
		}
		s.got += len(data)
		return c.ended(f.StreamID, s, f.StreamEnded())
	case *http2.SettingsFrame:
		return c.settings(f)
	case *http2.PingFrame:
		if f.IsAck() {
			return nil
		}
		return c.framer.WritePing(true, f.Data)
	case *http2.RSTStreamFrame:
		return fmt.Errorf("a stream was reset: %v", f.ErrCode)
	case *http2.GoAwayFrame:
		return fmt.Errorf("the connection was ended: %v", f.ErrCode)
	}
	return nil
}

func (c *http2Client) stream(f http2.Frame) (*http2Stream, error) {
	if s := c.streams[f.Header().StreamID]; s != nil {
		return s, nil
	}
	return nil, errors.New("a frame is of no open stream")
}

// ended records an exchange whose last frame came, and begins the next.
func (c *http2Client) ended(id uint32, s *http2Stream, last bool) error {
	if !last {
		return nil
	}
	if !s.ok || s.got != len(c.want) {
		return fmt.Errorf("the answer is not 200 with %d bytes", len(c.want))
	}
	c.recorder.done(s.began)
	delete(c.streams, id)
	return c.request(s)
}

func (c *http2Client) settings(f *http2.SettingsFrame) error {
	if f.IsAck() {
		return nil
	}
	if size, ok := f.Value(http2.SettingHeaderTableSize); ok {
		c.encoder.SetMaxDynamicTableSizeLimit(min(size, 4096))
	}
	return c.framer.WriteSettingsAck()
}
