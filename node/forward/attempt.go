package forward

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"time"

	"github.com/pyserve/pyserve/node/http1"
	"github.com/pyserve/pyserve/node/upstream"
)

// maxInterims bounds the 1xx answers passed on for one request: a backend may send them for ever.
const maxInterims = 64

var errTooManyInterims = errors.New("too many 1xx answers")

// send makes attempts until one is the last: it went well, or there must be no other. After it, x.response is the head of the
// final answer and x.conn the connection that its body comes from.
func (x *exchange) send() *failure {
	b, f := x.first()
	if f != nil {
		return f
	}
	if p := x.route.retries; p != nil { // not by what no backend has got: that is most where there is too much
		at := x.begun
		if x.pool.Bounded() { // and it may have waited
			at = time.Now()
		}
		p.budget.earn(x.shard, at)
	}
	for {
		x.takePlace()
		f := x.attempt(b)
		part, pool := x.part, x.pool
		next := x.another(f)
		if next == nil {
			x.spare()
			x.part, x.pool = part, pool // the answer is theirs
			if f != nil {
				x.closeBackend()
			}
			return f
		}
		x.closeBackend()
		x.counts().Retried(x.shard)
		x.tellRetry(b, next, f)
		b = next
	}
}

func (x *exchange) tellRetry(failed, next *upstream.Backend, f *failure) {
	if !x.logger.Enabled(context.Background(), slog.LevelDebug) {
		return
	}
	about := []any{"route", x.route.name, "request_id", string(x.origin.id), "failed", failed.Address(), "backend", next.Address()}
	if f != nil {
		about = append(about, "error", f.err)
	} else {
		about = append(about, "status", x.response.Status)
	}
	x.logger.Debug("request is tried again", about...)
}

func noBackend() *failure {
	return &failure{
		class: ClassUpstreamBefore, status: http.StatusServiceUnavailable, sentence: "No backend is healthy for this request.",
	}
}

// attempt sends the request to b and reads the head of its answer.
func (x *exchange) attempt(b *upstream.Backend) *failure {
	x.concluded(nil) // of an answer that was given up for this
	x.tried = append(x.tried, b)
	x.beginAttempt()
	var begun time.Time
	if x.pool.Measures() {
		begun = time.Now()
	}
	f := x.askOnce(b)
	x.observe(b, f)
	if !begun.IsZero() {
		x.measured(b, time.Since(begun), f)
	}
	return f
}

// measured tells the pool how long the head of an answer took. How long it took a client to send its body is not the backend's doing.
func (x *exchange) measured(b *upstream.Backend, took time.Duration, f *failure) {
	switch {
	case f == nil && !x.pumped:
		x.pool.Took(b, took, false)
	case f != nil && f.class == ClassUpstreamBefore:
		if x.pumped {
			took = 0
		}
		x.pool.Took(b, took, true)
	}
}

// askOnce is attempt. The connection of one that fails is left as it is. A kept connection that turns out to be closed is replaced
// once by a new one, where the request may be repeated: that its owner closed it while it was idle says nothing about the
// backend.
func (x *exchange) askOnce(b *upstream.Backend) *failure {
	x.tries++
	x.asked = b
	kept := true
	for {
		f := x.connect(b, kept)
		if f != nil {
			return f
		}
		stale := x.conn.Reused()
		f = x.ask()
		if f != errNotQuiet {
			b.CountRequest()
		}
		if f == nil {
			return nil
		}
		if f == errNotQuiet {
			x.closeBackend()
			continue // with the next that is kept, or a new one
		}
		if f.class == ClassUpstreamBefore && !(stale && x.silent(f)) {
			b.CountFailure()
		}
		if !stale || !kept || !x.silent(f) || !idempotent(x.request.Method) || x.route.retries.never() {
			return f
		}
		x.closeBackend()
		kept = false
	}
}

// silent says that a connection ended as one does that was closed while it was idle.
func (x *exchange) silent(f *failure) bool {
	return f.class == ClassUpstreamBefore && !f.answered && !f.timeout && !x.pumped && x.interims == 0
}

