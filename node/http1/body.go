package http1

// Body takes a body out of its framing. It is fed the bytes that follow the head, in pieces of any size, and hands back
// spans of them; nothing is copied. The zero value is a body that has ended.
//
// The loop is: Next with the bytes that are there, pass data on, drop the first n of them, until Done; n of 0 means that more
// are needed. Bytes that were not consumed must come again, at the beginning of what is given next. A buffer that has room
// for MaxTrailer never gets stuck.
type Body struct {
	framing Framing
	phase   phase
	failed  Reason
	left    int64 // bytes of data before the body or the chunk ends
	excess  int64 // see overhead
	room    int64 // how much more data chunks may announce; -1: however much

	trailer Fields
	// What the head's Connection named, since the head may be overwritten before the trailers come.
	named   set
	options []byte // names, a comma after each

	header [MaxChunkHeader]byte // what NextRaw says instead of what was sent
}

// phase is where in its framing a body is.
type phase uint8

const (
	ended phase = iota
	inData
	// Of a chunked body; inData is within a chunk.
	atSize
	atChunkEnd
	inTrailer
)

// Reset makes b ready for the body behind h, which must be complete. Nothing of h is used afterwards. What b grew to is kept.
func (b *Body) Reset(h *Head) {
	b.trailer.reset()
	b.framing, b.phase, b.failed, b.left, b.excess, b.room = h.Framing, ended, none, 0, 0, -1
	b.named, b.options = h.named, b.options[:0]
	switch h.Framing {
	case Length:
		if b.left = h.ContentLength; b.left > 0 {
			b.phase = inData
		}
	case UntilClose:
		b.phase = inData
	case Chunked:
		b.phase = atSize
		for _, o := range h.options {
			b.options = append(append(b.options, h.bytes(o)...), ',')
		}
	}
}

// Limit bounds the data of a chunked body to most bytes, before any of it is read: a chunk that would be too much is refused
// by its size, with BodyTooLong. Other framings know their length beforehand.
func (b *Body) Limit(most int64) { b.room = most }

// Done says whether the body has ended, trailers included.
func (b *Body) Done() bool { return b.phase == ended }

// Trailer is the trailer fields (RFC 9110 section 6.5), once Done. They are in the bytes of the last call of Next, and last as
// long. Field.Hop is set for all that must not be passed on as trailers: those of the connection, those that Connection
// named in the head, and those known fields that say who asks, what for and how the content is to be understood, which some
// recipients take for fields of the head (section 6.5.1).
func (b *Body) Trailer() *Fields { return &b.trailer }

// Left is how many of the next bytes are data for certain: the rest of the body, or of the chunk. -1 is all of them until the
// connection ends. They may go another way than through Next, if Skip is told.
func (b *Body) Left() int64 {
	if b.framing == UntilClose && b.phase == inData {
		return -1
	}
	return b.left
}

// Skip says that n bytes of data, at most Left, went another way.
func (b *Body) Skip(n int64) {
	if b.phase != inData || b.framing == UntilClose {
		return
	}
	if b.left -= n; b.left <= 0 {
		b.left = 0
		b.endData()
	}
}

// endData is called when the last byte of a body or chunk has been seen.
func (b *Body) endData() {
	if b.phase = ended; b.framing == Chunked {
		b.phase = atChunkEnd
	}
}

// EOF says that the connection has ended. It returns nil where that is the end of the body, or the body had ended before;
// Truncated, or the error there was before, otherwise.
func (b *Body) EOF() error {
	if b.failed != none {
		return b.failed
	}
	if b.phase != ended && b.framing != UntilClose {
		return Truncated
	}
	b.phase = ended
	return nil
}

// Next consumes the first n bytes of buf, of which data is to be passed on; data may be empty though n is not 0. Errors are a
// [Reason], and final.
func (b *Body) Next(buf []byte) (data []byte, n int, err error) {
	if b.failed != none {
		return nil, 0, b.failed
	}
	for b.phase != ended {
		if b.phase == inData {
			data = b.take(buf[n:])
			return data, n + len(data), nil
		}
		size, reason := b.framingAt(buf[n:])
		if reason != none {
			return nil, n, b.stop(reason, n)
		}
		n += size
	}
	return nil, n, nil
}

// stop is called where nothing more can be taken from what was given, of which n bytes were consumed. If that is because
// something is wrong, it is said with this call or, so that what came before it is not lost, with the next.
func (b *Body) stop(r Reason, n int) error {
	if r == none || r == needMore {
		return nil
	}
	if b.failed = r; n > 0 {
		return nil
	}
	return r
}

