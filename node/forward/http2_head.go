package forward

import (
	"strconv"
	"strings"

	"github.com/pyserve/pyserve/node/http1"
)

// What the server gets of a request's fields.

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
		b.out = appendLiteral(b.out, "content-length", strconv.FormatUint(b.bytes, 10))
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
	if p[pseudoAuthority] == "" {
		p[pseudoAuthority] = b.host
	}
	switch {
	case b.full:
		return true // what is missing was too long
	case b.hosts > 1, b.hosts == 1 && p[pseudoAuthority] != b.host:
		return false
	case p[pseudoMethod] == "CONNECT" && !b.given[pseudoProtocol]:
		return !b.given[pseudoPath] && !b.given[pseudoScheme] && b.given[pseudoAuthority] && p[pseudoAuthority] != ""
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
