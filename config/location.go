package config

import (
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

// location is one of PyServe's regex_locations as written.
type location struct {
	at      place
	pattern string

	proxyPass, answer         option[string]
	contentType, cacheControl option[string]
	headers                   []headerLine
	timeout                   option[time.Duration]
}

const noFiles = "nodes serve no files: have a server do that, and write proxy_pass"

// locationSection declares what a location may say.
var locationSection = section[location]{
	form: `a mapping such as {proxy_pass: "http://localhost:3000"}`,
	keys: []key[location]{
		{name: "proxy_pass", form: "URL", about: "the backend; a path in it takes the place of what the pattern found, and may name groups of the pattern: `http://backend:3000/v{version}/{rest}`",
			read: func(r *reader, v value, l *location) {
				take(&l.proxyPass, v, func(v value) (string, bool) { return r.text(v, `a URL such as "http://localhost:3000"`) })
			}},
		{name: "return", form: "status, and a text or where to redirect", about: "an answer without a backend: `200 OK`, `404`, `301 https://example.com/`",
			read: func(r *reader, v value, l *location) {
				take(&l.answer, v, func(v value) (string, bool) { return r.text(v, `a status and a text such as "200 OK"`) })
			}},
		{name: "content_type", form: "media type", initial: "text/plain", about: "what the text of `return` is",
			read: func(r *reader, v value, l *location) { take(&l.contentType, v, r.mediaType) }},
		{name: "headers", form: "list of \"Name: value\"", about: "set in what the backend is sent, or, with `return`, in the answer; `{group}` is a group of the pattern, `$remote_addr` the client's address",
			read: func(r *reader, v value, l *location) { l.headers = r.headerLines(v) }},
		{name: "cache_control", form: "text", about: "the Cache-Control of the answer",
			read: func(r *reader, v value, l *location) {
				take(&l.cacheControl, v, func(v value) (string, bool) { return r.text(v, "a text such as no-cache") })
			}},
		{name: "timeout", form: "number of seconds", about: "how long the backend may take to answer, and stand still",
			read: func(r *reader, v value, l *location) { take(&l.timeout, v, r.seconds) }},
		{name: "root", use: unused, note: noFiles},
		{name: "index_file", use: unused, note: noFiles},
		{name: "spa_fallback", use: unused, note: noFiles},
		{name: "exclude_patterns", use: unused, note: noFiles},
		{name: "vibe_serving", use: unused, note: "nodes make no pages: have a server do that, and write proxy_pass"},
	},
}

// seconds reads a time as PyServe writes it.
func (r *reader) seconds(v value) (time.Duration, bool) {
	text, ok := r.text(v, "a number of seconds such as 30")
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseFloat(text, 64)
	if least := leastLimit.Seconds(); err != nil || !(n >= least && n <= mostLimit.Seconds()) {
		r.errorf(v, "%s is no number of seconds from %v to %v: write one such as 30", quote(text), least, mostLimit.Seconds())
		return 0, false
	}
	return time.Duration(n * float64(time.Second)), true
}

func (l *location) entry(r *reader) *entry {
	before := r.errorCount()
	e := &entry{at: l.at, path: option[string]{l.pattern, l.at}, match: option[string]{"regex", l.at}, stripPath: option[bool]{false, l.at}}
	switch path := l.pattern; l.precedence() {
	case 0:
		e.match.value, e.path.value = "exact", path[1:]
		r.checkPath(e)
	case 1:
		e.path.value = path[1:]
		if rest, folded := strings.CutPrefix(path, "~*"); folded {
			e.path.value = "(?i)" + rest
		}
		if l.checkPython(r, e.path.value) {
			r.checkRegex(e)
		}
	case 4:
		e.path.value = "^/"
	default:
		l.prefix(r, e)
	}
	if r.errorCount() > before {
		return e // what depends on the pattern cannot be told
	}
	switch {
	case l.answer.isSet() && l.proxyPass.isSet():
		r.errorf(l.answer.at, "stands beside proxy_pass: a location has one of them")
	case l.answer.isSet():
		l.answerInto(r, e)
	case l.proxyPass.isSet():
		l.proxyInto(r, e)
	default:
		// Leaving the location out would let another one have what it matches.
		r.warnf(l.at, "has neither proxy_pass nor return, so what it matches is answered 404")
		e.respond = option[*resourcev1.Respond]{&resourcev1.Respond{Status: 404}, l.at}
		return e
	}
	l.warnUnused(r, e)
	l.edits(r, e)
	r.checkTemplates(e)
	return e
}

// warnUnused tells of what has no meaning beside the rest of the location.
func (l *location) warnUnused(r *reader, e *entry) {
	if l.timeout.isSet() && l.answer.isSet() {
		r.warnf(l.timeout.at, "is not used: return answers without a backend")
	}
	if l.contentType.isSet() && e.respond.value.GetBody() == "" {
		r.warnf(l.contentType.at, "is not used: it is said of the text of return, and none stands here")
	}
}

// prefix makes an expression of a prefix, which PyServe compares letter by letter: "/api" is for "/apix" too.
func (l *location) prefix(r *reader, e *entry) {
	text := strings.TrimPrefix(l.pattern, "^~")
	if !strings.HasPrefix(text, "/") {
		r.errorf(l.at, `begins with none of the patterns there are: write "=/path", "~expression", "~*expression", "^~/prefix", "/prefix" or "__default__"`)
		return
	}
	path, err := checkPath(text, false)
	if err != nil {
		r.errorf(l.at, "%s", err)
		return
	}
	e.path.value = "^" + regexp.QuoteMeta(path)
}

// pythonOnly are what Python's expressions have and RE2 has not, or has with another meaning.
var pythonOnly = []struct {
	form    *regexp.Regexp
	escapes bool // it is about escapes, which are looked past otherwise
	says    string
}{
	{regexp.MustCompile(`\(\?<?[=!]`), false, "looks around, which RE2 cannot: match what is meant itself, or give what is not meant a location of its own before this one"},
	{regexp.MustCompile(`\\[1-9]`), true, "refers back to a group, which RE2 cannot: write out what it may be"},
	{regexp.MustCompile(`\(\?P=`), false, "refers back to a group, which RE2 cannot: write out what it may be"},
	{regexp.MustCompile(`\(\?\(`), false, "has a condition, which RE2 cannot: write a location for each case"},
	{regexp.MustCompile(`\(\?>|[*+?}]\+`), false, "gives nothing back of what it has matched, which RE2 cannot: write it without the last + or the ?>"},
	{regexp.MustCompile(`\(\?#`), false, "has a comment: leave it out"},
	{regexp.MustCompile(`\(\?[ims]*[aLux]`), false, "has a flag that RE2 does not have: i, m and s are those there are"},
	{regexp.MustCompile(`\\Z`), true, `has \Z: write \z`},
	{regexp.MustCompile(`\{,[0-9]+\}`), false, "has a repetition without a beginning: write {0, and so on"},
}

// escape and class are what stands for itself in an expression, whatever it looks like.
var (
	escape = regexp.MustCompile(`\\.`)
	class  = regexp.MustCompile(`\[\^?\]?[^\]]*\]`)
)

// checkPython says what to write instead of what only Python understands.
func (l *location) checkPython(r *reader, expression string) bool {
	escapes := strings.Join(escape.FindAllString(expression, -1), "")
	bare := class.ReplaceAllString(escape.ReplaceAllString(expression, " "), " ")
	for _, only := range pythonOnly {
		text := bare
		if only.escapes {
			text = escapes
		}
		if only.form.MatchString(text) {
			r.errorf(l.at, "%s %s", quote(expression), only.says)
			return false
		}
	}
	return true
}

// answerInto translates return.
func (l *location) answerInto(r *reader, e *entry) {
	word, text, _ := strings.Cut(strings.TrimSpace(l.answer.value), " ")
	text = strings.TrimSpace(text)
	status, err := strconv.ParseUint(word, 10, 16)
	redirects := slices.Contains(redirectStatuses, uint32(status))
	switch {
	case err != nil || status < 200 || status > 599:
		r.errorf(l.answer.at, `%s does not begin with a status from 200 to 599: write one such as "200 OK"`, quote(l.answer.value))
	case redirects:
		to := nginxVariables.Replace(l.template(text, e))
		if strings.ContainsFunc(to, func(c rune) bool { return c <= ' ' || c >= 0x7F || c == '\\' }) || len(to) > longestLocation {
			r.errorf(l.answer.at, `%s names no place to redirect to: write one such as "301 https://example.com/"`, quote(l.answer.value))
			return
		}
		e.useTemplate(l.answer.at, to, checkLocation)
		e.redirect = option[*resourcev1.Redirect]{&resourcev1.Redirect{To: to, Status: uint32(status)}, l.answer.at}
	default:
		answer := &resourcev1.Respond{Status: uint32(status)}
		if bare := status == 204 || status == 205 || status == 304; text != "" && !bare {
			answer.Body, answer.ContentType = text, l.contentType.or("text/plain")
		}
		if len(text) > longestBody {
			r.errorf(l.answer.at, "the text has %d bytes: write at most %d, and have a backend send what is longer", len(text), longestBody)
		}
		e.respond = option[*resourcev1.Respond]{answer, l.answer.at}
	}
}

var nginxVariables = strings.NewReplacer("$request_uri", "{path}", "$uri", "{path}", "$host", "{host}")

// template turns PyServe's words for what a request says into those of templates. Other braces stand for themselves there.
func (l *location) template(text string, e *entry) string {
	text = strings.ReplaceAll(text, "{", "{{")
	for _, group := range e.groups() {
		text = strings.ReplaceAll(text, "{{"+group+"}", "{"+group+"}")
	}
	return strings.ReplaceAll(text, "$remote_addr", "{client_ip}")
}
