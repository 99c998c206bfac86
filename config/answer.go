package config

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

const (
	// longestLocation is how many bytes a redirect's to may have as it is written.
	longestLocation = 4096
	// longestBody is how many bytes a fixed answer may have: it is in every node's memory, and in every bundle.
	longestBody = 64 << 10
)

// redirectSettings are the redirect section as written.
type redirectSettings struct {
	to     option[string]
	status option[uint32]
}

var redirectSection = section[redirectSettings]{
	form: `a mapping such as {to: "https://example.com{path}", status: 308}`,
	keys: []key[redirectSettings]{
		{name: "to", form: "URL or path, a template", about: "where the client is sent; without `?`, `#` or `{query}` in it the request's query is kept",
			read: func(r *reader, v value, s *redirectSettings) {
				take(&s.to, v, func(v value) (string, bool) { return r.text(v, `a URL such as "https://example.com{path}"`) })
			}},
		{name: "status", form: "301, 302, 303, 307 or 308", initial: "308", about: "308 and 301 are for good, and browsers remember them; 303 makes a GET of every request, 307 and 308 leave method and body as they are",
			read: func(r *reader, v value, s *redirectSettings) {
				take(&s.status, v, r.redirectStatus)
			}},
	},
}

func (r *reader) redirect(v value, e *entry) (*resourcev1.Redirect, bool) {
	before := r.errorCount()
	var s redirectSettings
	if !redirectSection.read(r, v, &s) {
		return nil, false
	}
	status := s.status.or(http.StatusPermanentRedirect)
	switch to := s.to.value; {
	case r.errorCount() > before:
	case !s.to.isSet():
		r.errorf(v, `a redirect needs to: write where clients are sent, such as to: "https://example.com{path}"`)
	case len(to) > longestLocation:
		r.errorf(s.to.at, "has %d bytes: write at most %d", len(to), longestLocation)
	case strings.ContainsFunc(to, func(c rune) bool { return c <= ' ' || c >= 0x7F || c == '\\' }):
		r.errorf(s.to.at, "%s has a character that a URL does not: write it percent-encoded", quote(to))
	default:
		e.useTemplate(s.to.at, to, checkLocation)
	}
	return &resourcev1.Redirect{To: s.to.value, Status: status}, r.errorCount() == before
}

// redirectStatuses are those that send a client elsewhere.
var redirectStatuses = []uint32{301, 302, 303, 307, 308}

func (r *reader) redirectStatus(v value) (uint32, bool) {
	if r.told(v, func() shape { return shape{"type": "integer", "enum": redirectStatuses} }) {
		return 0, false
	}
	status, ok := r.integer(v, 0, 999)
	if ok && !slices.Contains(redirectStatuses, status) {
		r.errorf(v, "%d does not send clients elsewhere: write 301, 302, 303, 307 or 308", status)
		return 0, false
	}
	return status, ok
}

// checkLocation lets a redirect lead only where its author wanted: what a client writes into its path must not become a
// scheme or a host.
func checkLocation(t Template) error {
	if len(t) == 0 {
		return errors.New("nothing stands here: write where clients are sent")
	}
	if t[0].Variable == VariablePath {
		return nil
	}
	first := t[0].Literal
	_, authority, absolute := strings.Cut(first, "://")
	switch {
	case strings.HasPrefix(first, "//"):
		return errors.New("begins with //, which takes over the scheme: write https:// or http://")
	case strings.HasPrefix(first, "/"):
		return nil
	case absolute && (strings.HasPrefix(first, "https://") || strings.HasPrefix(first, "http://")):
		return checkAuthority(append(Template{{Literal: authority}}, t[1:]...))
	}
	return errors.New("begin with https://, http://, / or {path}, so that no client decides where it leads")
}

// checkAuthority looks at what follows "https://", up to where the path begins. A group could hold anything that ends a host.
func checkAuthority(t Template) error {
	named := false
	for _, part := range t {
		switch part.Variable {
		case NoVariable:
			host := part.Literal
			end := strings.IndexAny(host, "/?#")
			if end >= 0 {
				host = host[:end]
			}
			if c := strings.IndexFunc(host, notInHost); c >= 0 {
				return fmt.Errorf("%s cannot stand in a host: write https://, a host and a path", quote(host[c:c+1]))
			}
			if named = named || host != ""; end >= 0 {
				return authorityEnds(named)
			}
		case VariablePath:
			return authorityEnds(named)
		case VariableHost:
			named = true
		default:
			return errors.New("of what a client sends only {host} can stand in a host: write a / behind it, and the rest then")
		}
	}
	return authorityEnds(named)
}

