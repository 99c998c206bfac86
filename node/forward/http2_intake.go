package forward

import (
	"bufio"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"slices"
	"strconv"
	"sync"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
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

	// keptFrame is what the buffer for frames may have grown to and be kept.
	keptFrame = 4 << 10
)

var (
	errFutile  = errors.New("too many frames in a row that bring no request any further")
	errEndless = errors.New("the fields of a request have no end")
)

// intake is a client's connection as the HTTP/2 server reads it. It stands where the server leaves RFC 9113 or keeps from us
// what we need:
//   - The fields of a request are decoded here, and reach the server as few of our own: see block. So the head that a stream reads
//     back is as the client sent it, it is ours to say where it is too long, and the server need not sort it into a map.
//   - A request with fields of the connection is malformed, which is a stream error (section 8.2.2); the server would answer
//     it. Intake makes all that is malformed something that the server finds malformed, too.
//   - A setting that comes twice in a frame counts as it comes last (section 6.5.3); the server would hang up.
//   - Expect is acted on and dropped by the server, and of the trailers those that were not announced. Intake tells both in
//     fields of its own.
//   - Trailers may come for a stream that has just been reset, and are to be ignored (section 5.1); the server would hang up
//     (golang/go#58286). Intake tells when a client that has announced trailers has ended its stream, which is not reset before.
//
// Everything else passes as it is: where the frames are wrong, the server finds it, and tells the client.
type intake struct {
	*outlet
	in     *bufio.Reader
	frame  []byte // the last frame that was looked at as a whole, or the head of one that was not
	ready  []byte // of frame: what the server has not read
	pass   int    // bytes that go by unseen
	futile int    // frames in a row

	ended uint32 // the stream that the client ends with the frame that the server has last begun to read; 0: none

	mu sync.Mutex // guards awaited
	// awaited are the streams whose client has announced trailers, and not ended them yet. Each is closed then.
	awaited map[uint32]chan struct{}

	decoder *hpack.Decoder
	failed  error  // after which the connection ends
	newest  uint32 // the highest stream
	block   block
}

// newIntake reads from r what comes over the connection, from its beginning.
func newIntake(o *outlet, r io.Reader) *intake {
	i := &intake{outlet: o, in: bufio.NewReader(r), pass: len(http2.ClientPreface)}
	i.decoder = hpack.NewDecoder(headerTable, i.block.see)
	i.decoder.SetMaxStringLength(maxBlock)
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
	for len(i.ready) == 0 && i.pass == 0 {
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
	case i.block.open && (kind != http2.FrameContinuation || i.stream() != i.block.stream || size > maxFrame):
		i.breakOff()
	case i.isFutile(size):
		if i.futile++; i.futile > maxFutile {
			return errFutile
		}
		if kind == http2.FrameSettings && size <= maxSettings {
			return i.look(size, i.unrepeat)
		}
		if i.block.open {
			i.ready = nil
			return nil
		}
	case kind == http2.FrameData:
		i.futile = 0
		if i.has(http2.FlagDataEndStream) {
			i.ended = i.stream()
		}
	case kind == http2.FrameRSTStream:
		i.ended = i.stream()
	case (kind == http2.FrameHeaders && size <= maxFrame || i.block.open) && i.stream() != 0:
		i.futile = 0
		return i.look(size, i.readFields)
	}
	i.pass = size
	return nil
}

func (i *intake) kind() http2.FrameType { return http2.FrameType(i.frame[3]) }

func (i *intake) stream() uint32 { return binary.BigEndian.Uint32(i.frame[5:]) &^ (1 << 31) }

func (i *intake) has(f http2.Flags) bool { return http2.Flags(i.frame[4]).Has(f) }

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

