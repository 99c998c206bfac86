package forward

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/pyserve/pyserve/node/accesslog"
	"github.com/pyserve/pyserve/node/http1"
	ratelimit "github.com/pyserve/pyserve/node/limit"
	"github.com/pyserve/pyserve/node/meter"
	"github.com/pyserve/pyserve/node/route"
	"github.com/pyserve/pyserve/node/upstream"
)

const (
	// inSize is for what a client sends: heads are mostly far below it, and what is left is for bodies.
	inSize = 32 << 10
	// outSize is for the heads that we write; they grow where they have to.
	outSize = 4 << 10
	// backSize is for what a backend sends, behind headroom.
	backSize = 36 << 10
	// headroom is by how much our head of an answer may be longer than the backend's and still go out in one write with
	// the body's first bytes, without moving them.
	headroom = 1 << 10
	// scratchSize and hostSize are for paths and hosts that are not in normal form as they came; longer ones allocate.
	scratchSize, hostSize = 4 << 10, 256
	// keptSize is what a buffer may have grown to and be kept.
	keptSize = http1.MaxHead + inSize
)

// peer is the client's side of an exchange.
type peer interface {
	// version is the protocol's, as Via has it (RFC 9110 section 7.6.3).
	version() string
	// rewind goes back to the beginning of the request's body. Only pending was called so far.
	rewind()
	// pending gives the next bytes of the request's body, framed as the backend was told, as far as they are there; nil:
	// none are. done is with the last of them. They are valid until the next call.
	pending() (wire []byte, done bool, err error)
	// receive is pending, but waits.
	receive() (wire []byte, done bool, err error)
	// interim passes on a 1xx answer, x.response.
	interim() error
	// relay passes on the final answer: its head, x.response, and its body.
	relay() *failure
	// reply answers for the proxy itself.
	reply(status int, kind string, body []byte) error
	// join hands both connections to a tunnel after a 101.
	join() *failure
}

// exchange is one request on its way and back. It belongs to the connection's goroutine, but for the request's body while
// that is pumped.
type exchange struct {
	*Proxy
	*watch
	front *Front
	peer  peer
	shard uint32

	in         []byte // what the client sent: the head, and what came with it
	have       int    // how much of in is filled
	headEnd    int
	at         int    // of in: where what is left of the body begins
	out        []byte // the head that is being written
	back       []byte // what the backend sent
	from, to   int    // the part of back that is not used yet
	scratch    []byte // path and host, where they are not as they came
	rewritten  []byte
	hostBuffer []byte
	groups     []int  // where those of the route's expression are in path; nil: it was not asked yet
	answering  bool   // the answer is the route's own, and tail the fields of its head
	tail       []byte // the end of a request's chunked body, with its trailers

	request  http1.Request
	response http1.Response
	upBody   http1.Body
	downBody http1.Body

	table   *Table
	route   *Route
	pool    *upstream.Pool // that the attempt's backend is picked from
	part    *part          // of the route's split; nil: none is picked, or it has none
	begun   time.Time
	path    []byte // in normal form
	removed int    // how much of path is stripped
	target  []byte // what is forwarded instead of path; nil: path. It is in rewritten
	origin  origin
	// salvaged is what Accept said in a head that could not be read; empty otherwise.
	salvaged string
	upgrade  bool
	conn     *upstream.Conn // of the attempt under way
	tries    int
	tried    []*upstream.Backend // by each attempt
	// attemptEnd is the limit of the attempt under way; never: it has only those of its phases.
	attemptEnd int64
	body       keptBody
	places     places

	uploading bool               // the pump runs, or its result has not been taken
	pumped    bool               // the pump has taken some of the body
	taken     atomic.Bool        // the pump has all of the body, and perhaps still writes the last of it
	uploaded  chan uploadOutcome // capacity 1
	outcome   uploadOutcome

	status         int // of the final answer, once its head went out
	headSent       bool
	received, sent int64
	interims       int
	upstreamTook   time.Duration
	class          Class
	asked          *upstream.Backend  // the last one
	begunWell      *upstream.Backend  // the one whose answer has; its pool does not know yet how it ends
	holds          *upstream.Backend  // the one that the client has a sticky cookie for; nil: none that counts
	standing       ratelimit.Standing // where the route has a rate
	entry          accesslog.Entry
}

func newExchange() *exchange {
	return &exchange{
		in: make([]byte, inSize), out: make([]byte, 0, outSize), back: make([]byte, backSize),
		scratch: make([]byte, 0, scratchSize), hostBuffer: make([]byte, 0, hostSize), uploaded: make(chan uploadOutcome, 1),
		tried: make([]*upstream.Backend, 0, 4),
	}
}

