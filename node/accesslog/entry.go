package accesslog

import (
	"encoding/binary"
	"net/netip"
	"time"
	"unicode/utf8"
)

// Entry is what is logged of a request. Each field may be its zero value. Text may hold any bytes.
type Entry struct {
	// When the request began.
	Time time.Time
	// The client's address; an IPv4 address in IPv6 form is logged as the IPv4 address.
	Client netip.Addr
	Method []byte
	Host   []byte
	// Path and query as the client sent them.
	Target []byte
	// As in "HTTP/1.1".
	Proto string
	// What was sent to the client; 0: nothing.
	Status int
	// Bytes of bodies from the client and to it.
	Received, Sent int64
	// How long the request took, and how long its backend of that. Logged in microseconds, the rest is cut off.
	Took, UpstreamTook time.Duration
	Route              string
	Backend            string
	RequestID          []byte
	UserAgent          []byte
	Referer            []byte
	// Whose doing a failure was. Empty: none.
	Class string
	// How often the request was sent again.
	Retries int
	// The part of the route's split that the request went to, counted from 1; 0: it has none.
	Part int
}

// An entry in the queue, a record: numbers of 8 bytes each, the client's address, and values, each with its length before
// it.
const (
	recordNumbers = 9
	recordValues  = 11
	recordFixed   = recordNumbers*8 + 1 + 16 + recordValues*2

	// cutFlag is set in the length of a value that was cut. So no value is longer than what is below it.
	cutFlag = 1 << 15
)

// What kind of address a record holds.
const (
	noAddress = iota
	ipv4
	ipv6
)

// size is how many bytes encode takes, at most.
func (e *Entry) size(limit int) int {
	return recordFixed +
		min(len(e.Client.Zone()), limit) +
		min(len(e.Method), limit) + min(len(e.Host), limit) + min(len(e.Target), limit) + min(len(e.Proto), limit) +
		min(len(e.Route), limit) + min(len(e.Backend), limit) + min(len(e.RequestID), limit) +
		min(len(e.UserAgent), limit) + min(len(e.Referer), limit) + min(len(e.Class), limit)
}

// encode appends e to b, values longer than limit being cut. decode reads the same order.
func (e *Entry) encode(b []byte, limit int) []byte {
	for _, n := range [recordNumbers]int64{
		e.Time.Unix(), int64(e.Time.Nanosecond()), int64(e.Status), e.Received, e.Sent, int64(e.Took), int64(e.UpstreamTook),
		int64(e.Retries), int64(e.Part),
	} {
		b = binary.LittleEndian.AppendUint64(b, uint64(n))
	}
	b = appendAddress(b, e.Client)
	b = appendValue(b, e.Client.Zone(), limit)
	b = appendValue(b, e.Method, limit)
	b = appendValue(b, e.Host, limit)
	b = appendValue(b, e.Target, limit)
	b = appendValue(b, e.Proto, limit)
	b = appendValue(b, e.Route, limit)
	b = appendValue(b, e.Backend, limit)
	b = appendValue(b, e.RequestID, limit)
	b = appendValue(b, e.UserAgent, limit)
	b = appendValue(b, e.Referer, limit)
	return appendValue(b, e.Class, limit)
}

func appendAddress(b []byte, a netip.Addr) []byte {
	kind := byte(noAddress)
	switch a = a.Unmap(); {
	case a.Is4():
		kind = ipv4
	case a.Is6():
		kind = ipv6
	}
	b = append(b, kind)
	if kind == noAddress {
		return append(b, make([]byte, 16)...)
	}
	bytes := a.As16()
	return append(b, bytes[:]...)
}

func appendValue[T string | []byte](b []byte, v T, limit int) []byte {
	if len(v) <= limit {
		b = binary.LittleEndian.AppendUint16(b, uint16(len(v)))
		return append(b, v...)
	}
	end := cutAt(v, limit)
	b = binary.LittleEndian.AppendUint16(b, uint16(end)|cutFlag)
	return append(b, v[:end]...)
}

// cutAt is limit, or up to three bytes less lest it be within a character: half of one is no UTF-8.
func cutAt[T string | []byte](v T, limit int) int {
	end := limit
	for end > 0 && end > limit-utf8.UTFMax+1 && !utf8.RuneStart(v[end]) {
		end--
	}
	if v[end] < utf8.RuneSelf || !utf8.RuneStart(v[end]) {
		return limit // no character begins before the limit and goes on after it
	}
	return end
}

// record is an entry as it came out of the queue. Its values point into the queue.
type record struct {
	seconds, nanoseconds      int64
	status                    int64
	received, sent            int64
	took, upstreamTook        time.Duration
	retries, part             int64
	client                    netip.Addr // without its zone
	zone                      value
	method, host, target      value
	proto                     value
	route, backend, id        value
	userAgent, referer, class value
}

type value struct {
	bytes []byte
	cut   bool
}

// decode reads what encode wrote.
func (r *record) decode(b []byte) {
	var numbers [recordNumbers]int64
	for i := range numbers {
		numbers[i] = int64(binary.LittleEndian.Uint64(b[i*8:]))
	}
	r.seconds, r.nanoseconds, r.status, r.received, r.sent = numbers[0], numbers[1], numbers[2], numbers[3], numbers[4]
	r.took, r.upstreamTook, r.retries, r.part = time.Duration(numbers[5]), time.Duration(numbers[6]), numbers[7], numbers[8]
	b = b[recordNumbers*8:]
	r.client = decodeAddress(b[0], [16]byte(b[1:17]))
	b = b[17:]
	for _, v := range [recordValues]*value{
		&r.zone, &r.method, &r.host, &r.target, &r.proto, &r.route, &r.backend, &r.id, &r.userAgent, &r.referer, &r.class,
	} {
		length := binary.LittleEndian.Uint16(b)
		end := 2 + int(length&^cutFlag)
		v.bytes, v.cut = b[2:end], length&cutFlag != 0
		b = b[end:]
	}
}

func decodeAddress(kind byte, bytes [16]byte) netip.Addr {
	switch kind {
	case ipv4:
		return netip.AddrFrom16(bytes).Unmap()
	case ipv6:
		return netip.AddrFrom16(bytes)
	}
	return netip.Addr{}
}
