package e2e

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/gorilla/websocket"
)

// tally counts by kind of traffic.
type tally struct {
	mu     sync.Mutex // guards counts
	counts map[string]int
}

func (t *tally) add(kind string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.counts == nil {
		t.counts = map[string]int{}
	}
	t.counts[kind]++
}

func (t *tally) of(kind string) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.counts[kind]
}

func (t *tally) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var texts []string
	for _, kind := range slices.Sorted(maps.Keys(t.counts)) {
		texts = append(texts, fmt.Sprintf("%s %d", kind, t.counts[kind]))
	}
	return strings.Join(texts, ", ")
}

// order is a request, and the answer that it asks for.
type order struct {
	id, method, path string
	up, down         int // sizes of the bodies
	upChunks         bool
	downChunks       bool
	delay            time.Duration
	slow             bool // the answer comes little by little
	early            bool // the answer does not wait for the request's body
	expect           bool // the request's body waits for 100 Continue
}

// fields are those that tell the backend about it.
func (o order) fields() [][2]string {
	f := [][2]string{{idField, o.id}, {wantField, strconv.Itoa(o.down)}}
	if o.up > 0 {
		f = append(f, [2]string{sizeField, strconv.Itoa(o.up)})
	}
	if o.downChunks {
		f = append(f, [2]string{chunksField, "1"})
	}
	if o.slow {
		f = append(f, [2]string{slowField, "1"})
	}
	if o.early {
		f = append(f, [2]string{earlyField, "1"})
	}
	if o.expect {
		f = append(f, [2]string{"Expect", "100-continue"})
	}
	if o.delay > 0 {
		f = append(f, [2]string{delayField, o.delay.String()})
	}
	return f
}

// repeatable says whether it may be sent again, by somebody who has nothing of its body left.
func (o order) repeatable() bool { return o.method == http.MethodGet || o.method == http.MethodHead }

// head is the request's, for HTTP/1.1.
func (o order) head() string {
	text := fmt.Sprintf("%s %s HTTP/1.1\r\nHost: soak.example.com\r\n", o.method, o.path)
	for _, f := range o.fields() {
		text += f[0] + ": " + f[1] + "\r\n"
	}
	switch {
	case o.upChunks:
		text += "Transfer-Encoding: chunked\r\nTrailer: " + endField + "\r\n"
	case o.up > 0:
		text += "Content-Length: " + strconv.Itoa(o.up) + "\r\n"
	}
	return text + "\r\n"
}

// payload is the request's body as HTTP/1.1 has it, in chunks of any size where it is in chunks.
func (s *soak) payload(o order, r *rand.Rand) []byte {
	body := s.body(o.id, "up", o.up)
	if !o.upChunks {
		return body
	}
	var out []byte
	for len(body) > 0 {
		n := min(len(body), 1+r.IntN(1<<(1+r.IntN(16))))
		out = append(append(fmt.Appendf(out, "%x\r\n", n), body[:n]...), "\r\n"...)
		body = body[n:]
	}
	return fmt.Appendf(out, "0\r\n%s: %s\r\n\r\n", endField, o.id)
}

// wrong is an answer that no death of a backend excuses.
type wrong struct{ error }

func wrongly(format string, args ...any) error { return wrong{fmt.Errorf(format, args...)} }

// check reads an answer and compares all of it.
func (s *soak) check(response *http.Response, o order) error {
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(response.Body)
		return fmt.Errorf("status %d: %s", response.StatusCode, text)
	}
	if got := response.Header.Get(idField); got != o.id {
		return wrongly("the answer is one to %q", got)
	}
	if o.method == http.MethodHead {
		if response.ContentLength != int64(o.down) {
			return wrongly("the answer to HEAD has Content-Length %d, want %d", response.ContentLength, o.down)
		}
		o.down = 0
	}
	body := &comparison{want: s.body(o.id, "down", o.down)}
	_, err := io.Copy(body, response.Body)
	switch {
	case errors.Is(err, errWrongByte):
		return wrong{err}
	case err != nil:
		return fmt.Errorf("after %d of %d bytes of the answer: %w", body.have, o.down, err)
	case body.missing() > 0:
		return wrongly("the answer looks complete, and %d of %d bytes are missing", body.missing(), o.down)
	case o.downChunks && response.Trailer.Get(endField) != o.id:
		return wrongly("the answer's trailer is %v", response.Trailer)
	}
	return nil
}

