package http1

// Framing is how the end of a body is found.
type Framing uint8

const (
	// None: no byte follows the head.
	None Framing = iota
	// Length: as many bytes as Content-Length says, at least one.
	Length
	// Chunked: the chunked transfer coding.
	Chunked
	// UntilClose: everything until the connection ends. Responses only.
	UntilClose
)

// Head is what requests and responses have in common, complete once Parse has returned more than 0.
//
// Field.Hop is set (RFC 9110 section 7.6.1) for Connection, Keep-Alive, Proxy-Connection, TE, Transfer-Encoding, Upgrade and
// HTTP2-Settings, for the fields between a client and its own proxy (Proxy-Authenticate, Proxy-Authorization,
// Proxy-Authentication-Info: section 11.7), and for all that Connection names. Host and Content-Length are not of the last
// kind: who forwards writes both anew. Trailer is none, as trailers pass. Set too for names that would be one of all these, or
// Host, or Content-Length, if their underscores were hyphens: nobody means well by them.
type Head struct {
	Fields

	// Minor is 0 for HTTP/1.0 and 1 for HTTP/1.1 and all later versions that begin with 1 (RFC 9110 section 2.5).
	Minor uint8
	// Framing is the body's; None where Content-Length is 0.
	Framing Framing
	// ContentLength is what the field says, -1 where there is none. Of a response to HEAD and one with status 304 it is not
	// the length of what follows.
	ContentLength int64
	// KeepAlive is that the other side wants to use the connection again, and can: false after a body that ends with it.
	KeepAlive bool
	// Upgrade is that Connection says "upgrade" and there is an Upgrade field; never in HTTP/1.0. The protocols are the
	// elements of the Upgrade fields.
	Upgrade bool
	// WebSocket is that one of those protocols is "websocket".
	WebSocket bool
	// TakesTrailers is that TE says "trailers" (RFC 9110 section 10.1.4); never in HTTP/1.0.
	TakesTrailers bool
	// ExpectContinue is that the client waits for a 100 response before it sends the body; never in HTTP/1.0.
	ExpectContinue bool

	named       set    // the known fields that Connection names
	options     []span // the other options, but for "close"
	optionCount int
	close       bool
	hasLength   bool
	length      span // the value of Content-Length
	websocket   bool
	started     bool // the first line is parsed
	failed      Reason
}

// span is a part of the buffer.
type span struct{ start, end uint32 }

func (f *Fields) bytes(s span) []byte { return f.buf[s.start:s.end:s.end] }

func (h *Head) reset() {
	fields, options := h.Fields, h.options[:0]
	fields.reset()
	*h = Head{Fields: fields, options: options}
}

const (
	// judged are the fields that a head is understood by; all others are only taken down.
	judged set = 1<<Connection | 1<<ContentLength | 1<<Expect | 1<<Host | 1<<TE | 1<<TransferEncoding | 1<<Upgrade
	// alwaysHop are the hop-by-hop fields that need not be named.
	alwaysHop set = 1<<Connection | 1<<HTTP2Settings | 1<<KeepAlive | 1<<ProxyAuthenticate | 1<<ProxyAuthenticationInfo |
		1<<ProxyAuthorization | 1<<ProxyConnection | 1<<TE | 1<<TransferEncoding | 1<<Upgrade
	// managed are those that it has no effect to name.
	managed set = 1<<Host | 1<<ContentLength
)

// parseFields goes on until the end of the head or of buf.
func (h *Head) parseFields(buf []byte, request bool) Reason {
	for {
		if r := h.line(buf, MaxFields, TooManyFields); r != none {
			return r
		}
		f := &h.list[len(h.list)-1]
		f.Hop = f.Hop || alwaysHop.has(f.ID)
		if judged.has(f.ID) {
			if r := h.judge(buf, f, request); r != none {
				return r
			}
		}
	}
}

// judge takes the facts from one field.
func (h *Head) judge(buf []byte, f *Field, request bool) Reason {
	value := buf[f.value:f.valueEnd]
	switch f.ID {
	case Connection:
		return h.judgeConnection(value, f.value)
	case ContentLength:
		return h.judgeLength(buf, f)
	case TransferEncoding:
		return h.judgeCoding(value)
	case Upgrade:
		return h.judgeUpgrade(value)
	case TE:
		h.judgeTE(value)
	case Host:
		if request && h.repeated(Host) {
			return DuplicateHost
		}
	case Expect:
		if request {
			return h.judgeExpect(value)
		}
	}
	return none
}

// repeated says whether the field just added is not the first of its ID.
func (h *Head) repeated(id ID) bool { return h.Find(id, 0) < len(h.list)-1 }

// judgeConnection reads the options of one Connection field that begins at offset at.
func (h *Head) judgeConnection(value []byte, at uint32) Reason {
	for i := 0; i < len(value); {
		if value[i] == ',' || isBlank(value[i]) {
			i++
			continue
		}
		end := skipToken(value, i)
		after := end
		for after < len(value) && isBlank(value[after]) {
			after++
		}
		if end == i || after < len(value) && value[after] != ',' {
			return BadConnection
		}
		if h.optionCount++; h.optionCount > MaxOptions {
			return TooManyOptions
		}
		h.addOption(value[i:end], span{at + uint32(i), at + uint32(end)})
		i = after
	}
	return none
}

