package config

import (
	"cmp"
	"slices"
	"strconv"
	"strings"

	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

const (
	// maxHosts is how many hosts one route may be for.
	maxHosts = 200
	// maxWeight is the greatest weight of a backend.
	maxWeight = 1000
)

// entry is one item of reverse_proxy as written.
type entry struct {
	at                      place
	path                    option[string]
	match                   option[string]
	hosts                   option[[]string]
	methods                 option[[]string]
	headers, query          option[[]*resourcev1.FieldMatch]
	stripPath, preserveHost option[bool]
	host                    option[string]
	port                    option[uint32]
	ssl                     option[bool]
	backends                option[[]backend]
	split                   option[[]part]
	check                   option[*resourcev1.HealthCheck]
	timeouts                option[Timeouts]
	tls                     option[*resourcev1.BackendTls]
	policies
	templates []templateUse
	// forwardPath is the template of the path that is forwarded; empty: what was matched. Only locations have it.
	forwardPath string
}

// entrySection declares what a route may say.
var entrySection = section[entry]{
	form: "a mapping such as {path: /api, host: localhost, port: 3000}",
	keys: []key[entry]{
		{name: "path", form: "path, or expression with match regex", initial: "/", about: "which requests; a prefix ends at a segment: `/api` is for `/api` and `/api/x`, not for `/apix`",
			read: func(r *reader, v value, e *entry) { take(&e.path, v, r.routePath) }},
		{name: "match", form: "prefix, exact or regex", initial: "prefix", about: "how `path` is compared; regex is RE2 and finds its expression anywhere in the path unless anchored",
			read: func(r *reader, v value, e *entry) { take(&e.match, v, r.match) }},
		{name: "hosts", form: "list of hosts", about: "for these names of the server alone; `\"*.example.com\"` is every name below example.com",
			read: func(r *reader, v value, e *entry) { take(&e.hosts, v, r.hostPatterns) }},
		{name: "methods", form: "list of methods", about: "requests with one of these methods alone; HEAD is not GET, so name both",
			read: func(r *reader, v value, e *entry) { take(&e.methods, v, r.methods) }},
		{name: "headers", form: "mapping of names to conditions", about: "requests whose header fields are as said alone: `{X-Version: \"2\"}`, `{X-Version: {regex: \"^2\"}}`, `{X-Debug: {present: true}}`",
			read: func(r *reader, v value, e *entry) { take(&e.headers, v, r.headerMatches) }},
		{name: "query", form: "mapping of names to conditions", about: "requests whose parameters in the query are as said alone, as with `headers`",
			read: func(r *reader, v value, e *entry) { take(&e.query, v, r.queryMatches) }},
		{name: "host", form: "host name or IP address", initial: "localhost", about: "the backend",
			read: func(r *reader, v value, e *entry) { take(&e.host, v, r.backendHost) }},
		{name: "port", form: "number, 1 to 65535", initial: "80", about: "the backend's port",
			read: func(r *reader, v value, e *entry) { take(&e.port, v, r.port) }},
		{name: "ssl", form: "true or false", initial: "false", about: "TLS to the backend",
			read: func(r *reader, v value, e *entry) { take(&e.ssl, v, r.boolean) }},
		{name: "backends", form: "list of backends", about: "instead of host, port and ssl: several backends",
			read: func(r *reader, v value, e *entry) { take(&e.backends, v, r.backends) }},
		{name: "split", form: "list of parts", about: "instead of host, port, ssl and backends: several sets of backends, each with its share of the requests",
			read: func(r *reader, v value, e *entry) { take(&e.split, v, r.split) }},
		{name: "strip_path", form: "true or false", initial: "true", about: "`/api/x` is forwarded as `/x`; false for match regex",
			read: func(r *reader, v value, e *entry) { take(&e.stripPath, v, r.boolean) }},
		{name: "preserve_host", form: "true or false", initial: "false", about: "the backend is sent the client's Host instead of its own",
			read: func(r *reader, v value, e *entry) { take(&e.preserveHost, v, r.boolean) }},
		{name: "load_balancing", form: "section", about: "how backends are picked",
			read: func(r *reader, v value, e *entry) { take(&e.balancing, v, r.loadBalancing) }},
		{name: "sticky", form: "section", about: "a client stays with the backend that it was first given, by a cookie",
			read: func(r *reader, v value, e *entry) { take(&e.policies.sticky, v, r.sticky) }},
		{name: "slow_start", form: "time, 1s to 1h, or 0s", initial: "0s", about: "over how long a backend that comes, or comes back, gets to its share of the requests; not with ring_hash and maglev",
			read: func(r *reader, v value, e *entry) { take(&e.policies.slowStart, v, r.slowStart) }},
		{name: "health_check", form: "section", about: "how backends are probed",
			read: func(r *reader, v value, e *entry) { take(&e.check, v, r.healthCheck) }},
		{name: "timeouts", form: "section", about: "how long the parts of a request may take",
			read: func(r *reader, v value, e *entry) { take(&e.timeouts, v, r.timeouts) }},
		{name: "tls", form: "section", about: "TLS to the backends that have `ssl: true`",
			read: func(r *reader, v value, e *entry) { take(&e.tls, v, r.backendTLS) }},
		{name: "outlier_detection", form: "section", about: "when backends are passed over by how requests to them end; without it never",
			read: func(r *reader, v value, e *entry) { take(&e.outliers, v, r.outlierDetection) }},
		{name: "circuit_breaker", form: "section", about: "how much may be under way with the backends at a time; without it there is no limit",
			read: func(r *reader, v value, e *entry) { take(&e.breaker, v, r.circuitBreaker) }},
		{name: "rate_limit", form: "section", about: "how many requests pass; without it all",
			read: func(r *reader, v value, e *entry) { take(&e.rateLimit, v, r.rateLimit) }},
		{name: "retries", form: "section", about: "when a request is sent again; without it once, where its connection failed and it may be repeated",
			read: func(r *reader, v value, e *entry) { take(&e.retries, v, r.retries) }},
		{name: "max_body_bytes", form: "number of bytes, 0 to 1099511627776", initial: "0", about: "the longest body that a request may have; a longer one is answered 413. 0: no limit",
			read: func(r *reader, v value, e *entry) { take(&e.maxBody, v, r.bodyLimit) }},
		{name: "request_headers", form: "section", about: "how the header fields of requests are changed on their way to the backend",
			read: func(r *reader, v value, e *entry) {
				take(&e.requestHeaders, v, func(v value) (*resourcev1.FieldEdits, bool) { return r.fieldEdits(v, e, true) })
			}},
		{name: "response_headers", form: "section", about: "how those of answers are changed: of the backend's, and of `redirect` and `respond`",
			read: func(r *reader, v value, e *entry) {
				take(&e.responseHeaders, v, func(v value) (*resourcev1.FieldEdits, bool) { return r.fieldEdits(v, e, false) })
			}},
		{name: "redirect", form: "section", about: "instead of backends: where clients are sent",
			read: func(r *reader, v value, e *entry) {
				take(&e.redirect, v, func(v value) (*resourcev1.Redirect, bool) { return r.redirect(v, e) })
			}},
		{name: "respond", form: "section", about: "instead of backends: what is answered",
			read: func(r *reader, v value, e *entry) { take(&e.respond, v, r.respond) }},
		{name: "websocket", use: unused, note: "is no longer used: upgrades are seen by their headers. Leave it out"},
		{name: "weight", use: misplaced, note: "write backends, and a weight for each"},
	},
}

// routePath reads a path or an expression; which of them it is, and so what it must look like, tells match.
func (r *reader) routePath(v value) (string, bool) {
	return r.text(v, `a path such as "/api"`)
}

func (r *reader) match(v value) (string, bool) {
	return r.choice(v, []string{"prefix", "exact", "regex"})
}

// hostPatterns reads hosts, sorted: their order means nothing.
func (r *reader) hostPatterns(v value) ([]string, bool) {
	before := r.errorCount()
	var hosts []string
	r.list(v, "a list such as [api.example.com]", func(item value) {
		host, ok := r.hostPattern(item)
		switch {
		case !ok:
		case len(hosts) == maxHosts:
			r.errorf(item, "a route is for at most %d hosts: write a pattern, or a route of its own for the rest", maxHosts)
		case slices.Contains(hosts, host):
			r.warnf(item, "%s stands here twice", quote(host))
		default:
			hosts = append(hosts, host)
		}
	})
	if len(hosts) == 0 && r.errorCount() == before {
		r.errorf(v, "no host stands here: name one, or leave hosts out for every host")
	}
	slices.Sort(hosts)
	return hosts, r.errorCount() == before
}

// backend is one server of a route as written.
type backend struct {
	at     place
	host   option[string]
	port   option[uint32]
	weight option[uint32]
	ssl    option[bool]
	part   int // of a split, counted from 1
}

var backendSection = section[backend]{
	form: "a mapping such as {host: 10.0.0.1, port: 8000}",
	keys: []key[backend]{
		{name: "host", form: "host name or IP address", initial: "localhost", about: "an IPv6 address with or without brackets",
			read: func(r *reader, v value, b *backend) { take(&b.host, v, r.backendHost) }},
		{name: "port", form: "number, 1 to 65535", initial: "80", about: "",
			read: func(r *reader, v value, b *backend) { take(&b.port, v, r.port) }},
		{name: "weight", form: "number, 0 to 1000", initial: "1", about: "its share of the requests, relative to the others; 0: it gets no new ones",
			read: func(r *reader, v value, b *backend) {
				take(&b.weight, v, func(v value) (uint32, bool) { return r.integer(v, 0, maxWeight) })
			}},
		{name: "ssl", form: "true or false", initial: "false", about: "TLS to this backend",
			read: func(r *reader, v value, b *backend) { take(&b.ssl, v, r.boolean) }},
	},
}

func (r *reader) backendHost(v value) (string, bool) { return r.host(v, address.backend) }

func (r *reader) backends(v value) ([]backend, bool) {
	before := r.errorCount()
	var out []backend
	r.list(v, "a list such as [{host: 10.0.0.1, port: 8000}]", func(item value) {
		b := backend{at: item.where()}
		if isNull(item.node) {
			r.errorf(item, "nothing stands here: write %s", backendSection.form)
		} else if backendSection.read(r, item, &b) {
			out = append(out, b)
		}
	})
	if len(out) == 0 && r.errorCount() == before {
		r.errorf(v, "no backend stands here: write a list such as [{host: 10.0.0.1, port: 8000}]")
	}
	return out, r.errorCount() == before
}

// entry reads one item of reverse_proxy and checks what can be checked of it alone. It reports false, with problems,
// where the entry is not fit to be put together with others.
func (r *reader) entry(v value) (*entry, bool) {
	before := r.errorCount()
	e := &entry{at: v.where()}
	if isNull(v.node) {
		r.errorf(v, "nothing stands here: write %s", entrySection.form)
		return nil, false
	}
	if !entrySection.read(r, v, e) {
		return nil, false
	}
	if e.match.value == "regex" {
		r.checkRegex(e)
	} else if e.path.isSet() {
		r.checkPath(e)
	}
	r.checkTemplates(e)
	switch {
	case e.answersItself():
		r.checkAnswer(e)
	case e.split.isSet():
		r.takeSplit(e)
	case e.backends.isSet():
		r.refuseBackendKeys(e)
	default:
		e.backends.value = []backend{{at: e.at, host: e.host, port: e.port, ssl: e.ssl}}
	}
	r.checkHostEdit(e)
	for i := range e.backends.value {
		if b := &e.backends.value[i]; b.ssl.value && !b.port.isSet() {
			r.warnf(b.ssl.at, "TLS to port 80: write port: 443 if that is meant")
		}
	}
	return e, r.errorCount() == before
}

func (r *reader) checkPath(e *entry) {
	text := e.path.value
	path, err := checkPath(text, e.match.or("prefix") == "prefix")
	if err != nil {
		r.errorf(e.path.at, "%s", err)
		return
	}
	if strings.HasSuffix(path, "/*") {
		r.warnf(e.path.at, `"*" stands for itself here: a prefix such as %s is for everything below it`, quote(cmp.Or(strings.TrimSuffix(path, "/*"), "/")))
	}
	e.path.value = path
}

func (r *reader) checkRegex(e *entry) {
	if e.stripPath.value {
		r.errorf(e.stripPath.at, "a regular expression cannot be stripped from a path: write strip_path: false, or leave it out")
	}
	if !e.path.isSet() {
		r.errorf(e.match.at, `match: regex needs an expression: write path, such as path: "^/v[0-9]+/"`)
		return
	}
	r.expression(e.path.at, e.path.value)
}

func (r *reader) refuseBackendKeys(e *entry) {
	const message = "stands beside backends, which takes its place: write it there, or leave backends out"
	if e.host.isSet() {
		r.errorf(e.host.at, message)
	}
	if e.port.isSet() {
		r.errorf(e.port.at, message)
	}
	if e.ssl.isSet() {
		r.errorf(e.ssl.at, message)
	}
}

// pathMatch gives the resource's word for how the path is compared.
func (e *entry) pathMatch() resourcev1.PathMatch {
	switch e.match.value {
	case "exact":
		return resourcev1.PathMatch_PATH_MATCH_EXACT
	case "regex":
		return resourcev1.PathMatch_PATH_MATCH_REGEX
	}
	return resourcev1.PathMatch_PATH_MATCH_PREFIX
}

// place is the part of a route's name that stands for its path. An expression is quoted where what follows could be taken
// for a part of it.
func (e *entry) place(conditions string) string {
	path := e.path.or("/")
	switch e.match.value {
	case "exact":
		return "= " + path
	case "regex":
		if conditions != "" || strings.Contains(path, " [") || strings.HasPrefix(path, `"`) {
			path = strconv.Quote(path)
		}
		return "~ " + path
	}
	return path
}

// rule is the part of a route's name that stands for its path and conditions.
func (e *entry) rule() string {
	conditions := e.conditions().String()
	if conditions == "" {
		return e.place("")
	}
	return e.place(conditions) + " [" + conditions + "]"
}

// name is a route's identity: its rule, behind its hosts where it has some. Two entries with one name are one route.
func (e *entry) name() string {
	if len(e.hosts.value) == 0 {
		return e.rule()
	}
	return strings.Join(e.hosts.value, ",") + " " + e.rule()
}