// judge says whether an exchange may have ended so. A request that may be repeated has two attempts, on two backends: what
// excuses its loss are two outages while it was under way, or one after its answer had begun. One that may not be repeated
// is excused by one. Where nothing ever dies nothing is excused.
func (s *soak) judge(kind string, o order, began time.Time, err error) {
	_, answered := s.begun.LoadAndDelete(o.id)
	if err == nil {
		s.done.add(kind)
		return
	}
	met := 0
	if strings.HasPrefix(o.path, mixedRoute) {
		met = s.outages.since(began)
	}
	story := fmt.Sprintf("%s: %s %s %s, for %d and %d bytes, which took %s, with %d outages meanwhile (its answer was begun: %t): %v",
		kind, o.method, o.path, o.id, o.up, o.down, time.Since(began).Round(time.Millisecond), met, answered, err)
	var never wrong
	switch excusable := met > 1 || met == 1 && (answered || !o.repeatable()); {
	case !excusable || errors.As(err, &never):
		s.mistake("%s", story)
	case !answered && o.repeatable():
		s.t.Logf("excused by two outages: %s", story)
		fallthrough
	default:
		s.excused.add(kind)
	}
}

const (
	mixedRoute  = "/mixed"
	steadyRoute = "/steady"
	longTunnel  = "long tunnel"
)

// kind is one sort of traffic.
type kind struct {
	name   string
	weight int
	do     func(w *worker, name string)
}

// worker sends traffic through one node, one thing after the other.
type worker struct {
	*soak
	ctx    context.Context
	r      *rand.Rand
	name   string
	number int
	node   string // address
	wire   *wire  // of HTTP/1.1, kept between exchanges; nil: there is none
	h2     *http.Client
}

// traffic starts all workers. They end with ctx.
func (s *soak) traffic(ctx context.Context, running *sync.WaitGroup) {
	http1, http2, tunnels := 5, 3, 4
	if s.length <= soakTaste {
		http1, http2, tunnels = 3, 2, 2
	}
	for _, n := range s.cluster.nodes {
		client := s.http2Client()
		add := func(many int, name string, work func(*worker)) {
			for i := range many {
				name := fmt.Sprintf("%s-%s%d", n.name, name, i)
				stream := uint64(len(name))<<32 + uint64(n.listen[len(n.listen)-1])<<16 + uint64(name[3])<<8 + uint64(i)
				w := &worker{soak: s, ctx: ctx, r: rand.New(rand.NewPCG(s.seed, stream)), name: name, node: n.listen, h2: client}
				running.Go(func() { work(w) })
			}
		}
		add(http1, "a", func(w *worker) { w.work(kindsOfHTTP1()) })
		add(http2, "b", func(w *worker) { w.work(kindsOfHTTP2()) })
		add(tunnels, "t", (*worker).talk)
		s.t.Cleanup(client.CloseIdleConnections)
	}
}

// work does one thing after the other, chosen by weight.
func (w *worker) work(kinds []kind) {
	total := 0
	for _, k := range kinds {
		total += k.weight
	}
	for pause(w.ctx, time.Duration(1+w.r.IntN(4000))*time.Microsecond) {
		at := w.r.IntN(total)
		i := slices.IndexFunc(kinds, func(k kind) bool { at -= k.weight; return at < 0 })
		kinds[i].do(w, kinds[i].name)
	}
	w.hangUp()
	w.h2.CloseIdleConnections()
}

func (w *worker) hangUp() {
	if w.wire != nil {
		w.wire.conn.Close()
		w.wire = nil
	}
}

// order makes a request with an id of its own.
func (w *worker) order(method string, up, down int) order {
	w.number++
	return order{id: fmt.Sprintf("%s-%d", w.name, w.number), method: method, path: mixedRoute + "/x", up: up, down: down}
}

// chunky has one body or both in chunks, or none.
func (w *worker) chunky(o order) order {
	o.upChunks = o.up > 0 && w.r.IntN(2) == 0
	o.downChunks = w.r.IntN(2) == 0
	return o
}

