package forward

import (
	"net/http"
	"net/textproto"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/net/http/httpguts"
)

// pseudonym is who we are in Via, and how we recognise ourselves there.
const pseudonym = "pyserve"

// maxLaps is how often a request may come by a PyServe. A route that leads back to its own listener would otherwise go
// round until its head is full, and hold a connection for each lap.
const maxLaps = 16

// hopByHop are the fields that concern one connection only (RFC 9110 section 7.6.1), with those of RFC 2616 section 13.5.1
// that old software still expects to be dropped. What Connection names comes on top.
var hopByHop = []string{
	"Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Proxy-Connection", "Te", "Trailer",
	"Transfer-Encoding", "Upgrade",
}

// dropHopByHop removes from h what must not be forwarded.
func dropHopByHop(h http.Header) {
	for _, list := range h["Connection"] {
		for name := range strings.SplitSeq(list, ",") {
			delete(h, textproto.CanonicalMIMEHeaderKey(strings.TrimSpace(name)))
		}
	}
	for _, name := range hopByHop {
		delete(h, name)
	}
}

// forwardable says whether a trailer field may be passed on: neither one of a connection nor one that we vouch for.
func forwardable(name string) bool {
	return !slices.Contains(hopByHop, name) && !forwarded(name)
}

// forwarded says whether a field tells who the client is, so that it is ours to set. Underscores count as hyphens: what
// hands headers over as environment variables (CGI, WSGI) cannot tell X_Forwarded_For from ours.
func forwarded(name string) bool {
	if strings.IndexByte(name, '_') >= 0 {
		name = textproto.CanonicalMIMEHeaderKey(strings.ReplaceAll(name, "_", "-"))
	}
	return strings.HasPrefix(name, "X-Forwarded-") || name == "X-Real-Ip" || name == "X-Request-Id"
}

// requestHeader makes the header to send to a backend, and finds out who the client is on the way. The order matters:
// the client's hop-by-hop fields go first, so that "Connection: X-Forwarded-For" cannot remove ours.
func (x *exchange) requestHeader() http.Header {
	in := x.r.Header
	h := in.Clone()
	wantsTrailers := httpguts.HeaderValuesContainsToken(in["Te"], "trailers")
	dropHopByHop(h)
	x.origin = originOf(x.r, h, x.table.Trusted)
	x.setForwarded(h)
	h["Via"] = append(h["Via"], received(x.r)+" "+pseudonym)
	if _, sent := h["User-Agent"]; !sent {
		h["User-Agent"] = []string{""} // net/http's way to say: none
	}
	var options []string
	if x.upgrade != "" {
		options = append(options, "Upgrade")
		h["Upgrade"] = []string{x.upgrade}
	}
	if wantsTrailers {
		options = append(options, "TE") // RFC 9110 section 10.1.4: TE never goes without
		h["Te"] = []string{"trailers"}
	}
	if options != nil {
		h["Connection"] = []string{strings.Join(options, ", ")}
	}
	return h
}

// setForwarded says who the client is. What an untrusted one said about that is dropped, and so is in any case what would
// stand beside our own word in another spelling.
func (x *exchange) setForwarded(h http.Header) {
	for name := range h {
		if forwarded(name) && (!x.origin.trusted || strings.IndexByte(name, '_') >= 0) {
			delete(h, name)
		}
	}
	h["X-Forwarded-For"] = []string{x.origin.chain}
	h["X-Forwarded-Proto"] = []string{x.origin.scheme}
	if x.origin.host != "" {
		h["X-Forwarded-Host"] = []string{x.origin.host}
	}
	h["X-Real-Ip"] = []string{x.origin.real.String()}
	h["X-Request-Id"] = []string{x.origin.id}
}

// received is the version that a request came in, for Via (RFC 9110 section 7.6.3).
func received(r *http.Request) string {
	return strconv.Itoa(r.ProtoMajor) + "." + strconv.Itoa(r.ProtoMinor)
}

// laps is how often a request has come by a PyServe already.
func laps(via []string) int {
	n := 0
	for _, list := range via {
		for entry := range strings.SplitSeq(list, ",") {
			if fields := strings.Fields(entry); len(fields) > 1 && fields[1] == pseudonym {
				n++
			}
		}
	}
	return n
}

// upgradeOf is the protocols a client wants to change to; empty: it does not. HTTP/2 knows no Upgrade, HTTP/1.0 ignores it
// (RFC 9110 section 7.8). h2c is taken out: a tunnel of HTTP/2 would carry requests that no route was asked for, and a
// server may always decline.
func upgradeOf(r *http.Request) string {
	if r.ProtoMajor != 1 || r.ProtoMinor != 1 || !httpguts.HeaderValuesContainsToken(r.Header["Connection"], "upgrade") {
		return ""
	}
	sent := strings.Join(r.Header["Upgrade"], ", ")
	if !httpguts.HeaderValuesContainsToken(r.Header["Upgrade"], "h2c") {
		return sent
	}
	var kept []string
	for protocol := range strings.SplitSeq(sent, ",") {
		if protocol = strings.TrimSpace(protocol); !strings.EqualFold(protocol, "h2c") {
			kept = append(kept, protocol)
		}
	}
	return strings.Join(kept, ", ")
}
