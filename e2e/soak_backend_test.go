package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"log"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/gorilla/websocket"
)

// What a request of the soak says of itself and of its answer. The answer says whose it is with the same idField.
const (
	idField     = "X-Id"
	sizeField   = "X-Size"  // of the request's body; none: there is no body
	wantField   = "X-Want"  // size of the answer's body
	delayField  = "X-Delay" // before the answer, a time.Duration
	endField    = "X-End"   // the trailer of a message in chunks: its id
	chunksField = "X-Chunks"
	slowField   = "X-Slow"  // the answer's body comes little by little
	earlyField  = "X-Early" // the answer comes without a look at the request's body
)

// onePiece is what an answer of the backends has at most that leaves in one write. Of such an answer either nothing has
// come when the backend dies, or all.
const onePiece = 1 << 10

// mortal is a backend that can be killed, and comes back on its port.
type mortal struct {
	s    *soak
	name string
	port int
	tls  *tls.Config // nil: plain

	mu     sync.Mutex // guards what follows
	life   *http.Server
	listen net.Listener
	conns  map[*mortalConn]struct{} // nil: it is dead
	ended  chan struct{}            // closed when life has ended
}

// newMortal starts a backend that ends with the test.
func newMortal(s *soak, name string, config *tls.Config) *mortal {
	m := &mortal{s: s, name: name, port: freePort(s.t), tls: config}
	m.revive()
	s.t.Cleanup(func() { m.kill(false) })
	return m
}

// mortalConn is a connection that its backend can end from outside, upgraded ones included.
type mortalConn struct {
	*net.TCPConn
	m *mortal
}

func (c *mortalConn) Close() error {
	c.m.mu.Lock()
	delete(c.m.conns, c)
	c.m.mu.Unlock()
	return c.TCPConn.Close()
}

// mortalListener notes the connections of its backend.
type mortalListener struct {
	net.Listener
	m *mortal
}

func (l mortalListener) Accept() (net.Conn, error) {
	nc, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c := &mortalConn{nc.(*net.TCPConn), l.m}
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	if l.m.conns == nil { // killed meanwhile
		c.TCPConn.Close()
		return nil, net.ErrClosed
	}
	l.m.conns[c] = struct{}{}
	return c, nil
}

// revive has the backend listen again. Where somebody else was quicker to take the port, it waits.
func (m *mortal) revive() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.conns != nil {
		return
	}
	var l net.Listener
	for deadline := time.Now().Add(patience); ; {
		var err error
		if l, err = net.Listen("tcp", local(m.port)); err == nil {
			break
		}
		if time.Now().After(deadline) {
			m.s.mistake("backend %s does not get its port back: %v", m.name, err)
			return
		}
		pause(context.Background(), pollEvery)
	}
	m.listen, m.conns, m.ended = l, map[*mortalConn]struct{}{}, make(chan struct{})
	m.life = &http.Server{Handler: m, ReadHeaderTimeout: 2 * patience, ErrorLog: log.New(io.Discard, "", 0)}
	serving := net.Listener(mortalListener{l, m})
	if m.tls != nil {
		serving = tls.NewListener(serving, m.tls)
	}
	life, ended := m.life, m.ended
	go func() {
		defer close(ended)
		life.Serve(serving)
	}()
}

// kill ends the backend as the kernel ends a process: the port is free and all connections are closed; abruptly: by RST.
func (m *mortal) kill(abruptly bool) {
	m.mu.Lock()
	conns, life, ended := m.conns, m.life, m.ended
	m.conns = nil
	if conns != nil {
		m.listen.Close()
	}
	m.mu.Unlock()
	if conns == nil {
		return
	}
	for c := range conns {
		if abruptly {
			c.SetLinger(0)
		}
		c.TCPConn.Close()
	}
	life.Close()
	<-ended
}

func (m *mortal) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	m.s.serving.Add(1)
	defer m.s.serving.Add(-1)
	id := r.Header.Get(idField)
	if _, cut := m.s.unheard.Load(id); cut || id == "" {
		m.s.mistake("backend %s was sent the request %q, whose head never ended: %s %s %v", m.name, id, r.Method, r.RequestURI, r.Header)
	}
	switch {
	case websocket.IsWebSocketUpgrade(r):
		m.echo(w, r)
	case r.URL.Path == "/events":
		m.stream(w, r, id)
	default:
		m.answer(w, r, id)
	}
}

