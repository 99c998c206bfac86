package config

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
)

// longestHost is how long a DNS name may be (RFC 1035 section 2.3.4).
const longestHost = 253

// address is what could be found in text that is more than a host.
type address struct {
	host string
	port string // empty: none was written, and the scheme tells none
	tls  bool
}

// hostOnly says what to write where only a host can stand.
func (a address) hostOnly() string { return a.host }

// hostAndPort says what to write where the section has a key for the port.
func (a address) hostAndPort() string {
	if a.port == "" {
		return "host: " + a.host
	}
	return "host: " + a.host + " and port: " + a.port
}

// backend says what to write where the section has keys for the port and for TLS.
func (a address) backend() string {
	if a.tls {
		return a.hostAndPort() + " and ssl: true"
	}
	return a.hostAndPort()
}

// parseHost gives the canonical form of a host name or IP address: lower case, IPv6 without brackets. advise makes what
// to write of an address; it is asked where more than a host was written.
func parseHost(text string, advise func(address) string) (string, error) {
	if text == "" {
		return "", errors.New("nothing stands here: write a host name or an IP address")
	}
	if ip, err := netip.ParseAddr(unbracket(text)); err == nil {
		if ip.Zone() != "" {
			return "", fmt.Errorf("%s has a zone, which means something else on every machine: write an address without %%%s", quote(text), ip.Zone())
		}
		return ip.String(), nil
	}
	if strings.ContainsAny(text, ":/@[]?#") {
		if a, ok := splitAddress(text); ok {
			return "", fmt.Errorf("%s is more than a host: write %s", quote(text), advise(a))
		}
		return "", fmt.Errorf("%s is not a host: write a host name or an IP address, without scheme, port or path", quote(text))
	}
	if strings.Trim(text, "0123456789.") == "" {
		return "", fmt.Errorf("%s is not an IPv4 address: write four numbers from 0 to 255", quote(text))
	}
	name := strings.ToLower(text)
	if err := checkName(name); err != nil {
		return "", fmt.Errorf("%s is not a host name: %w", quote(text), err)
	}
	return name, nil
}

func unbracket(text string) string {
	if inner, ok := strings.CutPrefix(text, "["); ok {
		if inner, ok := strings.CutSuffix(inner, "]"); ok && strings.Contains(inner, ":") {
			return inner
		}
	}
	return text
}

// splitAddress finds the host and port in "http://host:port/path", "host:port" or "host/path".
func splitAddress(text string) (address, bool) {
	if !strings.Contains(text, "://") {
		text = "//" + text
	}
	u, err := url.Parse(text)
	if err != nil {
		return address{}, false
	}
	a := address{strings.ToLower(u.Hostname()), u.Port(), u.Scheme == "https" || u.Scheme == "wss"}
	if _, err := netip.ParseAddr(a.host); err != nil && checkName(a.host) != nil {
		return address{}, false
	}
	if n, err := strconv.Atoi(a.port); a.port != "" && (err != nil || n < 1 || n > 65535) {
		return address{}, false
	}
	if a.port == "" && a.tls {
		a.port = "443"
	}
	return a, true
}

// checkName checks a host name in lower case. Underscores are no part of host names (RFC 952), but of the names that
// container networks give, and so are let through.
func checkName(name string) error {
	if len(name) > longestHost {
		return fmt.Errorf("write at most %d characters", longestHost)
	}
	if trimmed, dotted := strings.CutSuffix(name, "."); dotted && trimmed != "" {
		return fmt.Errorf("write it without the dot at its end, %s", quote(trimmed))
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" {
			return errors.New("write something on both sides of each dot")
		}
		if len(label) > 63 {
			return errors.New("write at most 63 characters between dots")
		}
		if label[0] == '-' || label[len(label)-1] == '-' {
			return errors.New(`no part of it may begin or end with "-"`)
		}
		for _, c := range label {
			if c > 0x7F {
				return errors.New("write international names in their ASCII form, which begins with xn--")
			}
			if c != '-' && c != '_' && (c < '0' || c > '9') && (c < 'a' || c > 'z') {
				return errors.New("write letters, digits, hyphens and dots")
			}
		}
	}
	return nil
}

// host reads a host. advise says what to write instead of an address that is more.
func (r *reader) host(v value, advise func(address) string) (string, bool) {
	text, ok := r.text(v, "a host name or an IP address")
	if !ok {
		return "", false
	}
	host, err := parseHost(text, advise)
	if err != nil {
		r.errorf(v, "%s", err)
	}
	return host, err == nil
}

// hostPattern reads which names of the server a route is for: a host, or "*." and a host name for every name below it.
func (r *reader) hostPattern(v value) (string, bool) {
	text, ok := r.text(v, `a host such as api.example.com or "*.example.com"`)
	if !ok {
		return "", false
	}
	if text == "*" {
		r.errorf(v, `"*" is every host: leave hosts out`)
		return "", false
	}
	name, wild := strings.CutPrefix(text, "*.")
	if !wild {
		host, err := parseHost(text, address.hostOnly)
		if err != nil {
			if strings.Contains(text, "*") {
				err = fmt.Errorf(`%s has a "*" elsewhere than at its beginning: write "*.example.com" or the whole name`, quote(text))
			}
			r.errorf(v, "%s", err)
		}
		return host, err == nil
	}
	name = strings.ToLower(name)
	if err := checkName(name); err != nil {
		r.errorf(v, "%s is not a host pattern: %s", quote(text), err)
		return "", false
	}
	return "*." + name, true
}

// network reads a network in CIDR form, or one address, which is a network of its own.
func (r *reader) network(v value) (netip.Prefix, bool) {
	text, ok := r.text(v, "a network such as 10.0.0.0/8, or an address")
	if !ok {
		return netip.Prefix{}, false
	}
	if ip, err := netip.ParseAddr(text); err == nil && ip.Zone() == "" {
		ip = ip.Unmap()
		return netip.PrefixFrom(ip, ip.BitLen()), true
	}
	network, err := netip.ParsePrefix(text)
	switch {
	case err != nil:
		r.errorf(v, "%s is not a network: write one such as 10.0.0.0/8 or fd00::/8, or an address", quote(text))
		return netip.Prefix{}, false
	case network != network.Masked():
		r.errorf(v, "%s has an address inside of the network: write %s, or the address alone", quote(text), network.Masked())
		return netip.Prefix{}, false
	}
	return network, true
}
