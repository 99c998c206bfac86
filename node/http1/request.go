package http1

import (
	"bytes"
	"encoding/binary"
)

// A Method is a request's method. 0 is any that is not among the constants, [Request.MethodName] tells.
type Method uint8

const (
	OtherMethod Method = iota
	GET
	HEAD
	POST
	PUT
	DELETE
	CONNECT
	OPTIONS
	TRACE
	PATCH
)

// methods are compared with case, as RFC 9110 section 9.1 says.
func methodOf(name []byte) Method {
	switch string(name) {
	case "GET":
		return GET
	case "HEAD":
		return HEAD
	case "POST":
		return POST
	case "PUT":
		return PUT
	case "DELETE":
		return DELETE
	case "CONNECT":
		return CONNECT
	case "OPTIONS":
		return OPTIONS
	case "TRACE":
		return TRACE
	case "PATCH":
		return PATCH
	}
	return OtherMethod
}

// Request is the head of a request. The zero value is ready for the first one.
type Request struct {
	Head
	Target

	Method Method

	method     span
	emptyLines int
}

// maxEmptyLines is how many empty lines may stand before a request line (RFC 9112 section 2.2).
const maxEmptyLines = 2

// Reset makes r ready for the next request. What it grew to is kept.
func (r *Request) Reset() {
	r.Head.reset()
	*r = Request{Head: r.Head}
}

// Parse reads the head of a request. buf holds everything from the request's first byte on; where an earlier call returned
// 0, buf must begin with the same bytes, at whatever place in memory. It returns the length of the head, 0 if buf ends
// within it, or a [Reason]. From then on r refers to buf.
func (r *Request) Parse(buf []byte) (int, error) {
	if r.failed != none {
		return 0, r.failed
	}
	n, reason := r.parse(buf)
	r.failed = reason
	return n, asError(reason)
}

func (r *Request) parse(buf []byte) (int, Reason) {
	window := buf[:min(len(buf), MaxHead)]
	if r.awaits(window, MaxHead) {
		return 0, none
	}
	if !r.started {
		if reason := r.requestLine(window); reason != none {
			return 0, r.orWait(reason, window, MaxHead, HeadTooLong)
		}
		r.started = true
	}
	if reason := r.parseFields(window, true); reason != endOfSection {
		return 0, r.orWait(reason, window, MaxHead, HeadTooLong)
	}
	if reason := r.settleRequest(window[:r.next:r.next]); reason != none {
		return 0, reason
	}
	return r.next, none
}

// requestLine parses the first line and what may be before it.
func (r *Request) requestLine(buf []byte) Reason {
	if reason := r.skipEmptyLines(buf); reason != none {
		return reason
	}
	start := r.next
	end := skipToken(buf[:min(len(buf), start+MaxMethod+1)], start)
	switch {
	case end-start > MaxMethod:
		return MethodTooLong
	case end == len(buf):
		return needMore
	case end == start || buf[end] != ' ':
		return notAMethod(buf, start, end)
	}
	target := end + 1
	targetEnd := skipVisible(buf[:min(len(buf), target+MaxTarget+1)], target)
	switch {
	case targetEnd-target > MaxTarget:
		return TargetTooLong
	case targetEnd == len(buf):
		return needMore
	case buf[targetEnd] != ' ' || targetEnd == target:
		return notATarget(buf, target, targetEnd)
	}
	version, next, reason := parseVersion(buf, targetEnd+1)
	if reason == BadVersion && start == 0 {
		reason = notAVersion(buf, targetEnd+1)
	}
	if reason != none {
		return reason
	}
	r.method, r.Method = span{uint32(start), uint32(end)}, methodOf(buf[start:end])
	if version.major != 1 {
		if version == (httpVersion{2, 0}) && start == 0 && string(buf[:targetEnd]) == "PRI *" {
			return HTTP2Preface
		}
		return UnsupportedVersion
	}
	r.Minor = min(version.minor, 1)
	r.next = next
	return r.Target.parse(buf, span{uint32(target), uint32(targetEnd)}, r.Method)
}

// skipEmptyLines moves r.next to the request line.
func (r *Request) skipEmptyLines(buf []byte) Reason {
	for r.next < len(buf) && (buf[r.next] == '\r' || buf[r.next] == '\n') {
		if reason := endOfLine(buf, r.next, none); reason != none {
			return reason
		}
		if r.emptyLines++; r.emptyLines > maxEmptyLines {
			return EmptyLines
		}
		r.next += 2
	}
	if r.next == len(buf) {
		return needMore
	}
	return none
}

// notAMethod judges the token from start to end, which is not followed by a space or is empty.
func notAMethod(buf []byte, start, end int) Reason {
	switch c := buf[end]; {
	case end == start && c == 0x16: // a handshake record (RFC 8446 section 5.1)
		return TLSHandshake
	case end > start && (c == '\r' || c == '\n'):
		if r := endOfLine(buf, end, none); r != none {
			return r
		}
		return BadRequestLine
	case isBlank(c):
		return BadRequestLine
	}
	return BadMethod
}

