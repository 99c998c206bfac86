package forward

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// taken is what the server reads of a connection's bytes, read in pieces of a size.
func taken(stream []byte, size int) ([]byte, error) {
	i := newIntake(&outlet{}, bytes.NewReader(append([]byte(http2.ClientPreface), stream...)))
	var out []byte
	piece := make([]byte, size)
	for {
		n, err := i.Read(piece)
		out = append(out, piece[:n]...)
		if err != nil {
			return bytes.TrimPrefix(out, []byte(http2.ClientPreface)), err
		}
	}
}

// untouched are the frames that pass as they are; rest is what is no whole frame any more.
func untouched(stream []byte) (frames [][]byte) {
	for len(stream) >= frameHead {
		size := frameHead + int(stream[0])<<16 + int(stream[1])<<8 + int(stream[2])
		kind := http2.FrameType(stream[3])
		frame := stream[:min(size, len(stream))]
		stream = stream[len(frame):]
		if kind != http2.FrameHeaders && kind != http2.FrameContinuation && kind != http2.FrameSettings {
			frames = append(frames, frame)
		}
	}
	return frames
}

func coded(pairs ...string) []byte {
	var out bytes.Buffer
	e := hpack.NewEncoder(&out)
	for i := 0; i < len(pairs); i += 2 {
		e.WriteField(hpack.HeaderField{Name: pairs[i], Value: pairs[i+1]})
	}
	return out.Bytes()
}

// FuzzIntake holds that the pieces in which a connection is read make no difference, that nothing but fields and settings is
// changed, and that the server finds no head too long and can read each.
func FuzzIntake(f *testing.F) {
	request := coded(ordinary("POST", "/", "expect", "100-continue", "te", "gzip")...)
	f.Add(frames(func(w *http2.Framer) {
		w.WriteSettings(http2.Setting{ID: 4, Val: 1}, http2.Setting{ID: 4, Val: 2}, http2.Setting{ID: 0x10, Val: 2})
		w.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: request[:9], PadLength: 3, Priority: http2.PriorityParam{Weight: 1}})
		w.WriteContinuation(1, true, request[9:])
		w.WriteData(1, false, []byte("data"))
		w.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: coded("x-t", "1"), EndHeaders: true, EndStream: true})
		w.WritePing(false, [8]byte{1})
	}), uint8(7))
	f.Add([]byte("\x00\x00\x01\x01\x0c\x00\x00\x00\x01\xff\x00\x00\x05\x04\x00\x00\x00\x00\x00abcde\x00\x00\x00\x09\x04\x00\x00\x00\x01"), uint8(1))
	f.Fuzz(func(t *testing.T, stream []byte, size uint8) {
		once, why := taken(stream, 1<<16)
		split, whyNot := taken(stream, int(size)+1)
		if !bytes.Equal(once, split) || why.Error() != whyNot.Error() {
			t.Fatalf("%x and %v in large pieces, %x and %v in small ones", once, why, split, whyNot)
		}
		sent, passed := untouched(stream), untouched(once)
		if len(passed) > len(sent) {
			t.Fatalf("%d frames became %d", len(sent), len(passed))
		}
		for n, frame := range passed {
			if last := n == len(passed)-1; !bytes.Equal(frame, sent[n]) && !(last && bytes.HasPrefix(sent[n], frame)) {
				t.Fatalf("frame %x became %x", sent[n], frame)
			}
		}
		readable(t, once)
	})
}

// readable reads the heads in a stream as the server does, and counts them.
func readable(t *testing.T, stream []byte) (heads int) {
	t.Helper()
	f := http2.NewFramer(nil, bytes.NewReader(stream))
	f.SetMaxReadFrameSize(maxFrame)
	f.ReadMetaHeaders = hpack.NewDecoder(headerTable, nil)
	f.MaxHeaderListSize = maxHeaderBytes + ownFields
	for {
		frame, err := f.ReadFrame()
		var ofStream http2.StreamError
		if err != nil && !errors.As(err, &ofStream) {
			return heads
		}
		meta, ok := frame.(*http2.MetaHeadersFrame)
		if !ok || err != nil {
			continue
		}
		if meta.Truncated {
			t.Error("the server would answer for itself")
			return heads
		}
		heads++
		for line := range strings.SplitSeq(strings.TrimSuffix(headOf(meta.Fields), "\r\n"), "\r\n") {
			if strings.ContainsAny(line, "\r\n\x00") || len(meta.Fields) > 2 && headOf(meta.Fields) != "" && line == "" {
				t.Fatalf("a line is %q", line)
			}
		}
	}
}

