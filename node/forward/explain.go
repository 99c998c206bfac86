package forward

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"

	"github.com/pyserve/pyserve/node/http1"
	"github.com/pyserve/pyserve/node/route"
)

// Explanation is what would become of a request.
type Explanation struct {
	// Status is that of the proxy's own answer, with its Sentence and, for operators, what was wrong. 0: the request is
	// forwarded.
	Status   int
	Sentence string
	Err      error
	// Host and Path are what routes are compared with; empty where it did not come to that.
	Host, Path string
	// Steps is how the route was looked for; Near is one that would take the path in lower case, where none takes it as it
	// is. Nil: there is none.
	Steps []route.Step[*Route]
	Near  *Route
	// Route is nil where none takes the request, or where the proxy answers for itself.
	Route *Route
	// What a backend would be sent. Where the Host depends on the backend it is the one of the first that takes requests,
	// or of the first, where none does.
	Method, Target, Authority string
	// Part is that of a split which such a request goes to, the next one where that is not told by what is in it. 0: none.
	Part int
	// Fields are the header fields that go with it, "Name: value", in their order.
	Fields []string
	// Own: the route gives an answer of its own, which Status and Sentence tell.
	Own bool
	// Backend is the address of the one that would be asked, which with some policies is one of several. Stuck is that a sticky
	// cookie says so.
	Backend string
	Stuck   bool
}

// Explain says what would become of a request, by the code that carries requests and the live table, without sending
// anything. head is a request's head in HTTP/1.1; secure, that it comes over TLS. A defect that it trips over becomes a
// status of 500, as with a request.
func (p *Proxy) Explain(head []byte, secure bool) (e Explanation) {
	x := newExchange()
	x.Proxy, x.peer = p, &inquiry{x: x}
	x.origin.secure = secure
	table, unpin := p.source.Pin()
	defer unpin()
	x.table = table
	defer func() {
		if defect := recover(); defect != nil {
			e.refused(ours(panicked(defect)))
		}
	}()
	if f := x.readInquiry(head); f != nil {
		e.refused(f)
		return e
	}
	f := x.decide()
	e.decided(x)
	switch {
	case f != nil || x.route == nil:
	case x.route.answer != nil:
		f = e.answered(x)
	default:
		f = e.aim(x)
	}
	e.refused(f)
	return e
}

// inquiry is the peer of a request that nobody sent.
type inquiry struct {
	peer // nil: none of it is called before a backend is asked
	x    *exchange
}

func (q *inquiry) version() string { return "1.1" }

func (q *inquiry) reply(status int, _ string, _ []byte) error {
	q.x.status, q.x.headSent = status, true
	return nil
}

func (x *exchange) readInquiry(head []byte) *failure {
	n, err := x.request.Parse(head)
	var reason http1.Reason
	switch {
	case errors.As(err, &reason):
		return refused(reason.Status(), "The request was not understood: "+reason.String()+".", err)
	case n == 0:
		return refused(http.StatusBadRequest, "The request's head does not end.", nil)
	case n < len(head):
		return refused(http.StatusBadRequest, "The request's head ends before its fields do.", nil)
	}
	return nil
}

// refused takes a failure in; nil is none.
func (e *Explanation) refused(f *failure) {
	if f != nil {
		e.Status, e.Sentence, e.Err = f.status, f.sentence, f.err
	}
}

// decided takes in what is known of the request.
func (e *Explanation) decided(x *exchange) {
	if x.headSent {
		e.Status, e.Sentence = x.status, "The proxy answers this for itself."
	}
	e.Path, e.Route = string(x.path), x.route
	if x.path == nil {
		return
	}
	host := route.CanonicalHost(nil, x.request.Authority())
	e.Host = string(host)
	e.Steps = x.table.Routes.Trace(host, x.path, &x.request)
	if e.Route == nil {
		e.Near, _, _ = x.table.Routes.Lookup(host, bytes.ToLower(x.path), &x.request)
	}
}

// answered takes in what the route answers itself.
func (e *Explanation) answered(x *exchange) *failure {
	if _, f := x.answerFields(x.route.answer); f != nil {
		return f
	}
	e.Status, e.Sentence, e.Own = x.route.answer.status, x.answerSentence(x.route.answer), true
	return nil
}

// aim writes the head for a backend, and reads from it what the backend would be sent.
func (e *Explanation) aim(x *exchange) *failure {
	first, takes := x.likely()
	if first == nil {
		return noBackend()
	}
	e.Backend, e.Part = first.Address(), x.partNumber()
	_, e.Stuck = x.stuck()
	if err := x.appendRequestHead(first); err != nil {
		return headFailure(err)
	}
	var sent http1.Request
	if _, err := sent.Parse(x.out); err != nil {
		return ours(fmt.Errorf("read what would be sent: %w", err))
	}
	e.Method, e.Target, e.Authority = string(sent.MethodName()), string(sent.RawTarget()), string(sent.Authority())
	for i := range sent.Len() {
		e.Fields = append(e.Fields, string(sent.Name(i))+": "+string(sent.Value(i)))
	}
	if !takes {
		return noBackend()
	}
	return nil
}
