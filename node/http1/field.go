package http1

import "bytes"

// Limits. They are constants because a limit that one node raises is a message that the next one refuses.
const (
	MaxHead      = 64 << 10 // bytes of a head, empty lines before it and the one at its end included
	MaxFields    = 1024     // fields of a head
	MaxTrailer   = 16 << 10 // bytes of the trailers, the empty line at their end included
	MaxTrailers  = 128      // trailer fields
	MaxMethod    = 64       // bytes of a method
	MaxTarget    = 32 << 10 // bytes of a request target
	MaxChunkLine = 1024     // bytes of a line with the size of a chunk and its extensions, CRLF included
	MaxOptions   = 64       // options in the Connection fields of one message
)

// A Field is one field line. Its name and value are read through the [Fields] that it belongs to.
type Field struct {
	ID ID
	// Hop is that the field concerns this connection only, or as a trailer has no business there: not to be forwarded. See
	// Head for which those are.
	Hop bool

	tidy                 bool // the line is "name: value CRLF" with nothing more
	name, nameEnd        uint32
	value, valueEnd, end uint32 // end is after the CRLF
}

// Fields are the field lines of a head or a trailer section, in their order. Offsets rather than slices: they hold no
// pointers, and the bytes may move while they still arrive.
type Fields struct {
	buf  []byte
	list []Field
	seen set

	next     int // where the first line begins that is not yet parsed
	searched int // how far the search for the end of that line got
}

// keptFields is how many fields a list may have room for and be kept for the next message: a pool of heads should not grow
// to the size of its worst guest.
const keptFields = 256

func (f *Fields) reset() {
	list := f.list[:0]
	if cap(list) > keptFields {
		list = nil
	}
	*f = Fields{list: list}
}

// List is the fields in their order; the slice is not to be changed but for Hop.
func (f *Fields) List() []Field { return f.list }

// Len is the number of fields.
func (f *Fields) Len() int { return len(f.list) }

// Name is the name of field i as it was sent.
func (f *Fields) Name(i int) []byte {
	l := &f.list[i]
	return f.buf[l.name:l.nameEnd:l.nameEnd]
}

// Value is the value of field i without the whitespace around it. It holds no control character but the tab. Bytes above
// 0x7F are as they came.
func (f *Fields) Value(i int) []byte {
	l := &f.list[i]
	return f.buf[l.value:l.valueEnd:l.valueEnd]
}

// Has says whether there is a field with an ID; not for Other.
func (f *Fields) Has(id ID) bool { return f.seen.has(id) }

// Find gives the first field from index i on that has an ID, -1 if there is none. Without one it costs next to nothing.
func (f *Fields) Find(id ID, i int) int {
	if !f.seen.has(id) {
		return -1
	}
	for ; i < len(f.list); i++ {
		if f.list[i].ID == id {
			return i
		}
	}
	return -1
}

// Get is the value of the first field with an ID, nil if there is none.
func (f *Fields) Get(id ID) []byte {
	if i := f.Find(id, 0); i >= 0 {
		return f.Value(i)
	}
	return nil
}

// Lookup gives the first field from index i on that has a name, in any case; -1 if there is none.
func (f *Fields) Lookup(name string, i int) int {
	for ; i < len(f.list); i++ {
		if l := &f.list[i]; int(l.nameEnd-l.name) == len(name) && sameName(f.Name(i), name) {
			return i
		}
	}
	return -1
}

func sameName(b []byte, name string) bool {
	for i := range len(b) {
		if lowerByte(b[i]) != lowerByte(name[i]) {
			return false
		}
	}
	return true
}

// AppendLine appends the line of field i, with the name and the value as they were sent and the whitespace around the value
// made one space.
func (f *Fields) AppendLine(dst []byte, i int) []byte {
	l := &f.list[i]
	if l.tidy {
		return append(dst, f.buf[l.name:l.end]...)
	}
	dst = append(dst, f.buf[l.name:l.nameEnd]...)
	dst = append(dst, ": "...)
	dst = append(dst, f.buf[l.value:l.valueEnd]...)
	return append(dst, "\r\n"...)
}

// awaits says whether it is known without parsing that the next line of buf is not complete. A line that will not fit any
// more is looked at once again, for what is wrong with it besides its length.
func (f *Fields) awaits(buf []byte, limit int) bool {
	if f.searched <= f.next || len(buf) >= limit || bytes.IndexByte(buf[f.searched:], '\n') >= 0 {
		return false
	}
	f.searched = len(buf)
	return true
}

// orWait is r but for needMore, which is none as long as there is room for more.
func (f *Fields) orWait(r Reason, window []byte, limit int, tooLong Reason) Reason {
	switch {
	case r != needMore:
		return r
	case len(window) >= limit:
		return tooLong
	}
	f.searched = len(window)
	return none
}

// line parses the line at f.next and adds it. It gives needMore where it is not complete, and endOfSection after the
// empty line, with f.next behind it.
func (f *Fields) line(buf []byte, most int, tooMany Reason) Reason {
	start := f.next
	if start >= len(buf) {
		return needMore
	}
	i, class := start, uint8(0)
	for i < len(buf) {
		c := classes[buf[i]]
		if c&inToken == 0 {
			break
		}
		class |= c
		i++
	}
	if i == len(buf) {
		return needMore
	}
	if i == start || buf[i] != ':' {
		return f.notAField(buf, i)
	}
	nameEnd := i
	i++
	for i < len(buf) && isBlank(buf[i]) {
		i++
	}
	value := i
	for {
		if i = skipText(buf, i); i == len(buf) {
			return needMore
		}
		if buf[i] != '\t' {
			break
		}
		i++
	}
	if r := endOfLine(buf, i, ControlInValue); r != none {
		return r
	}
	valueEnd := i
	for valueEnd > value && isBlank(buf[valueEnd-1]) {
		valueEnd--
	}
	if len(f.list) >= most {
		return tooMany
	}
	id, hop := identify(buf[start:nameEnd]), false
	if id == Other && class&underscore != 0 {
		if of := lookalike(buf[start:nameEnd]); of != Other {
			id, hop = Lookalike, (alwaysHop | managed).has(of)
		}
	}
	f.seen |= 1 << id
	f.list = append(f.list, Field{
		ID: id, Hop: hop,
		tidy: value == nameEnd+2 && buf[nameEnd+1] == ' ' && valueEnd == i,
		name: uint32(start), nameEnd: uint32(nameEnd), value: uint32(value), valueEnd: uint32(valueEnd), end: uint32(i + 2),
	})
	f.next = i + 2
	return none
}

// notAField judges a line whose name does not end in a colon at i.
func (f *Fields) notAField(buf []byte, i int) Reason {
	first := i == f.next
	switch c := buf[i]; {
	case c == '\r' && first:
		r := endOfLine(buf, i, none)
		if r == none {
			f.next = i + 2
			return endOfSection
		}
		return r
	case c == '\r' || c == '\n':
		if r := endOfLine(buf, i, none); r != none {
			return r
		}
		return NoColon
	case isBlank(c) && first:
		return ObsFold
	case isBlank(c):
		return SpaceBeforeColon
	case c == ':':
		return EmptyName
	}
	return BadName
}

// endOfLine judges what stands at i, where text ended: CRLF is none; other is for what does not belong to an end of a line.
func endOfLine(buf []byte, i int, other Reason) Reason {
	switch {
	case buf[i] == '\n':
		return BareLF
	case buf[i] != '\r':
		return other
	case i+1 == len(buf):
		return needMore
	case buf[i+1] != '\n':
		return BareCR
	}
	return none
}
