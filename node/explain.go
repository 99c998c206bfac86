package node

import (
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/pyserve/pyserve/config"
	"github.com/pyserve/pyserve/node/forward"
	"github.com/pyserve/pyserve/node/http1"
	"github.com/pyserve/pyserve/node/route"
	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

// maxExplained is how many backends an answer names.
const maxExplained = 1000

// Explain answers what the live generation would do with a request, by asking the code that carries requests. Nothing is
// sent to a backend, and no backend's turn is taken.
func (n *Node) Explain(q *fleetv1.Question) *fleetv1.Answer {
	e := n.proxy.Explain(q.GetHead(), q.GetTls())
	a := &fleetv1.Answer{
		Id: q.GetId(), Status: uint32(e.Status), Reason: text(reasonFor(e)), Revision: n.Applied().GetRevision(),
	}
	if e.Err != nil && e.Status == http.StatusInternalServerError {
		n.logger.Error("a request that was asked about trips over a defect", "error", e.Err)
	}
	if e.Route == nil {
		return a
	}
	a.Route, a.Part = e.Route.Name(), uint32(e.Part)
	a.Policies = n.policiesOf(a.Route, e.Part)
	if e.Target != "" {
		a.Forward = &fleetv1.Forward{Method: text(e.Method), Path: text(e.Target), Host: text(e.Authority)}
		for _, field := range e.Fields {
			a.Forward.Headers = append(a.Forward.Headers, text(field))
		}
	}
	eachStatus(e.Route, func(s BackendStatus) bool {
		if a.BackendCount++; a.BackendCount <= maxExplained {
			a.Backends = append(a.Backends, s.Message())
		}
		return true
	})
	return a
}

// policiesOf tells the policies of a live route, as its resources have them. With a split they are those of a part; 0: of the first.
func (n *Node) policiesOf(name string, part int) []string {
	g := n.live.Load()
	r, p := &resourcev1.Route{}, &resourcev1.Pool{}
	if !g.decode(config.KindRoute, name, r) {
		return nil // it has gone meanwhile
	}
	pool := r.GetPool()
	if parts := r.GetSplit(); len(parts) > 0 {
		pool = parts[min(max(part-1, 0), len(parts)-1)].GetPool()
	}
	g.decode(config.KindPool, pool, p)
	lines := config.PoliciesOf(r, p)
	for i := range lines {
		lines[i] = text(lines[i])
	}
	return lines
}

// text is what a message can carry.
func text(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }

// reasonFor says in a sentence or two what becomes of a request, and why.
func reasonFor(e forward.Explanation) string {
	switch {
	case e.Route != nil && e.Status != 0:
		return fmt.Sprintf("%s; %s", matched(e), own(e))
	case e.Route != nil:
		return matched(e) + shared(e) + picked(e) + opened(e)
	case e.Status == http.StatusNotFound:
		return "no route matches " + e.Path + unmatched(e)
	}
	return own(e)
}

// own is the proxy's own answer.
func own(e forward.Explanation) string {
	sentence := strings.TrimSuffix(e.Sentence, ".")
	var malformed http1.Reason // the sentence has it already
	if e.Err != nil && e.Status == http.StatusBadRequest && !errors.As(e.Err, &malformed) {
		sentence += ": " + e.Err.Error()
	}
	return fmt.Sprintf("the answer is the proxy's own, %d: %s", e.Status, sentence)
}

// matched says why the route takes the request.
func matched(e forward.Explanation) string {
	path, match := e.Route.Rule()
	var why string
	switch match {
	case resourcev1.PathMatch_PATH_MATCH_EXACT:
		why = fmt.Sprintf("the path is exactly %s", path)
	case resourcev1.PathMatch_PATH_MATCH_REGEX:
		why = fmt.Sprintf("no exact path or prefix matches, and %s is the first expression that does,", path)
	default:
		why = fmt.Sprintf("%s is the longest prefix of the path", path)
	}
	last := len(e.Steps) - 1
	if last < 0 {
		return why
	}
	why += " among the routes for " + hostOf(e.Steps[last])
	if conditions := e.Route.Conditions(); conditions != "" {
		why += ", and its conditions hold (" + conditions + ")"
	}
	if without := withoutPath(e.Steps[:last]); len(without) > 0 {
		why += "; those for " + list(without, " and ") + " do not have the path"
	}
	for _, missed := range missed(e.Steps, "comes before it") {
		why += "; " + missed
	}
	return why
}

// shared says which part of a split the request goes to.
func shared(e forward.Explanation) string {
	if e.Part == 0 {
		return ""
	}
	weights := e.Route.Weights()
	var all uint64
	for _, w := range weights {
		all += uint64(w)
	}
	return fmt.Sprintf("; of the %d parts of its split this is for part %d, which has %d of the weights' %d",
		len(weights), e.Part, weights[e.Part-1], all)
}

// withoutPath are the steps in which no route has the path.
func withoutPath(steps []step) (out []step) {
	for _, s := range steps {
		if len(s.Missed) == 0 {
			out = append(out, s)
		}
	}
	return out
}

// missed says of each route that has the path why it is not the one. Verb is what it would have been.
func missed(steps []step, verb string) (out []string) {
	for _, s := range steps {
		for _, m := range s.Missed {
			out = append(out, m.Value.Name()+" "+verb+", but "+m.Reason)
		}
	}
	return out
}

type step = route.Step[*forward.Route]

// picked says how the backend is picked, where that is not simply in turn.
func picked(e forward.Explanation) string {
	l, cookie := e.Route.Balancing(), e.Route.StickyCookie()
	if e.Stuck {
		return fmt.Sprintf("; the cookie %s is for %s", cookie, e.Backend)
	}
	policy := strings.ToLower(strings.TrimPrefix(l.GetPolicy().String(), "BALANCING_POLICY_"))
	var how string
	switch {
	case l == nil && cookie == "":
		return ""
	case l == nil:
		how = "; backends are picked in turn"
	case l.GetHashOn() == resourcev1.HashOn_HASH_ON_UNSPECIFIED:
		how = fmt.Sprintf("; %s picks the backend", policy)
	case l.GetHashOn() == resourcev1.HashOn_HASH_ON_CLIENT_IP: // whose, nobody has said
		how = fmt.Sprintf("; %s picks the backend by the client's address", policy)
	default:
		how = fmt.Sprintf("; %s picks %s by %s", policy, e.Backend, hashed(l))
	}
	if cookie != "" {
		how += fmt.Sprintf(", and the cookie %s keeps the client there", cookie)
	}
	return how
}

// opened says that health checks do not count.
func opened(e forward.Explanation) string {
	for part, p := range e.Route.EachPool {
		if part == e.Part && p.FailsOpen() {
			return "; too few of its backends are healthy, so all are used"
		}
	}
	return ""
}

// hashed names what the backend is picked by.
func hashed(l *resourcev1.LoadBalancing) string {
	switch l.GetHashOn() {
	case resourcev1.HashOn_HASH_ON_HEADER:
		return "the header " + l.GetHashName()
	case resourcev1.HashOn_HASH_ON_COOKIE:
		return "the cookie " + l.GetHashName()
	}
	return "the path"
}

// unmatched says how near the request came to a route.
func unmatched(e forward.Explanation) string {
	var why string
	near := missed(e.Steps, "has the path")
	switch {
	case len(near) > 0:
		why = ": " + strings.Join(near, "; ")
	case len(e.Steps) == 0 && e.Host == "":
		why = ": no route is for every host, and the request names none"
	case len(e.Steps) == 0:
		why = fmt.Sprintf(": no route is for the host %s, and none is for every host", e.Host)
	case len(e.Steps) == 1 && e.Steps[0].Host == "" && e.Host != "":
		why = fmt.Sprintf(": no route is for the host %s, and none of those for every host has the path", e.Host)
	default:
		why = ": there are routes for " + list(e.Steps, " and ") + ", but none has the path"
	}
	if e.Near != nil {
		why += fmt.Sprintf("; %s would take it in lower case: paths are compared with case", e.Near.Name())
	}
	return why
}

func list(steps []step, separator string) string {
	hosts := make([]string, 0, len(steps))
	for _, s := range steps {
		hosts = append(hosts, hostOf(s))
	}
	return strings.Join(hosts, separator)
}

func hostOf(s step) string {
	if s.Host == "" {
		return "every host"
	}
	return s.Host
}
