package forward

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime/debug"

	"github.com/pyserve/pyserve/node/http1"
	"github.com/pyserve/pyserve/node/meter"
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

// Classes are all of them, in the order that a meter counts them.
func Classes() []string {
	return []string{string(ClassClient), string(ClassUpstreamBefore), string(ClassUpstreamAfter), string(ClassOurs)}
}

func (c Class) index() int {
	switch c {
	case ClassClient:
		return 0
	case ClassUpstreamBefore:
		return 1
	case ClassUpstreamAfter:
		return 2
	}
	return 3
}

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

const tooLong = "The body of the request is too long."

// bodyTooLong is the failure of a body that says beforehand that it is.
func (x *exchange) bodyTooLong() *failure {
	x.meter.Rejected(meter.Client, int(http1.BodyTooLong))
	return refused(http.StatusRequestEntityTooLarge, tooLong, http1.BodyTooLong)
}

func ours(err error) *failure {
	return &failure{class: ClassOurs, status: http.StatusInternalServerError, sentence: "The proxy failed.", err: err}
}

var errPanic = errors.New("panic")

// panicked is the error of a panic, with the stack of whoever has recovered its cause and calls this.
func panicked(cause any) error { return fmt.Errorf("%w: %v\n%s", errPanic, cause, debug.Stack()) }

var errClientGone = errors.New("the client has closed the connection")

// interruption is the failure that the sweeper brought about; nil: it did not.
func (x *exchange) interruption(err error) *failure {
	switch x.interrupted() {
	case causeClientGone:
		return &failure{class: ClassClient, err: errClientGone}
	case causeCut:
		return &failure{class: ClassOurs, err: errors.New("cut at the end of a drain")}
	case causeRequest:
		return &failure{class: ClassUpstreamBefore, status: http.StatusGatewayTimeout, timeout: true,
			sentence: "The request was not answered in time.", err: err}
	case causeTimeout:
		return &failure{class: ClassUpstreamBefore, status: http.StatusGatewayTimeout, timeout: true,
			sentence: "The backend did not answer in time.", err: err}
	case causeUpload:
		return x.stoodStill(err)
	}
	return nil
}

// stoodStill is the failure of a body that did not move: because the client did not send it, or the backend did not take it.
func (x *exchange) stoodStill(err error) *failure {
	if x.uploading { // it was interrupted, so it has ended or is about to
		x.outcome, x.uploading = <-x.uploaded, false
	}
	if x.outcome.client != nil {
		return &failure{class: ClassClient, status: http.StatusRequestTimeout, timeout: true,
			sentence: "The body of the request did not come in time.", err: x.outcome.client}
	}
	return &failure{class: ClassUpstreamBefore, status: http.StatusGatewayTimeout, timeout: true,
		sentence: "The backend did not take the request in time.", err: err}
}

// attemptFailure classes an error of an attempt. answered is whether anything of an answer had been received.
func (x *exchange) attemptFailure(err error, answered bool) *failure {
	if f := x.interruption(err); f != nil {
		f.answered = answered
		return f
	}
	if f := x.uploadFailure(); f != nil {
		f.answered = answered
		return f
	}
	f := &failure{class: ClassUpstreamBefore, status: http.StatusBadGateway, err: err, answered: answered}
	var reason http1.Reason
	switch {
	case errors.As(err, &reason) && reason != http1.Truncated:
		x.meter.Rejected(meter.Backend, int(reason))
		f.answered, f.sentence = true, "The backend's answer was not understood."
	case answered:
		f.sentence = "The backend's answer broke off."
	default:
		f.sentence = "The backend closed the connection without an answer."
	}
	return f
}

// dialFailure classes an error of a connect.
func (x *exchange) dialFailure(err error) *failure {
	if f := x.interruption(err); f != nil {
		return f
	}
	f := &failure{class: ClassUpstreamBefore, status: http.StatusBadGateway, sentence: "The backend could not be reached.", err: err, unsent: true}
	if isTimeout(err) {
		f.timeout, f.status, f.sentence = true, http.StatusGatewayTimeout, "The backend did not answer in time."
	}
	return f
}

func isTimeout(err error) bool {
	var timeout net.Error
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) ||
		errors.As(err, &timeout) && timeout.Timeout()
}

// clientError is what went wrong on the client's side while its request's body was read.
type clientError struct{ err error }

func (e *clientError) Error() string { return "read the request's body: " + e.err.Error() }
func (e *clientError) Unwrap() error { return e.err }

// uploadFailure is why the request's body did not come to its end, where that was not the backend's doing; nil: it was, or it
// did, or it is still under way.
func (x *exchange) uploadFailure() *failure {
	if x.uploading {
		select {
		case x.outcome = <-x.uploaded:
			x.uploading = false
		default:
			return nil
		}
	}
	err := x.outcome.client
	switch {
	case err == nil:
		return nil
	case errors.Is(err, errPanic):
		return ours(err)
	}
	f := &failure{class: ClassClient, status: http.StatusBadRequest, sentence: "The body of the request could not be read.", err: err}
	var reason http1.Reason
	switch {
	case errors.As(err, &reason):
		x.meter.Rejected(meter.Client, int(reason))
		f.status = reason.Status()
		if reason == http1.BodyTooLong {
			f.sentence = tooLong
		}
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		f.status = 0
	}
	return f
}

// RejectReasons are why messages are refused, in the order that a meter counts them.
func RejectReasons() []string {
	reasons := make([]string, http1.NumReasons)
	for i := range reasons {
		reasons[i] = http1.Reason(i).String()
	}
	return reasons
}
