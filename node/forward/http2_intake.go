package forward

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/pyserve/pyserve/node/http1"
)

const (
	frameHead = 9 // bytes (RFC 9113 section 4.1)
	// maxFrame is the payload that is read, the least that may be announced (section 6.5.2): a buffer of a megabyte for each
	// connection would be the server's other choice.
	maxFrame = 16 << 10
	// maxSettings is for the frames of settings that are looked at: a hundred of six bytes, beyond which the server hangs up.
	maxSettings, settingSize = 600, 6
	// maxFutile is how many frames in a row may bring no request any further: data and fields that are empty and end nothing
	// (CVE-2019-9518), and settings (CVE-2019-9515). Of frames that must be answered the server lets ten thousand wait.
	maxFutile = 100
	// headerTable is the size of the HPACK table that we announce, by not announcing any other.
	headerTable = 4096

	// serverSlack is what the server adds to the size of a head that it is given.
	serverSlack = 10 * 32

	// keptFrame is what the buffer for frames may have grown to and be kept.
	keptFrame = 4 << 10

	prioritySize = 5
)

// Names of fields that intake adds, and how the server writes them. A client that sends such fields is refused.
const (
	noteExpect, expectKey   = "pyserve-expect", "Pyserve-Expect"
	noteTrailer, trailerKey = "pyserve-trailer", "Pyserve-Trailer"
	noteStream, streamKey   = "pyserve-stream", "Pyserve-Stream"
)

var errFutile = errors.New("too many frames in a row that bring no request any further")

// intake is a client's connection as the HTTP/2 server reads it. It stands where the server leaves RFC 9113 or keeps from us
// what we need:
//   - A request with fields of the connection is malformed, which is a stream error (section 8.2.2); the server would answer
//     it. Intake makes it one that the server finds malformed, too.
//   - A setting that comes twice in a frame counts as it comes last (section 6.5.3); the server would hang up.
//   - Expect is acted on and dropped by the server, and of the trailers those that were not announced. Intake tells both in
//     fields of its own.
//   - Trailers may come for a stream that has just been reset, and are to be ignored (section 5.1); the server would hang up
//     (golang/go#58286). Intake tells when a client that has announced trailers has ended its stream, which is not reset before.
//
// For that it decodes the fields as well. Everything else passes as it is: where the frames or the coding are wrong, the
// server finds the same.
type intake struct {
	net.Conn
	in     *bufio.Reader
	frame  []byte // the last frame that was looked at as a whole, or the head of one that was not
	ready  []byte // of frame: what the server has not read
	pass   int    // bytes that go by unseen
	futile int    // frames in a row

	ended uint32 // the stream that the client ends with the frame that the server has last begun to read; 0: none

	mu sync.Mutex // guards awaited
	// awaited are the streams whose client has announced trailers, and not ended them yet. Each is closed then.
	awaited map[uint32]chan struct{}

	writing atomic.Int64 // since when a Write has been under way, Unix nanoseconds; 0: none is

	decoder   *hpack.Decoder
	failed    error  // of the decoder: the server fails at the same place, and tells the client
	newest    uint32 // the highest stream
	current   uint32 // the stream of the fields
	ends      bool   // it ends with them
	trailers  bool   // the fields are those
	malformed bool
	size      uint32       // of the fields
	noted     int          // trailers
	notes     bytes.Buffer // fields to add, encoded
	encoder   *hpack.Encoder
}

// newIntake reads from r what comes over nc, from the connection's beginning.
func newIntake(nc net.Conn, r io.Reader) *intake {
	i := &intake{Conn: nc, in: bufio.NewReader(r), pass: len(http2.ClientPreface)}
	i.decoder = hpack.NewDecoder(headerTable, i.see)
	i.decoder.SetMaxStringLength(maxHeaderBytes + serverSlack)
	i.encoder = hpack.NewEncoder(&i.notes)
	return i
}

// server is the connection as the server is to have it.
func (i *intake) server() net.Conn {
	if secured, ok := i.Conn.(*tls.Conn); ok {
		return securedIntake{i, secured}
	}
	return i
}

// securedIntake lets the server see how TLS is spoken, which HTTP/2 has rules for (RFC 9113 section 9.2).
type securedIntake struct {
	*intake
	tls *tls.Conn
}

func (i securedIntake) ConnectionState() tls.ConnectionState { return i.tls.ConnectionState() }

// Read is for one goroutine.
func (i *intake) Read(p []byte) (int, error) {
	if len(i.ready) == 0 && i.pass == 0 {
		if err := i.next(); err != nil {
			return 0, err
		}
	}
	if len(i.ready) > 0 {
		n := copy(p, i.ready)
		i.ready = i.ready[n:]
		return n, nil
	}
	n, err := i.in.Read(p[:min(len(p), i.pass)])
	i.pass -= n
	return n, err
}