func (h *Head) addOption(option []byte, where span) {
	if equalFold(option, "close") {
		h.close = true
		return
	}
	// Only an ID that stands for one name says which field is meant.
	if id := identify(option); id != Other && id != XForwardedOther {
		h.named |= 1 << id
		return
	}
	h.options = append(h.options, where)
}

// judgeLength reads Content-Length (RFC 9110 section 8.6). Of several, all must be the same text: they are folded into one.
func (h *Head) judgeLength(buf []byte, f *Field) Reason {
	value := buf[f.value:f.valueEnd]
	if h.hasLength {
		if string(value) != string(buf[h.length.start:h.length.end]) {
			return DifferingContentLengths
		}
		return none
	}
	n, r := parseLength(value)
	if r == none {
		h.ContentLength, h.length, h.hasLength = n, span{f.value, f.valueEnd}, true
	}
	return r
}

func parseLength(value []byte) (n int64, r Reason) {
	if len(value) == 0 {
		return 0, BadContentLength
	}
	const most = 1<<63 - 1
	for _, c := range value {
		if !is(c, isDigit) {
			return 0, BadContentLength
		}
		d := int64(c - '0')
		if n > (most-d)/10 {
			r, n = ContentLengthOverflow, 0 // but a letter behind it is worse
		}
		n = n*10 + d
	}
	return n, r
}

// judgeCoding reads Transfer-Encoding, where "chunked" alone is understood. Everything else is an error; what follows only
// finds out which.
func (h *Head) judgeCoding(value []byte) Reason {
	switch {
	case h.Minor == 0:
		return CodingInHTTP10
	case h.repeated(TransferEncoding):
		return RepeatedCoding
	case equalFold(value, "chunked"):
		return none
	}
	seen, last, unknown := 0, false, false
	for element, rest := NextElement(value); element != nil; element, rest = NextElement(rest) {
		end := skipToken(element, 0)
		if end == 0 || end < len(element) && element[end] != ';' && !isBlank(element[end]) {
			return BadCoding
		}
		if last = equalFold(element[:end], "chunked"); last {
			seen++
		} else {
			unknown = true
		}
	}
	switch {
	case seen > 1:
		return ChunkedTwice
	case seen == 1 && !last:
		return ChunkedNotLast
	case unknown:
		return UnknownCoding
	}
	return BadCoding // nothing, or chunked with parameters or empty elements beside it
}

// judgeUpgrade reads Upgrade (RFC 9110 section 7.8): a list of names, each perhaps with a version.
func (h *Head) judgeUpgrade(value []byte) Reason {
	for element, rest := NextElement(value); element != nil; element, rest = NextElement(rest) {
		end := skipToken(element, 0)
		if end == 0 || end < len(element) && (element[end] != '/' || !isToken(element[end+1:])) {
			return BadUpgrade
		}
		h.Upgrade = true // provided that Connection and the version agree
		h.websocket = h.websocket || equalFold(element, "websocket")
	}
	return none
}

func (h *Head) judgeTE(value []byte) {
	for element, rest := NextElement(value); element != nil; element, rest = NextElement(rest) {
		h.TakesTrailers = h.TakesTrailers || h.Minor > 0 && equalFold(element, "trailers")
	}
}

// judgeExpect reads Expect, which a client of HTTP/1.0 cannot mean (RFC 9110 section 10.1.1).
func (h *Head) judgeExpect(value []byte) Reason {
	if !equalFold(value, "100-continue") {
		return UnknownExpectation
	}
	h.ExpectContinue = h.Minor > 0
	return none
}

// settle is called at the end of the head for what only the whole of it can tell.
func (h *Head) settle(buf []byte) Reason {
	h.buf = buf
	switch {
	case h.hasLength && h.Has(TransferEncoding):
		return CodingWithLength
	case !h.hasLength:
		h.ContentLength = -1
	}
	h.KeepAlive = !h.close && (h.Minor > 0 || h.named.has(KeepAlive))
	h.Upgrade = h.Upgrade && h.Minor > 0 && h.named.has(Upgrade)
	h.WebSocket = h.Upgrade && h.websocket
	if h.named&^(alwaysHop|managed) != 0 || len(h.options) > 0 {
		h.markNamed()
	}
	return none
}

// markNamed sets Hop for what Connection names. MaxOptions and MaxFields bound the work.
func (h *Head) markNamed() {
	for i := range h.list {
		f := &h.list[i]
		f.Hop = f.Hop || (h.named &^ managed).has(f.ID) || h.isOption(h.Name(i))
	}
}

// isOption says whether name is an option of Connection that is not the name of a known field.
func (h *Head) isOption(name []byte) bool {
	for _, o := range h.options {
		if int(o.end-o.start) == len(name) && equalFoldBytes(h.bytes(o), name) {
			return true
		}
	}
	return false
}
