package forward

import (
	"bytes"
	"strconv"

	"github.com/pyserve/pyserve/node/http1"
	"github.com/pyserve/pyserve/node/upstream"
)

// pseudonym is who we are in Via, and how we recognise ourselves there.
const pseudonym = "pyserve"

// maxLaps is how often a request may come by a PyServe. A route that leads back to its own listener would otherwise go
// round until its head is full, and hold a connection for each lap.
const maxLaps = 16

// appendRequestHead writes the head for b to x.out. The error is about what cannot be said in HTTP/1.
func (x *exchange) appendRequestHead(b *upstream.Backend) error {
	r := &x.request
	query, hasQuery := r.Query()
	path := x.path[x.removed:]
	if x.target != nil {
		path = x.target
	}
	if len(path) == 0 {
		path = rootPath
	}
	out, err := http1.AppendRequestLine(x.out[:0], r.MethodName(), path, query, hasQuery)
	if err != nil {
		return err
	}
	out = append(out, "Host: "...)
	switch {
	case x.route.host != nil:
		out = x.appendTemplate(out, x.route.host)
	case x.route.preserveHost:
		out = append(out, r.Authority()...)
	default:
		out = append(out, b.Authority()...)
	}
	out = append(out, "\r\n"...)
	start := len(out)
	out = x.appendFields(out)
	out = x.appendForwarded(out)
	if e := x.route.requestEdits; e != nil {
		if out, err = x.edit(out, start, e); err != nil {
			return err
		}
	}
	out = append(out, "Via: "...)
	out = append(out, x.peer.version()...)
	out = append(out, " "+pseudonym+"\r\n"...)
	x.out = http1.AppendHeadEnd(x.appendConnection(out))
	return nil
}

// appendFields copies the end-to-end fields but for those that are written anew.
func (x *exchange) appendFields(out []byte) []byte {
	r := &x.request
	list := r.List()
	for i := range list {
		if list[i].Hop {
			continue
		}
		switch list[i].ID {
		case http1.Host, http1.ContentLength, http1.XForwardedFor, http1.XForwardedHost, http1.XForwardedProto,
			http1.XRealIP, http1.XRequestID:
			continue
		case http1.XForwardedPort, http1.XForwardedOther:
			if !x.origin.trusted {
				continue
			}
		case http1.Lookalike:
			// X_Forwarded_For beside ours: what hands headers over as environment variables cannot tell the two apart.
			continue
		case http1.MaxForwards:
			if r.Method == http1.TRACE || r.Method == http1.OPTIONS {
				out = appendLessForwards(out, r.Value(i))
				continue
			}
		case http1.Expect:
			if r.Framing == http1.None {
				continue // nothing to be continued with
			}
		}
		out = r.AppendLine(out, i)
	}
	return out
}

// appendLessForwards is Max-Forwards counted down; limitForwards has checked it.
func appendLessForwards(out, value []byte) []byte {
	n, err := strconv.ParseUint(string(value), 10, 31)
	if err != nil || n == 0 {
		return out
	}
	out = append(out, "Max-Forwards: "...)
	return append(strconv.AppendUint(out, n-1, 10), "\r\n"...)
}

// appendForwarded says who the client is.
func (x *exchange) appendForwarded(out []byte) []byte {
	o := &x.origin
	out = append(out, "X-Forwarded-For: "...)
	if o.trusted {
		out = x.appendChain(out)
	}
	out = o.peer.AppendTo(out)
	out = append(out, "\r\nX-Forwarded-Proto: "...)
	out = append(out, o.scheme...)
	if len(o.host) > 0 {
		out = append(out, "\r\nX-Forwarded-Host: "...)
		out = append(out, o.host...)
	}
	out = append(out, "\r\nX-Real-IP: "...)
	out = o.real.AppendTo(out)
	out = append(out, "\r\nX-Request-ID: "...)
	out = append(out, o.id...)
	return append(out, "\r\n"...)
}

// appendChain appends what a trusted proxy sent as X-Forwarded-For.
func (x *exchange) appendChain(out []byte) []byte {
	r := &x.request
	for i := r.Find(http1.XForwardedFor, 0); i >= 0; i = r.Find(http1.XForwardedFor, i+1) {
		if value := r.Value(i); len(value) > 0 && !r.List()[i].Hop {
			out = append(out, value...)
			out = append(out, ", "...)
		}
	}
	return out
}

// appendConnection writes what concerns the connection to the backend, and how the body is framed.
func (x *exchange) appendConnection(out []byte) []byte {
	r := &x.request
	switch {
	case r.Framing == http1.Chunked:
		out = append(out, "Transfer-Encoding: chunked\r\n"...)
	case r.ContentLength >= 0:
		out = http1.AppendContentLength(out, r.ContentLength)
	}
	if r.TakesTrailers {
		out = append(out, "TE: trailers\r\n"...)
	}
	switch {
	case x.upgrade:
		out = x.appendUpgrade(out)
		if r.TakesTrailers { // RFC 9110 section 10.1.4: TE never goes without
			return append(out, "Connection: Upgrade, TE\r\n"...)
		}
		return append(out, "Connection: Upgrade\r\n"...)
	case r.TakesTrailers:
		return append(out, "Connection: TE\r\n"...)
	}
	return out
}

var h2c = []byte("h2c")

