package forward

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pyserve/pyserve/node/http1"
	"github.com/pyserve/pyserve/node/meter"
)

const (
	// continueTimeout is how long a body is held back that the client sends only when it is asked to, where the backend says
	// nothing (RFC 9110 section 10.1.1). In HTTP/1 the client decides on that.
	continueTimeout = time.Second
	// endTimeout is how long a stream is kept open behind its answer for a client that has announced trailers.
	endTimeout = time.Second
)

// streamWriter is what the server's ResponseWriter can do.
type streamWriter interface {
	http.ResponseWriter
	deadlines
	FlushError() error
}

// stream is one request over HTTP/2. It is the peer of its exchange.
type stream struct {
	watch
	front    *Front
	x        *exchange
	w        streamWriter
	r        *http.Request
	in       *intake
	patience atomic.Int64 // how long the socket may be full when a body stands still, nanoseconds
	stale    func() bool
	read     int64
	expected *expectation  // nil: the client sends its body without being asked
	key      string        // of a WebSocket; empty: it is none
	joined   *streamConn   // the client's side of a tunnel
	held     bool          // by the server: the end of the answer's body
	restTime time.Duration // for the client to take that
}

// serveStream carries one request.
func (f *Front) serveStream(w http.ResponseWriter, r *http.Request, in *intake, o *origin, stale func() bool) {
	s := &stream{front: f, w: w.(streamWriter), r: r, in: in, stale: stale, restTime: writeTimeout}
	s.patience.Store(int64(writeTimeout))
	s.client, s.over = s, r.Context()
	if r.ContentLength != 0 && r.Header[expectKey] != nil {
		s.expected = newExpectation()
	}
	number := f.numbers.Add(1)
	f.watch(&s.watch, number)
	defer f.forget(&s.watch)
	s.begin()
	s.x = f.take(f, &s.watch, s, number)
	s.x.reset()
	s.x.origin.peer, s.x.origin.secure = o.peer, o.secure
	answered := s.carry()
	f.giveBack(s.x)
	if s.joined != nil {
		answered = s.joined.serve(r.Body)
	}
	s.awaitEnd(answered)
	if !answered {
		panic(http.ErrAbortHandler) // resets the stream
	}
	s.limitRest()
}

// limitRest bounds the last wait for the client's window. The end of a body, up to 4 KiB, is sent by the server when this goroutine
// has left the handler, and the sweeper does not see it there.
func (s *stream) limitRest() {
	if s.held {
		s.w.SetWriteDeadline(time.Now().Add(s.restTime))
	}
}

// awaitEnd waits until a client that has announced trailers has ended the stream: see intake. Its answer is there already, but
// for its end. A client that sends no trailers may send on or not, and one that sends them unannounced is not waited for: that
// would hold up every answer that comes before its request has ended.
func (s *stream) awaitEnd(answered bool) {
	note := s.r.Header[streamKey]
	ended := s.in.ending(note)
	if ended == nil {
		return
	}
	if answered {
		s.w.FlushError() // what keeps it from being sent ends the wait as well
	}
	timer := time.NewTimer(endTimeout)
	defer timer.Stop()
	select {
	case <-ended:
	case <-s.r.Context().Done():
	case <-timer.C:
	}
	s.in.forget(note)
}

// carry reports whether the client got an answer.
func (s *stream) carry() bool {
	x := s.x
	if err := s.head(); err != nil {
		return s.reject(err)
	}
	f := x.carry()
	return f == nil || f.status != 0
}

// reject answers for a head that cannot be one of HTTP/1.
func (s *stream) reject(err error) bool {
	x := s.x
	x.begun = time.Now()
	x.readOrigin()
	f := refused(http.StatusBadRequest, "The request was not understood.", err)
	var reason http1.Reason
	if errors.As(err, &reason) {
		f.status, f.sentence = reason.Status(), "The request was not understood: "+reason.String()+"."
		s.front.meter.Rejected(meter.Client, int(reason))
	} else if errors.Is(err, errUnknownProtocol) {
		f.status, f.sentence = http.StatusNotImplemented, "Only WebSocket is supported as a protocol of CONNECT."
	}
	x.fail(f)
	x.account()
	return f.status != 0
}

// head reads the head that intake has written with the parser of HTTP/1: what would be two lines, or two requests, behind us is
// refused by the same rules (RFC 9113 section 10.3). Of a request that is refused already, it is read for the answer.
func (s *stream) head() error {
	out, why := readHead(s.x.in[:0], s.r.Header[headKey][0])
	if protocol := s.r.Header[protocolKey]; protocol != nil && why == nil {
		if why = s.connect(protocol[0]); why == nil {
			out = s.appendHandshake(out)
		}
	}
	err := s.parse(http1.AppendHeadEnd(out))
	if err != nil {
		s.x.request.Reset()
	}
	if why != nil {
		return why
	}
	return err
}

