package config

import (
	"strconv"
	"strings"

	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

// Conditions are what a route asks of requests beyond their host and path. All of them must hold. The zero value asks for
// nothing. They are read, never changed.
type Conditions struct {
	// As in resourcev1.Route.
	Methods        []string
	Headers, Query []*resourcev1.FieldMatch
}

// ConditionsOf gives those of a route, whose slices it shares.
func ConditionsOf(r *resourcev1.Route) Conditions {
	return Conditions{Methods: r.GetMethods(), Headers: r.GetHeaders(), Query: r.GetQuery()}
}

// Count is how many there are: the methods are one, and so is each header and each parameter.
func (c Conditions) Count() int {
	n := len(c.Headers) + len(c.Query)
	if len(c.Methods) > 0 {
		n++
	}
	return n
}

// String writes them as they stand in the names of routes: `GET,POST x-version="2" ?beta="1"`. Different conditions have
// different texts. Empty: there are none.
func (c Conditions) String() string {
	if c.Count() == 0 {
		return ""
	}
	return strings.Join(c.Texts(), " ")
}

// Texts are the parts of String.
func (c Conditions) Texts() []string {
	out := make([]string, 0, c.Count())
	if len(c.Methods) > 0 {
		out = append(out, strings.Join(c.Methods, ","))
	}
	for _, m := range c.Headers {
		out = append(out, conditionText(m.GetName(), m))
	}
	for _, m := range c.Query {
		name := m.GetName()
		if !isPlainName(name) {
			name = strconv.Quote(name)
		}
		out = append(out, "?"+conditionText(name, m))
	}
	return out
}

func conditionText(name string, m *resourcev1.FieldMatch) string {
	switch c := m.GetCondition().(type) {
	case *resourcev1.FieldMatch_Exact:
		return name + "=" + strconv.Quote(c.Exact)
	case *resourcev1.FieldMatch_Regex:
		return name + "=~" + strconv.Quote(c.Regex)
	case *resourcev1.FieldMatch_Present:
		if !c.Present {
			return name + "=absent"
		}
	}
	return name + "=present"
}

// isPlainName says of a parameter's name that it can be written without quotes.
func isPlainName(name string) bool {
	odd := func(c rune) bool { return c >= 0x80 || !isUnreserved(byte(c)) }
	return name != "" && !strings.ContainsFunc(name, odd)
}
