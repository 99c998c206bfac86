package config

import (
	"errors"
	"fmt"
	"net/url"
	"regexp/syntax"
	"slices"
	"strconv"
	"strings"
)

// proxyInto translates proxy_pass.
func (l *location) proxyInto(r *reader, e *entry) {
	whole, asItCame := l.asItCame(e)
	scheme, rest, ok := strings.Cut(whole, "://")
	authority, path, slash := strings.Cut(rest, "/")
	port, tls := uint32(80), scheme == "https"
	if tls {
		port = 443
	}
	switch {
	case !ok || scheme != "http" && !tls:
		r.errorf(l.proxyPass.at, `%s is not the URL of a backend: write one such as "http://localhost:3000"`, quote(whole))
		return
	case strings.ContainsAny(authority, "{$"):
		r.errorf(l.proxyPass.at, "%s lets the request choose the backend: write a location for each", quote(whole))
		return
	case strings.ContainsAny(rest, "?#@"):
		r.errorf(l.proxyPass.at, "%s has more than host, port and path: leave the rest out", quote(whole))
		return
	}
	u, err := url.Parse(scheme + "://" + authority)
	if err != nil || u.Host == "" {
		r.errorf(l.proxyPass.at, "%s has no host and port that can be read: write a URL such as \"http://localhost:3000\"", quote(whole))
		return
	}
	host, err := parseHost(u.Hostname(), address.hostOnly)
	if err != nil {
		r.errorf(l.proxyPass.at, "%s", err)
		return
	}
	if u.Port() != "" {
		n, err := strconv.ParseUint(u.Port(), 10, 16)
		if err != nil || n == 0 {
			r.errorf(l.proxyPass.at, "%s is no port: write a number from 1 to 65535", quote(u.Port()))
			return
		}
		port = uint32(n)
	}
	at := l.proxyPass.at
	e.backends.value = []backend{{at: at, host: option[string]{host, at}, port: option[uint32]{port, at}, ssl: option[bool]{tls, at}}}
	if l.timeout.isSet() {
		t := defaultTimeouts
		t.ResponseHeader, t.Idle = l.timeout.value, l.timeout.value
		e.timeouts = option[Timeouts]{t, l.timeout.at}
	}
	switch {
	case !slash || path == "":
	case asItCame:
		l.forwardAs(e, strings.TrimRight(l.template("/"+path, e), "/")+"{path}")
	default:
		l.forwardPath(r, e, "/"+path)
	}
}

// asItCame is proxy_pass without what stands for the path as it came at its end, and whether that is there. Alone it changes nothing;
// a group of its name is not the path, and told elsewhere.
func (l *location) asItCame(e *entry) (rest string, is bool) {
	for _, word := range []string{"{path}", "$request_uri", "$uri"} {
		if rest, is := strings.CutSuffix(l.proxyPass.value, word); is && !slices.Contains(e.groups(), strings.Trim(word, "{}")) {
			return rest, true
		}
	}
	return l.proxyPass.value, false
}

func (l *location) forwardAs(e *entry, template string) {
	e.useTemplate(l.proxyPass.at, template, checkForwardPath)
	e.forwardPath = template
}

// forwardPath lets proxy_pass's path take the place of what the pattern found at the beginning of the request's. One with
// groups in it is the whole path.
func (l *location) forwardPath(r *reader, e *entry, path string) {
	template := l.template(path, e)
	switch {
	case template != path || e.match.value == "exact" || strings.Contains(path, "{"):
	case !strings.HasPrefix(path, "/"), !beginsAtStart(e.path.value):
		r.errorf(l.proxyPass.at, "what of the path it takes the place of cannot be told: begin the expression with ^, or name a group, such as (?P<rest>.*), and write {rest} here")
		return
	default:
		group := "rest"
		for slices.Contains(e.groups(), group) {
			group += "_"
		}
		if strings.HasSuffix(e.path.value, "/") {
			template = strings.TrimRight(template, "/") + "/"
		}
		e.path.value, template = fmt.Sprintf("(?:%s)(?P<%s>.*)$", e.path.value, group), template+"{"+group+"}"
	}
	l.forwardAs(e, template)
}

// beginsAtStart says whether an expression can match nowhere else than at the beginning.
func beginsAtStart(expression string) bool {
	parsed, err := syntax.Parse(expression, syntax.Perl)
	return err == nil && anchored(parsed)
}

func anchored(e *syntax.Regexp) bool {
	switch e.Op {
	case syntax.OpBeginText:
		return true
	case syntax.OpConcat, syntax.OpCapture:
		return anchored(e.Sub[0])
	case syntax.OpAlternate:
		return !slices.ContainsFunc(e.Sub, func(sub *syntax.Regexp) bool { return !anchored(sub) })
	}
	return false
}

// checkForwardPath lets a template be nothing but a path: of the request it takes the path and the groups of the expression.
func checkForwardPath(t Template) error {
	var sample strings.Builder
	for _, part := range t {
		switch part.Variable {
		case NoVariable:
			sample.WriteString(part.Literal)
		case VariablePath:
			sample.WriteString("/x")
		case VariableGroup:
			sample.WriteByte('x')
		default:
			return errors.New("of a request only its path and the groups of the pattern can stand in a path")
		}
	}
	text := sample.String()
	if !strings.HasPrefix(text, "/") {
		return errors.New("does not begin with /, so that a request could choose more than the path: begin it with one")
	}
	if normal, err := normalPath(text); err != nil || normal != text {
		return errors.New("is no path in the form that requests are forwarded in: write it without . and .. segments, and percent-encoded where need be")
	}
	return nil
}
