package forward

import (
	"context"
	"errors"
	"net"
	"net/http"

	"github.com/pyserve/pyserve/node/upstream"
)

// Class says whose doing a failed request was, for logs and metrics.
type Class string

const (
	// ClassClient: the client asked for what cannot be had, or went away.
	ClassClient Class = "client"
	// ClassUpstreamBefore: the backend failed before anything of an answer had reached the client.
	ClassUpstreamBefore Class = "upstream_before_bytes"
	// ClassUpstreamAfter: the backend failed in the middle of its answer, and the client's connection was cut.
	ClassUpstreamAfter Class = "upstream_after_bytes"
	// ClassOurs: a defect or a limit of the proxy itself.
	ClassOurs Class = "ours"
)

// failure is why a request was not forwarded to its end. The client is shown status and sentence, never err.
type failure struct {
	class Class
	// 0: nothing can be answered any more, the connection is cut.
	status   int
	sentence string
	err      error

	// What decides on a retry.
	unsent   bool // no connection to the backend came about
	answered bool // something of an answer was received
	timeout  bool
}

func refused(status int, sentence string, err error) *failure {
	return &failure{class: ClassClient, status: status, sentence: sentence, err: err}
}

// upstreamFailure classes an error of an attempt. answered is whether anything of an answer had been received.
func upstreamFailure(ctx context.Context, err error, answered bool) *failure {
	f := &failure{class: ClassUpstreamBefore, status: http.StatusBadGateway, err: err, answered: answered}
	var dial *upstream.DialError
	var body *upstream.BodyError
	switch {
	case ctx.Err() != nil:
		// The client has gone: whatever else went wrong went wrong because of that.
		f.class, f.status = ClassClient, 0
		return f
	case errors.As(err, &body):
		f.class, f.status, f.sentence = ClassClient, http.StatusBadRequest, "The body of the request could not be read."
		return f
	case errors.As(err, &dial):
		f.unsent, f.sentence = true, "The backend could not be reached."
	case answered:
		f.sentence = "The backend's answer was not understood."
	default:
		f.sentence = "The backend closed the connection without an answer."
	}
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		f.timeout, f.status, f.sentence = true, http.StatusGatewayTimeout, "The backend did not answer in time."
	}
	return f
}
