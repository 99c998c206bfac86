//lint:file-ignore SA1019 http.Server, which is to take http2.Server's place, serves listeners, and sees TLS in a *tls.Conn alone.

package forward

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/textproto"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"

	_ "github.com/pyserve/pyserve/node/forward/xconnect" // or the server would refuse WebSockets
	"github.com/pyserve/pyserve/node/http1"
	"github.com/pyserve/pyserve/node/meter"
)

const (
	// maxStreams is how many requests a client may have under way on one connection.
	maxStreams = 250
	// maxHeaderBytes bounds a head as HTTP/2 counts it (RFC 9113 section 6.5.2), which is more than its bytes in HTTP/1.
	maxHeaderBytes = http1.MaxHead
	// After pingAfter without a frame a client is asked whether it is there, and has pingTimeout to answer.
	pingAfter, pingTimeout = 30 * time.Second, 15 * time.Second
	// stallTimeout is how long a client may leave its socket full, whatever the routes allow.
	stallTimeout = time.Minute
	// continueTimeout is how long a body is held back that the client sends only when it is asked to, where the backend says
	// nothing (RFC 9110 section 10.1.1). In HTTP/1 the client decides on that.
	continueTimeout = time.Second
	// endTimeout is how long a stream is kept open behind its answer for a client that has announced trailers.
	endTimeout = time.Second
)

// http2Server hands the requests of HTTP/2 connections to the forwarding of HTTP/1. The protocol is golang.org/x/net/http2's,
// with its limits against floods of resets, CONTINUATION frames and settings; only how much is ours to say.
type http2Server struct {
	front  *Front
	server http2.Server
	base   *http.Server

	// mu guards what follows.
	mu    sync.Mutex
	conns map[net.Conn]struct{}
}

func (h *http2Server) init(f *Front) {
	h.front = f
	h.conns = make(map[net.Conn]struct{})
	h.base = &http.Server{
		MaxHeaderBytes: maxHeaderBytes, IdleTimeout: f.idleTimeout, ReadHeaderTimeout: f.headTimeout,
		ErrorLog: slog.NewLogLogger(f.logger.Handler(), slog.LevelDebug), // clients that break off or speak nonsense
	}
	h.server = http2.Server{
		MaxConcurrentStreams: maxStreams, MaxReadFrameSize: maxFrame,
		IdleTimeout: f.idleTimeout, ReadIdleTimeout: pingAfter, PingTimeout: pingTimeout, WriteByteTimeout: stallTimeout,
		MaxUploadBufferPerConnection: 1 << 20, MaxUploadBufferPerStream: 256 << 10,
	}
	if err := http2.ConfigureServer(h.base, &h.server); err != nil {
		panic(err) // it is about cipher suites, of which none are given
	}
}

// ServeHTTP2 speaks HTTP/2 on conn, in the caller's goroutine and several more, until it ends, and closes it. stale is asked
// before each answer, by any of them: true ends the connection once the streams under way have ended. Nil: never.
func (f *Front) ServeHTTP2(conn *tls.Conn, stale func() bool) {
	f.enter()
	defer f.exit()
	number := f.numbers.Add(1)
	f.meter.Connected(number, 1)
	defer f.meter.Connected(number, -1)
	f.http2.serve(newIntake(conn, conn), stale)
}

// serve speaks HTTP/2 on a connection until it ends.
func (h *http2Server) serve(in *intake, stale func() bool) {
	h.mu.Lock()
	h.conns[in.Conn] = struct{}{}
	h.mu.Unlock()
	if h.front.cutAll.Load() {
		cutConn(in.Conn)
	}
	_, secure := in.Conn.(*tls.Conn)
	o := origin{peer: addressOf(in.Conn), secure: secure}
	var streams streamGroup
	h.server.ServeConn(in.server(), &http2.ServeConnOpts{
		BaseConfig: h.base,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if !streams.enter() {
				panic(http.ErrAbortHandler) // nobody is there any more
			}
			defer streams.running.Done()
			h.front.serveStream(w, r, in, &o, stale)
		}),
	})
	in.Close() // it mostly is
	streams.end()
	h.mu.Lock()
	delete(h.conns, in.Conn)
	h.mu.Unlock()
}

