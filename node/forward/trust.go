package forward

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"

	"github.com/pyserve/pyserve/node/http1"
)

// origin is who a request comes from and how the public spelled it, as far as it can be believed.
type origin struct {
	peer    netip.Addr // the other end of the connection
	secure  bool       // the client spoke TLS
	trusted bool       // peer is a trusted proxy
	real    netip.Addr // the nearest address that is not a trusted proxy
	scheme  []byte     // X-Forwarded-Proto to send: http or https, or what a trusted proxy said
	host    []byte     // X-Forwarded-Host to send; empty where the client named none
	id      []byte     // X-Request-ID to send; in idBuffer
	idSpace [maxRequestID]byte
}

var (
	schemeHTTP  = []byte("http")
	schemeHTTPS = []byte("https")
)

// readOrigin finds out who the client is.
func (x *exchange) readOrigin() {
	o := &x.origin
	o.scheme, o.host = schemeHTTP, x.request.Authority()
	if o.secure {
		o.scheme = schemeHTTPS
	}
	o.real, o.trusted = o.peer, x.table != nil && contains(x.table.Trusted, o.peer)
	if !o.trusted {
		o.id = appendRequestID(o.idSpace[:0])
		return
	}
	x.walkChain()
	if sent := firstOf(x.believed(http1.XForwardedProto)); len(sent) > 0 {
		o.scheme = sent
	}
	if sent := firstOf(x.believed(http1.XForwardedHost)); len(sent) > 0 {
		o.host = sent
	}
	if sent := x.believed(http1.XRequestID); validRequestID(sent) {
		o.id = append(o.idSpace[:0], sent...)
	} else {
		o.id = appendRequestID(o.idSpace[:0])
	}
}

// walkChain finds the nearest address that is not a trusted proxy in X-Forwarded-For, whose lines are one list (RFC 9110
// section 5.3), from its end on.
func (x *exchange) walkChain() {
	r, o := &x.request, &x.origin
	for i := r.Len() - 1; i >= 0; i-- {
		if r.List()[i].ID != http1.XForwardedFor || r.List()[i].Hop {
			continue
		}
		nearest, on := nearestUntrusted(r.Value(i), o.real, x.table.Trusted)
		if o.real = nearest; !on {
			return
		}
	}
}

// believed is the first value of a field that is not taken away by Connection.
func (x *exchange) believed(id http1.ID) []byte {
	r := &x.request
	for i := r.Find(id, 0); i >= 0; i = r.Find(id, i+1) {
		if !r.List()[i].Hop {
			return r.Value(i)
		}
	}
	return nil
}

func contains(networks []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(networks, func(n netip.Prefix) bool { return n.Contains(a) })
}

// nearestUntrusted walks a line of X-Forwarded-For from its end, where the nearest proxies stand. Each entry is believed
// because the one behind it is trusted; the walk ends at the first that is not, or at one that is no address. on is that it
// came to the line's beginning.
func nearestUntrusted(line []byte, nearest netip.Addr, trusted []netip.Prefix) (_ netip.Addr, on bool) {
	for more := true; more; {
		entry := line
		if comma := bytes.LastIndexByte(line, ','); comma >= 0 {
			line, entry = line[:comma], line[comma+1:]
		} else {
			more = false
		}
		if entry = bytes.Trim(entry, " \t"); len(entry) == 0 && !more {
			return nearest, true // an empty line
		}
		a, ok := parseHop(entry)
		if !ok {
			return nearest, false
		}
		if nearest = a; !contains(trusted, a) {
			return a, false
		}
	}
	return nearest, true
}

// parseHop reads an entry of X-Forwarded-For, which some proxies write with a port or in brackets.
func parseHop(b []byte) (netip.Addr, bool) {
	if a, ok := parseIPv4(b); ok {
		return a, true
	}
	s := string(b)
	if a, err := netip.ParseAddr(strings.Trim(s, "[]")); err == nil {
		return a.Unmap().WithZone(""), true
	}
	if at, err := netip.ParseAddrPort(s); err == nil {
		return at.Addr().Unmap().WithZone(""), true
	}
	return netip.Addr{}, false
}

// parseIPv4 is what nearly every entry is, without an allocation. What it does not take may still be an address.
func parseIPv4(b []byte) (netip.Addr, bool) {
	var out [4]byte
	part, n, digits := 0, 0, 0
	for _, c := range b {
		switch {
		case '0' <= c && c <= '9' && digits < 3 && !(digits == 1 && n == 0):
			n = n*10 + int(c-'0')
			digits++
		case c == '.' && digits > 0 && part < 3 && n <= 255:
			out[part] = byte(n)
			part, n, digits = part+1, 0, 0
		default:
			return netip.Addr{}, false
		}
	}
	if part != 3 || digits == 0 || n > 255 {
		return netip.Addr{}, false
	}
	out[3] = byte(n)
	return netip.AddrFrom4(out), true
}

// firstOf is the first element of a list, the one nearest to the client.
func firstOf(list []byte) []byte {
	first, _, _ := bytes.Cut(list, []byte(","))
	return bytes.Trim(first, " \t")
}

// maxRequestID bounds an id that was sent to us: it goes into logs and pages.
const maxRequestID = 128

func validRequestID(id []byte) bool {
	if len(id) == 0 || len(id) > maxRequestID {
		return false
	}
	for _, c := range id {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case strings.IndexByte("-_.~:/+=@", c) >= 0:
		default:
			return false
		}
	}
	return true
}

// appendRequestID appends 128 random bits. They need not be a secret, but must not be there twice: the runtime's ChaCha8 is
// as good as the kernel's for that.
func appendRequestID(dst []byte) []byte {
	var b [16]byte
	binary.LittleEndian.PutUint64(b[:8], rand.Uint64())
	binary.LittleEndian.PutUint64(b[8:], rand.Uint64())
	return hex.AppendEncode(dst, b[:])
}