// errNotQuiet says that a kept connection has ended or said something while it was idle. What a backend has sent then, such as
// a 408 before it closes or the body of an answer that has none, would be read as the answer to this request. Nothing was sent.
var errNotQuiet = &failure{class: ClassUpstreamBefore, unsent: true}

// connect takes a kept connection, or opens one. Whether a kept one is as it was left, ask finds out.
func (x *exchange) connect(b *upstream.Backend, kept bool) *failure {
	if kept {
		if c := b.Take(); c != nil {
			return x.use(c)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), x.connectTimeout())
	defer cancel()
	x.dialing.Store(&cancel)
	defer x.dialing.Store(nil)
	if !x.arm(&x.main, phaseAnswer, never) {
		return x.dialFailure(context.Canceled)
	}
	c, err := b.Open(ctx)
	if err != nil {
		return x.dialFailure(err)
	}
	return x.use(c)
}

// use makes c the attempt's connection.
func (x *exchange) use(c *upstream.Conn) *failure {
	x.conn = c
	x.backend.Store(c)
	if !x.arm(&x.main, phaseAnswer, x.within(x.route.timeouts.Idle)) {
		x.closeBackend()
		return x.dialFailure(context.Canceled)
	}
	return nil
}

// closeBackend ends the attempt's connection, and with it the pump, which is waited for.
func (x *exchange) closeBackend() {
	if x.conn == nil {
		return
	}
	x.backend.Store(nil)
	x.conn.Close()
	x.endUpload()
	x.conn = nil
}

// endBackend gives the connection back, or ends it if it cannot be used again.
func (x *exchange) endBackend(fine bool) {
	if x.conn == nil {
		return
	}
	x.backend.Store(nil) // before the limit is taken back: who finds it due afterwards must not find a connection that is kept
	clear := x.arm(&x.main, phaseNone, 0)
	if !fine || !clear || !x.response.KeepAlive || !x.downBody.Done() || x.from != x.to || !x.outcome.complete {
		x.closeBackend()
		return
	}
	x.conn.Keep()
	x.conn = nil
}

// ask writes the request and reads heads until that of a final answer.
func (x *exchange) ask() *failure {
	x.from, x.to = headroom, headroom
	if err := x.appendRequestHead(x.conn.Backend()); err != nil {
		return headFailure(err)
	}
	complete, f := x.gather()
	switch {
	case f != nil:
		return f
	case !x.conn.Reused():
	case complete && x.conn.Asks():
		return x.askAtOnce()
	case !x.conn.Alive():
		return errNotQuiet
	}
	return x.askInTurn(x.out, complete)
}

// askAtOnce asks over a kept connection, with the whole request in one write.
func (x *exchange) askAtOnce() *failure {
	if !x.arm(&x.main, phaseAnswer, x.within(x.route.timeouts.ResponseHeader)) {
		return x.attemptFailure(context.Canceled, false)
	}
	x.outcome = uploadOutcome{complete: true}
	quiet, wrote, n, err := x.conn.Ask(x.out, x.back[x.to:])
	x.to += n
	switch {
	case !quiet:
		return errNotQuiet
	case n > 0:
		return x.awaitAnswer()
	case wrote == len(x.out):
		return x.unanswered(err, false)
	case err != nil:
		return x.unwritten(err)
	}
	if !x.arm(&x.main, phaseAnswer, x.within(x.route.timeouts.Idle)) { // the backend takes its time, but takes it
		return x.attemptFailure(context.Canceled, false)
	}
	return x.askInTurn(x.out[wrote:], true)
}

// askInTurn writes out, then the rest of the body where that is not complete, and reads the answer.
func (x *exchange) askInTurn(out []byte, complete bool) *failure {
	if _, err := x.conn.Write(out); err != nil {
		return x.unwritten(err)
	}
	if !complete {
		x.keepBody(x.out[len(x.out)-int(x.received):])
		if f := x.startUpload(); f != nil {
			return f
		}
		return x.awaitAnswer()
	}
	x.outcome = uploadOutcome{complete: true}
	if !x.arm(&x.main, phaseAnswer, x.within(x.route.timeouts.ResponseHeader)) {
		return x.attemptFailure(context.Canceled, false)
	}
	return x.awaitAnswer()
}