// Write is for one goroutine.
func (i *intake) Write(p []byte) (int, error) {
	i.writing.Store(time.Now().UnixNano())
	defer i.writing.Store(0)
	return i.Conn.Write(p)
}

// stalled says that the client has not read the socket for so long: not even a reset would reach it.
func (i *intake) stalled(d time.Duration) bool {
	since := i.writing.Load()
	return since != 0 && time.Since(time.Unix(0, since)) > d
}

// next begins the next frame.
func (i *intake) next() error {
	if i.failed != nil {
		return i.failed
	}
	i.tellEnded()
	if cap(i.frame) > keptFrame {
		i.frame = nil
	}
	i.frame = slices.Grow(i.frame[:0], frameHead)[:frameHead]
	if _, err := io.ReadFull(i.in, i.frame); err != nil {
		return err
	}
	i.ready = i.frame
	size := int(i.frame[0])<<16 | int(i.frame[1])<<8 | int(i.frame[2])
	switch kind := i.kind(); {
	case i.isFutile(size):
		if i.futile++; i.futile > maxFutile {
			return errFutile
		}
		if kind == http2.FrameSettings && size <= maxSettings {
			return i.look(size, i.unrepeat)
		}
	case kind == http2.FrameData:
		i.futile = 0
		if i.has(http2.FlagDataEndStream) {
			i.ended = i.stream()
		}
	case kind == http2.FrameRSTStream:
		i.ended = i.stream()
	case (kind == http2.FrameHeaders || kind == http2.FrameContinuation) && size <= maxFrame:
		i.futile = 0
		return i.look(size, i.readFields)
	}
	i.pass = size
	return nil
}

func (i *intake) kind() http2.FrameType { return http2.FrameType(i.frame[3]) }

func (i *intake) stream() uint32 { return binary.BigEndian.Uint32(i.frame[5:]) &^ (1 << 31) }

func (i *intake) has(f http2.Flags) bool { return http2.Flags(i.frame[4]).Has(f) }

func (i *intake) clear(f http2.Flags) { i.frame[4] &^= byte(f) }

func (i *intake) isFutile(size int) bool {
	switch i.kind() {
	case http2.FrameData:
		return size == 0 && !i.has(http2.FlagDataEndStream)
	case http2.FrameContinuation:
		return size == 0 && !i.has(http2.FlagContinuationEndHeaders)
	}
	return i.kind() == http2.FrameSettings && !i.has(http2.FlagSettingsAck)
}

// look reads the rest of the frame and has it changed.
func (i *intake) look(size int, change func()) error {
	i.frame = slices.Grow(i.frame, size)[:frameHead+size]
	if _, err := io.ReadFull(i.in, i.frame[frameHead:]); err != nil {
		return err
	}
	change()
	i.ready = i.frame
	return nil
}

// resize writes the payload's size into the frame's head.
func (i *intake) resize() {
	size := len(i.frame) - frameHead
	i.frame[0], i.frame[1], i.frame[2] = byte(size>>16), byte(size>>8), byte(size)
}

// unrepeat leaves of each setting the last. Where one is invalid, the frame is left for the server to refuse.
func (i *intake) unrepeat() {
	p := i.frame[frameHead:]
	if len(p)%settingSize != 0 {
		return
	}
	for at := 0; at < len(p); at += settingSize {
		if settingAt(p, at).Valid() != nil {
			return
		}
	}
	kept := i.frame[:frameHead]
	for at := 0; at < len(p); at += settingSize {
		if !repeated(p, at) {
			kept = append(kept, p[at:at+settingSize]...)
		}
	}
	i.frame = kept
	i.resize()
}

func settingAt(p []byte, at int) http2.Setting {
	return http2.Setting{ID: http2.SettingID(binary.BigEndian.Uint16(p[at:])), Val: binary.BigEndian.Uint32(p[at+2:])}
}

// repeated says whether the setting comes again later.
func repeated(p []byte, at int) bool {
	for later := at + settingSize; later < len(p); later += settingSize {
		if p[later] == p[at] && p[later+1] == p[at+1] {
			return true
		}
	}
	return false
}

// readFields reads a frame with fields, and adds the notes where they end.
func (i *intake) readFields() {
	fragment := i.frame[frameHead:]
	if i.kind() == http2.FrameHeaders {
		i.beginFields()
		var ok bool
		if fragment, ok = i.unpad(); !ok {
			return
		}
	}
	if _, i.failed = i.decoder.Write(fragment); i.failed != nil || !i.has(http2.FlagHeadersEndHeaders) {
		return
	}
	if i.failed = i.decoder.Close(); i.failed == nil {
		i.endFields()
	}
}

