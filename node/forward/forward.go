package forward

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"strconv"
	"sync"
	"time"

	"github.com/pyserve/pyserve/node/route"
	"github.com/pyserve/pyserve/node/tunnel"
	"github.com/pyserve/pyserve/node/upstream"
)

const (
	// defaultHandshakeTimeout is timeouts.response_header of the document's default.
	defaultHandshakeTimeout = time.Minute
	copyBufferSize          = 32 << 10
	// flushHeadAbove is the length of a body from which on its head goes out at once: beside so much, one more write is
	// nothing. A shorter one waits for the first bytes of its body.
	flushHeadAbove = 64 << 10
)

// Tunnels takes over after an upgrade.
type Tunnels interface {
	// Start joins the two connections and returns; they are closed if it fails. The tunnel's owner is a Lane.
	Start(tunnel.Tunnel) error
}

// Lane is what a tunnel lives by: it has to end when the route of that name is gone, or does not lead to that backend any
// more.
type Lane struct {
	Route   string
	Backend *upstream.Backend
}

// Options of a Handler.
type Options struct {
	// Where the live table comes from. Required.
	Source Source
	// Where upgraded connections live. Required.
	Tunnels Tunnels
	// Required.
	Metrics *Metrics
	// Nil: nothing is logged.
	Logger *slog.Logger
	// How long a backend may take to answer an upgrade, from the connection on. 0: 60 s.
	HandshakeTimeout time.Duration
}

// Handler forwards requests. It may be used concurrently and by several listeners.
type Handler struct {
	source           Source
	tunnels          Tunnels
	metrics          *Metrics
	logger           *slog.Logger
	handshakeTimeout time.Duration
	unrouted         *routeCounts
	buffers          sync.Pool
}

// NewHandler makes a Handler. The error names the option that is missing.
func NewHandler(o Options) (*Handler, error) {
	switch {
	case o.Source == nil:
		return nil, errors.New("forward: Options.Source is missing")
	case o.Tunnels == nil:
		return nil, errors.New("forward: Options.Tunnels is missing")
	case o.Metrics == nil:
		return nil, errors.New("forward: Options.Metrics is missing")
	}
	h := &Handler{
		source: o.Source, tunnels: o.Tunnels, metrics: o.Metrics, logger: o.Logger, handshakeTimeout: o.HandshakeTimeout,
		unrouted: o.Metrics.route(noRoute),
	}
	if h.logger == nil {
		h.logger = slog.New(slog.DiscardHandler)
	}
	if h.handshakeTimeout <= 0 {
		h.handshakeTimeout = defaultHandshakeTimeout
	}
	h.buffers.New = func() any { b := make([]byte, copyBufferSize); return &b }
	return h, nil
}

// exchange is one request on its way and back. It belongs to the handler's goroutine, but for what mu guards.
type exchange struct {
	*Handler
	table   *Table
	w       http.ResponseWriter
	rc      *http.ResponseController
	r       *http.Request
	begun   time.Time
	origin  origin
	upgrade string      // the protocols that the client wants to change to; empty: none
	header  http.Header // to send to the backend
	target  target
	path    string // to send to the backend
	removed string // what was stripped from the target's path
	route   *Route // nil: not found yet
	upload  *upload
	counted bool

	// mu guards the answer's head: 1xx answers arrive in a goroutine of net/http.
	mu       sync.Mutex
	interims int // 1xx answers passed on
	status   int // of the final answer, once its head was written; 0 before
}

// ServeHTTP forwards one request.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	table, unpin := h.source.Pin()
	defer unpin()
	h.metrics.inFlight.Inc()
	x := &exchange{Handler: h, table: table, w: w, rc: http.NewResponseController(w), r: r, begun: time.Now()}
	cut := false
	if f := x.guarded(); f != nil {
		cut = x.fail(f)
	}
	if x.upload != nil {
		x.upload.end(x.rc)
	}
	x.count()
	if cut {
		panic(http.ErrAbortHandler)
	}
}

// guarded turns a panic into a failure: a request that trips over a defect takes no other with it.
func (x *exchange) guarded() (f *failure) {
	defer func() {
		if p := recover(); p != nil {
			f = &failure{class: ClassOurs, status: http.StatusInternalServerError, sentence: "The proxy failed.",
				err: fmt.Errorf("panic: %v\n%s", p, debug.Stack())}
		}
	}()
	return x.serve()
}

