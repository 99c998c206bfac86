package config

import (
	"cmp"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"
)

// extensionSettings are one item of extensions as written.
type extensionSettings struct {
	kind   option[string]
	config option[value]
}

// extensionSection declares what PyServe calls an extension. Of those it has, routing alone is about a proxy.
var extensionSection = section[extensionSettings]{
	form: "a mapping such as {type: routing, config: {regex_locations: {}}}",
	keys: []key[extensionSettings]{
		{name: "type", form: "routing", about: "other extensions of PyServe are accepted with a warning that the cluster does not use them",
			read: func(r *reader, v value, e *extensionSettings) {
				take(&e.kind, v, func(v value) (string, bool) { return r.text(v, "routing") })
			}},
		{name: "config", form: "section", about: "of type routing: its `regex_locations`",
			read: func(r *reader, v value, e *extensionSettings) {
				if r.told(v, func() shape { return shape{"anyOf": []shape{routingSection.shape(r), {"type": "object"}}} }) {
					return
				}
				e.config = option[value]{v, v.where()}
			}},
		{name: "source", use: unused, note: "other files are not read: write what is in it here"},
	},
}

var routingSection = section[locationSet]{
	form: `a mapping such as {regex_locations: {"=/health": {return: "200 OK"}}}`,
	keys: []key[locationSet]{
		{name: "regex_locations", form: "mapping of patterns to locations", about: "which requests go where",
			read: func(r *reader, v value, s *locationSet) { r.locations(v, s) }},
	},
}

// extensions reads the list of them.
func (r *reader) extensions(v value, into *locationSet) {
	r.list(v, "a list such as [{type: routing, config: {regex_locations: {}}}]", func(item value) {
		var e extensionSettings
		if !extensionSection.read(r, item, &e) {
			return
		}
		switch {
		case e.kind.value == "routing":
			if e.config.isSet() {
				routingSection.read(r, e.config.value, into)
			}
		case e.kind.isSet():
			r.warnf(e.kind.at, "the cluster does not use the extension %s of PyServe", quote(e.kind.value))
		default:
			r.errorf(item, "says nothing of its type: write type: routing")
		}
	})
}

// locations reads the locations of one extension.
func (r *reader) locations(v value, into *locationSet) {
	switch {
	case isNull(v.node):
		return
	case v.node.Kind != yaml.MappingNode:
		r.errorf(v, `%s stands here: write a mapping such as {"=/health": {return: "200 OK"}}`, describe(v.node))
		return
	}
	for name, node := range pairs(v.node) {
		child := v.at(name.Value, node)
		l := &location{at: placeOf(name, child.step), pattern: name.Value}
		before := r.errorCount()
		if locationSection.read(r, child, l) && r.errorCount() == before {
			into.all = append(into.all, l)
		}
	}
}

// locationSet are the locations of all routing extensions.
type locationSet struct {
	all []*location
}

// precedence says how soon PyServe tries a pattern: exact paths, then expressions, then prefixes, of which "^~" come first,
// then what is left over. Within each of them the first in the document wins.
func (l *location) precedence() int {
	switch {
	case strings.HasPrefix(l.pattern, "="):
		return 0
	case strings.HasPrefix(l.pattern, "~"):
		return 1
	case strings.HasPrefix(l.pattern, "^~"):
		return 2
	case l.pattern == "__default__":
		return 4
	}
	return 3
}

// entries makes the routes that locations are, in the order in which PyServe tries them. All but exact ones are expressions,
// prefixes too: those are tried after expressions there, and before them here.
func (s *locationSet) entries(r *reader) []*entry {
	slices.SortStableFunc(s.all, func(a, b *location) int { return cmp.Compare(a.precedence(), b.precedence()) })
	var out []*entry
	for _, l := range s.all {
		before := r.errorCount()
		if e := l.entry(r); r.errorCount() == before {
			out = append(out, e)
		}
	}
	return out
}

// into adds them to the routes of server.reverse_proxy. Expressions are tried in their order, these first, as in PyServe.
func (s *locationSet) into(routes *routeSet) {
	r := routes.r
	paths := routes.paths()
	var entries []*entry
	for _, e := range s.entries(r) {
		if other, ok := routes.byName[e.name()]; ok {
			r.errorf(e.at, "matches what the route on line %d does: leave one of them out", other.first.at.line)
			continue
		}
		if at, ok := paths.takes(e); ok && !e.leftOver() {
			r.errorf(e.at, "PyServe looks here before server.reverse_proxy, whose route on line %d would get requests first: make that a location too, or take it out", at.line)
			continue
		}
		entries = append(entries, e)
	}
	already := routes.groups
	routes.groups, routes.regexes = nil, 0
	for _, e := range entries {
		if other, ok := routes.byName[e.name()]; ok {
			r.warnf(e.at, "is never tried, in PyServe neither: the location on line %d takes all that it matches", other.first.at.line)
			continue
		}
		routes.add(e)
	}
	for _, g := range already {
		if g.order > 0 {
			routes.regexes++
			g.order = routes.regexes
		}
	}
	routes.groups = append(routes.groups, already...)
}

// leftOver says that an entry is for what nothing else is for, or for what nobody serves.
func (e *entry) leftOver() bool {
	return e.path.value == "^/" && e.match.value == "regex" || e.respond.value.GetStatus() == 404
}
