package forward

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
)

// forwardRequest sends the request and passes the answer on.
func (x *exchange) forwardRequest() *failure {
	a, f := x.send(x.r.Context(), x.roundTrip)
	if f != nil {
		return f
	}
	defer a.Body.Close()
	return x.relay(a)
}

// relay passes an answer on: head, body as it comes, trailers.
func (x *exchange) relay(a *answer) *failure {
	announced := x.responseHeader(a)
	x.head(a.StatusCode)
	if a.ContentLength < 0 || a.ContentLength > flushHeadAbove {
		x.rc.Flush() // a client that has gone is noticed at the next write
	}
	if f := x.copyBody(a); f != nil {
		return f
	}
	h := x.w.Header()
	for name, values := range a.Trailer {
		switch {
		case !forwardable(name):
		case slices.Contains(announced, name):
			h[name] = values
		default:
			h[http.TrailerPrefix+name] = values
		}
	}
	return nil
}

// responseHeader fills in the header of the answer, and returns the trailers that it announces.
func (x *exchange) responseHeader(a *answer) (announced []string) {
	from, to := a.Header, x.w.Header()
	upgrades := from["Upgrade"]
	dropHopByHop(from)
	public := x.publicURL(a)
	for _, name := range []string{"Location", "Content-Location"} {
		for i, ref := range from[name] {
			from[name][i] = public.rewrite(ref)
		}
	}
	maps.Copy(to, from)
	if a.StatusCode == http.StatusUpgradeRequired && upgrades != nil {
		// The one answer that is not complete without (RFC 9110 section 15.5.22).
		to["Upgrade"], to["Connection"] = upgrades, []string{"Upgrade"}
	}
	if _, sent := from["Content-Type"]; !sent {
		to["Content-Type"] = nil // net/http would guess one
	}
	for name := range a.Trailer {
		if forwardable(name) {
			announced = append(announced, name)
		}
	}
	if announced != nil {
		slices.Sort(announced)
		to.Set("Trailer", strings.Join(announced, ", "))
	}
	return announced
}

func (x *exchange) publicURL(a *answer) *publicURL {
	p := &publicURL{
		names:         [2]string{a.backend.Address(), a.host},
		backendScheme: "http", scheme: x.origin.scheme, host: x.origin.host, prefix: x.removed,
	}
	if a.backend.Spec().TLS != nil {
		p.backendScheme = "https"
	}
	return p
}

// copyBody passes the body on. What was read is sent at once, whatever the kind of answer: only the end of a body whose
// length is known is left to the server, which can send it along with what follows.
func (x *exchange) copyBody(a *answer) *failure {
	buffer := x.buffers.Get().(*[]byte)
	defer x.buffers.Put(buffer)
	var passed int64
	for {
		n, err := a.Body.Read(*buffer)
		if n > 0 {
			passed += int64(n)
			if f := x.pass((*buffer)[:n], err == nil && passed != a.ContentLength); f != nil {
				return f
			}
		}
		switch {
		case err == io.EOF:
			return nil
		case err != nil && x.r.Context().Err() != nil:
			return &failure{class: ClassClient, err: fmt.Errorf("client went away: %w", err)}
		case err != nil:
			return &failure{class: ClassUpstreamAfter, err: fmt.Errorf("read the answer of %s: %w", a.backend.Address(), err)}
		}
	}
}

// pass writes a piece of the body to the client.
func (x *exchange) pass(piece []byte, flush bool) *failure {
	_, err := x.w.Write(piece)
	if errors.Is(err, http.ErrContentLength) {
		return &failure{class: ClassUpstreamAfter, err: err} // cannot be: net/http cuts what it reads to the length
	}
	if err == nil && flush {
		err = x.rc.Flush()
	}
	if err != nil {
		return &failure{class: ClassClient, err: fmt.Errorf("write to client: %w", err)}
	}
	return nil
}
