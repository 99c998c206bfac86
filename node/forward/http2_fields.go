package forward

import (
	"slices"
	"strconv"
	"strings"

	"golang.org/x/net/http/httpguts"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/pyserve/pyserve/node/http1"
)

// The fields of a request reach the server as one: its head as HTTP/1 has it, which intake writes and a stream reads. The server
// copies them into a map otherwise, under other names, and answers for itself where they are too many.

const (
	// maxBlock is how much a client may send as the fields of one request, coded. What is beyond maxHeaderBytes is not kept,
	// but has to be read for the table that it may change; who sends more than this is hung up on.
	maxBlock = 4 * maxHeaderBytes
	// keptAccept is how much of Accept is kept for the answer to a head that is too long.
	keptAccept = 1 << 10
	// keptPriority is how long the Priority may be that the server is told.
	keptPriority = 64
	// keptBlock is what buffers for fields may have grown to and be kept.
	keptBlock = 4 << 10

	prioritySize = 5
)

// Names of the fields that intake writes, and how the server writes them. None of the client's are beside them.
const (
	noteHead, headKey         = "from", "From" // in HPACK's static table, so that it costs no copy: any name would do
	noteExpect, expectKey     = "pyserve-expect", "Pyserve-Expect"
	noteProtocol, protocolKey = "pyserve-protocol", "Pyserve-Protocol"
	noteTrailer, trailerKey   = "pyserve-trailer", "Pyserve-Trailer"
	noteStream, streamKey     = "pyserve-stream", "Pyserve-Stream"
)

// In HPACK (RFC 7541 section 6 and appendix A).
const (
	indexed, neverIndexed                      = 0x80, 0x10
	indexMethodGet, indexPathRoot, indexScheme = 2, 4, 6
	indexNoteHead                              = 37
)

// The pseudo headers of requests.
const (
	pseudoMethod = iota
	pseudoScheme
	pseudoAuthority
	pseudoPath
	pseudoProtocol
	pseudoCount
)

var pseudoNames = [pseudoCount]string{":method", ":scheme", ":authority", ":path", ":protocol"}

// block is the fields of a request, or its trailers: those of a HEADERS frame and of the CONTINUATION frames behind it.
type block struct {
	open     bool // there are more frames to come
	stream   uint32
	flags    http2.Flags // those of END_STREAM and PRIORITY
	priority [prioritySize]byte
	trailers bool
	encoded  int    // bytes of all frames
	size     uint32 // as HTTP/2 counts it (RFC 9113 section 6.5.2)
	count    int    // of lines, or of trailers

	malformed bool         // which resets the stream (section 8.1.1)
	refused   http1.Reason // why the request is answered here; 0: it is not
	full      bool         // lines takes no more

	pseudo   [pseudoCount]string
	given    [pseudoCount]bool
	regular  bool // a field has come that is no pseudo header
	host     string
	hosts    int
	length   string // as it came
	bytes    uint64 // which that is
	expects  bool
	relayed  bool   // by another proxy: the priority is not the client's
	urgency  string // Priority (RFC 9218)
	awaited  bool   // intake is to tell when the stream ends
	accept   []byte // of fields of one name, as a list
	cookie   []byte
	announce []byte // Trailer

	lines []byte // of the head, each behind its length
	head  []byte // all of it
	out   []byte // what the server gets, coded
}

// reset begins a block.
func (b *block) reset() {
	*b = block{
		lines: emptied(b.lines), head: emptied(b.head), out: emptied(b.out),
		accept: emptied(b.accept), cookie: emptied(b.cookie), announce: emptied(b.announce),
	}
}

func emptied(buffer []byte) []byte {
	if cap(buffer) > keptBlock {
		return nil
	}
	return buffer[:0]
}

func (b *block) ends() bool { return b.flags.Has(http2.FlagHeadersEndStream) }

// refuse has the request answered instead of forwarded. The first reason counts.
func (b *block) refuse(why http1.Reason) {
	if b.refused == 0 {
		b.refused = why
	}
}

// overflow is refuse for a head of which nothing more is kept.
func (b *block) overflow(why http1.Reason) {
	b.refuse(why)
	b.full, b.lines, b.cookie, b.announce = true, b.lines[:0], b.cookie[:0], b.announce[:0]
}