// serve is the way of a request.
func (x *exchange) serve() *failure {
	x.upgrade = upgradeOf(x.r)
	if x.table == nil {
		x.table = &Table{}
		x.header = x.requestHeader()
		return &failure{class: ClassOurs, status: http.StatusServiceUnavailable, sentence: "This node serves nothing at the moment."}
	}
	x.header = x.requestHeader()
	if f := x.find(); f != nil || x.route == nil {
		return f
	}
	x.upload = newUpload(x.r)
	if x.upgrade != "" {
		return x.forwardUpgrade()
	}
	return x.forwardRequest()
}

// find reads the target and looks up the route. A request for the server itself it answers; then there is no route.
func (x *exchange) find() *failure {
	switch {
	case x.r.Method == http.MethodConnect:
		return refused(http.StatusNotImplemented, "This server is not a forward proxy: CONNECT is not supported.", nil)
	case x.r.RequestURI == "*" && x.r.Method == http.MethodOptions:
		// RFC 9110 section 9.3.7: about the server as a whole, and that is us.
		x.w.Header().Set("Content-Length", "0")
		x.head(http.StatusOK)
		return nil
	}
	if !validHost(x.r.Host) {
		return refused(http.StatusBadRequest, "The Host of the request is not valid.", nil)
	}
	var err error
	if x.target, err = parseTarget(x.r.RequestURI); err != nil {
		return refused(http.StatusBadRequest, "The path of the request is not valid.", err)
	}
	if laps(x.r.Header["Via"]) >= maxLaps {
		return refused(http.StatusLoopDetected, "The request has come by here too often.", errors.New("loop"))
	}
	found, ok := x.table.Routes.Lookup(route.CanonicalHost(x.r.Host), x.target.path)
	if !ok {
		return refused(http.StatusNotFound, "No route matches this request.", nil)
	}
	x.route = found
	x.path, x.removed = found.strip(x.target.path)
	return x.limitForwards()
}

// limitForwards counts Max-Forwards down, which only TRACE and OPTIONS have (RFC 9110 section 7.6.2).
func (x *exchange) limitForwards() *failure {
	sent := x.header.Get("Max-Forwards")
	if sent == "" || x.r.Method != http.MethodTrace && x.r.Method != http.MethodOptions {
		return nil
	}
	n, err := strconv.ParseUint(sent, 10, 31)
	switch {
	case err != nil:
		return refused(http.StatusBadRequest, "Max-Forwards is not a number.", err)
	case n == 0:
		return refused(http.StatusNotImplemented, "This proxy does not answer TRACE or OPTIONS itself.", nil)
	}
	x.header.Set("Max-Forwards", strconv.FormatUint(n-1, 10))
	return nil
}

// head writes the head of the final answer, once; afterwards 1xx answers are dropped.
func (x *exchange) head(status int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.upload != nil && x.upload.unfinished() {
		// What is left of the request's body stands between this answer and the next request.
		x.w.Header().Set("Connection", "close")
	}
	x.status = status
	x.w.WriteHeader(status)
}

// fail answers for a request that failed, if it still can be answered, and logs it. It reports whether the client's
// connection (over HTTP/2: its stream) is to be cut instead: an answer that broke off must not look complete, and one that
// nobody waits for is not sent.
func (x *exchange) fail(f *failure) (cut bool) {
	cut = x.status != 0 || f.status == 0
	if !cut {
		x.refuse(f.status, f.sentence)
	}
	x.counts().failures[f.class].Inc()
	level := slog.LevelWarn
	switch f.class {
	case ClassClient:
		level = slog.LevelDebug
	case ClassOurs:
		level = slog.LevelError
	}
	x.logger.Log(x.r.Context(), level, "request failed", "class", f.class, "status", x.status, "route", x.routeName(),
		"method", x.r.Method, "path", x.target.path, "client", x.origin.real, "request_id", x.origin.id,
		"sentence", f.sentence, "error", f.err)
	return cut
}

func (x *exchange) routeName() string {
	if x.route == nil {
		return noRoute
	}
	return x.route.name
}

// counts are the series of the request's route.
func (x *exchange) counts() *routeCounts {
	if x.route == nil {
		return x.unrouted
	}
	x.route.counted.Do(func() { x.route.counts = x.metrics.route(x.route.name) })
	return x.route.counts
}

// count takes the request out of flight and into the totals, once: an upgraded one when its tunnel begins.
func (x *exchange) count() {
	if x.counted {
		return
	}
	x.counted = true
	x.metrics.inFlight.Dec()
	x.counts().ended(x.status, time.Since(x.begun).Seconds())
}
