package control

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/pyserve/pyserve/control/fleet"
	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
	operatorv1 "github.com/pyserve/pyserve/proto/pyserve/operator/v1"
)

// Why nothing is explained.
var (
	// ErrNotARequest says that what is asked about could not be sent by a client.
	ErrNotARequest = errors.New("not a request")
	// ErrNobodyServes says that no connected node serves anything.
	ErrNobodyServes = errors.New("no node that serves a configuration is connected, and only a node can tell")
)

// explainTime is how long a node may take to answer: it does so at once, unless it compiles a bundle meanwhile.
const explainTime = 15 * time.Second

// maxRequestHead is as much of a head as nodes read, in bytes.
const maxRequestHead = 64 << 10

// Explain has a node say what it would do with a request. The answer is that of the node's own live generation; control
// knows the routes too, but not how they are applied.
func (c *Control) Explain(ctx context.Context, m *operatorv1.ExplainRequest) (*operatorv1.ExplainResponse, error) {
	question, err := questionAbout(m)
	if err != nil {
		return nil, err
	}
	name, answer, err := c.askOne(ctx, m.GetNode(), question)
	if err != nil {
		return nil, err
	}
	return explained(name, answer), nil
}

// ExplainBackend has a node say what its verdict on a backend rests on: control knows the verdicts, and not the votes.
func (c *Control) ExplainBackend(ctx context.Context, m *operatorv1.ExplainBackendRequest) (*operatorv1.ExplainBackendResponse, error) {
	if _, _, err := net.SplitHostPort(m.GetAddress()); err != nil || len(m.GetAddress()) > maxAddress {
		return nil, fmt.Errorf("%w: write a backend as host:port, as get backends shows it", ErrNotARequest)
	}
	name, answer, err := c.askOne(ctx, m.GetNode(), &fleetv1.Question{Backend: m.GetAddress()})
	if err != nil {
		return nil, err
	}
	if answer.GetVerdicts() == nil {
		return nil, fmt.Errorf("node %s %w: it is of a version that does not tell", name, ErrUnwilling)
	}
	return &operatorv1.ExplainBackendResponse{Node: name, Revision: answer.GetRevision(), Backends: answer.GetVerdicts().GetEvidence()}, nil
}

// maxAddress is as long as a host name with a port can be, in bytes, and some more.
const maxAddress = 300

// askOne puts a question to a node, without a name to any that serves, and says which it was.
func (c *Control) askOne(ctx context.Context, name string, question *fleetv1.Question) (string, *fleetv1.Answer, error) {
	if name == "" {
		if name = c.anyServing(); name == "" {
			return "", nil, ErrNobodyServes
		}
	}
	ctx, cancel := context.WithTimeout(ctx, explainTimeFor(ctx))
	defer cancel()
	answer, err := c.fleet.Ask(ctx, name, question)
	return name, answer, c.orStranger(name, err)
}

// orStranger adds to the error of a question that nobody has the name, if that is so.
func (c *Control) orStranger(name string, err error) error {
	if _, enrolled := c.store.Node(name); !enrolled && errors.Is(err, fleet.ErrNotConnected) {
		return fmt.Errorf("%w, and none of that name is enrolled", err)
	}
	return err
}

// explainTimeFor is how long to wait for a node: a caller with less time is to hear of it before it gives up itself.
func explainTimeFor(ctx context.Context) time.Duration {
	if until, ok := ctx.Deadline(); ok {
		return min(explainTime, time.Until(until)*9/10)
	}
	return explainTime
}

// anyServing names a node that serves, one that serves the active revision rather than another; empty: there is none.
func (c *Control) anyServing() string {
	active, name := c.store.Active(), ""
	for _, n := range c.fleet.Nodes() {
		switch {
		case !n.Connected || n.Draining || n.Applied == nil:
		case active != nil && n.Serves(active.Release):
			return n.Name
		case name == "":
			name = n.Name
		}
	}
	return name
}

// questionAbout writes the request as a client would send it. Only what would make another request of it is refused
// here; what else is wrong with it the node finds, as with any request.
func questionAbout(m *operatorv1.ExplainRequest) (*fleetv1.Question, error) {
	scheme, host, target := splitURL(m.GetUrl())
	if scheme != "http" && scheme != "https" {
		return nil, fmt.Errorf("%w: %s:// is neither http:// nor https://", ErrNotARequest, scheme)
	}
	var fields []string
	for _, line := range m.GetHeaders() {
		name, value, ok := strings.Cut(line, ":")
		if !ok {
			return nil, fmt.Errorf("%w: the header %q is not \"Name: value\"", ErrNotARequest, line)
		}
		if strings.EqualFold(name, "Host") {
			host = strings.TrimSpace(value)
			continue
		}
		fields = append(fields, name+": "+strings.TrimSpace(value))
	}
	lines := append([]string{m.GetMethod() + " " + target + " HTTP/1.1", "Host: " + host}, fields...)
	size := 0
	for _, line := range lines {
		if strings.ContainsAny(line, "\r\n") {
			return nil, fmt.Errorf("%w: method, URL and headers have no line breaks", ErrNotARequest)
		}
		size += len(line) + len("\r\n")
	}
	if size > maxRequestHead {
		return nil, fmt.Errorf("%w: it is longer than the %d bytes that nodes read", ErrNotARequest, maxRequestHead)
	}
	head := []byte(strings.Join(lines, "\r\n") + "\r\n\r\n")
	return &fleetv1.Question{Head: head, Tls: scheme == "https"}, nil
}

// splitURL takes a URL apart and changes nothing, as a parser that understands escapes would. Without a scheme it is http;
// what begins with a slash, and "*", has no host. The fragment stays with the client (RFC 9110 section 7.1).
func splitURL(url string) (scheme, host, target string) {
	url, _, _ = strings.Cut(url, "#")
	scheme, rest, ok := strings.Cut(url, "://")
	if !ok || strings.ContainsAny(scheme, "/?") {
		scheme, rest = "http", url
	}
	if strings.HasPrefix(rest, "/") || rest == "*" {
		return scheme, "", rest
	}
	end := len(rest)
	if i := strings.IndexAny(rest, "/?"); i >= 0 {
		end = i
	}
	host, target = rest[:end], rest[end:]
	if !strings.HasPrefix(target, "/") {
		target = "/" + target
	}
	return strings.ToLower(scheme), host, target
}

// explained is a node's answer, in the words of status.
func explained(name string, a *fleetv1.Answer) *operatorv1.ExplainResponse {
	m := &operatorv1.ExplainResponse{
		Route: a.GetRoute(), Reason: a.GetReason(), Status: a.GetStatus(), Node: name, Revision: a.GetRevision(),
		Policies: a.GetPolicies(), Part: a.GetPart(),
	}
	if f := a.GetForward(); f != nil {
		m.Forward = &operatorv1.ExplainedForward{Method: f.GetMethod(), Path: f.GetPath(), Host: f.GetHost(), Headers: f.GetHeaders()}
	}
	for _, b := range a.GetBackends() {
		m.Backends = append(m.Backends, &operatorv1.ExplainedBackend{
			Address: b.GetAddress(), State: backendStates[b.GetState()], Reason: b.GetReason(),
		})
	}
	if more := int(a.GetBackendCount()) - len(m.GetBackends()); more > 0 {
		m.Reason += fmt.Sprintf("; %d more backends are not listed", more)
	}
	return m
}
