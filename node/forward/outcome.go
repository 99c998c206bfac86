package forward

import (
	"net/http"

	"github.com/pyserve/pyserve/node/outlier"
	"github.com/pyserve/pyserve/node/upstream"
)

// observe tells the pool how an attempt at b has ended. What the client has brought about says nothing of the backend.
func (x *exchange) observe(b *upstream.Backend, f *failure) {
	switch {
	case f == nil:
		x.pool.Observe(b, outcomeOf(x.response.Status))
	case f.class == ClassUpstreamBefore || f.class == ClassUpstreamAfter:
		x.pool.Observe(b, outlier.Unanswered)
	}
}

// outcomeOf says which statuses speak against a backend: those of its own making but for 501 and 505, which are about the request.
func outcomeOf(status int) outlier.Outcome {
	if status >= http.StatusInternalServerError && status != http.StatusNotImplemented && status != http.StatusHTTPVersionNotSupported {
		return outlier.Answered
	}
	return outlier.Fine
}