// streamGroup is the requests of a connection, which the server does not wait for when that has ended. The zero value is ready.
type streamGroup struct {
	running sync.WaitGroup
	mu      sync.Mutex // guards over, and that nothing enters running after it
	over    bool
}

// enter is false for a request that comes too late: its goroutine begins when it likes.
func (g *streamGroup) enter() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.over {
		return false
	}
	g.running.Add(1)
	return true
}

// end lets no more requests in and waits for those that are. They are told by the server that the client is gone.
func (g *streamGroup) end() {
	g.mu.Lock()
	g.over = true
	g.mu.Unlock()
	g.running.Wait()
}

// servePlain goes on with a connection whose client speaks HTTP/2 with prior knowledge (RFC 9113 section 3.3).
func (h *http2Server) servePlain(c *conn) {
	began := bytes.Clone(c.x.in[:c.x.have])
	if !c.arm(&c.main, phaseNone, 0) {
		return
	}
	c.release()
	c.x = nil
	h.serve(newIntake(c.nc, io.MultiReader(bytes.NewReader(began), c.nc)), c.stale)
}

// leave sends GOAWAY on every connection.
func (h *http2Server) leave() {
	h.base.Shutdown(context.Background()) // it knows no connection to wait for, and tells those of h.server
}

// cut closes every connection.
func (h *http2Server) cut() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for nc := range h.conns {
		cutConn(nc)
	}
}

// cutConn closes what is below TLS: the goodbye of TLS waits for clients that do not read.
func cutConn(nc net.Conn) {
	if secured, ok := nc.(*tls.Conn); ok {
		nc = secured.NetConn()
	}
	nc.Close()
}

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
	expected *expectation // nil: the client sends its body without being asked
	key      string       // of a WebSocket; empty: it is none
	joined   *streamConn  // the client's side of a tunnel
}

