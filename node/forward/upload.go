package forward

import (
	"errors"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// errRetracted is what an attempt reads that has lost the body.
var errRetracted = errors.New("forward: the request's body was taken back")

// lingerTimeout is how long a client may take to stop sending, or to finish, after an answer that did not wait for its
// body. Cutting at once would destroy answers that have not been read yet (RFC 9112 section 9.6).
const lingerTimeout = 5 * time.Second

// upload is the body of a request, lent to one attempt after the other. Attempts read in net/http's goroutines, which may
// outlive both the attempt and the handler.
type upload struct {
	r        *http.Request
	trailer  http.Header // to be forwarded: announced fields without values, until the body's end fills them
	complete atomic.Bool // the body's end was seen
	duplex   bool        // net/http was told to leave the rest of the body to us

	// reading is held while the body is read, so that whoever has retracted it can wait for the last read to end.
	reading sync.Mutex
	// lent is the loan that is out; nil: none yet. Only the handler's goroutine uses it.
	lent *loan
}

func newUpload(r *http.Request) *upload {
	u := &upload{r: r}
	if r.ContentLength == 0 {
		u.complete.Store(true)
		return u
	}
	u.trailer = make(http.Header)
	for name := range r.Trailer {
		if forwardable(name) {
			u.trailer[name] = nil
		}
	}
	return u
}

// lend gives the body to a new attempt; nil where there is none.
func (u *upload) lend(rc *http.ResponseController) io.ReadCloser {
	if u.r.ContentLength == 0 {
		return nil
	}
	if !u.duplex && u.r.ProtoMajor == 1 {
		// Backends may answer before they have read everything: without this, net/http would first wait for the rest. It
		// fails on a ResponseWriter that is not the server's, and then there is no connection to keep in step either.
		u.duplex = rc.EnableFullDuplex() == nil
	}
	u.lent = &loan{upload: u}
	return u.lent
}

// unfinished says that the rest of the body still stands between an answer and the connection's next request.
func (u *upload) unfinished() bool { return u.duplex && !u.complete.Load() }

// retract takes the body back from the attempt that had it and reports whether it is as good as new.
func (u *upload) retract() bool {
	return u.lent == nil || u.lent.state.CompareAndSwap(untouched, retracted)
}

// end takes the body back for good. It must be called before the handler returns, since net/http goes on to use the
// connection; and if the body's end was not seen, the answer must have said that the connection closes.
func (u *upload) end(rc *http.ResponseController) {
	if u.lent != nil {
		u.lent.state.Store(retracted)
	}
	if !u.unfinished() {
		return // over HTTP/2, the end of a stream is the server's to arrange
	}
	// A read that waits for the client is ended by a deadline in the past: an attempt that failed has no use for it. Errors
	// mean that the connection is gone, which is as good.
	rc.SetReadDeadline(time.Unix(1, 0))
	u.reading.Lock()
	defer u.reading.Unlock()
	rc.SetReadDeadline(time.Now().Add(lingerTimeout))
}

// finish copies the trailers once the body's end was seen.
func (u *upload) finish() {
	for name, values := range u.r.Trailer {
		if values != nil && forwardable(name) {
			u.trailer[name] = values
		}
	}
	u.complete.Store(true)
}

// The states of a loan.
const (
	untouched int32 = iota
	begun
	retracted
)

// loan is the body in one attempt's hands. Its Close does not end the body: another attempt may want it.
type loan struct {
	upload *upload
	state  atomic.Int32
}

// Read is what net/http sends the body by.
func (l *loan) Read(p []byte) (int, error) {
	l.upload.reading.Lock()
	defer l.upload.reading.Unlock()
	if !l.state.CompareAndSwap(untouched, begun) && l.state.Load() != begun {
		return 0, errRetracted
	}
	n, err := l.upload.r.Body.Read(p)
	if err == io.EOF {
		l.upload.finish()
	}
	return n, err
}

// Close does nothing; the body belongs to the server.
func (l *loan) Close() error { return nil }
