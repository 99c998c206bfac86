package forward

import "strings"

// publicURL turns references to a backend into the ones that the public can follow.
type publicURL struct {
	// What the backend is called: its own authority and the Host it was sent. Compared with default ports made explicit.
	names [2]string
	// The scheme it was spoken to in. A URL of the other scheme is another server, and often on purpose: "come back over
	// https".
	backendScheme string
	// What the client called us; host may be empty, then references lose scheme and authority.
	scheme, host string
	// What was stripped from the path.
	prefix string
}

// rewrite maps a Location or Content-Location (RFC 9110 sections 10.2.2 and 8.7). References to other hosts and relative
// ones pass as they are. It works on the text, so that nothing but scheme, authority and prefix changes.
func (p *publicURL) rewrite(ref string) string {
	switch {
	case strings.HasPrefix(ref, "//"):
		authority, rest := splitAuthority(ref[2:])
		if !p.isBackend(authority, p.backendScheme) {
			return ref
		}
		if p.host == "" {
			return p.publicPath(rest)
		}
		return "//" + p.host + p.publicPath(rest)
	case strings.HasPrefix(ref, "/"):
		return p.publicPath(ref)
	}
	scheme, rest, ok := strings.Cut(ref, "://")
	if !ok || !strings.EqualFold(scheme, p.backendScheme) {
		return ref
	}
	authority, rest := splitAuthority(rest)
	if !p.isBackend(authority, p.backendScheme) {
		return ref
	}
	if p.host == "" {
		return p.publicPath(rest)
	}
	return p.scheme + "://" + p.host + p.publicPath(rest)
}

// publicPath adds what was stripped. rest begins with a path, which may be empty.
func (p *publicURL) publicPath(rest string) string {
	if p.host == "" && !strings.HasPrefix(rest, "/") && p.prefix == "" {
		return "/" + rest
	}
	return p.prefix + rest
}

func (p *publicURL) isBackend(authority, scheme string) bool {
	if authority == "" {
		return false
	}
	authority = withPort(authority, scheme)
	for _, name := range p.names {
		if name != "" && strings.EqualFold(withPort(name, scheme), authority) {
			return true
		}
	}
	return false
}

// splitAuthority cuts what follows "//" where its path, query or fragment begins.
func splitAuthority(s string) (authority, rest string) {
	if end := strings.IndexAny(s, "/?#\\"); end >= 0 {
		return s[:end], s[end:]
	}
	return s, ""
}

// withPort makes a scheme's default port explicit.
func withPort(authority, scheme string) string {
	host, port := authority, ""
	if colon := strings.LastIndexByte(authority, ':'); colon > strings.LastIndexByte(authority, ']') {
		host, port = authority[:colon], authority[colon+1:]
	}
	if port == "" {
		port = "80"
		if strings.EqualFold(scheme, "https") {
			port = "443"
		}
	}
	return host + ":" + port
}
