package route

import (
	"bytes"
	"net/netip"
)

// CanonicalHost brings the host of a request, with or without a port, into the form that tables are keyed by: lower case
// (ASCII alone: no host name has other letters, and what folds into an ASCII letter must not become one), no port, no dot
// at the end, an IP address in its shortest form and without brackets. It does not judge whether the host is a valid one;
// what it does not understand comes back in lower case and matches no route that names a host.
//
// Where host holds this form already, that part of host is returned, and dst is not used. Otherwise the form is appended to
// dst[:0], which must not overlap host; dst is grown if it has no room, which len(host)+6 bytes always are. Nothing else is
// allocated, and host is never modified.
func CanonicalHost(dst, host []byte) []byte {
	if len(host) > 0 && host[0] == '[' {
		inner, rest, closed := bytes.Cut(host[1:], []byte("]"))
		if closed && (len(rest) == 0 || rest[0] == ':') {
			if ip, ok := canonicalIP(dst, inner); ok {
				return ip
			}
		}
		return lower(dst, host)
	}
	name, port, _ := bytes.Cut(host, []byte(":"))
	if bytes.IndexByte(port, ':') >= 0 { // an IPv6 address that came without its brackets, or nonsense
		if ip, ok := canonicalIP(dst, host); ok {
			return ip
		}
		return lower(dst, host)
	}
	return lower(dst, bytes.TrimRight(name, "."))
}

// lower folds the ASCII capitals.
func lower(dst, s []byte) []byte {
	for i, c := range s {
		if !capital(c) {
			continue
		}
		dst = append(dst[:0], s...)
		for ; i < len(dst); i++ {
			if capital(dst[i]) {
				dst[i] += 'a' - 'A'
			}
		}
		return dst
	}
	return s
}

func capital(c byte) bool { return 'A' <= c && c <= 'Z' }

// canonicalIP is the shortest form of an IP address, which may have a zone (RFC 4007 section 11), and whether text is one.
// Zones keep their case.
func canonicalIP(dst, text []byte) ([]byte, bool) {
	if _, ok := parseIPv4(text); ok {
		return text, true // it has no other form
	}
	digits, zone, zoned := bytes.Cut(text, []byte("%"))
	address, ok := parseIPv6(digits)
	if !ok || zoned && len(zone) == 0 {
		return nil, false
	}
	var room [len("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")]byte
	short := netip.AddrFrom16(address).AppendTo(room[:0])
	if bytes.Equal(short, digits) {
		return text, true
	}
	dst = append(dst[:0], short...)
	return append(dst, text[len(digits):]...), true
}