// readFields reads a frame with fields. The server gets none of it before the last.
func (i *intake) readFields() {
	b := &i.block
	fragment := i.frame[frameHead:]
	if !b.open {
		var ok bool
		if fragment, ok = i.beginFields(); !ok {
			return
		}
	}
	ended := i.has(http2.FlagHeadersEndHeaders)
	i.frame = i.frame[:0]
	if b.encoded += len(fragment); b.encoded > maxBlock {
		b.open, i.failed = false, errEndless
		i.emit(nil, false)
		i.emit(nil, false) // which may not follow the first: an error of the connection (RFC 9113 section 6.2)
		return
	}
	_, err := i.decoder.Write(fragment)
	if b.open = !ended; err == nil && ended {
		err = i.decoder.Close()
	}
	switch {
	case err != nil:
		b.open, i.failed = false, err
		i.emit(badIndex, true)
	case ended:
		i.endFields()
	}
}

// What the server finds wrong.
var (
	badIndex    = []byte{indexed}                     // RFC 7541 section 6.1: there is no field 0
	badRequest  = appendLiteral(nil, "Malformed", "") // RFC 9113 section 8.2.1: no upper case
	badTrailers = []byte{indexed | indexPathRoot}     // section 8.1: no pseudo headers, where the stream may have trailers at all
)

// beginFields reads what stands before the fields in a HEADERS frame; false: the frame is too short for what it says to be in it,
// and left for the server to refuse.
func (i *intake) beginFields() (fragment []byte, ok bool) {
	p := i.frame[frameHead:]
	if i.has(http2.FlagHeadersPadded) {
		if len(p) == 0 || len(p)-1 < int(p[0]) {
			return nil, false
		}
		p = p[1 : len(p)-int(p[0])]
	}
	prioritized := i.has(http2.FlagHeadersPriority)
	if prioritized && len(p) < prioritySize {
		return nil, false
	}
	b := &i.block
	b.reset()
	b.stream, b.flags = i.stream(), http2.Flags(i.frame[4])&(http2.FlagHeadersEndStream|http2.FlagHeadersPriority)
	b.trailers = b.stream <= i.newest
	i.newest = max(i.newest, b.stream)
	if prioritized {
		p = p[copy(b.priority[:], p):]
	}
	return p, true
}

// endFields gives the server the fields that it is to have.
func (i *intake) endFields() {
	b := &i.block
	if b.trailers {
		if b.ends() {
			i.ended = b.stream
		}
	} else {
		b.awaited = b.awaited && !b.malformed && i.await()
		b.finish()
	}
	switch {
	case !b.malformed:
		i.emit(b.out, true)
	case b.trailers:
		i.emit(badTrailers, true)
	default:
		i.emit(badRequest, true)
	}
	b.reset() // the next may be long in coming
}

// await has the end of the block's stream told, whose number the server keeps from its handlers. Not of more than there can be: the
// server may have refused some.
func (i *intake) await() bool {
	b := &i.block
	i.mu.Lock()
	defer i.mu.Unlock()
	if b.ends() || len(i.awaited) >= maxStreams {
		return false
	}
	if i.awaited == nil {
		i.awaited = make(map[uint32]chan struct{})
	}
	i.awaited[b.stream] = make(chan struct{})
	return true
}

// breakOff ends fields that another frame, of which the head was read, has come into. The server finds the two in this order.
func (i *intake) breakOff() {
	var head [frameHead]byte
	copy(head[:], i.frame)
	i.block.open = false
	i.frame = i.frame[:0]
	i.emit(nil, false)
	i.frame = append(i.frame, head[:]...)
	i.ready = i.frame
}

// emit writes fields as the block's frames; ended is false where they are to have no end.
func (i *intake) emit(fields []byte, ended bool) {
	b := &i.block
	kind, flags, begin := http2.FrameHeaders, b.flags, b.priority[:0]
	if flags.Has(http2.FlagHeadersPriority) {
		begin = b.priority[:]
	}
	for more := true; more; {
		part := fields[:min(len(fields), maxFrame-len(begin))]
		fields = fields[len(part):]
		if more = len(fields) > 0; !more && ended {
			flags |= http2.FlagHeadersEndHeaders
		}
		size := len(begin) + len(part)
		i.frame = append(i.frame, byte(size>>16), byte(size>>8), byte(size), byte(kind), byte(flags))
		i.frame = binary.BigEndian.AppendUint32(i.frame, b.stream)
		i.frame = append(append(i.frame, begin...), part...)
		kind, flags, begin = http2.FrameContinuation, 0, nil
	}
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