// answer takes the request's body and gives the answer that the request asks for.
func (m *mortal) answer(w http.ResponseWriter, r *http.Request, id string) {
	if r.Header.Get(earlyField) == "" && !m.receive(r, id) {
		panic(http.ErrAbortHandler)
	}
	if delay, err := time.ParseDuration(r.Header.Get(delayField)); err == nil && !pause(r.Context(), delay) {
		panic(http.ErrAbortHandler)
	}
	size, _ := strconv.Atoi(r.Header.Get(wantField))
	chunks := r.Header.Get(chunksField) != ""
	if size > onePiece || chunks {
		m.s.begun.Store(id, true)
	}
	h := w.Header()
	h.Set(idField, id)
	h.Set("Content-Type", "application/octet-stream")
	if chunks {
		h.Set("Trailer", endField)
	} else {
		h.Set("Content-Length", strconv.Itoa(size))
	}
	body := m.s.body(id, "down", size)
	if r.Header.Get(slowField) != "" {
		body = m.dribble(w, r, body)
	}
	if _, err := w.Write(body); err != nil {
		panic(http.ErrAbortHandler)
	}
	if chunks {
		h.Set(endField, id)
	}
}

// dribble sends the beginning of a body in small pieces, and gives the rest.
func (m *mortal) dribble(w http.ResponseWriter, r *http.Request, body []byte) (rest []byte) {
	for range 10 {
		n := min(len(body), 1000)
		if _, err := w.Write(body[:n]); err != nil {
			panic(http.ErrAbortHandler)
		}
		body = body[n:]
		if http.NewResponseController(w).Flush() != nil || !pause(r.Context(), 10*time.Millisecond) {
			panic(http.ErrAbortHandler)
		}
	}
	return body
}

// receive takes a request's body, and reports whether all of it came. What looks complete has to be.
func (m *mortal) receive(r *http.Request, id string) bool {
	size, err := strconv.Atoi(r.Header.Get(sizeField))
	if err != nil {
		size = 0
	}
	body := &comparison{want: m.s.body(id, "up", size)}
	_, err = io.Copy(body, r.Body)
	switch {
	case errors.Is(err, errWrongByte):
		m.s.mistake("the body of request %s: %v", id, err)
		return false
	case err != nil:
		return false // broken off
	}
	if missing := body.missing(); missing > 0 {
		m.s.mistake("the body of request %s looks complete, and %d of %d bytes are missing", id, missing, size)
	}
	if _, announced := r.Trailer[endField]; announced && r.Trailer.Get(endField) != id {
		m.s.mistake("the trailer of request %s is %v", id, r.Trailer)
	}
	return true
}

// event is the n-th of a stream.
func event(id string, n int) string { return fmt.Sprintf("data: %s %d\n\n", id, n) }

// stream sends as many events as are wanted.
func (m *mortal) stream(w http.ResponseWriter, r *http.Request, id string) {
	w.Header().Set(idField, id)
	w.Header().Set("Content-Type", "text/event-stream")
	events, _ := strconv.Atoi(r.Header.Get(wantField))
	for n := range events {
		io.WriteString(w, event(id, n))
		if http.NewResponseController(w).Flush() != nil || !pause(r.Context(), 5*time.Millisecond) {
			panic(http.ErrAbortHandler)
		}
	}
}

// echo sends every message back.
func (m *mortal) echo(w http.ResponseWriter, r *http.Request) {
	upgrader := websocket.Upgrader{CheckOrigin: func(*http.Request) bool { return true }}
	conn, err := upgrader.Upgrade(w, r, http.Header{idField: {r.Header.Get(idField)}})
	if err != nil {
		return // Upgrade has answered
	}
	defer conn.Close()
	for {
		kind, message, err := conn.ReadMessage()
		if err != nil {
			return
		}
		if conn.WriteMessage(kind, message) != nil {
			return
		}
	}
}

// body is the one body of its size for a request, up or down: another one than that of any other, as good as always.
func (s *soak) body(id, way string, size int) []byte {
	h := fnv.New64a()
	io.WriteString(h, id)
	io.WriteString(h, way)
	from := int(h.Sum64() % uint64(len(s.bytes)-size))
	return s.bytes[from : from+size]
}

var errWrongByte = errors.New("a wrong byte")

// comparison is written what has come, and compares every byte of it with what should have.
type comparison struct {
	want []byte
	have int
}

func (c *comparison) Write(p []byte) (int, error) {
	if len(p) > c.missing() {
		return 0, fmt.Errorf("%w: %d bytes too many", errWrongByte, len(p)-c.missing())
	}
	if !bytes.Equal(p, c.want[c.have:c.have+len(p)]) {
		return 0, fmt.Errorf("%w after byte %d of %d", errWrongByte, c.have, len(c.want))
	}
	c.have += len(p)
	return len(p), nil
}

func (c *comparison) missing() int { return len(c.want) - c.have }
