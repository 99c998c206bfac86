package route

import "bytes"

// What is here takes what netip.ParseAddr takes. That wants a string, and keeps it in its errors, so that making one would
// allocate for each request.

// parseIPv6 reads an address without a zone (RFC 4291 section 2.2).
func parseIPv6(text []byte) (address [16]byte, ok bool) {
	head, tail, elided := bytes.Cut(text, []byte("::"))
	front, ok := parseGroups(address[:], head, !elided)
	if !ok || !elided {
		return address, ok && front == len(address)
	}
	var end [16]byte
	back, ok := parseGroups(end[:], tail, true)
	if !ok || front+back > len(address)-2 { // "::" stands for a group at least
		return address, false
	}
	copy(address[len(address)-back:], end[:back])
	return address, true
}

// parseGroups reads groups, none or more, into dst, and returns how many bytes they fill. The last may be an IPv4 address
// if they are the last of the whole address.
func parseGroups(dst, text []byte, last bool) (n int, ok bool) {
	for more := len(text) > 0; more; {
		var group []byte
		group, text, more = bytes.Cut(text, []byte(":"))
		if ip, ok := parseIPv4(group); ok && last && !more && n+len(ip) <= len(dst) {
			return n + copy(dst[n:], ip[:]), true
		}
		value, ok := parseGroup(group)
		if !ok || n+2 > len(dst) {
			return 0, false
		}
		dst[n], dst[n+1] = byte(value>>8), byte(value)
		n += 2
	}
	return n, true
}

// parseGroup reads one to four hexadecimal digits.
func parseGroup(text []byte) (value uint16, ok bool) {
	for _, c := range text {
		if !isHex(c) {
			return 0, false
		}
		value = value<<4 | uint16(unhex(c))
	}
	return value, 1 <= len(text) && len(text) <= 4
}

// parseIPv4 reads four decimal octets. One with a leading zero is refused, because some read it as octal.
func parseIPv4(text []byte) (address [4]byte, ok bool) {
	for i := range address {
		octet, rest, more := bytes.Cut(text, []byte("."))
		if more != (i < len(address)-1) {
			return address, false
		}
		if address[i], ok = parseOctet(octet); !ok {
			return address, false
		}
		text = rest
	}
	return address, true
}

func parseOctet(text []byte) (value byte, ok bool) {
	if len(text) == 0 || len(text) > 3 || len(text) > 1 && text[0] == '0' {
		return 0, false
	}
	sum := 0
	for _, c := range text {
		if c < '0' || c > '9' {
			return 0, false
		}
		sum = sum*10 + int(c-'0')
	}
	return byte(sum), sum <= 255
}
