package route

import (
	"bytes"
	"errors"
	"fmt"
)

// ErrClimbs is what NormalizePath returns for a path that climbs above the root.
var ErrClimbs = errors.New("the path climbs above the root")

// NormalizePath brings raw, the path of a request-target without its query, into the one form that is both matched and
// forwarded (RFC 3986 section 6.2.2):
//
//   - Percent-encodings of unreserved characters are undone, all others kept with capital digits. So %2F stays, and is not a
//     "/"; so does %00.
//   - Then the segments "." and ".." are resolved (section 5.2.4), %2e and the like among them. Where that section drops a
//     ".." at the root, this is ErrClimbs: no honest client sends one.
//   - Bytes that may not stand in a path, such as `|`, `\` and those above 0x7F, are percent-encoded.
//   - Everything else stays, "//" and a trailing "/" too. An empty segment counts as one, so /a//../b is /a/b.
//
// An empty path is "/" (section 6.2.3). Refused are a path that does not begin with "/", a malformed percent-encoding, "?",
// "#", the space and control characters. Errors name the offence, not the path, and may be shown to the client.
//
// A raw that is in normal form already is returned itself, and dst is not used. Otherwise the normal form is appended to
// dst[:0], which must not overlap raw; dst is grown if it has no room, which 3*len(raw)+1 bytes always are, and nothing else
// is allocated but errors. raw is never modified. After an error the path is nil, and what dst held is lost.
func NormalizePath(dst, raw []byte) (path []byte, err error) {
	if len(raw) == 0 {
		return append(dst[:0], '/'), nil
	}
	if raw[0] != '/' {
		return nil, errors.New("the path does not begin with a slash")
	}
	for i := 0; i < len(raw); {
		n := normalAt(raw, i)
		if n == 0 {
			return rewrite(dst, raw, i)
		}
		i += n
	}
	return raw, nil
}

// normalAt is the length of what stands at i and needs no change, 0 if it does need one or is wrong.
func normalAt(raw []byte, i int) int {
	switch c := raw[i]; {
	case c == '%':
		if i+2 < len(raw) && upperHex(raw[i+1]) && upperHex(raw[i+2]) && !unreserved(unhex(raw[i+1])<<4|unhex(raw[i+2])) {
			return 3
		}
		return 0
	case !pathByte(c):
		return 0
	case c == '.' && raw[i-1] == '/' && dotSegment(raw[i:]): // raw[0] is a slash, so i > 0
		return 0
	}
	return 1
}

// dotSegment says whether rest, from the start of a segment on, begins with a segment "." or "..".
func dotSegment(rest []byte) bool {
	segment := rest[:min(3, len(rest))]
	if end := bytes.IndexByte(segment, '/'); end >= 0 {
		segment = segment[:end]
	}
	return string(segment) == "." || string(segment) == ".."
}

// rewrite does the work for a path that is in normal form up to good and not at it, in one pass: each segment is decoded
// into out, and taken back again if it turns out to be a dot segment.
func rewrite(dst, raw []byte, good int) ([]byte, error) {
	out := append(dst[:0], raw[:good]...)
	segment := bytes.LastIndexByte(out, '/') + 1 // where the segment being written begins in out
	var err error
	for i := good; i < len(raw); {
		if raw[i] != '/' {
			var n int
			if out, n, err = appendNormal(out, raw[i:]); err != nil {
				return nil, err
			}
			i += n
			continue
		}
		kept, err := resolve(out, segment)
		if err != nil {
			return nil, err
		}
		// A dot segment takes the slash after it along.
		if len(kept) == len(out) {
			kept = append(kept, '/')
		}
		out, segment = kept, len(kept)
		i++
	}
	return resolve(out, segment)
}

// resolve takes the segment that begins at start away if it is a dot segment, with the one before it for "..". What
// remains then ends in a slash.
func resolve(out []byte, start int) ([]byte, error) {
	switch string(out[start:]) {
	case ".":
		return out[:start], nil
	case "..":
		if start == 1 {
			return nil, ErrClimbs
		}
		return out[:bytes.LastIndexByte(out[:start-1], '/')+1], nil
	}
	return out, nil
}

// appendNormal appends the normal form of the character that rest begins with, and returns how long it is in rest.
func appendNormal(out, rest []byte) ([]byte, int, error) {
	c := rest[0]
	if c == '%' {
		if len(rest) < 3 || !isHex(rest[1]) || !isHex(rest[2]) {
			return nil, 0, errors.New("the path holds a % without two hexadecimal digits after it")
		}
		decoded := unhex(rest[1])<<4 | unhex(rest[2])
		if unreserved(decoded) {
			return append(out, decoded), 3, nil
		}
		return appendEncoded(out, decoded), 3, nil
	}
	switch {
	case pathByte(c):
		return append(out, c), 1, nil
	case c <= ' ' || c == 0x7F:
		return nil, 0, fmt.Errorf("the path holds the character 0x%02X, which must be percent-encoded", c)
	case c == '?' || c == '#':
		return nil, 0, fmt.Errorf("the path holds a %q, which must be percent-encoded", c)
	}
	return appendEncoded(out, c), 1, nil
}

func appendEncoded(out []byte, c byte) []byte {
	const digits = "0123456789ABCDEF"
	return append(out, '%', digits[c>>4], digits[c&15])
}

// The classes of bytes that paths know, as bits.
const (
	inPath       = 1 << iota // pchar without "%", and "/" (RFC 3986 section 3.3)
	isUnreserved             // RFC 3986 section 2.3
)

// classes is looked up once for each byte of each request's path.
var classes = func() (table [256]uint8) {
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~"
	for _, c := range []byte(letters) {
		table[c] = inPath | isUnreserved
	}
	for _, c := range []byte("!$&'()*+,;=:@/") {
		table[c] = inPath
	}
	return table
}()

func pathByte(c byte) bool   { return classes[c]&inPath != 0 }
func unreserved(c byte) bool { return classes[c]&isUnreserved != 0 }
func upperHex(c byte) bool   { return '0' <= c && c <= '9' || 'A' <= c && c <= 'F' }
func isHex(c byte) bool      { return upperHex(c) || 'a' <= c && c <= 'f' }

// unhex is the value of a hexadecimal digit.
func unhex(c byte) byte {
	if c <= '9' {
		return c - '0'
	}
	return c&^0x20 - 'A' + 10
}
