package accesslog

import (
	"net/netip"
	"strconv"
	"time"
	"unicode/utf8"
)

// Format is how an entry is written. The package comment describes both.
type Format uint8

const (
	Text Format = iota
	JSON
)

// mark is at the end of a value that was cut.
const mark = "…"

const (
	textTime = "02/Jan/2006:15:04:05 -0700"
	jsonTime = "2006-01-02T15:04:05"
)

const hexDigits = "0123456789abcdef"

// Bytes that stand for themselves: within quotes, and in the request line, where spaces separate.
var plain, plainWord = func() (quoted, word [256]bool) {
	for c := ' '; c <= '~'; c++ {
		quoted[c] = c != '"' && c != '\\'
		word[c] = quoted[c] && c != ' '
	}
	return quoted, word
}()

// clock keeps the text of the second that it was last asked for: entries come by many in a second.
type clock struct {
	layout string
	second int64
	text   []byte // empty: never asked
}

func (c *clock) append(dst []byte, second int64) []byte {
	if len(c.text) == 0 || second != c.second {
		c.text, c.second = time.Unix(second, 0).UTC().AppendFormat(c.text[:0], c.layout), second
	}
	return append(dst, c.text...)
}

// formatter appends records as lines. It belongs to one goroutine.
type formatter struct {
	format Format
	clock  clock
}

func newFormatter(f Format) formatter {
	if f == JSON {
		return formatter{format: f, clock: clock{layout: jsonTime}}
	}
	return formatter{format: f, clock: clock{layout: textTime}}
}

func (f *formatter) append(dst []byte, r *record) []byte {
	if f.format == JSON {
		return f.appendJSON(dst, r)
	}
	return f.appendText(dst, r)
}

func (f *formatter) appendText(dst []byte, r *record) []byte {
	dst = appendTextClient(dst, r)
	dst = f.clock.append(append(dst, " - - ["...), r.seconds)
	dst = appendText(append(dst, `] "`...), r.method, &plainWord)
	dst = appendText(append(dst, ' '), r.target, &plainWord)
	dst = appendText(append(dst, ' '), r.proto, &plainWord)
	dst = appendStatus(append(dst, `" `...), r.status)
	dst = strconv.AppendInt(append(dst, ' '), r.sent, 10)
	dst = appendText(append(dst, ` "`...), r.referer, &plain)
	dst = appendText(append(dst, `" "`...), r.userAgent, &plain)
	dst = appendText(append(dst, `" host="`...), r.host, &plain)
	dst = appendText(append(dst, `" route="`...), r.route, &plain)
	dst = appendText(append(dst, `" backend="`...), r.backend, &plain)
	dst = appendText(append(dst, `" request_id="`...), r.id, &plain)
	dst = appendText(append(dst, `" class="`...), r.class, &plain)
	dst = appendSeconds(append(dst, `" took=`...), r.took)
	dst = appendSeconds(append(dst, ` upstream_took=`...), r.upstreamTook)
	dst = strconv.AppendInt(append(dst, ` received=`...), r.received, 10)
	dst = strconv.AppendInt(append(dst, ` retries=`...), r.retries, 10)
	dst = strconv.AppendInt(append(dst, ` part=`...), r.part, 10)
	return append(dst, '\n')
}

// appendTextClient writes the zone as a word as well: it is a name that an interface was given.
func appendTextClient(dst []byte, r *record) []byte {
	if !r.client.IsValid() {
		return append(dst, '-')
	}
	dst = r.client.AppendTo(dst)
	if len(r.zone.bytes) > 0 {
		dst = appendText(append(dst, '%'), r.zone, &plainWord)
	}
	return dst
}

// appendStatus writes the three digits that readers of the combined format look for.
func appendStatus(dst []byte, status int64) []byte {
	for unit := int64(100); unit > 1 && status >= 0 && status < unit; unit /= 10 {
		dst = append(dst, '0')
	}
	return strconv.AppendInt(dst, status, 10)
}

// appendText escapes every byte that is not in allowed.
func appendText(dst []byte, v value, allowed *[256]bool) []byte {
	if len(v.bytes) == 0 && !v.cut {
		return append(dst, '-')
	}
	from := 0
	for i, c := range v.bytes {
		if allowed[c] {
			continue
		}
		dst = append(dst, v.bytes[from:i]...)
		dst = append(dst, '\\', 'x', hexDigits[c>>4], hexDigits[c&0xf])
		from = i + 1
	}
	return appendMark(append(dst, v.bytes[from:]...), v)
}