// serveStream carries one request.
func (f *Front) serveStream(w http.ResponseWriter, r *http.Request, in *intake, o *origin, stale func() bool) {
	s := &stream{front: f, w: w.(streamWriter), r: r, in: in, stale: stale}
	s.patience.Store(int64(writeTimeout))
	s.client = s
	if r.ContentLength != 0 && r.Header[expectKey] != nil {
		s.expected = newExpectation()
	}
	number := f.numbers.Add(1)
	f.watch(&s.watch, number)
	defer f.forget(&s.watch)
	s.begin() // before the client's going away can be noticed
	defer context.AfterFunc(r.Context(), s.abandon)()
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

// abandon is the client's going away, of which there is one notice. It may come when the stream has ended, and it must not be
// lost where a phase begins at the same moment.
func (w *watch) abandon() {
	w.shard.mu.Lock()
	defer w.shard.mu.Unlock()
	for due := w.main.due.Load(); w.list != none && due >= 0; due = w.main.due.Load() {
		w.expire(&w.main, due, causeClientGone)
	}
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
	x.request.Reset()
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

// head writes the request's head as HTTP/1 has it and reads it back with the parser of HTTP/1: what would be two lines, or two
// requests, behind us is refused by the same rules (RFC 9113 section 10.3).
func (s *stream) head() error {
	method, target, err := s.target()
	if err != nil {
		return err
	}
	out, err := http1.AppendRequestLine(s.x.in[:0], method, target, "", false)
	if err == nil {
		out, err = http1.AppendField(out, "Host", s.r.Host)
	}
	if err == nil {
		out, err = s.appendFields(out)
	}
	if err == nil {
		out, err = s.appendFraming(out)
	}
	if err != nil {
		return err
	}
	return s.parse(http1.AppendHeadEnd(out))
}

// target is what goes into the request line. That of a WebSocket is a GET.
func (s *stream) target() (method, target string, err error) {
	r := s.r
	protocol := r.Header[":protocol"]
	switch {
	case r.Host == "":
		return "", "", http1.MissingHost // RFC 9113 section 8.3.1: http and https have an authority
	case len(protocol) > 0 && r.Method != http.MethodConnect:
		return "", "", http1.BadMethod // RFC 8441 section 4
	case len(protocol) > 0:
		return http.MethodGet, r.RequestURI, s.connect(protocol[0])
	case r.Method == http.MethodConnect:
		return r.Method, r.Host, nil
	}
	return r.Method, r.RequestURI, nil
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

// appendFields writes the client's fields. The order of those with different names says nothing (RFC 9110 section 5.3).
func (s *stream) appendFields(out []byte) ([]byte, error) {
	for name, values := range s.r.Header {
		switch name {
		case "Host", "Content-Length", "Expect", expectKey, trailerKey, streamKey, ":protocol":
			continue // written otherwise
		case "Sec-Websocket-Key":
			if s.key != "" {
				continue // RFC 8441 section 5: it is no part of HTTP/2's handshake
			}
		}
		for _, value := range values {
			var err error
			if out, err = http1.AppendField(out, name, value); err != nil {
				return nil, err
			}
		}
	}
	return out, nil
}

// appendFraming writes how the body goes to the backend.
func (s *stream) appendFraming(out []byte) ([]byte, error) {
	r := s.r
	if s.key != "" {
		return s.appendHandshake(out), nil
	}
	out, err := s.appendExpectation(out)
	if err != nil {
		return nil, err
	}
	if declared := r.Header["Content-Length"]; declared != nil {
		return s.appendLength(out, declared)
	}
	if r.ContentLength == 0 {
		return out, nil
	}
	if len(r.Trailer) > 1 { // those that the client announced
		announced := slices.Sorted(maps.Keys(r.Trailer))
		announced = slices.DeleteFunc(announced, func(name string) bool { return name == trailerKey })
		if out, err = http1.AppendField(out, "Trailer", strings.Join(announced, ", ")); err != nil {
			return nil, err
		}
	}
	return append(out, "Transfer-Encoding: chunked\r\n"...), nil
}

// appendLength writes the length that the client declared, which has to be the body's (RFC 9113 section 8.1.1). That more or
// fewer bytes come in DATA frames is for the server to find.
func (s *stream) appendLength(out []byte, declared []string) ([]byte, error) {
	for _, value := range declared {
		n, err := strconv.ParseUint(value, 10, 63)
		switch {
		case err != nil:
			return nil, http1.BadContentLength
		case value != declared[0]:
			return nil, http1.DifferingContentLengths
		case int64(n) != s.r.ContentLength: // there is no body
			return nil, http1.Truncated
		}
	}
	return http1.AppendContentLength(out, s.r.ContentLength), nil
}

// appendExpectation passes Expect on.
func (s *stream) appendExpectation(out []byte) ([]byte, error) {
	var err error
	for _, value := range s.r.Header[expectKey] {
		if out, err = http1.AppendField(out, "Expect", value); err != nil {
			return nil, err
		}
	}
	return out, nil
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

// interim passes on a 1xx. A 100 the server sends itself.
func (s *stream) interim() error {
	if s.x.response.Status == http.StatusContinue {
		s.ask()
		return nil
	}
	if s.key != "" {
		return nil // what comes before the answer to CONNECT, few clients would expect
	}
	h := s.w.Header()
	s.fill(h)
	s.w.WriteHeader(s.x.response.Status)
	clear(h)
	return nil
}

func (s *stream) ask() {
	if e := s.expected; e != nil {
		e.once.Do(func() { close(e.asked) })
	}
}

// fill copies the end-to-end fields of the answer.
func (s *stream) fill(h http.Header) {
	x := s.x
	x.out, _ = x.appendResponseFields(x.out[:0])
	addLines(h, string(x.out))
	delete(h, "Upgrade") // the one that HTTP/1 lets pass, with 426
}

// addLines adds lines that http1 has checked. Names and values are parts of lines.
func addLines(h http.Header, lines string) {
	values := make([]string, 0, strings.Count(lines, "\r\n"))
	for line := range strings.SplitSeq(lines, "\r\n") {
		name, value, ok := strings.Cut(line, ": ")
		if !ok {
			continue // the last one, which is empty
		}
		name = textproto.CanonicalMIMEHeaderKey(name)
		if there := h[name]; there != nil {
			h[name] = append(there, value)
			continue
		}
		n := len(values)
		values = append(values, value)
		h[name] = values[n : n+1 : n+1]
	}
}

// relay passes on the final answer.
func (s *stream) relay() *failure {
	x := s.x
	if s.key != "" && x.response.Status/100 == 2 {
		return s.notSwitched()
	}
	h := s.w.Header()
	s.fill(h)
	if _, sent := h["Content-Type"]; !sent {
		h["Content-Type"] = nil // the server would guess one
	}
	s.sayClosing(h)
	if s.expected != nil {
		s.expected.final.Store(true)
	}
	if idle := x.route.timeouts.Idle; idle > 0 {
		s.patience.Store(int64(idle / 2)) // what is written at a time is little
	}
	if !s.arm(&s.main, phaseBody, s.front.after(x.route.timeouts.Idle)) {
		return x.relayFailure(context.Canceled)
	}
	x.status, x.headSent = x.response.Status, true
	s.w.WriteHeader(x.status)
	clear(h) // or what is announced as a trailer and is in the head, too, would be said again
	if x.from == x.to && !x.downBody.Done() {
		s.w.FlushError() // a client that has gone is noticed at the next write
	}
	for !x.downBody.Done() {
		if f := s.relayMore(); f != nil {
			return f
		}
	}
	addTrailers(h, x.downBody.Trailer())
	return nil
}

// addTrailers adds the trailers as the server knows them behind a head that was sent.
func addTrailers(h http.Header, t *http1.Fields) {
	for i, field := range t.List() {
		if !field.Hop {
			h.Add(http.TrailerPrefix+string(t.Name(i)), string(t.Value(i)))
		}
	}
}

// relayMore sends a piece of the body, or reads more.
func (s *stream) relayMore() *failure {
	x := s.x
	data, n, err := x.downBody.Next(x.back[x.from:x.to])
	x.from += n
	if err != nil {
		return x.nonsense(err)
	}
	if !s.arm(&s.main, phaseBody, s.front.after(x.route.timeouts.Idle)) {
		return x.relayFailure(context.Canceled)
	}
	if len(data) == 0 {
		if n > 0 || x.downBody.Done() {
			return nil
		}
		return x.readMore()
	}
	x.sent += int64(len(data))
	if _, err = s.w.Write(data); err == nil && !x.downBody.Done() {
		err = s.w.FlushError()
	}
	if err != nil {
		if f := x.interruption(err); f != nil {
			return f
		}
		return &failure{class: ClassClient, err: err}
	}
	return nil
}

// sayClosing makes the server send GOAWAY with this answer.
func (s *stream) sayClosing(h http.Header) {
	if s.front.leaving.Load() || s.stale != nil && s.stale() {
		h.Set("Connection", "close")
	}
}

// reply answers for the proxy itself.
func (s *stream) reply(status int, kind string, body []byte) error {
	x := s.x
	h := s.w.Header()
	clear(h)
	x.out = x.appendReplyFields(x.out[:0], status, kind, len(body))
	addLines(h, string(x.out))
	s.sayClosing(h)
	if !s.arm(&s.main, phaseBody, s.front.after(writeTimeout)) {
		s.main.due.Store(0) // it was the backend that was too slow
	}
	x.status, x.headSent = status, true
	s.w.WriteHeader(status)
	if s.r.Method == http.MethodHead {
		return nil
	}
	x.sent = int64(len(body))
	_, err := s.w.Write(body)
	return err
}
