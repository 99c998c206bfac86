package route

import (
	"net/netip"
	"strings"
)

// CanonicalHost brings the host of a request, with or without a port, into the form that tables are keyed by: lower case
// (ASCII alone: no host name has other letters, and what folds into an ASCII letter must not become one), no port, no dot
// at the end, an IP address in its shortest form and without brackets. It does not judge whether the host is a valid one;
// what it does not understand comes back in lower case and matches no route that names a host. A host that is in this form
// already is returned as it is, without allocation.
func CanonicalHost(host string) string {
	if inner, bracketed := strings.CutPrefix(host, "["); bracketed {
		inner, rest, closed := strings.Cut(inner, "]")
		if ip, err := netip.ParseAddr(inner); err == nil && closed && (rest == "" || rest[0] == ':') {
			return ip.String()
		}
		return lower(host)
	}
	name, port, _ := strings.Cut(host, ":")
	if strings.Contains(port, ":") { // an IPv6 address that came without its brackets, or nonsense
		if ip, err := netip.ParseAddr(host); err == nil {
			return ip.String()
		}
		return lower(host)
	}
	return lower(strings.TrimRight(name, "."))
}

// lower folds the ASCII capitals.
func lower(s string) string {
	for i := range len(s) {
		if !capital(s[i]) {
			continue
		}
		out := []byte(s)
		for ; i < len(out); i++ {
			if capital(out[i]) {
				out[i] += 'a' - 'A'
			}
		}
		return string(out)
	}
	return s
}

func capital(c byte) bool { return 'A' <= c && c <= 'Z' }