// take readies an exchange for a connection or stream.
func (p *Proxy) take(f *Front, w *watch, by peer, shard uint32) *exchange {
	x := p.exchanges.Get().(*exchange)
	x.Proxy, x.watch, x.front, x.peer, x.shard = p, w, f, by, shard
	x.have = 0
	return x
}

// giveBack is the end of an exchange's use.
func (p *Proxy) giveBack(x *exchange) {
	if cap(x.in) > keptSize || cap(x.back) > keptSize || cap(x.out) > keptSize || cap(x.tail) > keptSize || cap(x.rewritten) > keptSize {
		return
	}
	x.Proxy, x.watch, x.front, x.peer, x.table, x.route, x.conn, x.asked, x.holds = nil, nil, nil, nil, nil, nil, nil, nil, nil
	x.pool, x.part, x.begunWell = nil, nil, nil
	x.path = nil
	clear(x.tried)
	x.origin = origin{}
	p.exchanges.Put(x)
}

// reset is between two requests.
func (x *exchange) reset() {
	x.table, x.route, x.path, x.removed, x.upgrade, x.conn, x.tries = nil, nil, nil, 0, false, nil, 0
	x.groups, x.target, x.answering = nil, nil, false
	x.pool, x.part = nil, nil
	x.uploading, x.pumped, x.outcome, x.tried = false, false, uploadOutcome{}, x.tried[:0]
	x.body.reset()
	x.status, x.headSent, x.received, x.sent, x.interims, x.upstreamTook, x.class, x.asked, x.holds = 0, false, 0, 0, 0, 0, "", nil, nil
	x.standing, x.begunWell = ratelimit.Standing{}, nil
}

// carry serves the request whose head is in x.request. It reports what went wrong; what of that could be answered has been.
// When it returns, the request's body is nobody's any more.
//
// What it took is given back by defer: a panic on the way out, in a log's handler say, ends the client's connection, and must not
// leave the generation pinned, the request in flight or the backend's connection open for good.
func (x *exchange) carry() *failure {
	x.begun = time.Now()
	table, unpin := x.source.Pin()
	defer unpin() // last: who is released by it has been counted to its end
	x.table = table
	x.meter.InFlight(x.shard, 1)
	defer x.meter.InFlight(x.shard, -1)
	defer x.leave()        // once the connection is nobody's any more
	defer x.closeBackend() // unless endBackend has decided on it
	f := x.guarded()
	if f != nil {
		x.fail(f)
	}
	x.concluded(f)
	x.endUpload()
	x.endBackend(f == nil)
	x.account()
	return f
}

// guarded turns a panic into a failure: a request that trips over a defect takes no other with it.
func (x *exchange) guarded() (f *failure) {
	defer func() {
		if p := recover(); p != nil {
			f = ours(panicked(p))
		}
	}()
	return x.serve()
}

// serve is the way of a request.
func (x *exchange) serve() *failure {
	if f := x.decide(); f != nil || x.headSent {
		return f
	}
	if x.route.rate != nil {
		if f := x.limit(); f != nil {
			return f
		}
	}
	if x.route.answer != nil {
		return x.answerItself()
	}
	if x.route.maxBody > 0 && x.request.ContentLength > x.route.maxBody {
		return x.bodyTooLong()
	}
	if d := x.route.timeouts.Request; d > 0 {
		x.end.Store(x.front.after(d))
	}
	if f := x.send(); f != nil {
		return f
	}
	if x.response.Status == http.StatusSwitchingProtocols {
		return x.peer.join()
	}
	return x.peer.relay()
}

// decide finds out all that there is to know before a backend is asked.
func (x *exchange) decide() *failure {
	x.readOrigin()
	if x.table == nil {
		return &failure{class: ClassOurs, status: http.StatusServiceUnavailable, sentence: "This node serves nothing at the moment."}
	}
	return x.find()
}

