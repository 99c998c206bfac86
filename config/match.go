package config

import (
	"cmp"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"

	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

const (
	// maxMethods, maxFieldMatches: more than a route ever needs, and few enough to be compared one by one.
	maxMethods, maxFieldMatches = 32, 32
	// longestMethod is the longest one that a node takes from a client.
	longestMethod = 64
	// longestMatchName and longestMatchValue are in bytes.
	longestMatchName, longestMatchValue = 128, 1 << 10
	// maxAlike is how many routes with conditions there may be for one host and path: a request is compared with one after
	// the other.
	maxAlike = 1000
)

// methods reads a list of methods, sorted: their order means nothing.
func (r *reader) methods(v value) ([]string, bool) {
	before := r.errorCount()
	var methods []string
	r.list(v, "a list such as [GET, POST]", func(item value) {
		method, ok := r.method(item)
		switch {
		case !ok:
		case len(methods) == maxMethods:
			r.errorf(item, "a route is for at most %d methods: leave methods out for every method", maxMethods)
		case slices.Contains(methods, method):
			r.warnf(item, "%s stands here twice", quote(method))
		default:
			methods = append(methods, method)
		}
	})
	if len(methods) == 0 && r.errorCount() == before {
		r.errorf(v, "no method stands here: name one, or leave methods out for every method")
	}
	slices.Sort(methods)
	return methods, r.errorCount() == before
}

// method reads a method. They are compared with case (RFC 9110 section 9.1), and all that anybody uses are in upper case.
func (r *reader) method(v value) (string, bool) {
	method, ok := r.text(v, "a method such as GET")
	if !ok {
		return "", false
	}
	upper := strings.ToUpper(method)
	switch {
	case !isToken(method) || len(method) > longestMethod:
		r.errorf(v, "%s is not a method: write one such as GET", quote(method))
	case upper != method:
		r.errorf(v, "%s is not in upper case, and methods are compared with case: write %s", quote(method), upper)
	case method == "CONNECT":
		r.errorf(v, "CONNECT is never forwarded: leave it out (a WebSocket over HTTP/2 is matched as GET)")
	default:
		return method, true
	}
	return "", false
}

// isToken: RFC 9110 section 5.6.2.
func isToken(text string) bool {
	odd := func(c rune) bool {
		return c >= 0x80 || !(c >= '0' && c <= '9' || c|0x20 >= 'a' && c|0x20 <= 'z' || strings.ContainsRune("!#$%&'*+-.^_`|~", c))
	}
	return text != "" && !strings.ContainsFunc(text, odd)
}

// headerMatches reads conditions on header fields, sorted by name.
func (r *reader) headerMatches(v value) ([]*resourcev1.FieldMatch, bool) {
	return r.fieldMatches(v, `a mapping such as {X-Version: "2"}`, r.headerMatch)
}

// queryMatches reads conditions on the parameters of the query, sorted by name.
func (r *reader) queryMatches(v value) ([]*resourcev1.FieldMatch, bool) {
	return r.fieldMatches(v, `a mapping such as {beta: "1"}`, r.parameterMatch)
}

// fieldMatches reads a mapping of names to conditions; one makes a condition of a key and its value, and reports what is
// wrong with them.
func (r *reader) fieldMatches(v value, form string, one func(at place, name string, v value) (*resourcev1.FieldMatch, bool)) ([]*resourcev1.FieldMatch, bool) {
	before := r.errorCount()
	if v.node.Kind != yaml.MappingNode || len(v.node.Content) == 0 {
		r.errorf(v, "%s stands here: write %s, or leave it out", describe(v.node), form)
		return nil, false
	}
	var out []*resourcev1.FieldMatch
	for name, node := range pairs(v.node) {
		child := v.at(name.Value, node)
		at := placeOf(name, child.step)
		m, ok := one(at, name.Value, child)
		switch {
		case !ok:
		case len(out) == maxFieldMatches:
			r.errorf(at, "a route has at most %d conditions here: write fewer", maxFieldMatches)
			return nil, false
		case slices.ContainsFunc(out, func(other *resourcev1.FieldMatch) bool { return other.Name == m.Name }):
			r.errorf(at, "stands here twice, in two spellings: keep one of them")
		default:
			out = append(out, m)
		}
	}
	slices.SortFunc(out, func(a, b *resourcev1.FieldMatch) int { return cmp.Compare(a.Name, b.Name) })
	return out, r.errorCount() == before
}

func (r *reader) headerMatch(at place, name string, v value) (*resourcev1.FieldMatch, bool) {
	m := &resourcev1.FieldMatch{Name: strings.ToLower(name)}
	switch {
	case !isToken(name) || len(name) > longestMatchName:
		r.errorf(at, "%s is not a header's name: write one such as X-Version", quote(name))
		return nil, false
	case m.Name == "host":
		r.errorf(at, "the host is not compared as a header: write hosts")
		return nil, false
	}
	if !r.condition(v, m) {
		return nil, false
	}
	exact := m.GetExact()
	switch {
	case strings.ContainsFunc(exact, func(c rune) bool { return c < ' ' && c != '\t' || c == 0x7F }):
		r.errorf(v, "%s has a control character, which no header has: leave it out", quote(exact))
	case strings.Trim(exact, " \t") != exact:
		r.errorf(v, "%s has spaces at its beginning or end, which do not count in headers: leave them out", quote(exact))
	default:
		return m, true
	}
	return nil, false
}

func (r *reader) parameterMatch(at place, name string, v value) (*resourcev1.FieldMatch, bool) {
	if name == "" || len(name) > longestMatchName {
		r.errorf(at, "the name of a parameter has 1 to %d bytes: write it as it is, without percent-encodings", longestMatchName)
		return nil, false
	}
	m := &resourcev1.FieldMatch{Name: name}
	return m, r.condition(v, m)
}

// condition is what is asked of a value, as written in the longer form.
type condition struct {
	regex   option[string]
	present option[bool]
}

var conditionSection = section[condition]{
	form: `a text such as "2", or {regex: "^2"}, or {present: true}`,
	keys: []key[condition]{
		{name: "regex", form: "expression", about: "RE2; finds its expression anywhere in the value unless anchored",
			read: func(r *reader, v value, c *condition) { take(&c.regex, v, r.valueExpression) }},
		{name: "present", form: "true or false", about: "true: it is there, with whatever value; false: it is not there",
			read: func(r *reader, v value, c *condition) { take(&c.present, v, r.boolean) }},
	},
}

// condition reads a value that is compared as it is, or one of the longer forms.
func (r *reader) condition(v value, m *resourcev1.FieldMatch) bool {
	if v.node.Tag == boolTag {
		r.errorf(v, "%s is not a text: write %q, in quotes", v.node.Value, v.node.Value)
		return false
	}
	if v.node.Kind != yaml.MappingNode {
		text, ok := r.text(v, conditionSection.form)
		if ok && len(text) > longestMatchValue {
			r.errorf(v, "the value has %d bytes: write at most %d", len(text), longestMatchValue)
			return false
		}
		m.Condition = &resourcev1.FieldMatch_Exact{Exact: text}
		return ok
	}
	before := r.errorCount()
	var c condition
	conditionSection.read(r, v, &c)
	switch {
	case r.errorCount() > before:
		return false
	case c.regex.isSet() == c.present.isSet():
		r.errorf(v, "either regex or present stands here: write one of the two")
		return false
	case c.regex.isSet():
		m.Condition = &resourcev1.FieldMatch_Regex{Regex: c.regex.value}
	default:
		m.Condition = &resourcev1.FieldMatch_Present{Present: c.present.value}
	}
	return true
}

func (r *reader) valueExpression(v value) (string, bool) {
	text, ok := r.text(v, `an expression such as "^2"`)
	return text, ok && r.expression(v, text)
}

// expression checks a regular expression, and counts it in.
func (r *reader) expression(at located, text string) bool {
	size, err := checkExpression(text)
	if err != nil {
		r.errorf(at, "%s", err)
		return false
	}
	if r.expressions += size; r.expressions > largestExpressions && r.expressions-size <= largestExpressions {
		r.errorf(at, "the expressions up to here stand for more than %d steps together: write fewer or smaller ones", largestExpressions)
		return false
	}
	return true
}

// conditions are those of an entry.
func (e *entry) conditions() Conditions {
	return Conditions{Methods: e.methods.value, Headers: e.headers.value, Query: e.query.value}
}
