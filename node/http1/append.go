package http1

import "math/bits"

// Text is what the Append functions take names and values from.
type Text interface{ ~string | ~[]byte }

// CheckName says whether a text can be a field name: BadName or EmptyName where it cannot.
func CheckName[T Text](name T) error {
	if len(name) == 0 {
		return EmptyName
	}
	for i := range len(name) {
		if !is(name[i], inToken) {
			return BadName
		}
	}
	return nil
}

// CheckValue says whether a text can be a field value and be read back as it is: ControlInValue where it holds a CR, an LF, a
// NUL or another control character, or has whitespace at an end. Over HTTP/2 such values may arrive (RFC 9113 section 10.3).
func CheckValue[T Text](value T) error {
	n := len(value)
	if n == 0 {
		return nil
	}
	if isBlank(value[0]) || isBlank(value[n-1]) {
		return ControlInValue
	}
	for i := range n {
		if !is(value[i], inValue) {
			return ControlInValue
		}
	}
	return nil
}

// CheckMethod says whether a text can be a method: BadMethod or MethodTooLong where it cannot.
func CheckMethod[T Text](method T) error {
	if len(method) > MaxMethod {
		return MethodTooLong
	}
	if CheckName(method) != nil {
		return BadMethod
	}
	return nil
}

// checkTarget finds what would end a target or its line. Anything else is not its business.
func checkTarget[T Text](target T) error {
	for i := range len(target) {
		switch c := target[i]; {
		case c <= ' ' || c == 0x7F:
			return ControlInTarget
		case c == '#':
			return FragmentInTarget
		}
	}
	return nil
}

// AppendRequestLine appends "method path?query HTTP/1.1" and its end of line; without "?" where hasQuery is false. After an
// error, which is a [Reason], dst is as it was. What can go wrong is what would make another line or another target of it:
// whether the path is one, the caller knows. An empty path is BadTarget.
func AppendRequestLine[M, P, Q Text](dst []byte, method M, path P, query Q, hasQuery bool) ([]byte, error) {
	if err := CheckMethod(method); err != nil {
		return dst, err
	}
	if len(path) == 0 {
		return dst, BadTarget
	}
	if err := checkTarget(path); err != nil {
		return dst, err
	}
	out := append(dst, method...)
	out = append(out, ' ')
	out = append(out, path...)
	if hasQuery {
		if err := checkTarget(query); err != nil {
			return dst, err
		}
		out = append(out, '?')
		out = append(out, query...)
	}
	return append(out, " HTTP/1.1\r\n"...), nil
}

// AppendStatusLine appends "HTTP/1.1 status phrase" and its end of line. The version is our own, whatever the client's (RFC
// 9110 section 2.5). After an error, which is a [Reason], dst is as it was.
func AppendStatusLine[T Text](dst []byte, status int, phrase T) ([]byte, error) {
	if status < 100 || status > 999 {
		return dst, BadStatus
	}
	for i := range len(phrase) {
		if !is(phrase[i], inValue) {
			return dst, BadStatusLine
		}
	}
	dst = append(dst, "HTTP/1.1 "...)
	dst = append(dst, byte('0'+status/100), byte('0'+status/10%10), byte('0'+status%10), ' ')
	dst = append(dst, phrase...)
	return append(dst, "\r\n"...), nil
}

// AppendField appends a field line. After an error, that of CheckName or CheckValue, dst is as it was.
func AppendField[N, V Text](dst []byte, name N, value V) ([]byte, error) {
	if err := CheckName(name); err != nil {
		return dst, err
	}
	if err := CheckValue(value); err != nil {
		return dst, err
	}
	dst = append(dst, name...)
	dst = append(dst, ": "...)
	dst = append(dst, value...)
	return append(dst, "\r\n"...), nil
}

// AppendContentLength appends the field for a body of n bytes, at least 0.
func AppendContentLength(dst []byte, n int64) []byte {
	dst = append(dst, "Content-Length: "...)
	dst = appendDecimal(dst, uint64(max(n, 0)))
	return append(dst, "\r\n"...)
}

func appendDecimal(dst []byte, n uint64) []byte {
	var digits [20]byte
	i := len(digits)
	for {
		i--
		digits[i] = byte('0' + n%10)
		if n /= 10; n == 0 {
			return append(dst, digits[i:]...)
		}
	}
}

// AppendHeadEnd appends the empty line after a head or after trailers.
func AppendHeadEnd(dst []byte) []byte { return append(dst, "\r\n"...) }

// MaxChunkHeader is how many bytes the line before a chunk has at most.
const MaxChunkHeader = maxSizeDigits + len("\r\n")

// AppendChunkHeader appends the line before a chunk of size bytes. Size must be positive: 0 ends the body, which is
// AppendLastChunk's to do, and appends nothing here.
func AppendChunkHeader(dst []byte, size int64) []byte {
	if size <= 0 {
		return dst
	}
	for shift := (bits.Len64(uint64(size)) - 1) &^ 3; shift >= 0; shift -= 4 {
		dst = append(dst, "0123456789abcdef"[size>>shift&15])
	}
	return append(dst, "\r\n"...)
}

// PutChunkHeader writes the line before a chunk of size bytes to the end of space, so that it stands right before data that
// was read behind it: one write for both. It returns where the line begins. Space must have room, for which
// MaxChunkHeader is enough. As with AppendChunkHeader, a size of 0 or less writes nothing.
func PutChunkHeader(space []byte, size int64) int {
	if size <= 0 {
		return len(space)
	}
	i := len(space) - 2
	space[i], space[i+1] = '\r', '\n'
	for ; size > 0; size >>= 4 {
		i--
		space[i] = "0123456789abcdef"[size&15]
	}
	return i
}

// AppendChunkEnd appends what follows the data of a chunk.
func AppendChunkEnd(dst []byte) []byte { return append(dst, "\r\n"...) }

// AppendLastChunk appends the line that ends the chunks; trailers and AppendHeadEnd must follow.
func AppendLastChunk(dst []byte) []byte { return append(dst, "0\r\n"...) }