// kindsOfHTTP1 are for connections of HTTP/1.1.
func kindsOfHTTP1() []kind {
	return []kind{
		{"small", 40, func(w *worker, name string) { w.exchange(name, w.order(http.MethodGet, 0, w.r.IntN(500))) }},
		{"16 KiB down", 8, func(w *worker, name string) { w.exchange(name, w.chunky(w.order(http.MethodGet, 0, 16<<10))) }},
		{"1 MiB down", 4, func(w *worker, name string) { w.exchange(name, w.chunky(w.order(http.MethodGet, 0, 1<<20))) }},
		{"16 KiB up", 6, func(w *worker, name string) { w.exchange(name, w.chunky(w.order(http.MethodPost, 16<<10, 100))) }},
		{"1 MiB up", 4, func(w *worker, name string) { w.exchange(name, w.chunky(w.order(http.MethodPost, 1<<20, 100))) }},
		{"both ways", 4, func(w *worker, name string) {
			w.exchange(name, w.chunky(w.order(http.MethodPut, 1+w.r.IntN(200<<10), w.r.IntN(200<<10))))
		}},
		{"late answer", 3, func(w *worker, name string) {
			o := w.order(http.MethodGet, 0, 300)
			o.delay = between(w.r, time.Millisecond, 300*time.Millisecond)
			w.exchange(name, o)
		}},
		{"answer bit by bit", 2, func(w *worker, name string) {
			o := w.order(http.MethodGet, 0, 50<<10)
			o.slow = true
			w.exchange(name, o)
		}},
		{"no body", 3, func(w *worker, name string) { w.exchange(name, w.order(http.MethodHead, 0, w.r.IntN(500))) }},
		{"early answer", 2, func(w *worker, name string) {
			o := w.chunky(w.order(http.MethodPost, 1+w.r.IntN(1<<20), 100))
			o.early = true
			w.exchange(name, o)
		}},
		{"expectation", 2, (*worker).expectation},
		{"pipelined", 4, (*worker).pipeline},
		{"slow client", 2, (*worker).slowly},
		{"events", 2, (*worker).events},
		{"WebSocket", 4, (*worker).webSocket},
		{"cut head", 4, (*worker).cutHead},
		{"cut upload", 3, (*worker).cutUpload},
		{"cut download", 3, (*worker).cutDownload},
		{"cut wait", 3, (*worker).cutWait},
	}
}

// wire is a connection of HTTP/1.1.
type wire struct {
	conn net.Conn
	raw  *net.TCPConn // conn, or what is under its TLS
	in   *bufio.Reader
}

// dial opens a connection. Nodes never die: that one cannot be opened is a mistake, and gives nil.
func (w *worker) dial() *wire {
	nc, err := net.DialTimeout("tcp", w.node, patience)
	if err != nil {
		w.mistake("%v", err)
		return nil
	}
	conn := nc
	if w.tls != nil {
		secure := tls.Client(nc, w.tls)
		conn = secure
		secure.SetDeadline(time.Now().Add(patience))
		if err := secure.Handshake(); err != nil {
			w.mistake("TLS handshake with %s: %v", w.node, err)
			nc.Close()
			return nil
		}
	}
	conn.SetDeadline(time.Now().Add(2 * patience))
	return &wire{conn, nc.(*net.TCPConn), bufio.NewReader(conn)}
}

// leave ends a connection as clients do that have gone: without a word of TLS, by FIN or by RST.
func (w *worker) leave(c *wire) {
	if w.r.IntN(2) == 0 {
		c.raw.SetLinger(0)
	}
	c.raw.Close()
}

// read reads an answer. closes: the connection takes no other request.
func (w *worker) read(c *wire, o order) (closes bool, err error) {
	response, err := http.ReadResponse(c.in, &http.Request{Method: o.method})
	if err != nil {
		return true, fmt.Errorf("read the answer: %w", err)
	}
	err = w.check(response, o)
	return err != nil || response.Close, err
}

// exchange makes one exchange on the kept connection.
func (w *worker) exchange(kind string, o order) { w.exchanges(kind, []order{o}) }