// find reads the target and looks up the route. A request for the server itself it answers.
func (x *exchange) find() *failure {
	r := &x.request
	switch r.Form {
	case http1.AuthorityForm:
		return refused(http.StatusNotImplemented, "This server is not a forward proxy: CONNECT is not supported.", nil)
	case http1.AsteriskForm:
		return x.answerOptions()
	}
	raw := r.Path()
	if len(raw) == 0 && r.Method == http1.OPTIONS {
		if _, asked := r.Query(); !asked {
			return x.answerOptions() // RFC 9112 section 3.2.4
		}
	}
	if len(raw) == 0 {
		raw = rootPath // RFC 3986 section 6.2.3
	}
	path, err := route.NormalizePath(x.scratch, raw)
	if err != nil {
		return refused(http.StatusBadRequest, "The path of the request is not valid.", err)
	}
	x.path = path
	if r.Has(http1.Via) && x.laps() >= maxLaps {
		return refused(http.StatusLoopDetected, "The request has come by here too often.", errors.New("loop"))
	}
	found, ok, err := x.table.Routes.Lookup(route.CanonicalHost(x.hostBuffer, r.Authority()), path, r)
	switch {
	case err != nil:
		return refused(http.StatusRequestHeaderFieldsTooLarge, "The request is too long to be compared with the routes here.", err)
	case !ok:
		return refused(http.StatusNotFound, "No route matches this request.", nil)
	}
	x.route = found
	if found.stripPath {
		x.removed = len(found.prefix)
	}
	if found.forwardPath != nil {
		if f := x.rewritePath(); f != nil {
			return f
		}
	}
	x.upgrade = r.Upgrade && x.takesUpgrade()
	return x.limitForwards()
}

var rootPath = []byte("/")

// answerOptions is RFC 9110 section 9.3.7: OPTIONS * is about the server as a whole, and that is us.
func (x *exchange) answerOptions() *failure {
	if err := x.peer.reply(http.StatusOK, "", nil); err != nil {
		return &failure{class: ClassClient, err: err}
	}
	return nil
}

// limitForwards looks at Max-Forwards, which only TRACE and OPTIONS have (RFC 9110 section 7.6.2). It is counted down where
// the head is written.
func (x *exchange) limitForwards() *failure {
	if x.request.Method != http1.TRACE && x.request.Method != http1.OPTIONS || !x.request.Has(http1.MaxForwards) {
		return nil
	}
	n, err := strconv.ParseUint(string(x.request.Get(http1.MaxForwards)), 10, 31)
	switch {
	case err != nil:
		return refused(http.StatusBadRequest, "Max-Forwards is not a number.", err)
	case n == 0:
		return refused(http.StatusNotImplemented, "This proxy does not answer TRACE or OPTIONS itself.", nil)
	}
	return nil
}

// fail answers for a request that failed, if it still can be answered, and logs it.
func (x *exchange) fail(f *failure) {
	if x.headSent {
		f.status = 0
	}
	if f.status != 0 {
		if err := x.refuse(f.status, f.sentence); err != nil {
			f.err = errors.Join(f.err, err)
			f.status = 0
		}
	}
	x.class = f.class
	x.counts().Failed(x.shard, f.class.index())
	level := slog.LevelWarn
	switch f.class {
	case ClassClient:
		level = slog.LevelDebug
	case ClassOurs:
		level = slog.LevelError
	}
	x.tell(f, level)
}

// tell logs a failure. Those that are more than details are not told one by one.
func (x *exchange) tell(f *failure, level slog.Level) {
	if !x.logger.Enabled(context.Background(), level) {
		return
	}
	var withheld uint64
	if level > slog.LevelDebug {
		var ok bool
		if withheld, ok = x.notices.admit(subject{x.routeName(), f.class}, level, time.Now()); !ok {
			return
		}
	}
	about := []any{"class", string(f.class), "status", x.status, "route", x.routeName(), "method", string(x.request.MethodName()),
		"path", string(x.path), "client", x.origin.real, "request_id", string(x.origin.id), "sentence", f.sentence}
	if withheld > 0 {
		about = append(about, "withheld", withheld)
	}
	if x.asked != nil {
		about = append(about, "backend", x.asked.Address())
	}
	if f.err != nil {
		about = append(about, "error", f.err)
	}
	x.logger.Log(context.Background(), level, "request failed", about...)
}

func (x *exchange) routeName() string {
	if x.route == nil {
		return noRoute
	}
	return x.route.name
}

// counts are the series of the request's route.
func (x *exchange) counts() *meter.Route {
	if x.route == nil {
		return x.unrouted
	}
	x.route.counted.Do(func() { x.route.counts = x.meter.Route(x.route.name) })
	return x.route.counts
}

// account counts the request and logs it.
func (x *exchange) account() {
	took := time.Since(x.begun)
	x.counts().Ended(x.shard, x.status, took, x.received, x.sent)
	if x.part != nil {
		x.part.ended(x.status)
	}
	if x.accessLog != nil {
		x.logAccess(took)
	}
}
