package route

import (
	"bytes"
	"fmt"
	"math"
	"strings"

	"github.com/pyserve/pyserve/config"
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
	// The rank of a regex among those of its host, the lowest first; of rules with the same one the lowest counts for all.
	// Otherwise unused.
	Order uint32
	// What else is asked of requests.
	Conditions config.Conditions
	Value      T
}

// RuleError says which rule Compile refused, and why.
type RuleError struct {
	Index  int    // in the rules given to Compile
	Field  string // "path", "match", "hosts", "headers" or "query"
	Reason string
}

func (e *RuleError) Error() string {
	return fmt.Sprintf("route %d: %s: %s", e.Index, e.Field, e.Reason)
}

// Table finds the rule for a request. It is immutable and may be read concurrently; the zero value has no rules.
//
// The paths of one host are a tree with a level for each segment. A lookup costs one step for each segment that some rule
// shares with the path, and stops at the first that none does, so that neither the number of rules nor a path of ten
// thousand slashes makes it slow.
type Table[T any] struct {
	values []T     // by the number of their rules
	free   []int32 // numbers that no rule has
	paths  tree
	hosts  map[string]class // exact names
	wild   map[string]class // what follows "*.", so "example.com"
	any    class
	crowds [][]candidate // what slots below 0 stand for; see slot
	// The lengths of wild's keys: other ends of a host need not be looked up.
	shortestWild, longestWild int
	// How many rules were taken out since Compile. Their places in paths stay.
	worn int
	// How much one lookup may compare, in bytes.
	work int
}

// class is what one host, or one "*." host, or no host, holds.
type class struct {
	root    int32 // in paths; 0: no tree
	rules   int32 // in the tree
	regexes []regex
}

func (c class) empty() bool { return c.rules == 0 && len(c.regexes) == 0 }

// Compile makes a table of rules, in whatever order they come. The error is a *RuleError about the first rule that cannot
// be used: a path that is not in normal form and so would never match, an expression that does not parse, a host that is
// none, or host, match, path and conditions that another rule has too. step is called after each rule; nil: nothing
// is.
func Compile[T any](rules []Rule[T], step func()) (*Table[T], error) {
	if step == nil {
		step = func() {}
	}
	t := &Table[T]{
		values: make([]T, 0, len(rules)),
		paths:  newTree(len(rules)),
		hosts:  make(map[string]class),
		wild:   make(map[string]class),
		work:   maxWork,
	}
	e := entering{places: make(map[place]int32)}
	for i := range rules {
		t.values = append(t.values, rules[i].Value)
		if err := t.add(int32(i), &rules[i], &e); err != nil {
			err.Index = i
			return nil, err
		}
		if isRegex(&rules[i]) {
			t.work += pathWork
		}
		step()
	}
	t.any.sortRegexes()
	for _, classes := range []map[string]class{t.hosts, t.wild} {
		for _, c := range classes {
			c.sortRegexes()
		}
	}
	t.measureWild()
	return t, nil
}

func (t *Table[T]) measureWild() {
	t.shortestWild, t.longestWild = math.MaxInt, 0
	for end := range t.wild {
		t.shortestWild, t.longestWild = min(t.shortestWild, len(end)), max(t.longestWild, len(end))
	}
}

// place is where no two expressions may be. Of other paths the tree tells.
type place struct{ host, path, conditions string }

// entering is what is known of the expressions while rules are entered.
type entering struct {
	expressions
	places map[place]int32 // the rules
}

// add enters one rule under each of its hosts. Its path and conditions are checked once for all of them.
func (t *Table[T]) add(rule int32, r *Rule[T], e *entering) *RuleError {
	asks, refused := e.conditions(r.Conditions)
	if refused != nil {
		return refused
	}
	enter := func(host string, c *class) bool {
		if !t.join(t.grow(c, r), rule, asks) {
			return false
		}
		c.rules++
		return true
	}
	switch r.Match {
	case resourcev1.PathMatch_PATH_MATCH_REGEX:
		expression, err := e.compile(r.Path)
		if err != nil {
			return &RuleError{Field: "path", Reason: err.Error()}
		}
		enter = func(host string, c *class) bool {
			at := place{host, r.Path, asks.String()}
			if _, taken := e.places[at]; taken {
				return false
			}
			e.places[at] = rule
			c.regexes = append(c.regexes, regex{expression: expression, order: r.Order, rule: rule, asks: asks})
			return true
		}
	case resourcev1.PathMatch_PATH_MATCH_PREFIX, resourcev1.PathMatch_PATH_MATCH_EXACT:
		if reason := notNormal(r.Path, r.Match == resourcev1.PathMatch_PATH_MATCH_PREFIX); reason != "" {
			return &RuleError{Field: "path", Reason: reason}
		}
	default:
		return &RuleError{Field: "match", Reason: fmt.Sprintf("%v is not prefix, exact or regex", r.Match)}
	}
	return t.under(r, enter)
}