// see is told each field.
func (b *block) see(f hpack.HeaderField) {
	if b.size += f.Size(); b.size > maxHeaderBytes && !b.trailers && !b.full {
		b.overflow(http1.HeadTooLong)
	}
	switch {
	case b.malformed:
	case strings.HasPrefix(f.Name, ":"):
		b.seePseudo(f.Name, f.Value)
	case !isFieldName(f.Name):
		b.malformed = true
	case b.trailers:
		b.seeTrailer(f.Name, f.Value)
	default:
		b.regular = true
		b.seeField(f.Name, f.Value)
	}
}

// isFieldName says whether HTTP/2 allows a name, which may have no upper case (RFC 9113 section 8.2.1).
func isFieldName(name string) bool {
	for i := range len(name) {
		if 'A' <= name[i] && name[i] <= 'Z' {
			return false
		}
	}
	return http1.CheckName(name) == nil
}

// seePseudo is RFC 9113 section 8.3. The value counts later, in the request line.
func (b *block) seePseudo(name, value string) {
	i := slices.Index(pseudoNames[:], name)
	if i < 0 || b.trailers || b.regular || b.given[i] || !httpguts.ValidHeaderFieldValue(value) {
		b.malformed = true
		return
	}
	b.given[i] = true
	switch {
	case i == pseudoPath && len(value) > http1.MaxTarget:
		b.refuse(http1.TargetTooLong)
		value = value[:1]
	case b.full:
		value = ""
	}
	b.pseudo[i] = value
}

// seeField sorts out what HTTP/1 says otherwise.
func (b *block) seeField(name, value string) {
	switch name {
	case "connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade":
		b.malformed = true // fields of the connection (RFC 9113 section 8.2.2)
		return
	case "te":
		b.malformed = value != "trailers" // the same
	case "host":
		b.host = value
		b.hosts++
		return
	case "content-length":
		b.seeLength(value)
		return
	case "cookie":
		b.cookie = b.gather(b.cookie, value, "; ") // RFC 9113 section 8.2.3
		return
	case "trailer":
		b.awaited = true
		b.announce = b.gather(b.announce, value, ", ")
		return
	case "expect":
		b.expects = true
		if b.pseudo[pseudoProtocol] != "" {
			return
		}
	case "sec-websocket-key":
		if b.pseudo[pseudoProtocol] != "" {
			return // RFC 8441 section 5: it is no part of HTTP/2's handshake
		}
	case "accept":
		if len(b.accept)+len(value) < keptAccept {
			b.accept = appendElement(b.accept, value, ", ")
		}
	case "priority":
		if len(value) < keptPriority {
			b.urgency = value
		}
	case "via", "forwarded", "x-forwarded-for":
		b.relayed = true
	}
	b.line(name, value)
}

// seeLength is about the length that the client declares, which has to be the body's (RFC 9113 section 8.1.1). That more or fewer
// bytes come in DATA frames is for the server to find.
func (b *block) seeLength(value string) {
	n, err := strconv.ParseUint(value, 10, 63)
	switch {
	case err != nil:
		b.refuse(http1.BadContentLength)
	case b.length != "" && value != b.length:
		b.refuse(http1.DifferingContentLengths)
	case n > 0 && b.ends():
		b.refuse(http1.Truncated)
	default:
		b.length, b.bytes = value, n
	}
}

// gather adds an element to a list that becomes one line.
func (b *block) gather(list []byte, value, separator string) []byte {
	if http1.CheckValue(value) != nil {
		b.invalid(value)
	} else if !b.full {
		list = appendElement(list, value, separator)
	}
	return list
}

func appendElement(list []byte, value, separator string) []byte {
	if len(list) > 0 && value != "" {
		list = append(list, separator...)
	}
	return append(list, value...)
}

// invalid is a value that http1 does not take.
func (b *block) invalid(value string) {
	if httpguts.ValidHeaderFieldValue(value) {
		b.refuse(http1.ControlInValue) // a space at an end, mostly
	} else {
		b.malformed = true
	}
}

// line adds a field's line.
func (b *block) line(name, value string) {
	if b.full {
		return
	}
	var err error
	if b.lines, err = appendLine(b.lines, name, value); err != nil {
		b.invalid(value)
		return
	}
	if b.count++; b.count > http1.MaxFields-ownLines {
		b.overflow(http1.TooManyFields)
	}
}

