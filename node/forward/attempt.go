package forward

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"net/url"
	"sync/atomic"

	"github.com/pyserve/pyserve/node/upstream"
)

// maxInterims bounds the 1xx answers passed on for one request: a backend may send them for ever.
const maxInterims = 64

var errTooManyInterims = errors.New("forward: too many 1xx answers")

// answer is the head of a backend's answer, with its body to be read.
type answer struct {
	*http.Response
	backend *upstream.Backend
	host    string // the Host that the backend was sent

	// Of an upgrade: the connection, and what was read from it beyond the answer's head. Otherwise nil.
	conn   net.Conn
	reader *bufio.Reader
}

// attempt sends the request to one backend.
type attempt func(ctx context.Context, b *upstream.Backend) (*answer, *failure)

// send makes one attempt and, where that is safe, a second one. The answer's body must be closed if there is one.
func (x *exchange) send(ctx context.Context, try attempt) (*answer, *failure) {
	first := x.route.pool.Pick(nil)
	if first == nil {
		return nil, &failure{
			class: ClassUpstreamBefore, status: http.StatusServiceUnavailable, sentence: "No backend is healthy for this request.",
		}
	}
	a, f := try(ctx, first)
	if f == nil {
		return a, nil
	}
	second := x.another(first, f)
	if second == nil {
		return nil, f
	}
	x.counts().retries.Inc()
	x.logger.Debug("request is tried again", "route", x.route.name, "request_id", x.origin.id,
		"failed", first.Address(), "backend", second.Address(), "error", f.err)
	return try(ctx, second)
}

// another is the backend for a second attempt; nil: there must be none. Nothing of an answer may have come, and the body
// must be as good as new. Where nothing was sent, any request may be repeated; otherwise an idempotent one, and if there is
// no other backend then on the same: what failed may have been a connection that was kept too long. A backend that did not
// answer in time has probably got the request, and one that is too slow is not helped by asking twice.
func (x *exchange) another(first *upstream.Backend, f *failure) *upstream.Backend {
	if f.class == ClassClient || f.class == ClassOurs || f.answered || !x.upload.retract() {
		return nil
	}
	tried := []*upstream.Backend{first}
	if f.unsent {
		return x.route.pool.Pick(tried)
	}
	if f.timeout || !idempotent(x.r.Method) {
		return nil
	}
	if other := x.route.pool.Pick(tried); other != nil {
		return other
	}
	return first
}

// outgoing is the request as b is to be sent it. Attempts share its header, which nobody changes.
func (x *exchange) outgoing(ctx context.Context, b *upstream.Backend) (*http.Request, error) {
	decoded, err := url.PathUnescape(x.path)
	if err != nil {
		return nil, err // cannot be: the path is in normal form
	}
	out := (&http.Request{
		Method: x.r.Method,
		// net/http sends RawPath if it is an encoding of Path, and a path in normal form always is.
		URL: &url.URL{
			Scheme: "http", Host: b.Address(), Path: decoded, RawPath: x.path,
			RawQuery: x.target.query, ForceQuery: x.target.hasQuery,
		},
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header:        x.header,
		Host:          b.Authority(),
		ContentLength: x.r.ContentLength,
		Trailer:       x.upload.trailer,
	}).WithContext(ctx)
	if x.route.preserveHost {
		out.Host = x.r.Host
	}
	if body := x.upload.lend(x.rc); body != nil {
		out.Body = body // not assigned when nil: an interface that holds a nil pointer is a body
	}
	return out, nil
}

// roundTrip is an attempt over the backend's kept connections.
func (x *exchange) roundTrip(ctx context.Context, b *upstream.Backend) (*answer, *failure) {
	var reached, answered atomic.Bool
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GetConn:              func(string) { reached.Store(true) },
		GotFirstResponseByte: func() { answered.Store(true) },
		Got1xxResponse:       x.interim,
	})
	out, err := x.outgoing(ctx, b)
	if err != nil {
		return nil, ours(err)
	}
	response, err := b.RoundTrip(out)
	switch {
	case err != nil && !reached.Load() && ctx.Err() == nil:
		return nil, ours(err) // net/http did not like the request
	case err != nil:
		return nil, upstreamFailure(ctx, err, answered.Load())
	case response.StatusCode < 200:
		response.Body.Close()
		return nil, upstreamFailure(ctx, fmt.Errorf("answered with status %d unasked", response.StatusCode), true)
	}
	return &answer{Response: response, backend: b, host: out.Host}, nil
}

func ours(err error) *failure {
	return &failure{class: ClassOurs, status: http.StatusInternalServerError, sentence: "The proxy failed.", err: err}
}

// interim passes on a 1xx answer (RFC 9110 section 15.2). It is called by net/http's goroutines, perhaps after the attempt
// has failed and something else was answered.
func (x *exchange) interim(code int, header textproto.MIMEHeader) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	// "100 Continue" is sent by the server itself, when the first byte of the body is asked for. HTTP/1.0 knows no 1xx.
	if code == http.StatusContinue || x.status != 0 || !x.r.ProtoAtLeast(1, 1) {
		return nil
	}
	if x.interims++; x.interims > maxInterims {
		return errTooManyInterims
	}
	final := x.w.Header()
	kept := final.Clone()
	clear(final)
	maps.Copy(final, http.Header(header))
	dropHopByHop(final)
	x.w.WriteHeader(code)
	clear(final)
	maps.Copy(final, kept)
	return nil
}
