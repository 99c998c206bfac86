package forward

import (
	"bytes"
	"strings"
)

// publicURL turns references to a backend into the ones that the public can follow.
type publicURL struct {
	// What the backend is called: its own authority and the Host it was sent. Compared with default ports made explicit.
	address, host []byte
	// The scheme it was spoken to in. A URL of the other scheme is another server, and often on purpose: "come back over
	// https".
	backendScheme string
	// What the client called us; public may be empty, then references lose scheme and authority.
	scheme, public []byte
	// What was stripped from the path.
	prefix string
}

func (x *exchange) publicURL() *publicURL {
	b := x.conn.Backend()
	p := &publicURL{
		address: []byte(b.Address()), host: []byte(b.Authority()),
		backendScheme: "http", scheme: x.origin.scheme, public: x.origin.host, prefix: x.route.prefix[:x.removed],
	}
	switch {
	case x.route.host != nil:
		p.host = x.appendTemplate(nil, x.route.host)
	case x.route.preserveHost:
		p.host = x.request.Authority()
	}
	if b.Spec().TLS != nil {
		p.backendScheme = "https"
	}
	return p
}

// append maps a Location or Content-Location (RFC 9110 sections 10.2.2 and 8.7). References to other hosts and relative
// ones pass as they are. It works on the text, so that nothing but scheme, authority and prefix changes.
func (p *publicURL) append(out, ref []byte) []byte {
	if len(ref) > 0 && ref[0] == '/' && !(len(ref) > 1 && ref[1] == '/') {
		return p.appendPath(out, ref)
	}
	scheme, rest, ok := bytes.Cut(ref, []byte("//"))
	switch {
	case !ok, len(scheme) > 0 && !p.spokenIn(scheme):
		return append(out, ref...)
	}
	authority, rest := splitAuthority(rest)
	if !p.isBackend(authority) {
		return append(out, ref...)
	}
	if len(p.public) > 0 {
		if len(scheme) > 0 {
			out = append(append(out, p.scheme...), ':')
		}
		out = append(append(out, "//"...), p.public...)
	}
	return p.appendPath(out, rest)
}

// spokenIn says whether scheme, with its colon, is the backend's.
func (p *publicURL) spokenIn(scheme []byte) bool {
	name, colon := bytes.CutSuffix(scheme, []byte(":"))
	return colon && strings.EqualFold(string(name), p.backendScheme)
}

// appendPath adds what was stripped. rest begins with a path, which may be empty.
func (p *publicURL) appendPath(out, rest []byte) []byte {
	if len(p.public) == 0 && p.prefix == "" && (len(rest) == 0 || rest[0] != '/') {
		out = append(out, '/')
	}
	return append(append(out, p.prefix...), rest...)
}

func (p *publicURL) isBackend(authority []byte) bool {
	if len(authority) == 0 {
		return false
	}
	name := withPort(authority, p.backendScheme)
	return strings.EqualFold(withPort(p.address, p.backendScheme), name) ||
		len(p.host) > 0 && strings.EqualFold(withPort(p.host, p.backendScheme), name)
}

// splitAuthority cuts what follows "//" where its path, query or fragment begins.
func splitAuthority(s []byte) (authority, rest []byte) {
	if end := bytes.IndexAny(s, "/?#\\"); end >= 0 {
		return s[:end], s[end:]
	}
	return s, nil
}

// withPort makes a scheme's default port explicit.
func withPort(authority []byte, scheme string) string {
	host, port := string(authority), ""
	if colon := strings.LastIndexByte(host, ':'); colon > strings.LastIndexByte(host, ']') {
		host, port = host[:colon], host[colon+1:]
	}
	if port == "" {
		port = "80"
		if strings.EqualFold(scheme, "https") {
			port = "443"
		}
	}
	return host + ":" + port
}
