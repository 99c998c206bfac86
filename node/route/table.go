package route

import (
	"bytes"
	"cmp"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strings"

	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

// Rule says which requests lead to Value.
type Rule[T any] struct {
	// For prefix and exact a path in the form that NormalizePath gives, for prefix without a trailing slash except in "/"
	// itself. For regex an RE2 expression, found anywhere in the path unless it is anchored.
	Path  string
	Match resourcev1.PathMatch
	// Host names; "*.example.com" is every name below example.com, however deep, but not example.com. Empty: every host.
	Hosts []string
	// The rank of a regex among those of its host, the lowest first. Otherwise unused.
	Order uint32
	Value T
}

// RuleError says which rule Compile refused, and why.
type RuleError struct {
	Index  int    // in the rules given to Compile
	Field  string // "path", "match" or "hosts"
	Reason string
}

func (e *RuleError) Error() string {
	return fmt.Sprintf("route %d: %s: %s", e.Index, e.Field, e.Reason)
}

// Table finds the rule for a host and path. It is immutable and may be read concurrently; the zero value has no rules.
//
// The paths of one host are a tree with a level for each segment. A lookup costs one step for each segment that some rule
// shares with the path, and stops at the first that none does, so that neither the number of rules nor a path of ten
// thousand slashes makes it slow.
type Table[T any] struct {
	values []T
	paths  tree
	hosts  map[string]class // exact names
	wild   map[string]class // what follows "*.", so "example.com"
	any    class
	// The lengths of wild's keys: other ends of a host need not be looked up.
	shortestWild, longestWild int
}

// class is what one host, or one "*." host, or no host, holds.
type class struct {
	root    int32 // in paths; 0: no tree
	regexes []regex
}

type regex struct {
	expression *regexp.Regexp
	order      uint32
	rule       int32
}

// Compile makes a table of rules, in whatever order they come. The error is a *RuleError about the first rule that cannot
// be used: a path that is not in normal form and so would never match, an expression that does not parse, a host that is
// none, or host, match and path that another rule has too.
func Compile[T any](rules []Rule[T]) (*Table[T], error) {
	t := &Table[T]{
		values: make([]T, 0, len(rules)),
		paths:  newTree(),
		hosts:  make(map[string]class),
		wild:   make(map[string]class),
	}
	taken := make(map[place]struct{}, len(rules))
	for i, r := range rules {
		t.values = append(t.values, r.Value)
		if err := t.add(int32(i), r, taken); err != nil {
			err.Index = i
			return nil, err
		}
	}
	t.any.sortRegexes()
	for _, classes := range []map[string]class{t.hosts, t.wild} {
		for _, c := range classes {
			c.sortRegexes()
		}
	}
	t.shortestWild = math.MaxInt
	for end := range t.wild {
		t.shortestWild, t.longestWild = min(t.shortestWild, len(end)), max(t.longestWild, len(end))
	}
	return t, nil
}

// sortRegexes sorts in place, so that copies of the class see it.
func (c class) sortRegexes() {
	slices.SortStableFunc(c.regexes, func(a, b regex) int { return cmp.Compare(a.order, b.order) })
}

// place is where no two rules may be.
type place struct {
	host  string // "" for every host
	match resourcev1.PathMatch
	path  string
}

// add enters one rule under each of its hosts.
func (t *Table[T]) add(rule int32, r Rule[T], taken map[place]struct{}) *RuleError {
	enter, err := t.entry(rule, r)
	if err != nil {
		return err
	}
	hosts := r.Hosts
	if len(hosts) == 0 {
		hosts = []string{""}
	}
	for _, host := range hosts {
		key := string(CanonicalHost(nil, []byte(host)))
		if host != "" && !hostKey(key) {
			return &RuleError{Field: "hosts", Reason: fmt.Sprintf("%q is not a host name, or *. before one", host)}
		}
		at := place{key, r.Match, r.Path}
		if _, ok := taken[at]; ok {
			return &RuleError{Field: "path", Reason: fmt.Sprintf("%q is there twice for the same host and match", r.Path)}
		}
		taken[at] = struct{}{}
		t.within(key, enter)
	}
	return nil
}

// hostKey says whether key can be a host of a rule.
func hostKey(key string) bool {
	name := strings.TrimPrefix(key, "*.")
	return name != "" && !strings.ContainsAny(name, "*/ ")
}

// within applies enter to the class of a host.
func (t *Table[T]) within(host string, enter func(*class)) {
	if host == "" {
		enter(&t.any)
		return
	}
	classes := t.hosts
	if end, ok := strings.CutPrefix(host, "*."); ok {
		classes, host = t.wild, end
	}
	c := classes[host]
	enter(&c)
	classes[host] = c
}

// entry checks a rule's path, once for all its hosts, and returns what enters it into the class of one.
func (t *Table[T]) entry(rule int32, r Rule[T]) (func(*class), *RuleError) {
	switch r.Match {
	case resourcev1.PathMatch_PATH_MATCH_REGEX:
		expression, err := regexp.Compile(r.Path)
		if err != nil {
			return nil, &RuleError{Field: "path", Reason: err.Error()}
		}
		return func(c *class) {
			c.regexes = append(c.regexes, regex{expression: expression, order: r.Order, rule: rule})
		}, nil
	case resourcev1.PathMatch_PATH_MATCH_PREFIX:
		if reason := notNormal(r.Path, true); reason != "" {
			return nil, &RuleError{Field: "path", Reason: reason}
		}
		// The prefix "/" has no segment at all.
		return func(c *class) { t.grow(c, strings.TrimSuffix(r.Path, "/")).prefix = rule + 1 }, nil
	case resourcev1.PathMatch_PATH_MATCH_EXACT:
		if reason := notNormal(r.Path, false); reason != "" {
			return nil, &RuleError{Field: "path", Reason: reason}
		}
		return func(c *class) { t.grow(c, r.Path).exact = rule + 1 }, nil
	default:
		return nil, &RuleError{Field: "match", Reason: fmt.Sprintf("%v is not prefix, exact or regex", r.Match)}
	}
}

// notNormal says why a rule's path could never match, or nothing.
func notNormal(path string, prefix bool) string {
	normal, err := NormalizePath(nil, []byte(path))
	switch {
	case err != nil:
		return err.Error()
	case string(normal) != path:
		return fmt.Sprintf("%q is not in normal form, which is %q", path, normal)
	case prefix && path != "/" && strings.HasSuffix(path, "/"):
		return fmt.Sprintf("the prefix %q ends in a slash", path)
	}
	return ""
}

// grow returns the node of path in the tree of c, and makes what is missing.
func (t *Table[T]) grow(c *class, path string) *node {
	if c.root == 0 {
		c.root = t.paths.newRoot()
	}
	return &t.paths.nodes[t.paths.grow(c.root, []byte(path))]
}

// Lookup finds the rule that wins for a host in the form of CanonicalHost and a path in that of NormalizePath. Of all
// rules that match both, an exact host comes before a "*." host, a longer "*." host before a shorter, and either before no
// host; then an exact path before the longest prefix, before the expressions in their order. A host class in which no path
// matches does not end the search: the request falls to the next, as the same sentence read over single rules says. It
// allocates nothing and keeps neither host nor path.
func (t *Table[T]) Lookup(host, path []byte) (value T, ok bool) {
	rule := t.find(host, path)
	if rule < 0 {
		return value, false
	}
	return t.values[rule], true
}

// find is the number of the winning rule, -1 if there is none.
func (t *Table[T]) find(host, path []byte) int32 {
	if len(path) == 0 || path[0] != '/' { // not a normalised path
		return -1
	}
	if len(t.hosts) > 0 {
		if rule := t.in(t.hosts[string(host)], path); rule >= 0 {
			return rule
		}
	}
	if len(t.wild) > 0 {
		if rule := t.inWild(host, path); rule >= 0 {
			return rule
		}
	}
	return t.in(t.any, path)
}

// inWild tries the ends of host, the longest first.
func (t *Table[T]) inWild(host, path []byte) int32 {
	for end := t.wildEnd(host); end != nil; end = t.wildEnd(end) {
		if rule := t.in(t.wild[string(end)], path); rule >= 0 {
			return rule
		}
	}
	return -1
}

// wildEnd is the longest end of host, shorter than host, that may be a key of wild; nil: there is none.
func (t *Table[T]) wildEnd(host []byte) []byte {
	for {
		// There is no name below another without a label of its own.
		dot := bytes.IndexByte(host, '.')
		if dot < 0 {
			return nil
		}
		own := dot > 0
		host = host[dot+1:]
		if len(host) < t.shortestWild {
			return nil
		}
		if own && len(host) <= t.longestWild {
			return host
		}
	}
}

// in finds the winning rule of one class.
func (t *Table[T]) in(c class, path []byte) int32 {
	if c.root != 0 {
		if rule := t.paths.find(c.root, path); rule != 0 {
			return rule - 1
		}
	}
	for _, r := range c.regexes {
		if r.expression.Match(path) {
			return r.rule
		}
	}
	return -1
}
