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
	maxBlock = 2 * maxHeaderBytes
	// keptAccept is how much of Accept is kept for the answer to a head that is too long.
	keptAccept = 1 << 10
	// keptPriority is how long the Priority may be that the server is told.
	keptPriority = 64
	// keptBlock is what buffers for fields may have grown to and be kept.
	keptBlock = 4 << 10

	prioritySize = 5
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
		if b.hosts++; !b.full {
			b.host = value
		}
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