func (i *intake) beginFields() {
	i.current, i.ends = i.stream(), i.has(http2.FlagHeadersEndStream)
	i.trailers = i.current <= i.newest
	i.newest = max(i.newest, i.current)
	i.malformed, i.size, i.noted = false, 0, 0
	i.decoder.SetEmitEnabled(true)
	i.notes.Reset()
	if !i.ends {
		i.note("trailer", noteTrailer)
	}
}

// unpad takes the padding out: what is added has to stand before it. It returns the fields, behind a priority; false: the
// frame is too short for what it says to be in it.
func (i *intake) unpad() (fragment []byte, ok bool) {
	p := i.frame[frameHead:]
	if i.has(http2.FlagHeadersPadded) {
		if len(p) == 0 || len(p)-1 < int(p[0]) {
			return nil, false
		}
		i.frame = append(i.frame[:frameHead], p[1:len(p)-int(p[0])]...)
		i.clear(http2.FlagHeadersPadded)
		i.resize()
		p = i.frame[frameHead:]
	}
	if !i.has(http2.FlagHeadersPriority) {
		return p, true
	}
	if len(p) < prioritySize {
		return nil, false
	}
	return p[prioritySize:], true
}

// see is told each field, as long as the server will not find them too long.
func (i *intake) see(f hpack.HeaderField) {
	if i.size += f.Size(); i.size > maxHeaderBytes+serverSlack {
		i.decoder.SetEmitEnabled(false) // a byte may stand for four thousand
		return
	}
	switch f.Name {
	case "connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade", noteExpect, noteTrailer, noteStream:
		i.malformed = true
	case "trailer":
		i.await()
	case "te":
		i.malformed = i.malformed || f.Value != "trailers"
	case "expect":
		i.note(noteExpect, f.Value)
	}
	if i.trailers {
		i.noteTrailer(f)
	}
}

// noteTrailer keeps within what HTTP/1 may have, which leaves room in what the server reads.
func (i *intake) noteTrailer(f hpack.HeaderField) {
	i.noted++
	if i.noted > http1.MaxTrailers || i.notes.Len()+len(f.Name)+len(f.Value) > http1.MaxTrailer {
		i.malformed = true
	}
	if !i.malformed {
		i.note(noteTrailer, f.Name+": "+f.Value)
	}
}

// note adds a field. One that is sensitive is never put into the table, which is the client's.
func (i *intake) note(name, value string) {
	i.encoder.WriteField(hpack.HeaderField{Name: name, Value: value, Sensitive: true}) // into memory: no error
}

// await has the end of a stream told, whose number the server keeps from its handlers. Not of more than there can be: the
// server may have refused some.
func (i *intake) await() {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.trailers || i.ends || i.awaited[i.current] != nil || len(i.awaited) >= maxStreams {
		return
	}
	if i.awaited == nil {
		i.awaited = make(map[uint32]chan struct{})
	}
	i.awaited[i.current] = make(chan struct{})
	i.note(noteStream, strconv.FormatUint(uint64(i.current), 10))
}

// tellEnded tells of the stream that was ended with the frame before: the server begins to read a frame when it is done with
// that one.
func (i *intake) tellEnded() {
	if i.ended == 0 {
		return
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if told := i.awaited[i.ended]; told != nil {
		close(told)
		delete(i.awaited, i.ended)
	}
	i.ended = 0
}

// ending is closed when the client has ended the stream of a request with this noteStream. Nil: it has, or has announced no
// trailers.
func (i *intake) ending(note []string) <-chan struct{} {
	if note == nil {
		return nil
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.awaited[numberOf(note)]
}

// forget has the end of that stream not told.
func (i *intake) forget(note []string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	delete(i.awaited, numberOf(note))
}

// numberOf reads what intake has written.
func numberOf(note []string) uint32 {
	n, _ := strconv.ParseUint(note[0], 10, 32)
	return uint32(n)
}

// endFields adds the notes to the last frame of the fields, or behind it where there is no room.
func (i *intake) endFields() {
	if i.trailers && i.ends {
		i.ended = i.current
	}
	if i.malformed {
		i.notes.Reset()
		i.note("Malformed", "") // in upper case, which makes it so (RFC 9113 section 8.2.1)
	}
	notes := i.notes.Bytes()
	if len(i.frame)-frameHead+len(notes) <= maxFrame {
		i.frame = append(i.frame, notes...)
		i.resize()
		return
	}
	i.clear(http2.FlagHeadersEndHeaders)
	stream := i.stream()
	for len(notes) > 0 {
		part := notes[:min(len(notes), maxFrame)]
		notes = notes[len(part):]
		flags := byte(0)
		if len(notes) == 0 {
			flags = byte(http2.FlagContinuationEndHeaders)
		}
		i.frame = append(i.frame, byte(len(part)>>16), byte(len(part)>>8), byte(len(part)), byte(http2.FrameContinuation), flags)
		i.frame = append(binary.BigEndian.AppendUint32(i.frame, stream), part...)
	}
}