func appendMark(dst []byte, v value) []byte {
	if v.cut {
		return append(dst, mark...)
	}
	return dst
}

func (f *formatter) appendJSON(dst []byte, r *record) []byte {
	dst = f.clock.append(append(dst, `{"time":"`...), r.seconds)
	dst = appendFraction(dst, r.nanoseconds/1000)
	dst = appendJSONClient(append(dst, `Z","client":"`...), r)
	dst = appendJSON(append(dst, `","method":"`...), r.method)
	dst = appendJSON(append(dst, `","host":"`...), r.host)
	dst = appendJSON(append(dst, `","target":"`...), r.target)
	dst = appendJSON(append(dst, `","proto":"`...), r.proto)
	dst = strconv.AppendInt(append(dst, `","status":`...), r.status, 10)
	dst = strconv.AppendInt(append(dst, `,"received":`...), r.received, 10)
	dst = strconv.AppendInt(append(dst, `,"sent":`...), r.sent, 10)
	dst = appendSeconds(append(dst, `,"took":`...), r.took)
	dst = appendSeconds(append(dst, `,"upstream_took":`...), r.upstreamTook)
	dst = appendJSON(append(dst, `,"route":"`...), r.route)
	dst = appendJSON(append(dst, `","backend":"`...), r.backend)
	dst = appendJSON(append(dst, `","request_id":"`...), r.id)
	dst = appendJSON(append(dst, `","user_agent":"`...), r.userAgent)
	dst = appendJSON(append(dst, `","referer":"`...), r.referer)
	dst = appendJSON(append(dst, `","class":"`...), r.class)
	dst = strconv.AppendInt(append(dst, `","retries":`...), r.retries, 10)
	dst = strconv.AppendInt(append(dst, `,"part":`...), r.part, 10)
	return append(dst, '}', '\n')
}

func appendJSONClient(dst []byte, r *record) []byte {
	if r.client == (netip.Addr{}) {
		return dst
	}
	dst = r.client.AppendTo(dst)
	if len(r.zone.bytes) > 0 {
		dst = appendJSON(append(dst, '%'), r.zone)
	}
	return dst
}

// appendJSON escapes what JSON must have escaped (RFC 8259 section 7) and what is not printable.
func appendJSON(dst []byte, v value) []byte {
	from := 0
	for i := 0; i < len(v.bytes); {
		if plain[v.bytes[i]] {
			i++
			continue
		}
		r, size := utf8.DecodeRune(v.bytes[i:])
		if size > 1 && strconv.IsPrint(r) {
			i += size
			continue
		}
		dst = append(dst, v.bytes[from:i]...)
		dst = appendJSONRune(dst, r)
		i += size
		from = i
	}
	return appendMark(append(dst, v.bytes[from:]...), v)
}

// appendJSONRune escapes r, which is utf8.RuneError for a byte that is no UTF-8.
func appendJSONRune(dst []byte, r rune) []byte {
	switch {
	case r == '"' || r == '\\':
		return append(dst, '\\', byte(r))
	case r > 0xffff:
		// As UTF-16 has it (RFC 8259 section 7).
		r -= 0x10000
		return appendHex4(appendHex4(dst, 0xd800|r>>10), 0xdc00|r&0x3ff)
	}
	return appendHex4(dst, r)
}

func appendHex4(dst []byte, r rune) []byte {
	return append(dst, '\\', 'u', hexDigits[r>>12&0xf], hexDigits[r>>8&0xf], hexDigits[r>>4&0xf], hexDigits[r&0xf])
}

// appendSeconds writes d in seconds, down to microseconds.
func appendSeconds(dst []byte, d time.Duration) []byte {
	micros := int64(d / time.Microsecond)
	if micros < 0 {
		dst, micros = append(dst, '-'), -micros
	}
	return appendFraction(strconv.AppendInt(dst, micros/1e6, 10), micros%1e6)
}

// appendFraction writes millionths, six digits after a point.
func appendFraction(dst []byte, millionths int64) []byte {
	dst = append(dst, '.')
	for unit := int64(100_000); unit > 0; unit /= 10 {
		dst = append(dst, byte('0'+millionths/unit%10))
	}
	return dst
}
