package route

import (
	"bytes"
	"errors"
	"regexp"
)

// maxWork is how many bytes of one request are compared with expressions and conditions, each as often as it is: an 8 KiB header, the
// most that servers take, with a thousand. A document may hold more expressions than a long request can be compared with in a time
// that others would not notice.
const maxWork = 8 << 20

// pathWork is how many bytes of a path are compared with every expression that there is, however many they are.
const pathWork = 1 << 10

// ErrTooLong is what Lookup returns for a request that would have to be compared for too long.
var ErrTooLong = errors.New("the request is too long for the expressions and conditions that it would have to be compared with")

// look is one lookup. It stays on its caller's stack.
type look struct {
	request Request
	missed  misses // nil: nobody wants to know
	left    int    // bytes; below 0 nothing matches any more, and nothing that was found counts

	// The lines of the field that were joined last.
	name  string
	value []byte
}

// spend counts n bytes that are to be looked at. False: they are not.
func (l *look) spend(n int) bool {
	if l.left >= 0 {
		l.left -= n
	}
	return l.left >= 0
}

func (l *look) matches(e *regexp.Regexp, text []byte) bool {
	return l.spend(len(text)) && e.Match(text)
}

// joined is the value of a condition's field, whose first line is at i. Where there are several it allocates, and mostly once for all
// conditions.
func (l *look) joined(c *condition, i int) []byte {
	value, next := l.request.Value(i), l.request.Lookup(c.name, i+1)
	switch {
	case next < 0:
		return value
	case l.name == c.name:
		return l.value
	}
	value = bytes.Clone(value)
	for ; next >= 0; next = l.request.Lookup(c.name, next+1) {
		value = append(append(value, c.separator()...), l.request.Value(next)...)
	}
	l.spend(len(value))
	l.name, l.value = c.name, value
	return value
}