const (
	// sizeDigits are those of a line's length in front of it. No byte is left to stand between two lines: what a value may not
	// have, the server does not take either.
	sizeDigits = 5
	noSize     = "00000"
	// whyDigits are those of the reason in front of the head.
	whyDigits = 3
	// ownLines are those of a head that are not counted as the client's: Host, Cookie, Trailer, Transfer-Encoding.
	ownLines = 4
)

// appendLine writes a line of the head, without its end. After an error dst is as it was.
func appendLine[V http1.Text](dst []byte, name string, value V) ([]byte, error) {
	begin := len(dst)
	out, err := http1.AppendField(append(dst, noSize...), name, value)
	if err != nil {
		return dst, err
	}
	capitalize(out[begin+sizeDigits:][:len(name)])
	return endLine(out, begin), nil
}

// endLine takes the end off the line that begins there, and writes its length.
func endLine(out []byte, begin int) []byte {
	out = out[:len(out)-len("\r\n")]
	size := len(out) - begin - sizeDigits
	for i := begin + sizeDigits - 1; i >= begin; i-- {
		out[i] = '0' + byte(size%10)
		size /= 10
	}
	return out
}

// capitalize writes a name as HTTP/1 mostly has it.
func capitalize(name []byte) {
	first := true
	for i, c := range name {
		if first && 'a' <= c && c <= 'z' {
			name[i] = c - 'a' + 'A'
		}
		first = c == '-'
	}
}

// seeTrailer keeps within what HTTP/1 may have.
func (b *block) seeTrailer(name, value string) {
	b.count++
	if b.count > http1.MaxTrailers || len(b.out)+len(name)+len(value) > http1.MaxTrailer || name == "upgrade" ||
		!httpguts.ValidTrailerHeader(name) || !httpguts.ValidHeaderFieldValue(value) {
		b.malformed = true
		return
	}
	b.out = appendLiteral(b.out, noteTrailer, name+": "+value)
}

// finish writes what the server gets of a request.
func (b *block) finish() {
	if !b.wellFormed() {
		b.malformed = true
		return
	}
	b.writeHead()
	b.out = append(b.out, indexed|indexScheme, indexed|indexPathRoot)
	if b.pseudo[pseudoMethod] == "HEAD" { // of all methods, this alone makes a difference to the server
		b.out = appendString(append(b.out, neverIndexed|indexMethodGet), "HEAD")
	} else {
		b.out = append(b.out, indexed|indexMethodGet)
	}
	b.out = appendString(appendInteger(append(b.out, neverIndexed), 4, indexNoteHead), b.head)
	b.finishBody()
	if protocol := b.pseudo[pseudoProtocol]; protocol != "" {
		b.out = appendLiteral(b.out, noteProtocol, protocol)
	}
	if b.urgency != "" && !b.relayed && !b.full {
		b.out = appendLiteral(b.out, "priority", b.urgency)
	}
}

// finishBody is what the server has to know of the body, or keeps from its handlers unless it is told.
func (b *block) finishBody() {
	if b.ends() {
		return
	}
	if b.length != "" {
		b.out = appendLiteral(b.out, "content-length", b.length)
	} else {
		b.out = appendLiteral(b.out, "trailer", noteTrailer)
	}
	if b.expects {
		b.out = appendLiteral(b.out, noteExpect, "")
		b.out = appendLiteral(b.out, "expect", "100-continue") // any other is refused
	}
	if b.awaited {
		b.out = appendLiteral(b.out, noteStream, strconv.FormatUint(uint64(b.stream), 10))
	}
}

// wellFormed is RFC 9113 section 8.3.1. The authority is host where there is no other.
func (b *block) wellFormed() bool {
	p := &b.pseudo
	switch {
	case b.hosts > 1, b.hosts == 1 && p[pseudoAuthority] != "" && p[pseudoAuthority] != b.host:
		return false
	case p[pseudoMethod] == "CONNECT" && !b.given[pseudoProtocol]:
		return !b.given[pseudoPath] && !b.given[pseudoScheme] && p[pseudoAuthority] != ""
	case p[pseudoAuthority] == "":
		p[pseudoAuthority] = b.host
	}
	if b.full {
		return true // what is missing was too long
	}
	path := p[pseudoPath]
	return p[pseudoMethod] != "" && (p[pseudoScheme] == "http" || p[pseudoScheme] == "https") &&
		(strings.HasPrefix(path, "/") || path == "*")
}

