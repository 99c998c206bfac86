package forward

import (
	"crypto/rand"
	"encoding/hex"
	"net/http"
	"net/netip"
	"slices"
	"strings"
)

// origin is who a request comes from and how the public spelled it, as far as it can be believed.
type origin struct {
	peer    netip.Addr // the other end of the connection
	trusted bool       // peer is a trusted proxy
	real    netip.Addr // the nearest address that is not a trusted proxy
	chain   string     // X-Forwarded-For to send
	scheme  string     // X-Forwarded-Proto to send: http or https, or what a trusted proxy said
	host    string     // X-Forwarded-Host to send; empty where the client named none
	id      string     // X-Request-ID to send
}

// originOf reads who the client is. h are the client's headers with the hop-by-hop ones already gone: what Connection
// names must not be believed, nor must it take our own headers away later.
func originOf(r *http.Request, h http.Header, trusted []netip.Prefix) origin {
	o := origin{peer: peerOf(r.RemoteAddr), scheme: "http", host: r.Host}
	if r.TLS != nil {
		o.scheme = "https"
	}
	o.trusted = contains(trusted, o.peer)
	o.real, o.chain = o.peer, o.peer.String()
	if !o.trusted {
		o.id = newRequestID()
		return o
	}
	if sent := strings.Join(h["X-Forwarded-For"], ", "); sent != "" {
		o.chain = sent + ", " + o.chain
		o.real = nearestUntrusted(sent, o.peer, trusted)
	}
	if sent := firstOf(h.Get("X-Forwarded-Proto")); sent != "" {
		o.scheme = sent
	}
	if sent := firstOf(h.Get("X-Forwarded-Host")); sent != "" {
		o.host = sent
	}
	if o.id = h.Get("X-Request-Id"); !validRequestID(o.id) {
		o.id = newRequestID()
	}
	return o
}

func peerOf(remote string) netip.Addr {
	at, err := netip.ParseAddrPort(remote)
	if err != nil {
		return netip.Addr{} // a connection that is not over IP, in a test
	}
	return at.Addr().Unmap().WithZone("")
}

func contains(networks []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(networks, func(n netip.Prefix) bool { return n.Contains(a) })
}

// nearestUntrusted walks X-Forwarded-For from its end, where the nearest proxies stand. Each entry is believed because
// the one behind it is trusted; the walk ends at the first that is not, at one that is no address, or at the beginning.
func nearestUntrusted(chain string, peer netip.Addr, trusted []netip.Prefix) netip.Addr {
	nearest := peer
	for rest, more := chain, true; more; {
		var entry string
		if comma := strings.LastIndexByte(rest, ','); comma >= 0 {
			rest, entry = rest[:comma], rest[comma+1:]
		} else {
			entry, more = rest, false
		}
		a, ok := parseHop(strings.TrimSpace(entry))
		if !ok {
			return nearest
		}
		if nearest = a; !contains(trusted, a) {
			return a
		}
	}
	return nearest
}

// parseHop reads an entry of X-Forwarded-For, which some proxies write with a port or in brackets.
func parseHop(s string) (netip.Addr, bool) {
	if a, err := netip.ParseAddr(strings.Trim(s, "[]")); err == nil {
		return a.Unmap().WithZone(""), true
	}
	if at, err := netip.ParseAddrPort(s); err == nil {
		return at.Addr().Unmap().WithZone(""), true
	}
	return netip.Addr{}, false
}

// firstOf is the first element of a list, the one nearest to the client.
func firstOf(list string) string {
	first, _, _ := strings.Cut(list, ",")
	return strings.TrimSpace(first)
}

// maxRequestID bounds an id that was sent to us: it goes into logs and pages.
const maxRequestID = 128

func validRequestID(id string) bool {
	if id == "" || len(id) > maxRequestID {
		return false
	}
	for i := range len(id) {
		switch c := id[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case strings.IndexByte("-_.~:/+=@", c) >= 0:
		default:
			return false
		}
	}
	return true
}

// newRequestID is 128 random bits.
func newRequestID() string {
	var b [16]byte
	rand.Read(b[:]) // never fails: crypto/rand ends the process instead
	return hex.EncodeToString(b[:])
}
