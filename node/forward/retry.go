package forward

import (
	"sync/atomic"
	"time"

	"github.com/pyserve/pyserve/node/http1"
	"github.com/pyserve/pyserve/node/upstream"
	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

// retries are a route's that says when to try again. They are shared by all requests and changed by none.
type retries struct {
	attempts       int
	connectFailure bool
	statuses       [10]uint64 // a bit for each below 640
	perTry         time.Duration
	percent        uint32
	budget         *budget
}

func retriesOf(r *resourcev1.Retries) *retries {
	if r == nil {
		return nil
	}
	p := &retries{
		attempts: int(r.GetAttempts()), connectFailure: r.GetConnectFailure(), perTry: r.GetPerTryTimeout().AsDuration(),
		percent: r.GetBudgetPercent(), budget: newBudget(time.Now()),
	}
	for _, status := range r.GetStatuses() {
		if status < 64*uint32(len(p.statuses)) {
			p.statuses[status/64] |= 1 << (status % 64)
		}
	}
	return p
}

func (p *retries) has(status int) bool {
	return uint(status) < uint(64*len(p.statuses)) && p.statuses[status/64]>>(status%64)&1 != 0
}

// never says that no request is to be sent twice for whatever reason.
func (p *retries) never() bool { return p != nil && p.attempts == 0 }

// idempotent says whether a request may be repeated when nobody knows what became of it (RFC 9110 section 9.2.2).
func idempotent(m http1.Method) bool {
	switch m {
	case http1.GET, http1.HEAD, http1.OPTIONS, http1.TRACE, http1.PUT, http1.DELETE:
		return true
	}
	return false
}

// another is the backend for one more attempt; nil: there must be none, and what the last one has come to is the answer. f is how
// that failed; nil: its answer is in x.response, of which nothing has gone to the client.
func (x *exchange) another(f *failure) *upstream.Backend {
	p := x.route.retries
	switch {
	case p == nil:
		return x.secondChance(f)
	case x.tries > p.attempts || !x.mayRepeat(f) || !p.wants(x, f):
		return nil
	}
	next := x.nextBackend(f)
	if next == nil {
		return nil
	}
	if !p.budget.spend(p.percent, time.Now()) {
		x.counts().RetryDenied(x.shard)
		return nil
	}
	if !x.regain(f) {
		return nil
	}
	return next
}

// secondChance is for routes that say nothing of retries. Nothing of an answer may have come, and the body must be as good as new.
// Where nothing was sent, any request may be repeated; otherwise an idempotent one, and if there is no other backend then on the
// same: what failed may have been a restart. A backend that did not answer in time has probably got the request, and one that is
// too slow is not helped by asking twice.
func (x *exchange) secondChance(f *failure) *upstream.Backend {
	if f == nil || x.tries > 1 || f.class != ClassUpstreamBefore || f.answered || x.pumped || x.interims > 0 || x.interrupted() != causeNone {
		return nil
	}
	if !f.unsent && (f.timeout || !idempotent(x.request.Method)) {
		return nil
	}
	return x.nextBackend(f)
}

// nextBackend is one that was not asked yet. Where there is none, and the last one may get over what it has, it is one that was
// asked: another than the last where that is possible.
func (x *exchange) nextBackend(f *failure) *upstream.Backend {
	if b := x.pick(x.tried); b != nil || f != nil && f.unsent {
		return b
	}
	last := x.tried[len(x.tried)-1:]
	if b := x.pick(last); b != nil {
		return b
	}
	return last[0]
}

// wants says whether the route is for trying again after this. The status is what the client would be answered, whether it is the
// backend that says so or the proxy.
func (p *retries) wants(x *exchange, f *failure) bool {
	if f == nil {
		return p.has(x.response.Status)
	}
	return p.has(f.status) || p.connectFailure && (f.unsent || !f.answered && !f.timeout)
}

// mayRepeat says whether nobody would find out that the request was sent twice, or does not mind. A body that is under way must be
// one that can be kept: see regain.
func (x *exchange) mayRepeat(f *failure) bool {
	switch {
	case f != nil && f.class != ClassUpstreamBefore, x.interims > 0:
		return false
	case (f == nil || !f.unsent) && !idempotent(x.request.Method):
		return false
	}
	if c := x.interrupted(); c != causeNone && c != causeTimeout || x.upload.due.Load() < 0 || x.front.now.Load() >= x.end.Load() {
		return false
	}
	switch {
	case !x.pumped:
		return true
	case !x.uploading || f == nil && x.request.Framing != http1.Length: // an answer is lost once its connection is closed
		return x.body.whole.Load()
	}
	return x.request.ContentLength <= maxKept // -1 for chunks
}

// maxKept is how much of a request's body is kept for another attempt, in bytes as they are sent.
const maxKept = 64 << 10

// keptBody is a request's body while it may have to be sent again. It is the pump's as long as that runs.
type keptBody struct {
	on    bool // what is taken from the client is kept
	wire  []byte
	whole atomic.Bool // it is all of it
}

// keep takes in a piece, and gives up where there is too much.
func (k *keptBody) keep(wire []byte, done bool) {
	if !k.on {
		return
	}
	if len(k.wire)+len(wire) > maxKept {
		k.on, k.wire = false, k.wire[:0]
		return
	}
	k.wire = append(k.wire, wire...)
	k.whole.Store(done)
}

func (k *keptBody) reset() {
	if cap(k.wire) > inSize {
		k.wire = nil
	}
	k.on, k.wire = false, k.wire[:0]
	k.whole.Store(false)
}

// keepBody begins to keep the body, of which the first bytes are in wire, where the request might be sent again.
func (x *exchange) keepBody(wire []byte) {
	if p := x.route.retries; p != nil && p.attempts > 0 && idempotent(x.request.Method) {
		x.body.on = true
		x.body.keep(wire, false)
	}
}

// regain ends the attempt and has what came from the client ready for another one. False: it is not to be had.
//
// A pump that is at it is not interrupted: what the client sends is read on, for it can be sent once only. The wait has the limits
// of an upload, and that of the request.
func (x *exchange) regain(f *failure) bool {
	if x.interrupted() == causeTimeout { // of the attempt's, which is over
		x.cause.Store(uint32(causeNone))
		x.main.set(phaseAnswer, never)
	}
	if x.uploading {
		if !x.arm(&x.main, phaseUpload, never) {
			return false
		}
		x.conn.Close()
		x.outcome, x.uploading = <-x.uploaded, false
	}
	if x.interrupted() != causeNone || x.pumped && !x.body.whole.Load() {
		return false
	}
	if f == nil {
		x.discard()
	}
	x.closeBackend()
	return true
}

// discard is done with the answer of an attempt. The connection is kept where the rest of it is there already.
func (x *exchange) discard() {
	for n := -1; n != 0 && !x.downBody.Done(); x.from += n {
		var err error
		if _, n, err = x.downBody.Next(x.back[x.from:x.to]); err != nil {
			break
		}
	}
	x.endBackend(true)
}

// within is a limit for the attempt under way, d from now; for 0, that of the attempt as a whole.
func (x *exchange) within(d time.Duration) int64 {
	return min(x.front.after(d), x.attemptEnd)
}

// beginAttempt sets the limit of the attempt as a whole.
func (x *exchange) beginAttempt() {
	x.attemptEnd = never
	if p := x.route.retries; p != nil {
		x.attemptEnd = x.front.after(p.perTry)
	}
}

// connectTimeout is how long a connection may take to be opened.
func (x *exchange) connectTimeout() time.Duration {
	d := x.route.timeouts.Connect
	if p := x.route.retries; p != nil && p.perTry > 0 {
		d = min(d, p.perTry)
	}
	return d
}