// parse reads the head that is in the exchange's buffer, or in what that has grown to.
func (s *stream) parse(head []byte) error {
	x := s.x
	x.have = len(head)
	x.in = head[:cap(head)]
	x.request.Reset()
	n, err := x.request.Parse(head)
	if err == nil && n != len(head) {
		err = http1.BadRequestLine // a head within the head: AppendField lets none pass
	}
	x.headEnd, x.at = n, n
	return err
}

func (s *stream) version() string { return "2.0" }

// rewind does nothing: pending takes nothing.
func (s *stream) rewind() {}

// pending has nothing: whether something is there cannot be told without waiting.
func (s *stream) pending() (wire []byte, done bool, err error) { return nil, false, nil }

// receive reads the body, and puts it into chunks where its length is not known.
func (s *stream) receive() (wire []byte, done bool, err error) {
	if err := s.awaitContinue(); err != nil {
		return nil, false, err
	}
	x, r := s.x, s.r
	x.growIn()
	start := x.headEnd + http1.MaxChunkHeader
	n, err := r.Body.Read(x.in[start : len(x.in)-chunkRoom])
	s.read += int64(n)
	if most := x.route.maxBody; most > 0 && s.read > most {
		return nil, false, http1.BodyTooLong
	}
	ended := err == io.EOF
	if err != nil && !ended {
		return nil, false, err
	}
	if r.ContentLength >= 0 {
		return x.in[start : start+n], ended || s.read == r.ContentLength, nil
	}
	begin := http1.PutChunkHeader(x.in[:start], int64(n))
	end := start + n
	if n > 0 {
		end += copy(x.in[end:], "\r\n")
	}
	if ended {
		tail, err := s.trailers()
		if err != nil {
			return nil, false, err
		}
		x.tail = append(append(x.tail[:0], x.in[begin:end]...), tail...)
		return x.tail, true, nil
	}
	return x.in[begin:end], false, nil
}

// growIn makes room for a body behind the head.
func (x *exchange) growIn() {
	if len(x.in)-x.headEnd < inSize/2 {
		bigger := make([]byte, x.headEnd+inSize)
		copy(bigger, x.in[:x.headEnd])
		x.in = bigger // the head goes on pointing into the old one
	}
}

// trailers is the last chunk with the trailers, by the rules of HTTP/1.
func (s *stream) trailers() ([]byte, error) {
	section := http1.AppendLastChunk(nil)
	for _, line := range s.r.Trailer[trailerKey] { // announced or not: see intake
		name, value, _ := strings.Cut(line, ": ")
		var err error
		if section, err = http1.AppendField(section, name, value); err != nil {
			return nil, err
		}
	}
	section = http1.AppendHeadEnd(section)
	body := &s.x.upBody
	body.Reset(&s.x.request.Head)
	if _, _, err := body.Next(section); err != nil {
		return nil, err
	}
	return appendTrailers(nil, body.Trailer()), nil
}

// expectation is a client's that sends its body only when it is asked to.
type expectation struct {
	once    sync.Once
	asked   chan struct{} // closed when it is
	refused chan struct{} // closed when nobody will ask
	final   atomic.Bool   // the final answer has begun
}

func newExpectation() *expectation {
	return &expectation{asked: make(chan struct{}), refused: make(chan struct{})}
}

var errNotAsked = errors.New("the client was not asked for the body")

// awaitContinue holds back the first read of the body, since the server asks for it when it is read. After a final answer nobody
// wants it any more, unless somebody says so.
func (s *stream) awaitContinue() error {
	e := s.expected
	if e == nil || s.read > 0 {
		return nil
	}
	timer := time.NewTimer(continueTimeout)
	defer timer.Stop()
	for {
		select {
		case <-e.asked:
			return nil
		case <-e.refused:
			return errNotAsked
		case <-timer.C:
		}
		if !e.final.Load() {
			return nil
		}
		if !s.arm(&s.upload, phaseUpload, never) {
			return errStoodStill
		}
	}
}

// SetReadDeadline and SetWriteDeadline end what waits for the client, where they are in the past.
func (s *stream) SetReadDeadline(t time.Time) error {
	if e := s.expected; e != nil && t.Equal(longAgo) {
		e.once.Do(func() { close(e.refused) })
	}
	return s.w.SetReadDeadline(t)
}

func (s *stream) SetWriteDeadline(t time.Time) error {
	if t.Equal(longAgo) && s.in.stalled(time.Duration(s.patience.Load())) {
		cutConn(s.in.Conn)
	}
	return s.w.SetWriteDeadline(t)
}

// ask has the body sent.
func (s *stream) ask() {
	if e := s.expected; e != nil {
		e.once.Do(func() { close(e.asked) })
	}
}