// appendUpgrade writes the protocols that the client wants to change to, but h2c: a tunnel of HTTP/2 would carry requests
// that no route was asked for, and a server may always decline (RFC 9110 section 7.8).
func (x *exchange) appendUpgrade(out []byte) []byte {
	r := &x.request
	separator := "Upgrade: "
	for i := r.Find(http1.Upgrade, 0); i >= 0; i = r.Find(http1.Upgrade, i+1) {
		for element, rest := http1.NextElement(r.Value(i)); element != nil; element, rest = http1.NextElement(rest) {
			if !bytes.EqualFold(element, h2c) {
				out = append(out, separator...)
				out = append(out, element...)
				separator = ", "
			}
		}
	}
	return append(out, "\r\n"...)
}

// takesUpgrade says whether there is a protocol besides h2c.
func (x *exchange) takesUpgrade() bool {
	r := &x.request
	for i := r.Find(http1.Upgrade, 0); i >= 0; i = r.Find(http1.Upgrade, i+1) {
		for element, rest := http1.NextElement(r.Value(i)); element != nil; element, rest = http1.NextElement(rest) {
			if !bytes.EqualFold(element, h2c) {
				return true
			}
		}
	}
	return false
}

// laps is how often the request has come by a PyServe already.
func (x *exchange) laps() int {
	r, n := &x.request, 0
	for i := r.Find(http1.Via, 0); i >= 0; i = r.Find(http1.Via, i+1) {
		for element, rest := http1.NextElement(r.Value(i)); element != nil; element, rest = http1.NextElement(rest) {
			if isOurs(element) {
				n++
			}
		}
	}
	return n
}

// isOurs reads an element of Via: protocol, name, comment.
func isOurs(element []byte) bool {
	_, name, ok := bytes.Cut(element, []byte(" "))
	name = bytes.TrimLeft(name, " \t")
	if end := bytes.IndexAny(name, " \t"); end >= 0 {
		name = name[:end]
	}
	return ok && string(name) == pseudonym
}

// appendResponseHead writes the head of the final answer to x.out. chunked is that our own chunks frame the body, closing that
// the connection ends after it.
func (x *exchange) appendResponseHead(chunked, closing bool) ([]byte, error) {
	a := &x.response
	out, err := http1.AppendStatusLine(x.out[:0], a.Status, a.ReasonPhrase())
	if err != nil {
		return nil, err
	}
	out, dated, err := x.appendEditedFields(out)
	if err != nil {
		return nil, err
	}
	if chunked {
		out = append(out, "Transfer-Encoding: chunked\r\n"...)
	}
	out = x.appendResponseOptions(out, closing)
	if !dated { // RFC 9110 section 6.6.1
		out = append(out, *x.front.date.Load()...)
	}
	x.out = http1.AppendHeadEnd(out)
	return x.out, nil
}

// appendResponseOptions writes Connection. That of a 426 names Upgrade, which is left to pass, and one of HTTP/1.0 has to be told
// that the connection goes on.
func (x *exchange) appendResponseOptions(out []byte, closing bool) []byte {
	option := ""
	switch {
	case closing:
		option = "close"
	case x.request.Minor == 0:
		option = "keep-alive"
	}
	if x.response.Status == 426 {
		if option != "" {
			option += ", "
		}
		option += "Upgrade"
	}
	if option == "" {
		return out
	}
	out = append(out, "Connection: "...)
	out = append(out, option...)
	return append(out, "\r\n"...)
}

// appendResponseFields copies the fields that go on, for a final answer, a 1xx or a 101.
func (x *exchange) appendResponseFields(out []byte) (_ []byte, dated bool) {
	a := &x.response
	list := a.List()
	sized := a.Status < 200 || a.Status == 204 // these have no Content-Length (RFC 9110 section 8.6)
	for i := range list {
		switch id := list[i].ID; {
		case id == http1.Upgrade && a.Status == 426:
			// The one answer that is not complete without (RFC 9110 section 15.5.22).
		case list[i].Hop:
			continue
		case id == http1.ContentLength:
			if sized {
				continue
			}
			sized = true
			if value := a.Value(i); value[0] == '0' { // zeros before a number are valid, and read as octal by some
				out = http1.AppendContentLength(out, a.ContentLength)
				continue
			}
		case id == http1.Location, id == http1.ContentLocation:
			out = x.appendReference(out, i)
			continue
		case id == http1.Date:
			dated = true
		}
		out = a.AppendLine(out, i)
	}
	return out, dated
}

// appendEditedFields is appendResponseFields for a final answer or a 101: with the route's edits, and the
// sticky cookie.
func (x *exchange) appendEditedFields(out []byte) (_ []byte, dated bool, err error) {
	start := len(out)
	out, dated = x.appendResponseFields(out)
	if x.route.rate != nil {
		out = x.appendStanding(out)
	}
	if e := x.route.responseEdits; e != nil {
		out, err = x.edit(out, start, e)
	}
	return x.appendSticky(out), dated, err // last: the edits are of what the backend said
}

// appendReference writes a Location or Content-Location as the public can follow it.
func (x *exchange) appendReference(out []byte, i int) []byte {
	a := &x.response
	out = append(out, a.Name(i)...)
	out = append(out, ": "...)
	out = x.publicURL().append(out, a.Value(i))
	return append(out, "\r\n"...)
}