// take is the data that buf begins with.
func (b *Body) take(buf []byte) []byte {
	if b.framing == UntilClose {
		return buf
	}
	data := buf[:min(int64(len(buf)), b.left)]
	if b.left -= int64(len(data)); b.left == 0 {
		b.endData()
	}
	return data
}

// framingAt consumes one piece of framing of a chunked body and gives its size.
func (b *Body) framingAt(buf []byte) (int, Reason) {
	switch b.phase {
	case atChunkEnd:
		r := chunkEnd(buf)
		if r == none {
			b.phase = atSize
		}
		return len("\r\n"), r
	case atSize:
		size, n, _, r := chunkLine(buf)
		if r == none {
			r = b.begin(size, n)
		}
		return n, r
	}
	return b.trailerSection(buf)
}

// begin enters a chunk whose line has lineSize bytes.
func (b *Body) begin(size int64, lineSize int) Reason {
	if b.overhead(size, lineSize) {
		return ChunkOverhead
	}
	if b.room >= 0 {
		if size > b.room {
			return BodyTooLong
		}
		b.room -= size
	}
	if b.left, b.phase = size, inData; size == 0 {
		b.phase = inTrailer
	}
	return none
}

// maxExcess bounds what a sender may make us read in vain.
const maxExcess = 16 << 10

// overhead says whether there is far more framing than data. Chunks of one byte are legitimate; chunks of one byte with a
// kilobyte of extensions each are an attack (CVE-2023-39326). Allowed are, as net/http has it, 16 bytes for each chunk and
// twice the data, and maxExcess beyond that at any time.
func (b *Body) overhead(size int64, lineSize int) bool {
	b.excess = max(b.excess+int64(lineSize)-16-2*min(size, maxExcess), 0)
	return b.excess > maxExcess
}

// NextRaw is for who passes a chunked body on chunked: raw is the chunks with their framing, valid to be sent as they are,
// without extensions, and without copying where nothing had to be changed. Many small chunks are one span. The last chunk and
// the empty line after it are part of raw if there are no trailers; if there are, they are left to the caller, who then
// finds them in Trailer: AppendLastChunk, the trailers to be passed on, AppendHeadEnd. raw is valid until the next call.
//
// For other framings it is Next. A body is read with one of the two.
func (b *Body) NextRaw(buf []byte) (raw []byte, n int, err error) {
	if b.framing != Chunked {
		return b.Next(buf)
	}
	if b.failed != none {
		return nil, 0, b.failed
	}
	for b.phase != ended {
		var size int
		var own []byte
		var r Reason
		switch b.phase {
		case inData:
			if size = len(b.take(buf[n:])); size == 0 {
				r = needMore
			}
		case atSize:
			if size, own, r = b.rawSize(buf[n:], n == 0); own != nil && r == none {
				return own, size, nil
			}
		case inTrailer:
			size, r = b.framingAt(buf)
			return nil, size, b.stop(r, 0)
		default:
			size, r = b.framingAt(buf[n:])
		}
		if r != none {
			return buf[:n], n, b.stop(r, n)
		}
		n += size
	}
	return buf[:n], n, nil
}

// rawSize consumes the line that begins a chunk, with the end of the body if that follows. own is what to say instead, nil
// where the line is good as it is. Where the line cannot stand in one span with what is before it (it is not the first), it is
// left for the next call.
func (b *Body) rawSize(buf []byte, first bool) (n int, own []byte, r Reason) {
	size, n, plain, r := chunkLine(buf)
	switch {
	case r != none:
		return 0, nil, r
	case size == 0:
		return b.rawLast(buf, n, plain, first)
	case !plain && !first:
		return 0, nil, needMore
	}
	if !plain {
		own = AppendChunkHeader(b.header[:0], size)
	}
	return n, own, b.begin(size, n)
}

// rawLast is rawSize for the last chunk, whose line has n bytes. Whether trailers follow must be known before it is said.
func (b *Body) rawLast(buf []byte, n int, plain, first bool) (_ int, own []byte, r Reason) {
	rest := buf[n:]
	if len(rest) == 0 || len(rest) == 1 && rest[0] == '\r' {
		return 0, nil, needMore
	}
	trailers := rest[0] != '\r' || rest[1] != '\n'
	if !first && (trailers || !plain) {
		return 0, nil, needMore
	}
	if r := b.begin(0, n); r != none {
		return 0, nil, r
	}
	if trailers {
		return n, b.header[:0], none
	}
	b.phase = ended
	if !plain {
		own = append(b.header[:0], "0\r\n\r\n"...)
	}
	return n + len("\r\n"), own, none
}
