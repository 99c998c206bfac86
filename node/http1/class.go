package http1

import (
	"encoding/binary"
	"math/bits"
)

// Classes of bytes, as bits.
const (
	inToken    = 1 << iota // tchar (RFC 9110 section 5.6.2)
	underscore             // "_", which CGI and its kin take for "-"
	inHost                 // a host name as we accept it, see DESIGN.md
	inScheme               // RFC 3986 section 3.1
	isHex
	isDigit
	inValue // what field values may hold (RFC 9110 section 5.5), the space and the tab included
)

// classes is looked up for each byte of method and field names.
var classes = func() (table [256]uint8) {
	set := func(bytes string, class uint8) {
		for i := range len(bytes) {
			table[bytes[i]] |= class
		}
	}
	const digits, letters = "0123456789", "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
	set(letters+digits+"!#$%&'*+-.^_`|~", inToken)
	set("_", underscore)
	set(letters+digits+"-._~", inHost)
	set(letters+digits+"+-.", inScheme)
	set(digits+"abcdefABCDEF", isHex)
	set(digits, isDigit)
	for c := range table {
		if c >= ' ' && c != 0x7F || c == '\t' {
			table[c] |= inValue
		}
	}
	return table
}()

func is(c byte, class uint8) bool { return classes[c]&class != 0 }

// unhex is the value of a hexadecimal digit.
func unhex(c byte) byte {
	if c <= '9' {
		return c - '0'
	}
	return c&^0x20 - 'A' + 10
}

// Eight bytes at once: the tests below set the highest bit of each byte that they are about. A bit above the lowest that is
// set may be a false one, because subtraction borrows; the lowest is always right.
const (
	ones  = 0x0101010101010101
	highs = 0x8080808080808080
	// caseBits are what distinguishes the two cases of a letter, in each byte.
	caseBits = 0x20 * ones
)

// belowOrDel marks the bytes below limit, which must be at most 0x80, and DEL.
func belowOrDel(x uint64, limit byte) uint64 {
	del := x ^ 0x7F*ones
	return ((x-uint64(limit)*ones)&^x | (del-ones)&^del) & highs
}

// skipText gives the index of the first byte of b, from i on, that is a control character (a tab too) or DEL; len(b) if there
// is none.
func skipText(b []byte, i int) int {
	for rest := b[i:]; len(rest) >= 8; rest = rest[8:] {
		if found := belowOrDel(binary.LittleEndian.Uint64(rest), ' '); found != 0 {
			return i + bits.TrailingZeros64(found)>>3
		}
		i += 8
	}
	for i < len(b) && b[i] >= ' ' && b[i] != 0x7F {
		i++
	}
	return i
}

// skipVisible is like skipText, but stops at spaces too.
func skipVisible(b []byte, i int) int {
	for rest := b[i:]; len(rest) >= 8; rest = rest[8:] {
		if found := belowOrDel(binary.LittleEndian.Uint64(rest), ' '+1); found != 0 {
			return i + bits.TrailingZeros64(found)>>3
		}
		i += 8
	}
	for i < len(b) && b[i] > ' ' && b[i] != 0x7F {
		i++
	}
	return i
}

// skipToken gives the index of the first byte of b, from i on, that is not of a token.
func skipToken(b []byte, i int) int {
	for i < len(b) && is(b[i], inToken) {
		i++
	}
	return i
}

func isToken(b []byte) bool { return len(b) > 0 && skipToken(b, 0) == len(b) }

// equalFold compares b with a text in lower case that consists of letters, digits and "-". Bytes that are not ASCII are equal
// to nothing.
func equalFold(b []byte, lower string) bool {
	if len(b) != len(lower) {
		return false
	}
	for i := range len(b) {
		if lowerByte(b[i]) != lower[i] {
			return false
		}
	}
	return true
}

// equalFoldBytes compares without regard to the case of ASCII letters.
func equalFoldBytes(a, b []byte) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range len(a) {
		if lowerByte(a[i]) != lowerByte(b[i]) {
			return false
		}
	}
	return true
}

func lowerByte(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		c += 'a' - 'A'
	}
	return c
}

// trim takes the optional whitespace off both ends (RFC 9110 section 5.6.3).
func trim(b []byte) []byte {
	for len(b) > 0 && isBlank(b[0]) {
		b = b[1:]
	}
	for len(b) > 0 && isBlank(b[len(b)-1]) {
		b = b[:len(b)-1]
	}
	return b
}

func isBlank(c byte) bool { return c == ' ' || c == '\t' }

// NextElement cuts the first element off a list that commas separate (RFC 9110 section 5.6.1), without whitespace around it.
// Empty elements are left out; element is nil when there is none left. Quoted strings are not heeded: it is for lists of
// tokens and addresses.
func NextElement(list []byte) (element, rest []byte) {
	for len(list) > 0 {
		end := 0
		for end < len(list) && list[end] != ',' {
			end++
		}
		element, list = trim(list[:end]), list[min(end+1, len(list)):]
		if len(element) > 0 {
			return element, list
		}
	}
	return nil, nil
}