// fieldsOf decodes the fields of the stream's frames.
func fieldsOf(t *testing.T, stream []byte) (all [][]hpack.HeaderField) {
	t.Helper()
	f := http2.NewFramer(nil, bytes.NewReader(stream))
	f.ReadMetaHeaders = hpack.NewDecoder(headerTable, nil)
	for {
		frame, err := f.ReadFrame()
		if err == io.EOF {
			return all
		}
		var refused http2.StreamError
		switch {
		case errors.As(err, &refused):
			all = append(all, nil)
		case err != nil:
			t.Fatal(err)
		}
		if meta, ok := frame.(*http2.MetaHeadersFrame); ok && err == nil {
			all = append(all, slices.Clone(meta.Fields))
		}
	}
}

// The server gets the head whole, wherever the client's frames end and ours have to.
func TestIntakeWritesTheHeadIntoOneField(t *testing.T) {
	var stream []byte
	var table bytes.Buffer
	e := hpack.NewEncoder(&table)
	cut := []int{0, 1, 20, maxFrame - 5, maxFrame}
	for n := range 10 {
		table.Reset()
		pairs := ordinary("POST", "/", "x-kept", "in the table", "x-long", string(bytes.Repeat([]byte{'l'}, 3*n*1000)), "expect", "100-continue")
		for i := 0; i < len(pairs); i += 2 {
			e.WriteField(hpack.HeaderField{Name: pairs[i], Value: pairs[i+1]})
		}
		block, id := table.Bytes(), uint32(2*n+1)
		at := min(cut[n%len(cut)], len(block), maxFrame)
		stream = append(stream, frames(func(w *http2.Framer) {
			w.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block[:at], EndHeaders: at == len(block)})
			for rest := block[at:]; len(rest) > 0; {
				part := rest[:min(len(rest), maxFrame)]
				rest = rest[len(part):]
				w.WriteContinuation(id, len(rest) == 0, part)
			}
		})...)
	}
	out, err := taken(stream, 1000)
	if err != io.EOF {
		t.Fatal(err)
	}
	sent, got := fieldsOf(t, stream), fieldsOf(t, out)
	if len(sent) != 10 || len(got) != 10 {
		t.Fatalf("%d heads became %d", len(sent), len(got))
	}
	for n := range sent {
		long := sent[n][5].Value
		want := "POST / HTTP/1.1\r\nHost: x\r\nX-Kept: in the table\r\nX-Long: " + long + "\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\n"
		if head := headOf(got[n]); head != want {
			t.Errorf("head %d: %.300q", n, head)
		}
		var names []string
		for _, f := range got[n] {
			names = append(names, f.Name)
		}
		if !slices.Equal(names, []string{":scheme", ":path", ":method", noteHead, "trailer", noteExpect, "expect"}) {
			t.Errorf("head %d has %q", n, names)
		}
	}
}

// headOf is the head that the server was given.
func headOf(fields []hpack.HeaderField) string {
	for _, f := range fields {
		if f.Name == noteHead {
			head, _ := readHead(nil, f.Value)
			return string(head)
		}
	}
	return ""
}

// A server that finds a head too long answers for itself, so it never does, whichever field it is.
func TestIntakeGivesTheServerNoHeadThatIsTooLong(t *testing.T) {
	long := strings.Repeat("0", maxBlock*3/4)
	nearly := strings.Repeat("0", maxHeaderBytes/2)
	with := func(name, value string) []string {
		pairs := []string{":method", "POST", ":scheme", "http", ":path", "/"}
		return append(pairs, name, value, "accept", nearly, "accept", "*/*")
	}
	for _, name := range []string{
		":authority", ":protocol", "host", "content-length", "cookie", "trailer", "expect", "priority", "accept", "te", "via",
		"sec-websocket-key", "x-a", noteHead, noteProtocol,
	} {
		for _, value := range []string{long, nearly} {
			stream := frames(func(w *http2.Framer) {
				rest := coded(with(name, value)...)
				w.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: rest[:8]})
				for rest = rest[8:]; len(rest) > 0; {
					part := rest[:min(len(rest), maxFrame)]
					rest = rest[len(part):]
					w.WriteContinuation(1, len(rest) == 0, part)
				}
			})
			out, err := taken(stream, 4096)
			if err != io.EOF {
				t.Fatalf("%s of %d bytes: %v", name, len(value), err)
			}
			malformed := name == "te"
			if heads := readable(t, out); t.Failed() || heads == 0 && !malformed {
				t.Fatalf("%s of %d bytes: %d heads", name, len(value), heads)
			}
		}
	}
}

