package config

import (
	"regexp/syntax"
	"slices"
	"strings"
)

// routePaths are the paths of the routes for every host that are no expressions, sorted: what is tried before expressions.
type routePaths []routePath

type routePath struct {
	path  string
	exact bool
	at    place
}

func (s *routeSet) paths() routePaths {
	var out routePaths
	for _, g := range s.groups {
		if match := g.first.match.value; match != "regex" && len(g.first.hosts.value) == 0 {
			out = append(out, routePath{g.first.path.or("/"), match == "exact", g.first.at})
		}
	}
	slices.SortFunc(out, func(a, b routePath) int { return strings.Compare(a.path, b.path) })
	return out
}

// from gives those at and behind a path.
func (p routePaths) from(path string) routePaths {
	i, _ := slices.BinarySearchFunc(p, path, func(r routePath, path string) int { return strings.Compare(r.path, path) })
	return p[i:]
}

// takes tells of a route that could have a request which the entry, an exact path or an expression, is for.
func (p routePaths) takes(e *entry) (at place, ok bool) {
	if e.match.value == "exact" {
		return p.at(e.path.value, true)
	}
	literal := literalStart(e.path.value)
	if below := p.from(literal); len(below) > 0 && strings.HasPrefix(below[0].path, literal) {
		return below[0].at, true
	}
	at, ok = p.at("/", false)
	for i := 1; i <= len(literal) && !ok; i++ {
		if i == len(literal) || literal[i] == '/' {
			at, ok = p.at(literal[:i], false)
		}
	}
	return at, ok
}

func (p routePaths) at(path string, exact bool) (at place, ok bool) {
	for _, r := range p.from(path) {
		if r.path != path {
			break
		}
		if r.exact == exact {
			return r.at, true
		}
	}
	return place{}, false
}

// literalStart is what every path begins with that an expression matches; empty where nothing is sure.
func literalStart(expression string) string {
	parsed, err := syntax.Parse(expression, syntax.Perl)
	if err != nil {
		return ""
	}
	parsed = parsed.Simplify()
	for parsed.Op == syntax.OpConcat && parsed.Sub[0].Op == syntax.OpConcat {
		parsed = parsed.Sub[0]
	}
	if parsed.Op != syntax.OpConcat || parsed.Sub[0].Op != syntax.OpBeginText {
		return ""
	}
	if literal := parsed.Sub[1]; literal.Op == syntax.OpLiteral && literal.Flags&syntax.FoldCase == 0 {
		return string(literal.Rune)
	}
	return ""
}