// writeHead puts the head's lines together.
func (b *block) writeHead() {
	method, target := b.target()
	begin := whyDigits
	b.head = append(b.head, "000"...)
	line, err := http1.AppendRequestLine(append(b.head, noSize...), method, target, "", false)
	if err != nil {
		b.refuseFor(err)
		line, _ = http1.AppendRequestLine(append(b.head, noSize...), "GET", "/", "", false)
	}
	b.head = endLine(line, begin)
	if b.pseudo[pseudoAuthority] == "" {
		b.refuse(http1.MissingHost) // RFC 9113 section 8.3.1: http and https have an authority
	}
	add(b, "Host", b.pseudo[pseudoAuthority])
	b.head = append(b.head, b.lines...)
	if b.full {
		add(b, "Accept", b.accept)
	}
	if len(b.cookie) > 0 {
		add(b, "Cookie", b.cookie)
	}
	b.writeFraming()
	why := b.head[:whyDigits]
	why[0], why[1], why[2] = '0'+byte(b.refused)/100, '0'+byte(b.refused)/10%10, '0'+byte(b.refused)%10
}

// target is what goes into the request line. That of a WebSocket is a GET.
func (b *block) target() (method, target string) {
	p := &b.pseudo
	switch {
	case p[pseudoMethod] != "CONNECT" && b.given[pseudoProtocol]:
		b.refuse(http1.BadMethod) // RFC 8441 section 4
	case b.given[pseudoProtocol]:
		return "GET", p[pseudoPath]
	case p[pseudoMethod] == "CONNECT":
		return "CONNECT", p[pseudoAuthority]
	}
	return p[pseudoMethod], p[pseudoPath]
}

// writeFraming writes how the body goes to the backend.
func (b *block) writeFraming() {
	switch {
	case b.given[pseudoProtocol]:
	case b.length != "":
		begin := len(b.head)
		b.head = endLine(http1.AppendContentLength(append(b.head, noSize...), int64(b.bytes)), begin)
	case !b.ends():
		if len(b.announce) > 0 {
			add(b, "Trailer", b.announce)
		}
		add(b, "Transfer-Encoding", "chunked")
	}
}

// add adds a line at the head's end.
func add[V http1.Text](b *block, name string, value V) {
	var err error
	if b.head, err = appendLine(b.head, name, value); err != nil {
		b.refuseFor(err)
	}
}

func (b *block) refuseFor(err error) {
	if reason, ok := err.(http1.Reason); ok {
		b.refuse(reason)
	}
}

// readHead writes the head that a stream was given, but for its end. Refused is why it is to be answered here; nil: it is not.
func readHead(dst []byte, note string) (out []byte, refused error) {
	why, _ := strconv.Atoi(note[:whyDigits]) // intake has written it, as what follows
	for note = note[whyDigits:]; len(note) >= sizeDigits; {
		size, _ := strconv.Atoi(note[:sizeDigits])
		note = note[sizeDigits:]
		dst = append(append(dst, note[:size]...), "\r\n"...)
		note = note[size:]
	}
	if why != 0 {
		refused = http1.Reason(why)
	}
	return dst, refused
}

// appendLiteral codes a field that goes into no table, without compressing it.
func appendLiteral(out []byte, name, value string) []byte {
	return appendString(appendString(append(out, neverIndexed), name), value)
}

// appendString is RFC 7541 section 5.2.
func appendString[T http1.Text](out []byte, s T) []byte {
	out = appendInteger(append(out, 0), 7, len(s))
	return append(out, s...)
}

// appendInteger is RFC 7541 section 5.1: it begins in the last bits of the byte that is there.
func appendInteger(out []byte, bits, n int) []byte {
	most := 1<<bits - 1
	if n < most {
		out[len(out)-1] |= byte(n)
		return out
	}
	out[len(out)-1] |= byte(most)
	for n -= most; n >= 1<<7; n >>= 7 {
		out = append(out, byte(n)|1<<7)
	}
	return append(out, byte(n))
}