// unwritten goes on where the request could not be written: the backend may have answered before it closed, "413" most of all.
func (x *exchange) unwritten(err error) *failure {
	if f := x.interruption(err); f != nil {
		return f
	}
	x.outcome = uploadOutcome{backend: fmt.Errorf("send the request: %w", err)}
	return x.awaitAnswer()
}

// gather puts what there is of the body behind the head, and reports whether that is all of it.
func (x *exchange) gather() (complete bool, f *failure) {
	x.received, x.outcome = 0, uploadOutcome{} // there may have been an attempt before
	if x.body.whole.Load() {
		x.out, x.received = append(x.out, x.body.wire...), int64(len(x.body.wire))
		return true, nil
	}
	x.peer.rewind()
	done := x.request.Framing == http1.None
	for !done {
		wire, last, err := x.peer.pending()
		if err != nil {
			x.outcome = uploadOutcome{client: &clientError{err}}
			return false, x.uploadFailure()
		}
		if len(wire) == 0 && !last {
			break
		}
		x.received += int64(len(wire))
		x.out = append(x.out, wire...)
		done = last
	}
	return done, nil
}

// awaitAnswer reads heads until that of a final answer, and passes on the 1xx before it.
func (x *exchange) awaitAnswer() *failure {
	began := x.to != x.from
	for {
		x.response.Reset()
		n, f := x.readAnswerHead(&began)
		if f != nil {
			return f
		}
		x.from += n
		if !x.response.Interim() {
			break
		}
		if f := x.passInterim(); f != nil {
			return f
		}
	}
	if x.response.Status == http.StatusSwitchingProtocols && !x.upgrade {
		return x.attemptFailure(errUnaskedSwitch, true)
	}
	if x.accessLog != nil {
		x.upstreamTook = time.Since(x.begun)
	}
	x.downBody.Reset(&x.response.Head)
	return nil
}

var errUnaskedSwitch = fmt.Errorf("status 101 unasked: %w", http1.BadStatus)

// readAnswerHead reads one head.
func (x *exchange) readAnswerHead(began *bool) (int, *failure) {
	for {
		n, err := x.response.Parse(x.back[x.from:x.to], x.request.Method)
		if err != nil {
			return 0, x.attemptFailure(fmt.Errorf("read the answer: %w", err), true)
		}
		if n > 0 {
			return n, nil
		}
		if x.to == len(x.back) {
			x.growBack()
		}
		m, err := x.conn.Read(x.back[x.to:])
		x.to += m
		*began = *began || m > 0
		if m == 0 {
			return 0, x.unanswered(err, *began)
		}
	}
}

// unanswered is the failure of an answer that could not be read to the end of its head.
func (x *exchange) unanswered(err error, began bool) *failure {
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return x.attemptFailure(fmt.Errorf("read the answer: %w", err), began)
}

// growBack makes room behind a head that fills the buffer. Parse bounds heads, so this happens twice at most.
func (x *exchange) growBack() {
	bigger := make([]byte, headroom+http1.MaxHead+(x.to-x.from)/2)
	x.to = headroom + copy(bigger[headroom:], x.back[x.from:x.to])
	x.back, x.from = bigger, headroom
}

// passInterim passes on a 1xx answer (RFC 9110 section 15.2). HTTP/1.0 knows none.
func (x *exchange) passInterim() *failure {
	if x.interims++; x.interims > maxInterims {
		return x.attemptFailure(errTooManyInterims, true)
	}
	if x.request.Minor == 0 {
		return nil
	}
	if err := x.peer.interim(); err != nil {
		if f := x.interruption(err); f != nil {
			return f
		}
		return &failure{class: ClassClient, err: fmt.Errorf("pass on a 1xx answer: %w", err)}
	}
	return nil
}
