package http1

import "bytes"

// Form is which of the four forms a target has (RFC 9112 section 3.2).
type Form uint8

const (
	OriginForm    Form = iota // /path?query
	AbsoluteForm              // http://host/path?query
	AuthorityForm             // host:port, of CONNECT
	AsteriskForm              // *, of OPTIONS
)

// Target is what is asked for. Its parts are read by methods of [Request].
type Target struct {
	Form Form
	// HTTPS is that a target in absolute-form says https. Which scheme an origin-form has, the connection knows.
	HTTPS bool

	hasQuery                       bool
	target, authority, path, query span
}

// parse reads the target at where, which has no control characters and is not empty.
func (t *Target) parse(buf []byte, where span, method Method) Reason {
	t.target = where
	b := buf[where.start:where.end]
	if bytes.IndexByte(b, '#') >= 0 {
		// Some take it for the end of the target, and others for a part of the path.
		return FragmentInTarget
	}
	switch {
	case method == CONNECT:
		return t.authorityForm(b)
	case b[0] == '/':
		t.Form = OriginForm
		t.split(b, where.start)
		return none
	case len(b) == 1 && b[0] == '*' && method == OPTIONS:
		t.Form, t.path = AsteriskForm, where
		return none
	}
	return t.absoluteForm(b)
}

// split finds path and query in b, which begins at offset at.
func (t *Target) split(b []byte, at uint32) {
	end := at + uint32(len(b))
	t.path = span{at, end}
	t.query = span{end, end}
	if mark := bytes.IndexByte(b, '?'); mark >= 0 {
		t.path.end, t.query.start, t.hasQuery = at+uint32(mark), at+uint32(mark)+1, true
	}
}

// authorityForm is host ":" port, both of them (RFC 9112 section 3.2.3).
func (t *Target) authorityForm(b []byte) Reason {
	host, port, ok := splitAuthority(b)
	if !ok || len(host) == 0 || len(port) == 0 {
		return BadAuthority
	}
	t.Form, t.authority = AuthorityForm, t.target
	t.path = span{t.target.end, t.target.end}
	t.query = t.path
	return none
}

// absoluteForm is a URI of http or https (RFC 9110 section 4.2); nobody asks us for others.
func (t *Target) absoluteForm(b []byte) Reason {
	const plain, secure = "http://", "https://"
	size := len(plain)
	switch {
	case len(b) >= len(plain) && sameName(b[:len(plain)], plain):
	case len(b) >= len(secure) && sameName(b[:len(secure)], secure):
		t.HTTPS = true
		size = len(secure)
	default:
		return BadTarget
	}
	t.Form = AbsoluteForm
	end := size
	for end < len(b) && b[end] != '/' && b[end] != '?' {
		end++
	}
	if !validAuthority(b[size:end]) {
		return BadAuthority
	}
	t.authority = span{t.target.start + uint32(size), t.target.start + uint32(end)}
	t.split(b[end:], t.authority.end)
	return none
}

// validAuthority says whether b is a host that is not empty and perhaps a port.
func validAuthority(b []byte) bool {
	host, _, ok := splitAuthority(b)
	return ok && len(host) > 0
}

// splitAuthority divides host [":" port]. ok is that both are valid; an empty port is (RFC 3986 section 3.2.3).
func splitAuthority(b []byte) (host, port []byte, ok bool) {
	end := 0
	if len(b) > 0 && b[0] == '[' {
		closing := bytes.IndexByte(b, ']')
		if closing < 0 || !validIPv6(b[1:closing]) {
			return nil, nil, false
		}
		end = closing + 1
	} else {
		for end < len(b) && is(b[end], inHost) {
			end++
		}
	}
	if end == len(b) {
		return b, nil, true
	}
	if b[end] != ':' {
		return nil, nil, false
	}
	return b[:end], b[end+1:], validPort(b[end+1:])
}

// validPort allows leading zeros, as long as there are no more than five digits.
func validPort(b []byte) bool {
	n := 0
	for _, c := range b {
		if !is(c, isDigit) {
			return false
		}
		n = n*10 + int(c-'0')
	}
	return len(b) <= 5 && n <= 0xFFFF
}

// validIPv6 reads an address (RFC 3986 section 3.2.2) without a zone.
func validIPv6(b []byte) bool {
	groups, gap := 0, false
	if len(b) >= 2 && b[0] == ':' && b[1] == ':' {
		gap, b = true, b[2:]
	}
	for len(b) > 0 {
		digits := 0
		for digits < len(b) && is(b[digits], isHex) {
			digits++
		}
		if digits < len(b) && b[digits] == '.' {
			return validIPv4(b) && closes(groups+2, gap)
		}
		if digits == 0 || digits > 4 {
			return false
		}
		groups++
		if b = b[digits:]; len(b) == 0 {
			break
		}
		if b[0] != ':' || len(b) == 1 { // no group may be missing at the end
			return false
		}
		b = b[1:]
		if b[0] == ':' {
			if gap {
				return false
			}
			gap, b = true, b[1:]
		}
	}
	return closes(groups, gap)
}

// closes says whether the groups make 128 bits, with at least one more in the gap.
func closes(groups int, gap bool) bool { return !gap && groups == 8 || gap && groups < 8 }

func validIPv4(b []byte) bool {
	parts := 0
	for {
		n, digits := 0, 0
		for digits < len(b) && digits < 4 && is(b[digits], isDigit) {
			n = n*10 + int(b[digits]-'0')
			digits++
		}
		if digits == 0 || digits > 3 || n > 255 || digits > 1 && b[0] == '0' {
			return false
		}
		parts++
		if b = b[digits:]; len(b) == 0 {
			return parts == 4
		}
		if b[0] != '.' || parts == 4 {
			return false
		}
		b = b[1:]
	}
}
