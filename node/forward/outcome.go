package forward

import (
	"net/http"

	"github.com/pyserve/pyserve/node/outlier"
	"github.com/pyserve/pyserve/node/upstream"
)

// observe tells the pool how an attempt at b has ended. What the client has brought about, or that this machine has run out of something,
// says nothing of the backend. An answer that has begun well has not ended yet: that is told by concluded.
func (x *exchange) observe(b *upstream.Backend, f *failure) {
	switch {
	case f == nil && outcomeOf(x.response.Status) == outlier.Fine:
		x.begunWell = b
	case f == nil:
		x.pool.Observe(b, outlier.Answered)
	case f.class == ClassUpstreamBefore && !upstream.Ours(f.err):
		x.pool.Observe(b, outlier.Unanswered)
	}
}

// concluded tells the pool how an answer has ended that had begun well. f is why it did not come to its end.
func (x *exchange) concluded(f *failure) {
	b := x.begunWell
	if b == nil {
		return
	}
	x.begunWell = nil
	outcome := outlier.Fine
	if f != nil && f.class == ClassUpstreamAfter {
		outcome = outlier.Unanswered
	}
	x.pool.Observe(b, outcome)
}

// outcomeOf says which statuses speak against a backend: those of its own making but for 501 and 505, which are about the request.
func outcomeOf(status int) outlier.Outcome {
	if status >= http.StatusInternalServerError && status != http.StatusNotImplemented && status != http.StatusHTTPVersionNotSupported {
		return outlier.Answered
	}
	return outlier.Fine
}
