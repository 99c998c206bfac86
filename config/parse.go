package config

import (
	"cmp"
	"errors"
	"net/netip"
	"slices"
	"time"

	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

// Parse makes resources of a document and of the files that it names. It gives every problem at once, up to
// [MaxProblems] and a count of the rest; where one of them is an error, the resources are nil.
//
// files is asked at most once for each name; nil means that no file can be read. Nothing of the document is kept.
func Parse(document []byte, files Files) (*Resources, Problems) {
	return parse(document, files, time.Now())
}

// NamedFiles gives the names of the files that [Parse] would read, each once, in the order in which it would. Problems
// of the document do not matter, as far as it can be read at all.
func NamedFiles(document []byte) []string {
	var names []string
	parse(document, func(name string) ([]byte, error) {
		names = append(names, name)
		return nil, errors.New("only its name is wanted")
	}, time.Now())
	return names
}

func parse(document []byte, files Files, now time.Time) (*Resources, Problems) {
	if files == nil {
		files = func(string) ([]byte, error) { return nil, errors.New("no files can be read here") }
	}
	r := &reader{files: newFileCache(files), now: now}
	root, problem := parseText(document)
	if problem != nil {
		return nil, Problems{*problem}
	}
	top := value{node: target(root)}
	if isNull(top.node) {
		r.errorf(top, "the document is empty: write a server section")
		return nil, r.problems()
	}
	if !checkTree(r, root) {
		return nil, r.problems()
	}
	resources := r.document(top)
	if r.errorCount() > 0 {
		resources = nil
	}
	return resources, r.problems()
}

// documentSettings are the top level as written.
type documentSettings struct {
	server    serverSettings
	ssl       option[sslSettings]
	locations locationSet
}

const notUsed = "the cluster does not use this section of PyServe"

var documentSection = section[documentSettings]{
	form: "sections, such as server:",
	keys: []key[documentSettings]{
		{name: "server", form: "section", about: "where the nodes listen, and the routes",
			read: func(r *reader, v value, d *documentSettings) { serverSection.read(r, v, &d.server) }},
		{name: "ssl", form: "section", about: "TLS between clients and nodes",
			read: func(r *reader, v value, d *documentSettings) {
				take(&d.ssl, v, func(v value) (s sslSettings, ok bool) { return s, sslSection.read(r, v, &s) })
			}},
		{name: "extensions", form: "list of extensions", initial: "[]", about: "PyServe's, of which routing makes routes",
			read: func(r *reader, v value, d *documentSettings) { r.extensions(v, &d.locations) }},
		{name: "http", use: unused, note: notUsed},
		{name: "logging", use: unused, note: notUsed + ": nodes log as their --log-format and --log-level say"},
		{name: "redirect_instructions", use: unused, note: notUsed},
		{name: "backlog", use: unused, note: notUsed},
		{name: "security", use: unused, note: notUsed},
		{name: "version", use: unused, note: "the cluster does not use the version: there is one dialect"},
		{name: "reverse_proxy", use: misplaced, note: "write it below server"},
		{name: "trusted_proxies", use: misplaced, note: "write it below server"},
		{name: "host", use: misplaced, note: "write it below server"},
		{name: "port", use: misplaced, note: "write it below server"},
	},
}

// serverSettings are the server section as written.
type serverSettings struct {
	host           option[string]
	port           option[uint32]
	proxyProtocol  option[bool]
	trustedProxies option[[]netip.Prefix]
	routes         option[*routeSet]
}

var serverSection = section[serverSettings]{
	form: "a mapping with host, port and reverse_proxy",
	keys: []key[serverSettings]{
		{name: "host", form: "host name or IP address", initial: "0.0.0.0", about: "the address that every node listens on, unless its `--listen` says another",
			read: func(r *reader, v value, s *serverSettings) { take(&s.host, v, r.listenHost) }},
		{name: "port", form: "number, 1 to 65535", initial: "8000", about: "the port that every node listens on",
			read: func(r *reader, v value, s *serverSettings) { take(&s.port, v, r.port) }},
		{name: "proxy_protocol", form: "true or false", initial: "false", about: "connections from trusted proxies begin with a header of the PROXY protocol, version 1 or 2, that says who the client is; others are served as they are",
			read: func(r *reader, v value, s *serverSettings) { take(&s.proxyProtocol, v, r.boolean) }},
		{name: "trusted_proxies", form: "list of networks and addresses", initial: "[]", about: "from these, X-Forwarded-* and X-Request-ID are believed and extended; from anyone else they are replaced",
			read: func(r *reader, v value, s *serverSettings) { take(&s.trustedProxies, v, r.networks) }},
		{name: "reverse_proxy", form: "list of routes", initial: "[]", about: "which requests go to which backends",
			read: func(r *reader, v value, s *serverSettings) { take(&s.routes, v, r.routes) }},
		{name: "backlog", use: unused, note: "the cluster does not use this setting of PyServe"},
		{name: "proxy_timeout", use: unused, note: "the cluster does not use this setting of PyServe: write timeout in a location, or timeouts in a route"},
		{name: "default_root", use: unused, note: "the cluster does not use this setting of PyServe"},
		{name: "redirect_instructions", use: unused, note: notUsed},
		{name: "static_dir", use: unused, note: "the cluster does not use this setting of PyServe"},
		{name: "templates_dir", use: unused, note: "the cluster does not use this setting of PyServe"},
		{name: "ssl", use: misplaced, note: "write it at the top, beside server"},
	},
}

func (r *reader) listenHost(v value) (string, bool) {
	if v.node.Value == "*" {
		r.errorf(v, `"*" is not an address: write 0.0.0.0 for every IPv4 address, or "::" for every address`)
		return "", false
	}
	return r.host(v, address.hostAndPort)
}

// maxNetworks is how many networks may be trusted: every request is compared with them.
const maxNetworks = 10_000

// networks reads networks, sorted and each once: their order means nothing.
func (r *reader) networks(v value) ([]netip.Prefix, bool) {
	var out []netip.Prefix
	ok := r.list(v, "a list such as [10.0.0.0/8]", func(item value) {
		network, ok := r.network(item)
		if !ok {
			return
		}
		if out = append(out, network); len(out) == maxNetworks+1 {
			r.errorf(item, "at most %d networks can be trusted: write larger ones", maxNetworks)
		}
	})
	slices.SortFunc(out, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	return slices.Compact(out), ok
}

func (r *reader) routes(v value) (*routeSet, bool) {
	set := newRouteSet(r)
	ok := r.list(v, `a list, in which each route begins with "- "`, func(item value) {
		if e, ok := r.entry(item); ok {
			set.add(e)
		}
		if !r.aliased {
			item.node.Content = nil // the tree of 100,000 routes is as large as all that is made of them
		}
	})
	return set, ok
}

// document reads a whole document.
func (r *reader) document(top value) *Resources {
	var d documentSettings
	if !documentSection.read(r, top, &d) {
		return nil
	}
	out := &Resources{
		Listener: &resourcev1.Listener{
			Host: d.server.host.or("0.0.0.0"),
			Port: d.server.port.or(8000),

			ProxyProtocol: d.server.proxyProtocol.value,
		},
		Certificates: make(map[string]*resourcev1.Certificate),
		Routes:       make(map[string]*resourcev1.Route),
		Pools:        make(map[string]*resourcev1.Pool),
	}
	for _, network := range d.server.trustedProxies.value {
		out.Listener.TrustedProxies = append(out.Listener.TrustedProxies, network.String())
	}
	if d.server.proxyProtocol.value && len(d.server.trustedProxies.value) == 0 {
		r.errorf(d.server.proxyProtocol.at, "needs trusted_proxies: write the addresses of the proxies that send the header")
	}
	if d.ssl.isSet() {
		if c := r.certificate(d.ssl.at, &d.ssl.value); c != nil {
			out.Listener.Certificate = CertificateName
			out.Certificates[CertificateName] = c
		}
	}
	routes := d.server.routes.value
	if routes == nil {
		routes = newRouteSet(r)
	}
	d.locations.into(routes)
	routes.resources(out)
	if len(out.Routes) == 0 && r.errorCount() == 0 {
		r.warnf(top, "no routes: every request will be answered 404")
	}
	return out
}