func authorityEnds(named bool) error {
	if !named {
		return errors.New("no host stands behind //: write one, or {host} for the one that the client named")
	}
	return nil
}

// respondSettings are the respond section as written.
type respondSettings struct {
	status      option[uint32]
	body, media option[string]
}

var respondSection = section[respondSettings]{
	form: `a mapping such as {status: 200, body: "ok"}`,
	keys: []key[respondSettings]{
		{name: "status", form: "number, 200 to 599", initial: "200", about: "of the answer",
			read: func(r *reader, v value, s *respondSettings) {
				take(&s.status, v, func(v value) (uint32, bool) { return r.integer(v, 200, 599) })
			}},
		{name: "body", form: "text, at most 64 KiB", about: "as it is: braces are no templates here",
			read: func(r *reader, v value, s *respondSettings) {
				take(&s.body, v, func(v value) (string, bool) { return r.text(v, `a text such as "ok"`) })
			}},
		{name: "content_type", form: "media type", initial: "text/plain; charset=utf-8", about: "what the body is",
			read: func(r *reader, v value, s *respondSettings) { take(&s.media, v, r.mediaType) }},
	},
}

func (r *reader) respond(v value) (*resourcev1.Respond, bool) {
	before := r.errorCount()
	var s respondSettings
	if !respondSection.read(r, v, &s) {
		return nil, false
	}
	out := &resourcev1.Respond{Status: s.status.or(http.StatusOK), Body: s.body.value}
	switch bare := out.Status == 204 || out.Status == 205 || out.Status == 304; {
	case len(out.Body) > longestBody:
		r.errorf(s.body.at, "has %d bytes: write at most %d, and have a backend send what is longer", len(out.Body), longestBody)
	case bare && out.Body != "":
		r.errorf(s.body.at, "an answer with status %d has no body: leave it out", out.Status)
	case out.Body != "":
		out.ContentType = s.media.or("text/plain; charset=utf-8")
	case s.media.isSet():
		r.errorf(s.media.at, "there is no body that it could be said of: write body, or leave content_type out")
	}
	return out, r.errorCount() == before
}

func (r *reader) mediaType(v value) (string, bool) {
	text, ok := r.text(v, "a media type such as application/json")
	if !ok {
		return "", false
	}
	kind, _, _ := strings.Cut(text, ";")
	major, minor, slash := strings.Cut(strings.TrimSpace(kind), "/")
	if !slash || !isFieldName(major) || !isFieldName(minor) || len(text) > 256 || strings.Trim(text, " \t") != text ||
		strings.ContainsFunc(text, func(c rune) bool { return c < ' ' || c >= 0x7F }) {
		r.errorf(v, "%s is not a media type: write one such as application/json", quote(text))
		return "", false
	}
	return text, true
}

// answersItself says that the entry's requests come to no backend.
func (e *entry) answersItself() bool { return e.redirect.isSet() || e.respond.isSet() }

// checkAnswer refuses what an entry says of backends beside an answer of the proxy's own.
func (r *reader) checkAnswer(e *entry) {
	name, at := "redirect", e.redirect.at
	if e.respond.isSet() {
		name, at = "respond", e.respond.at
	}
	if e.redirect.isSet() && e.respond.isSet() {
		r.errorf(at, "stands beside redirect, and a route gives one answer: leave one of them out")
	}
	for _, at := range e.backendKeys() {
		if at.isSet() {
			r.errorf(at, "stands beside %s, which answers without a backend: leave one of them out", name)
		}
	}
	for _, at := range e.wayKeys() {
		if at.isSet() {
			r.warnf(at, "is not used: %s answers without a backend", name)
		}
	}
}

// backendKeys are the places of what says where requests go.
func (e *entry) backendKeys() []place {
	return []place{e.host.at, e.port.at, e.ssl.at, e.backends.at, e.split.at}
}

// wayKeys are the places of what is about the way to a backend.
func (e *entry) wayKeys() []place {
	return []place{
		e.stripPath.at, e.preserveHost.at, e.check.at, e.timeouts.at, e.tls.at, e.balancing.at, e.slowStart.at, e.outliers.at,
		e.breaker.at, e.sticky.at, e.retries.at, e.maxBody.at, e.requestHeaders.at,
	}
}

// mostBody is the greatest limit of a request's body, a tebibyte.
const mostBody = 1 << 40

func (r *reader) bodyLimit(v value) (uint64, bool) { return r.whole(v, 0, mostBody) }