// notATarget judges what ends the target, at end.
func notATarget(buf []byte, start, end int) Reason {
	switch c := buf[end]; c {
	case ' ', '\t':
		return BadRequestLine
	case '\r', '\n':
		if r := endOfLine(buf, end, none); r != none {
			return r
		}
		if start == end {
			return BadRequestLine
		}
		return BadVersion // HTTP/0.9 had none
	}
	return ControlInTarget
}

// notAVersion judges the third word of what begins a connection, or looks like it, where that is no version: it is UnknownProtocol
// if it ends the line and cannot even be meant as one.
func notAVersion(buf []byte, i int) Reason {
	const name = "http"
	end := skipVisible(buf[:min(len(buf), i+MaxMethod+1)], i)
	word := buf[i:end]
	switch {
	case len(word) == 0, len(word) > MaxMethod, bytes.IndexByte(word, '/') >= 0, len(word) >= len(name) && equalFold(word[:len(name)], name):
		return BadVersion
	case end == len(buf):
		return needMore
	}
	switch endOfLine(buf, end, BadVersion) {
	case none:
		return UnknownProtocol
	case needMore:
		return needMore
	}
	return BadVersion
}

// settleRequest is called at the end of the head.
func (r *Request) settleRequest(buf []byte) Reason {
	if reason := r.settle(buf); reason != none {
		return reason
	}
	switch {
	case r.Has(TransferEncoding):
		r.Framing = Chunked
	case r.ContentLength > 0:
		r.Framing = Length
	}
	return r.settleHost()
}

// settleHost checks Host (RFC 9112 section 3.2) and finds the authority that is asked.
func (r *Request) settleHost() Reason {
	i := r.Find(Host, 0)
	if i < 0 {
		if r.Minor > 0 {
			return MissingHost
		}
		return none
	}
	host := r.Value(i)
	if len(host) > 0 && !validAuthority(host) {
		return BadHost
	}
	if r.Form != AbsoluteForm && r.Form != AuthorityForm {
		r.authority = span{r.list[i].value, r.list[i].valueEnd}
		return none
	}
	return none // the target's counts, whatever Host says (RFC 9112 section 3.2.2)
}

// MethodName is the method as it was sent.
func (r *Request) MethodName() []byte { return r.bytes(r.method) }

// RawTarget is the target as it was sent.
func (r *Request) RawTarget() []byte { return r.bytes(r.target) }

// Path is the path of the target as it was sent, without the query. In absolute-form it may be empty, which is "/", or for
// OPTIONS "*" where there is no query either (RFC 9112 section 3.2.4); in authority-form it always is; in asterisk-form it is
// "*".
func (r *Request) Path() []byte { return r.bytes(r.path) }

// Query is what follows the "?" of the target, and whether there is one.
func (r *Request) Query() (query []byte, present bool) { return r.bytes(r.query), r.hasQuery }

// Authority is whom the client asks, as it spelled it: host and perhaps port of the target if it has them, otherwise those
// of Host. Empty where neither says any.
func (r *Request) Authority() []byte { return r.bytes(r.authority) }

type httpVersion struct{ major, minor uint8 }

// http11 is what a version in a request line is nearly always, as a little-endian number.
const http11 = 'H' | 'T'<<8 | 'T'<<16 | 'P'<<24 | '/'<<32 | '1'<<40 | '.'<<48 | '1'<<56

// parseVersion reads the version at i and the end of its line.
func parseVersion(buf []byte, i int) (v httpVersion, next int, r Reason) {
	if rest := buf[i:]; len(rest) >= 10 && binary.LittleEndian.Uint64(rest) == http11 && rest[8] == '\r' && rest[9] == '\n' {
		return httpVersion{1, 1}, i + 10, none
	}
	if i < len(buf) && isBlank(buf[i]) {
		return v, 0, BadRequestLine
	}
	v, i, r = versionAt(buf, i)
	if r != none {
		return v, 0, r
	}
	if i == len(buf) {
		return v, 0, needMore
	}
	other := BadVersion
	if isBlank(buf[i]) {
		other = BadRequestLine
	}
	return v, i + 2, endOfLine(buf, i, other)
}

// versionAt reads "HTTP/" DIGIT "." DIGIT (RFC 9112 section 2.3) as far as it is there.
func versionAt(buf []byte, i int) (v httpVersion, next int, r Reason) {
	const form = "HTTP/0.0"
	for k := range len(form) {
		if i+k == len(buf) {
			return v, 0, needMore
		}
		c := buf[i+k]
		if form[k] == '0' && is(c, isDigit) || c == form[k] {
			continue
		}
		if c == '\r' || c == '\n' {
			if r := endOfLine(buf, i+k, none); r != none {
				return v, 0, r
			}
		}
		return v, 0, BadVersion
	}
	return httpVersion{buf[i+5] - '0', buf[i+7] - '0'}, i + len(form), none
}
