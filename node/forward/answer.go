package forward

import (
	"bytes"
	"net/http"
	"strconv"
	"strings"

	"github.com/pyserve/pyserve/config"
	"github.com/pyserve/pyserve/node/http1"
	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

// answer is what a route says that leads to no backend: a redirect, or a fixed text.
type answer struct {
	status int
	// location is where a redirect leads; nil: it is none.
	location template
	// keepsQuery: the request's query goes on behind it.
	keepsQuery bool
	// bare: a "?" at its end is there to leave the query out.
	bare bool
	// onPath: it has no host of its own, and must not get one from the path.
	onPath bool
	// needsHost: there is no place to lead to where the client has named no host.
	needsHost bool
	kind      string
	body      []byte
}

// newAnswer compiles the answer of a route; nil: it has backends.
func newAnswer(r *resourcev1.Route, t *templates) (*answer, error) {
	if respond := r.GetRespond(); respond != nil {
		return &answer{status: int(respond.GetStatus()), kind: respond.GetContentType(), body: []byte(respond.GetBody())}, nil
	}
	redirect := r.GetRedirect()
	if redirect == nil {
		return nil, nil
	}
	location, err := t.of(redirect.GetTo())
	if err != nil {
		return nil, templateError("redirect.to", err)
	}
	a := &answer{status: int(redirect.GetStatus()), location: location, keepsQuery: true}
	for i, p := range location {
		a.bare = strings.HasSuffix(p.literal, "?")
		a.keepsQuery = a.keepsQuery && p.variable != config.VariableQuery && !strings.ContainsAny(p.literal, "?#")
		a.needsHost = a.needsHost || p.variable == config.VariableHost
		a.onPath = a.onPath || i == 0 && !strings.HasPrefix(p.literal, "http")
	}
	return a, nil
}

// answerItself answers as the route says.
func (x *exchange) answerItself() *failure {
	a := x.route.answer
	if a.status/100 == 2 && x.upgrade && x.peer.version() == "2.0" {
		// What answers CONNECT with a 2xx has opened a WebSocket (RFC 8441 section 5).
		return refused(http.StatusBadRequest, "No WebSocket can be opened here.", nil)
	}
	fields, f := x.answerFields(a)
	if f != nil {
		return f
	}
	x.tail, x.answering = fields, true
	err := x.peer.reply(a.status, "", a.body)
	x.answering = false
	if err != nil {
		return &failure{class: ClassClient, err: err}
	}
	return nil
}

// answerFields are the lines of the answer's head, in the room that later is for the end of a request's body.
func (x *exchange) answerFields(a *answer) ([]byte, *failure) {
	out := x.tail[:0]
	if a.status != http.StatusNoContent && a.status != http.StatusNotModified {
		out = http1.AppendContentLength(out, int64(len(a.body)))
	}
	if a.kind != "" {
		out = append(append(append(out, "Content-Type: "...), a.kind...), "\r\n"...)
	}
	if a.location != nil {
		if a.needsHost && len(x.publicHost()) == 0 {
			return nil, refused(http.StatusBadRequest, "The request names no host that it could be redirected to.", nil)
		}
		out = append(x.appendLocation(append(out, "Location: "...), a), "\r\n"...)
	}
	if len(out) > 2*http1.MaxHead {
		return nil, headFailure(errEditedTooLong)
	}
	if x.route.rate != nil {
		out = x.appendStanding(out)
	}
	if e := x.route.responseEdits; e != nil {
		edited, err := x.edit(out, 0, e)
		if err != nil {
			return nil, headFailure(err)
		}
		out = edited
	}
	return out, nil
}

// appendLocation fills in where a redirect leads. A path of two slashes would be a host (RFC 3986 section 4.2), and browsers
// take a backslash for a slash: "//evil.example" in the path must not lead there.
func (x *exchange) appendLocation(out []byte, a *answer) []byte {
	start := len(out)
	out = x.appendTemplate(out, a.location)
	if a.onPath {
		rest := bytes.TrimLeft(out[start:], `/\`)
		out[start] = '/'
		out = out[:start+1+copy(out[start+1:], rest)]
	}
	query, _ := x.request.Query()
	switch {
	case a.keepsQuery && len(query) > 0:
		return append(append(out, '?'), query...)
	case a.bare || !a.keepsQuery && len(query) == 0:
		return bytes.TrimSuffix(out, questionMark)
	}
	return out
}

var questionMark = []byte("?")

// answerSentence says to operators what is answered to this request.
func (x *exchange) answerSentence(a *answer) string {
	if a.location != nil {
		return "The route redirects to " + string(x.appendLocation(nil, a))
	}
	return "The route answers this, with a body of " + strconv.Itoa(len(a.body)) + " bytes."
}
