package http1

// chunkEnd judges whether buf begins with the CRLF that ends the data of a chunk.
func chunkEnd(buf []byte) Reason {
	if len(buf) == 0 {
		return needMore
	}
	return endOfLine(buf, 0, ChunkOverrun)
}

// maxSizeDigits is what 64 bits take.
const maxSizeDigits = 16

// chunkLine reads a line with the size of a chunk (RFC 9112 section 7.1), CRLF included: n bytes. plain is that it is written
// as AppendChunkHeader would, but for the case of its digits.
//
// There must be no whitespace, neither after the size nor, where the RFC has recipients accept it, around ";" and "=".
func chunkLine(buf []byte) (size int64, n int, plain bool, r Reason) {
	window := buf[:min(len(buf), MaxChunkLine)]
	i := 0
	for i < len(window) && is(window[i], isHex) {
		if i == maxSizeDigits || size > (1<<63-1)>>4 {
			return 0, 0, false, ChunkSizeOverflow
		}
		size = size<<4 | int64(unhex(window[i]))
		i++
	}
	end, r := i, needMore
	if i < len(window) {
		if i == 0 {
			return 0, 0, false, BadChunkSize
		}
		if end, r = extensions(window, i); r == none && end == i {
			r = endOfLine(window, end, BadChunkSize)
		}
	}
	switch {
	case r == needMore && len(buf) >= MaxChunkLine:
		return 0, 0, false, ChunkLineTooLong
	case r != none:
		return 0, 0, false, r
	}
	return size, end + 2, end == i && (i == 1 || window[0] != '0'), none
}

// extensions checks the extensions from i on (RFC 9112 section 7.1.1), where the size ended, up to the end of their line. They
// mean something to neighbours only, and to us nothing.
func extensions(b []byte, i int) (end int, r Reason) {
	if b[i] != ';' {
		return i, none
	}
	for {
		start := i + 1
		if i = skipToken(b, start); i == len(b) {
			return 0, needMore
		}
		if i == start {
			if r = endOfLine(b, i, BadChunkExtension); r == none {
				r = BadChunkExtension
			}
			return 0, r
		}
		if b[i] == '=' {
			if i, r = extensionValue(b, i+1); r != none {
				return 0, r
			}
		}
		if b[i] != ';' {
			return i, endOfLine(b, i, BadChunkExtension)
		}
	}
}

// extensionValue reads a token or a quoted string and gives where it ends, before the end of b.
func extensionValue(b []byte, i int) (end int, r Reason) {
	if i == len(b) {
		return 0, needMore
	}
	if b[i] == '"' {
		return quotedString(b, i+1)
	}
	start := i
	if i = skipToken(b, i); i == len(b) {
		return 0, needMore
	}
	if i == start {
		return 0, BadChunkExtension
	}
	return i, none
}

// quotedString reads to the closing quote and past it (RFC 9110 section 5.6.4). No line ends in one.
func quotedString(b []byte, i int) (end int, r Reason) {
	for ; i < len(b); i++ {
		switch c := b[i]; {
		case c == '"' && i+1 < len(b):
			return i + 1, none
		case c == '"':
			return 0, needMore
		case c == '\\' && i+1 == len(b):
			return 0, needMore
		case c == '\\':
			i++
		}
		if !is(b[i], inValue) {
			return 0, BadChunkExtension
		}
	}
	return 0, needMore
}

const (
	// forbiddenTrailers would change the framing or the addressee of the message: refused.
	forbiddenTrailers set = 1<<ContentLength | 1<<Host | 1<<TransferEncoding
	// droppedTrailers are those of RFC 9110 section 6.5.1 that we know, and those that say who the client is.
	droppedTrailers = alwaysHop | 1<<Authorization | 1<<CacheControl | 1<<ContentEncoding | 1<<ContentRange | 1<<ContentType |
		1<<Cookie | 1<<Date | 1<<Expect | 1<<Forwarded | 1<<Location | 1<<MaxForwards | 1<<RetryAfter | 1<<SetCookie |
		1<<Trailer | 1<<Vary | 1<<WWWAuthenticate | 1<<XForwardedFor | 1<<XForwardedHost | 1<<XForwardedOther |
		1<<XForwardedPort | 1<<XForwardedProto | 1<<XRealIP | 1<<XRequestID | 1<<Lookalike
)

// trailerSection consumes the trailers and the empty line after them, all at once.
func (b *Body) trailerSection(buf []byte) (int, Reason) {
	window := buf[:min(len(buf), MaxTrailer)]
	t := &b.trailer
	if t.awaits(window, MaxTrailer) {
		return 0, needMore
	}
	for {
		r := t.line(window, MaxTrailers, TooManyTrailers)
		switch {
		case r == endOfSection:
			t.buf, b.phase = window[:t.next:t.next], ended
			b.markTrailers()
			return t.next, none
		case r == needMore:
			if r = t.orWait(r, window, MaxTrailer, TrailerTooLong); r == none {
				r = needMore
			}
			return 0, r
		case r != none:
			return 0, r
		}
		if forbiddenTrailers.has(t.list[len(t.list)-1].ID) {
			return 0, ForbiddenTrailer
		}
	}
}

func (b *Body) markTrailers() {
	drop := droppedTrailers | b.named
	for i := range b.trailer.list {
		f := &b.trailer.list[i]
		f.Hop = f.ID != Other && drop.has(f.ID) || b.isOption(b.trailer.Name(i))
	}
}

// isOption says whether Connection named a field that is not a known one.
func (b *Body) isOption(name []byte) bool {
	for option, rest := NextElement(b.options); option != nil; option, rest = NextElement(rest) {
		if equalFoldBytes(option, name) {
			return true
		}
	}
	return false
}
