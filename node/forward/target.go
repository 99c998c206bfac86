package forward

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"strconv"
	"strings"

	"github.com/pyserve/pyserve/node/route"
)

// target is what a request asks for: the path in normal form, which is both matched and forwarded, and the query as it
// came. A bare "?" is a query of no bytes.
type target struct {
	path     string
	query    string
	hasQuery bool
}

// parseTarget reads a request-target in origin-form or absolute-form (RFC 9112 section 3.2). The authority of the
// absolute form has already taken the place of the Host header when net/http read the request.
func parseTarget(requestTarget string) (target, error) {
	raw, query, hasQuery := strings.Cut(requestTarget, "?")
	if !strings.HasPrefix(raw, "/") {
		var err error
		if raw, err = absolutePath(raw); err != nil {
			return target{}, err
		}
	}
	if err := checkQuery(query); err != nil {
		return target{}, err
	}
	path, err := route.NormalizePath(raw)
	if err != nil {
		return target{}, fmt.Errorf("normalise path: %w", err)
	}
	return target{path: path, query: query, hasQuery: hasQuery}, nil
}

// absolutePath is the path of a target in absolute-form, whose query is already cut off.
func absolutePath(raw string) (string, error) {
	scheme, rest, ok := strings.Cut(raw, "://")
	if !ok || !strings.EqualFold(scheme, "http") && !strings.EqualFold(scheme, "https") {
		return "", errors.New("target is neither a path nor an http URL")
	}
	if slash := strings.IndexByte(rest, '/'); slash >= 0 {
		return rest[slash:], nil
	}
	return "/", nil // RFC 3986 section 6.2.3
}

// checkQuery refuses what cannot stand in a request line, or would end the query for some who read it: over HTTP/2 any
// byte may arrive here. Everything else passes, valid URI or not.
func checkQuery(query string) error {
	for i := range len(query) {
		if c := query[i]; c <= ' ' || c == 0x7f || c == '#' {
			return fmt.Errorf("query holds %q", c)
		}
	}
	return nil
}

// validHost says whether a Host is host[:port] (RFC 9110 section 7.2): what two servers could read as two names must not
// choose a route here and something else behind. An empty one is valid.
func validHost(host string) bool {
	name, port := host, ""
	if colon := strings.LastIndexByte(host, ':'); colon > strings.LastIndexByte(host, ']') {
		name, port = host[:colon], host[colon+1:]
		if n, err := strconv.ParseUint(port, 10, 16); port != "" && (err != nil || n == 0) {
			return false
		}
	}
	if inner, bracketed := strings.CutPrefix(name, "["); bracketed {
		address, closed := strings.CutSuffix(inner, "]")
		ip, err := netip.ParseAddr(address)
		return closed && err == nil && ip.Is6()
	}
	return !strings.ContainsAny(name, "[]:@/\\?# ,")
}

// strip removes the part of the path that the route matched. removed is what has to be put before a path of the backend to
// make it public.
func (r *Route) strip(path string) (forwarded, removed string) {
	if !r.stripPath {
		return path, ""
	}
	forwarded = path[len(r.prefix):]
	if forwarded == "" {
		forwarded = "/"
	}
	return forwarded, r.prefix
}

// idempotent says whether a request may be repeated when nobody knows what became of it (RFC 9110 section 9.2.2).
func idempotent(method string) bool {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace, http.MethodPut, http.MethodDelete:
		return true
	}
	return false
}