// exchanges sends requests at once and wants their answers in order.
func (w *worker) exchanges(kind string, orders []order) {
	if w.wire == nil {
		if w.wire = w.dial(); w.wire == nil {
			return
		}
	}
	began := time.Now()
	w.wire.conn.SetDeadline(began.Add(2 * patience))
	var text []byte
	for _, o := range orders {
		text = append(append(text, o.head()...), w.payload(o, w.r)...)
	}
	// An answer may come before all is sent, with an error mostly: then that is what is to be told, not the error of sending.
	_, sendErr := w.wire.conn.Write(text)
	for _, o := range orders {
		closes, err := w.read(w.wire, o)
		if err != nil && sendErr != nil {
			err = fmt.Errorf("%w (send: %v)", err, sendErr)
		}
		w.judge(kind, o, began, err)
		if closes {
			w.hangUp()
			return // whoever pipelines asks again for what was not answered; here nobody does
		}
	}
}

// expectation sends a body when it is told to.
func (w *worker) expectation(kind string) {
	c := w.dial()
	if c == nil {
		return
	}
	defer c.conn.Close()
	began := time.Now()
	o := w.chunky(w.order(http.MethodPost, 1+w.r.IntN(100<<10), 100))
	o.expect = true
	io.WriteString(c.conn, o.head())
	response, err := http.ReadResponse(c.in, nil)
	switch {
	case err != nil:
	case response.StatusCode == http.StatusContinue:
		c.conn.Write(w.payload(o, w.r)) // what keeps it from being sent is in the answer
		_, err = w.read(c, o)
	default: // only an error comes without a look at the body
		err = w.check(response, o)
	}
	w.judge(kind, o, began, err)
}

func (w *worker) pipeline(kind string) {
	var orders []order
	for range 2 + w.r.IntN(4) {
		orders = append(orders, w.order(http.MethodGet, 0, w.r.IntN(onePiece)))
	}
	w.exchanges(kind, orders)
}

// slowly sends a head in pieces and reads the answer in sips.
func (w *worker) slowly(kind string) {
	c := w.dial()
	if c == nil {
		return
	}
	defer c.conn.Close()
	began := time.Now()
	o := w.order(http.MethodGet, 0, 400<<10)
	head := []byte(o.head())
	for len(head) > 0 {
		n := min(len(head), 20+w.r.IntN(100))
		c.conn.Write(head[:n])
		head = head[n:]
		pause(w.ctx, between(w.r, time.Millisecond, 50*time.Millisecond))
	}
	c.in = bufio.NewReader(&sips{c.conn, w, 40})
	_, err := w.read(c, o)
	w.judge(kind, o, began, err)
}

// sips reads little and waits in between, at first.
type sips struct {
	net.Conn
	w    *worker
	left int
}

func (s *sips) Read(p []byte) (int, error) {
	if s.left > 0 {
		s.left--
		pause(s.w.ctx, 5*time.Millisecond)
		p = p[:min(len(p), 2000)]
	}
	return s.Conn.Read(p)
}

// events takes a stream of events to its end.
func (w *worker) events(kind string) {
	c := w.dial()
	if c == nil {
		return
	}
	defer c.conn.Close()
	began := time.Now()
	o := w.order(http.MethodGet, 0, 1+w.r.IntN(30))
	o.path = steadyRoute + "/events"
	io.WriteString(c.conn, o.head())
	w.judge(kind, o, began, w.readEvents(c, o))
}

func (w *worker) readEvents(c *wire, o order) error {
	response, err := http.ReadResponse(c.in, nil)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK {
		return fmt.Errorf("status %d, %d bytes of events: %w", response.StatusCode, len(text), err)
	}
	want := ""
	for n := range o.down {
		want += event(o.id, n)
	}
	if string(text) != want {
		return wrongly("the events are %q", text)
	}
	return nil
}

// webSocket opens one, talks, and leaves, in order or not.
func (w *worker) webSocket(kind string) {
	o := w.order(http.MethodGet, 0, 0)
	o.path = mixedRoute + "/ws"
	began := time.Now()
	conn, err := w.dialWebSocket(o)
	if err != nil {
		w.judge(kind, o, began, err)
		return
	}
	w.begun.Store(o.id, true)
	for range w.r.IntN(5) {
		if err = w.say(conn, o.id, w.r.IntN(1<<(1+w.r.IntN(17)))); err != nil {
			break
		}
	}
	if websocket.IsCloseError(err, websocket.CloseGoingAway) {
		err = nil // an apply has taken its backend out
	}
	w.judge(kind, o, began, err)
	if w.r.IntN(2) == 0 {
		conn.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseNormalClosure, ""), time.Now().Add(patience))
		conn.ReadMessage()
	}
	conn.Close()
}

