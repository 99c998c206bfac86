package route

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/pyserve/pyserve/config"
	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

// Request is what conditions are compared with; *http1.Request is one.
type Request interface {
	MethodName() []byte
	// Lookup is the index of the first field line from index i on with that name, in any case; below 0: there is none.
	Lookup(name string, i int) int
	// Value is that of the field line at index i, without whitespace around it.
	Value(i int) []byte
	// Query is what follows the "?" of the target, and whether there is one.
	Query() (query []byte, present bool)
}

// conditions are config.Conditions ready for requests.
type conditions struct {
	text    string // which two rules in one place do not share
	count   int
	methods []string
	headers []condition
	query   []condition
}

// condition is one on a header field or parameter. Without expression and exact, it asks whether that is present.
type condition struct {
	name       string
	expression *regexp.Regexp
	exact      *string
	present    bool
}

// conditions compiles those of a rule; nil: it has none.
func (c *expressions) conditions(from config.Conditions) (*conditions, *RuleError) {
	count := from.Count()
	if count == 0 {
		return nil, nil
	}
	made := &conditions{text: from.String(), count: count, methods: from.Methods}
	var err *RuleError
	if made.headers, err = c.fields("headers", from.Headers); err != nil {
		return nil, err
	}
	made.query, err = c.fields("query", from.Query)
	return made, err
}

func (c *expressions) fields(what string, from []*resourcev1.FieldMatch) ([]condition, *RuleError) {
	made := make([]condition, 0, len(from))
	for _, m := range from {
		one := condition{name: m.GetName()}
		switch asked := m.GetCondition().(type) {
		case *resourcev1.FieldMatch_Exact:
			one.exact = &asked.Exact
		case *resourcev1.FieldMatch_Regex:
			var err error
			if one.expression, err = c.compile(asked.Regex); err != nil {
				return nil, &RuleError{Field: what, Reason: fmt.Sprintf("%s: %v", m.GetName(), err)}
			}
		case *resourcev1.FieldMatch_Present:
			one.present = asked.Present
		default:
			return nil, &RuleError{Field: what, Reason: m.GetName() + ": nothing is asked of it"}
		}
		made = append(made, one)
	}
	return made, nil
}

// expressions compiles each expression once, however many rules have it.
type expressions map[string]*regexp.Regexp

func (c *expressions) compile(text string) (*regexp.Regexp, error) {
	if e, ok := (*c)[text]; ok {
		return e, nil
	}
	e, err := regexp.Compile(text)
	if err != nil {
		return nil, err
	}
	if *c == nil {
		*c = make(expressions)
	}
	(*c)[text] = e
	return e, nil
}

// before is the order in which rules in one place are tried: the one with more conditions first, and of as many that whose
// text comes first. Nil, which holds always, is last.
func (c *conditions) before(other *conditions) int {
	switch {
	case c == nil && other == nil:
		return 0
	case c == nil:
		return 1
	case other == nil:
		return -1
	case c.count != other.count:
		return other.count - c.count
	}
	return strings.Compare(c.text, other.text)
}

func (c *conditions) String() string {
	if c == nil {
		return ""
	}
	return c.text
}

// The values of miss; those from 0 on are headers, then parameters.
const (
	holds      = -2
	missMethod = -1
)

// miss is the first condition that does not hold for a request.
func (c *conditions) miss(l *look) int {
	if c == nil {
		return holds
	}
	if len(c.methods) > 0 && !c.hasMethod(l.request.MethodName()) {
		return missMethod
	}
	for i := range c.headers {
		if !c.headers[i].headerHolds(l) {
			return i
		}
	}
	if len(c.query) > 0 {
		query, _ := l.request.Query()
		for i := range c.query {
			if !c.query[i].parameterHolds(query, l) {
				return len(c.headers) + i
			}
		}
	}
	return holds
}

func (c *conditions) hasMethod(name []byte) bool {
	for _, m := range c.methods {
		if m == string(name) {
			return true
		}
	}
	return false
}

// reason says of a miss what is wrong.
func (c *conditions) reason(miss int) string {
	switch {
	case miss == missMethod:
		return "the method is not " + strings.Join(c.methods, " or ")
	case miss < len(c.headers):
		return c.headers[miss].reason("the header ")
	}
	return c.query[miss-len(c.headers)].reason("the query's ")
}

func (c *condition) reason(what string) string {
	switch {
	case c.exact != nil:
		return fmt.Sprintf("%s%s is not %q", what, c.name, *c.exact)
	case c.expression != nil:
		return fmt.Sprintf("%s%s does not match %q", what, c.name, c.expression)
	case c.present:
		return what + c.name + " is not there"
	}
	return what + c.name + " is there"
}

// headerHolds compares the value that all lines of a field make together, so that it does not matter how a sender cut it:
// joined by a comma (RFC 9110 section 5.3), of Cookie by a semicolon (RFC 9113 section 8.2.3).
func (c *condition) headerHolds(l *look) bool {
	i := l.request.Lookup(c.name, 0)
	switch {
	case c.exact != nil:
		return i >= 0 && c.isJoined(l.request, i)
	case c.expression != nil:
		return i >= 0 && l.matches(c.expression, l.joined(c, i))
	}
	return (i >= 0) == c.present
}

// separator is what joins the lines of the field.
func (c *condition) separator() string {
	if c.name == "cookie" {
		return "; "
	}
	return ", "
}

// isJoined compares the lines of the field, of which the first is at i, with the exact value.
func (c *condition) isJoined(r Request, i int) bool {
	rest := *c.exact
	for {
		line := r.Value(i)
		if len(line) > len(rest) || rest[:len(line)] != string(line) {
			return false
		}
		rest = rest[len(line):]
		if i = r.Lookup(c.name, i+1); i < 0 {
			return rest == ""
		}
		var more bool
		if rest, more = strings.CutPrefix(rest, c.separator()); !more {
			return false
		}
	}
}

// parameterHolds compares the first parameter of that name.
func (c *condition) parameterHolds(query []byte, l *look) bool {
	if !l.spend(len(query)) {
		return false
	}
	value, there := parameter(query, c.name)
	switch {
	case c.exact == nil && c.expression == nil:
		return there == c.present
	case !there:
		return false
	case c.exact != nil:
		return sameDecoded(value, *c.exact)
	}
	return l.matches(c.expression, decoded(value))
}