func TestIntakeKeepsTrailersWithinBounds(t *testing.T) {
	for name, c := range map[string]struct {
		trailers []string
		fits     bool
	}{
		"as many as there may be":  {many(128, "x-t", "1"), true},
		"one more":                 {many(129, "x-t", "1"), false},
		"nearly too long":          {many(3, "x-t", string(bytes.Repeat([]byte{'#'}, 3000))), true},
		"too long":                 {many(8, "x-t", string(bytes.Repeat([]byte{'#'}, 3000))), false},
		"too long by one of them":  {[]string{"x-t", string(bytes.Repeat([]byte{'#'}, 17000))}, false},
		"a field of a connection":  {[]string{"x-t", "1", "connection", "close"}, false},
		"a field named as our own": {[]string{noteTrailer, "x: y"}, true},
		"a pseudo header":          {[]string{":method", "GET"}, false},
	} {
		stream := frames(func(w *http2.Framer) {
			w.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: coded(ordinary("POST", "/")...), EndHeaders: true})
			rest := coded(c.trailers...)
			part := rest[:min(len(rest), maxFrame)]
			rest = rest[len(part):]
			w.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: part, EndHeaders: len(rest) == 0, EndStream: true})
			for len(rest) > 0 {
				part = rest[:min(len(rest), maxFrame)]
				rest = rest[len(part):]
				w.WriteContinuation(1, len(rest) == 0, part)
			}
		})
		out, err := taken(stream, 4096)
		if err != io.EOF {
			t.Fatal(err)
		}
		notes := 0
		heads := fieldsOf(t, out)
		for _, f := range heads[1] {
			if f.Name == noteTrailer {
				notes++
			}
		}
		if fits := notes == len(c.trailers)/2; fits != c.fits || fits == (len(heads[1]) == 1 && heads[1][0].IsPseudo()) {
			t.Errorf("%s: %d notes in %.300v", name, notes, heads[1])
		}
	}
}

// repetition gives the same bytes again and again, after a beginning.
type repetition struct {
	begin, again []byte
	at           int
}

func (r *repetition) Read(p []byte) (int, error) {
	if len(r.begin) > 0 {
		n := copy(p, r.begin)
		r.begin = r.begin[n:]
		return n, nil
	}
	n := copy(p, r.again[r.at:])
	r.at = (r.at + n) % len(r.again)
	return n, nil
}

func steadyIntake() (i *intake, size int) {
	pairs := ordinary("GET", "/", "accept", "*/*", "accept-encoding", "gzip", "user-agent", "bench/1")
	var table bytes.Buffer
	e := hpack.NewEncoder(&table)
	head := func() []byte {
		table.Reset()
		for i := 0; i < len(pairs); i += 2 {
			e.WriteField(hpack.HeaderField{Name: pairs[i], Value: pairs[i+1]})
		}
		return frames(func(w *http2.Framer) {
			w.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: table.Bytes(), EndHeaders: true, EndStream: true})
		})
	}
	first := append([]byte(http2.ClientPreface), head()...)
	again := head()
	return newIntake(&outlet{}, &repetition{begin: first, again: again}), len(again)
}

func TestIntakeDoesNotAllocate(t *testing.T) {
	if raceDetector {
		t.Skip("the race detector allocates")
	}
	i, _ := steadyIntake()
	buf := make([]byte, 4096)
	read := func() {
		for range 10 {
			i.newest = 0 // or it would be the trailers of the same stream
			if _, err := i.Read(buf); err != nil {
				t.Fatal(err)
			}
		}
	}
	read()
	if n := testing.AllocsPerRun(100, read); n > 0 {
		t.Errorf("%v allocations for ten heads", n)
	}
}

// BenchmarkIntake is what looking at a request's fields costs beside the server's own reading.
func BenchmarkIntake(b *testing.B) {
	i, size := steadyIntake()
	buf := make([]byte, 4096)
	b.ReportAllocs()
	b.SetBytes(int64(size))
	for b.Loop() {
		i.newest = 0
		if _, err := i.Read(buf); err != nil {
			b.Fatal(err)
		}
	}
}