func (w *worker) dialWebSocket(o order) (*websocket.Conn, error) {
	scheme := "ws://"
	if w.tls != nil {
		scheme = "wss://"
	}
	dialer := websocket.Dialer{HandshakeTimeout: 2 * patience, TLSClientConfig: w.tls}
	conn, response, err := dialer.Dial(scheme+w.node+o.path, http.Header{idField: {o.id}})
	switch {
	case err != nil && response != nil:
		return nil, fmt.Errorf("%w: status %s", err, response.Status)
	case err != nil:
		return nil, err
	case response.Header.Get(idField) != o.id:
		conn.Close()
		return nil, wrongly("the answer to the handshake is one to %q", response.Header.Get(idField))
	}
	return conn, nil
}

// say sends a message of size bytes and wants it back.
func (w *worker) say(conn *websocket.Conn, id string, size int) error {
	deadline := time.Now().Add(2 * patience)
	conn.SetWriteDeadline(deadline)
	conn.SetReadDeadline(deadline)
	message := w.body(id, "up", size)
	if err := conn.WriteMessage(websocket.BinaryMessage, message); err != nil {
		return err
	}
	kind, got, err := conn.ReadMessage()
	if err != nil {
		return err
	}
	if kind != websocket.BinaryMessage || string(got) != string(message) {
		return wrongly("the echo of %d bytes is another message of %d bytes", size, len(got))
	}
	return nil
}

// talk keeps one WebSocket on the steady route for all the time.
func (w *worker) talk() {
	o := w.order(http.MethodGet, 0, 0)
	o.path = steadyRoute + "/ws"
	began := time.Now()
	conn, err := w.dialWebSocket(o)
	if err != nil {
		w.judge(longTunnel, o, began, err)
		return
	}
	defer conn.Close()
	for pause(w.ctx, between(w.r, time.Millisecond, 100*time.Millisecond)) {
		err := w.say(conn, fmt.Sprintf("%s-%d", o.id, w.r.Uint32()), w.r.IntN(1<<(1+w.r.IntN(16))))
		w.judge(longTunnel, o, began, err)
		if err != nil {
			return
		}
	}
}

// cutHead breaks off before the head is complete.
func (w *worker) cutHead(kind string) {
	c := w.dial()
	if c == nil {
		return
	}
	defer w.leave(c)
	o := w.chunky(w.order(http.MethodPost, 100, 100))
	head := o.head()
	w.unheard.Store(o.id, true)
	if _, err := io.WriteString(c.conn, head[:w.r.IntN(len(head))]); err != nil {
		w.mistake("%s: %v", kind, err)
		return
	}
	pause(w.ctx, time.Duration(w.r.IntN(3000))*time.Microsecond)
	w.done.add(kind)
}

// cutUpload breaks off in the middle of a body.
func (w *worker) cutUpload(kind string) {
	c := w.dial()
	if c == nil {
		return
	}
	defer w.leave(c)
	o := w.chunky(w.order(http.MethodPost, 1+w.r.IntN(1<<(1+w.r.IntN(20))), 100))
	payload := w.payload(o, w.r)
	// It may not be taken: the backend may have died, and the answer be there.
	c.conn.Write(append([]byte(o.head()), payload[:w.r.IntN(len(payload))]...))
	pause(w.ctx, time.Duration(w.r.IntN(3000))*time.Microsecond)
	w.done.add(kind)
}

// cutDownload breaks off in the middle of an answer.
func (w *worker) cutDownload(kind string) {
	c := w.dial()
	if c == nil {
		return
	}
	defer w.leave(c)
	o := w.chunky(w.order(http.MethodGet, 0, 1<<20))
	io.WriteString(c.conn, o.head())
	io.CopyN(io.Discard, c.in, w.r.Int64N(1<<20)) // less where the backend dies
	w.begun.Delete(o.id)
	w.done.add(kind)
}

// cutWait breaks off while the backend is at work, for much longer than the test will wait.
func (w *worker) cutWait(kind string) {
	c := w.dial()
	if c == nil {
		return
	}
	defer w.leave(c)
	o := w.order(http.MethodGet, 0, 100)
	o.delay = time.Hour
	io.WriteString(c.conn, o.head())
	pause(w.ctx, between(w.r, time.Millisecond, 30*time.Millisecond))
	w.done.add(kind)
}