// everyHost stands for no hosts.
var everyHost = []string{""}

// under has enter called for the class of each host of a rule. It returns false where the class has such a rule already.
func (t *Table[T]) under(r *Rule[T], enter func(host string, c *class) bool) *RuleError {
	hosts := r.Hosts
	if len(hosts) == 0 {
		hosts = everyHost
	}
	for _, host := range hosts {
		key := string(CanonicalHost(nil, []byte(host)))
		if host != "" && !hostKey(key) {
			return &RuleError{Field: "hosts", Reason: fmt.Sprintf("%q is not a host name, or *. before one", host)}
		}
		c := t.class(key)
		if !enter(key, &c) {
			return &RuleError{Field: "path", Reason: fmt.Sprintf("%q is there twice for the same host, match and conditions", r.Path)}
		}
		t.put(key, c)
	}
	return nil
}

// class is that of a host; empty: of every host.
func (t *Table[T]) class(host string) class {
	if host == "" {
		return t.any
	}
	classes, name := t.classesOf(host)
	return classes[name]
}

// put replaces the class of a host, and forgets one that is empty.
func (t *Table[T]) put(host string, c class) {
	if host == "" {
		t.any = c
		return
	}
	classes, name := t.classesOf(host)
	if c.empty() {
		delete(classes, name)
		return
	}
	classes[name] = c
}

// hostKey says whether key can be a host of a rule.
func hostKey(key string) bool {
	name := strings.TrimPrefix(key, "*.")
	return name != "" && !strings.ContainsAny(name, "*/ ")
}

// classesOf is where the class of a host is, and under which name.
func (t *Table[T]) classesOf(host string) (classes map[string]class, name string) {
	if end, wild := strings.CutPrefix(host, "*."); wild {
		return t.wild, end
	}
	return t.hosts, host
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

// grow returns where the tree of c has a rule like r, and makes what is missing.
func (t *Table[T]) grow(c *class, r *Rule[T]) *slot {
	if c.root == 0 {
		c.root = t.paths.newRoot()
	}
	return r.in(&t.paths.nodes[t.paths.grow(c.root, r.segments())])
}

// segments is the way to the rule's node. The prefix "/" has no segment at all.
func (r *Rule[T]) segments() []byte {
	if r.Match == resourcev1.PathMatch_PATH_MATCH_PREFIX {
		return []byte(strings.TrimSuffix(r.Path, "/"))
	}
	return []byte(r.Path)
}

// in is where its node has the rule.
func (r *Rule[T]) in(n *node) *slot {
	if r.Match == resourcev1.PathMatch_PATH_MATCH_PREFIX {
		return &n.prefix
	}
	return &n.exact
}

// Lookup finds the rule that wins for a host in the form of CanonicalHost, a path in that of NormalizePath, and a request,
// which is asked only where rules with conditions are near, and may be nil where none are. Of all rules that match them, an
// exact host comes before a "*." host, a longer "*." host before a shorter, and either before no host; then an exact path
// before the longest prefix, before the expressions in their order; then the rule with more conditions, and of as many that
// whose conditions come first as text. A host class in which no rule matches does not end the search, and neither does a path
// whose rules have conditions that do not hold: the request falls to the next, as the same sentence read over single rules
// says. It keeps none of its arguments, and allocates nothing but for conditions on headers of several lines and expressions
// for encoded parameters. The error is ErrTooLong; then there is no value.
func (t *Table[T]) Lookup(host, path []byte, r Request) (value T, ok bool, err error) {
	l := look{request: r, left: t.work}
	rule := t.find(host, path, &l)
	switch {
	case l.left < 0:
		return value, false, ErrTooLong
	case rule < 0:
		return value, false, nil
	}
	return t.values[rule], true, nil
}

// find is the number of the winning rule, -1 if there is none.
func (t *Table[T]) find(host, path []byte, l *look) int32 {
	if len(path) == 0 || path[0] != '/' { // not a normalised path
		return -1
	}
	if len(t.hosts) > 0 {
		if rule := t.in(t.hosts[string(host)], path, l); rule >= 0 {
			return rule
		}
	}
	if len(t.wild) > 0 {
		if rule := t.inWild(host, path, l); rule >= 0 {
			return rule
		}
	}
	return t.in(t.any, path, l)
}

// inWild tries the ends of host, the longest first.
func (t *Table[T]) inWild(host, path []byte, l *look) int32 {
	for end := t.wildEnd(host); end != nil; end = t.wildEnd(end) {
		if rule := t.in(t.wild[string(end)], path, l); rule >= 0 {
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
func (t *Table[T]) in(c class, path []byte, l *look) int32 {
	if c.root != 0 {
		rule, node := t.paths.find(c.root, path)
		if rule < 0 {
			rule = t.among(rule, node, l)
		}
		if rule != 0 {
			return rule - 1
		}
	}
	if len(c.regexes) == 0 {
		return -1
	}
	return t.matching(c.regexes, path, l)
}
