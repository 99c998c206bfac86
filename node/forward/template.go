package forward

import (
	"bytes"
	"fmt"
	"regexp"

	"github.com/pyserve/pyserve/config"
	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

// template is a config.Template ready to be filled in.
type template []templatePart

type templatePart struct {
	literal  string
	variable config.Variable
	group    int // of the route's expression
}

// templates compiles the templates of one route. The expression is compiled with the first that needs it.
type templates struct {
	path       string
	regex      bool
	expression *regexp.Regexp
	names      []string
}

// of compiles one.
func (t *templates) of(text string) (template, error) {
	if t.regex && t.names == nil {
		expression, err := regexp.Compile(t.path)
		if err != nil {
			return nil, err
		}
		t.names, t.expression = expression.SubexpNames(), expression
	}
	parsed, err := config.ParseTemplate(text, t.names)
	if err != nil {
		return nil, err
	}
	out := make(template, len(parsed))
	for i, p := range parsed {
		out[i] = templatePart{literal: p.Literal, variable: p.Variable}
		if p.Variable == config.VariableGroup {
			out[i].group = t.expression.SubexpIndex(p.Group)
		}
	}
	return out, nil
}

// appendTemplate fills a template in. What it takes from the client cannot end a line: path, groups and query come out of a
// request target, the host is looked at.
func (x *exchange) appendTemplate(out []byte, t template) []byte {
	for i := range t {
		switch p := &t[i]; p.variable {
		case config.NoVariable:
			out = append(out, p.literal...)
		case config.VariablePath:
			out = append(out, x.path...)
		case config.VariableHost:
			out = append(out, x.publicHost()...)
		case config.VariableQuery:
			query, _ := x.request.Query()
			out = append(out, query...)
		case config.VariableClientIP:
			out = x.origin.real.AppendTo(out)
		case config.VariableGroup:
			out = append(out, x.group(p.group)...)
		}
	}
	return out
}

// group is what a group of the route's expression found in the path. The expression is run once for a request.
func (x *exchange) group(i int) []byte {
	if x.groups == nil {
		x.groups = x.route.expression.FindSubmatchIndex(x.path)
	}
	if 2*i+1 >= len(x.groups) || x.groups[2*i] < 0 {
		return nil
	}
	return x.path[x.groups[2*i]:x.groups[2*i+1]]
}

// publicHost is the host that the client named, or that a trusted proxy says it did, without a port. Of the latter nobody has
// checked that it is one.
func (x *exchange) publicHost() []byte {
	if host := withoutPort(x.origin.host); isHost(host) {
		return host
	}
	return withoutPort(x.request.Authority())
}

func withoutPort(host []byte) []byte {
	if colon := bytes.LastIndexByte(host, ':'); colon > bytes.LastIndexByte(host, ']') {
		return host[:colon]
	}
	return host
}

// isHost says whether b holds what a host may, IPv6 in brackets.
func isHost(b []byte) bool {
	for _, c := range b {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case c == '-', c == '.', c == '_', c == '~', c == ':', c == '[', c == ']':
		default:
			return false
		}
	}
	return len(b) > 0
}

// rewriting compiles what a route changes in heads, and what it answers itself.
func (r *Route) rewriting(m *resourcev1.Route) (err error) {
	if m.RequestHeaders == nil && m.ResponseHeaders == nil && m.Redirect == nil && m.Respond == nil && m.ForwardPath == "" {
		return nil
	}
	t := &templates{path: m.GetPath(), regex: m.GetMatch() == resourcev1.PathMatch_PATH_MATCH_REGEX}
	if r.requestEdits, r.host, err = newFieldEdits("request_headers", m.GetRequestHeaders(), t); err != nil {
		return err
	}
	if r.responseEdits, _, err = newFieldEdits("response_headers", m.GetResponseHeaders(), t); err != nil {
		return err
	}
	if m.ForwardPath != "" {
		if r.forwardPath, err = t.of(m.ForwardPath); err != nil {
			return templateError("forward_path", err)
		}
	}
	r.answer, err = newAnswer(m, t)
	r.expression = t.expression
	return err
}

// templateError names the key that a template stands in.
func templateError(key string, err error) error { return fmt.Errorf("%s: %w", key, err) }
