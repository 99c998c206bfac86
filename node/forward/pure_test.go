package forward

import (
	"net/http"
	"net/netip"
	"strings"
	"testing"
)

func TestPublicURL(t *testing.T) {
	plain := &publicURL{names: [2]string{"api.internal:80", "api.internal"}, backendScheme: "http", scheme: "https", host: "example.com", prefix: "/api"}
	secure := &publicURL{names: [2]string{"[::1]:8443", "[::1]:8443"}, backendScheme: "https", scheme: "http", host: "example.com:8080"}
	kept := &publicURL{names: [2]string{"10.0.0.1:8000", "example.com"}, backendScheme: "http", scheme: "https", host: "example.com"}
	nameless := &publicURL{names: [2]string{"10.0.0.1:8000", "10.0.0.1:8000"}, backendScheme: "http", scheme: "http"}
	for _, c := range []struct {
		p         *publicURL
		ref, want string
	}{
		{plain, "/x", "/api/x"},
		{plain, "/", "/api/"},
		{plain, "/x?y=/z#/w", "/api/x?y=/z#/w"},
		{plain, "/%7Euser/a b", "/api/%7Euser/a b"},
		{plain, "http://api.internal/x", "https://example.com/api/x"},
		{plain, "HTTP://API.Internal:80/x", "https://example.com/api/x"},
		{plain, "http://api.internal:/x", "https://example.com/api/x"},
		{plain, "http://api.internal", "https://example.com/api"},
		{plain, "http://api.internal?q", "https://example.com/api?q"},
		{plain, "//api.internal/x", "//example.com/api/x"},
		{plain, "http://api.internal:8080/x", "http://api.internal:8080/x"},
		{plain, "https://api.internal/x", "https://api.internal/x"}, // another server, and on purpose
		{plain, "http://user@api.internal/x", "http://user@api.internal/x"},
		{plain, "http://api.internal.evil/x", "http://api.internal.evil/x"},
		{plain, "http://other/http://api.internal/x", "http://other/http://api.internal/x"},
		{plain, "//other/x", "//other/x"},
		{plain, "///x", "///x"},
		{plain, "x", "x"}, {plain, "./x", "./x"}, {plain, "../x", "../x"}, {plain, "?q", "?q"}, {plain, "#f", "#f"}, {plain, "", ""},
		{plain, "mailto:a@b", "mailto:a@b"},
		{secure, "https://[::1]:8443/x", "http://example.com:8080/x"},
		{secure, "/x", "/x"},
		{secure, "http://[::1]:8443/x", "http://[::1]:8443/x"},
		{kept, "http://example.com/x", "https://example.com/x"}, // it does not know of the TLS in front
		{kept, "https://example.com/x", "https://example.com/x"},
		{kept, "http://10.0.0.1:8000/x", "https://example.com/x"},
		{nameless, "http://10.0.0.1:8000/x", "/x"},
		{nameless, "http://10.0.0.1:8000", "/"},
		{nameless, "http://10.0.0.1:8000?q", "/?q"},
	} {
		if got := c.p.rewrite(c.ref); got != c.want {
			t.Errorf("%q is %q, want %q", c.ref, got, c.want)
		}
	}
}

func FuzzPublicURL(f *testing.F) {
	f.Add("http://api.internal/x")
	f.Add("//api.internal:80")
	f.Add("\\\\api.internal")
	p := &publicURL{names: [2]string{"api.internal:80", "api.internal"}, backendScheme: "http", scheme: "https", host: "example.com", prefix: "/api"}
	f.Fuzz(func(t *testing.T, ref string) {
		got := p.rewrite(ref)
		if got != ref && !strings.HasPrefix(got, "https://example.com/api") && !strings.HasPrefix(got, "//example.com/api") && !strings.HasPrefix(got, "/api/") {
			t.Errorf("%q became %q", ref, got)
		}
	})
}

func TestPreferredForm(t *testing.T) {
	for accept, want := range map[string]string{
		"":                                  "text/plain",
		"*/*":                               "text/plain",
		"application/json":                  "application/json",
		"application/json, text/plain, */*": "application/json",
		"text/plain, application/json":      "text/plain",
		"text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8": "text/html",
		"application/json;q=0.5, text/html;q=0.4":                                    "application/json",
		"text/html;q=0.4, application/json;q=0.5, */*;q=0.1":                         "application/json",
		"text/*":                                      "text/plain",
		"text/*;q=0.5, text/html":                     "text/html",
		"*/*, text/plain;q=0":                         "application/json",
		"application/*":                               "application/json",
		"APPLICATION/JSON ; Q=0.9":                    "application/json",
		"application/json;q=0":                        "text/plain",
		"image/png":                                   "text/plain",
		"application/json;q=nonsense":                 "text/plain",
		"application/json;v=1;q=0.2, text/html;q=0.1": "application/json",
		",, ;": "text/plain",
	} {
		if got := preferred([]string{accept}); got != want {
			t.Errorf("%q: %s, want %s", accept, got, want)
		}
	}
}

func FuzzPreferredForm(f *testing.F) {
	f.Add("text/html;q=0.5, */*;q=0.1")
	f.Fuzz(func(t *testing.T, accept string) {
		switch got := preferred([]string{accept}); got {
		case "text/plain", "application/json", "text/html":
		default:
			t.Errorf("%q: %q", accept, got)
		}
	})
}

func FuzzParseTarget(f *testing.F) {
	for _, s := range []string{"/", "/a/../b?c", "*", "http://x/y", "//x", "/%2e%2e", "/a?b?c#d"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, err := parseTarget(s)
		if err != nil {
			return
		}
		if !strings.HasPrefix(got.path, "/") || strings.ContainsAny(got.path+got.query, " \r\n\t#\x00") {
			t.Errorf("%q: %+v", s, got)
		}
		if !strings.HasSuffix(s, got.query) {
			t.Errorf("%q: the query changed to %q", s, got.query)
		}
	})
}

func FuzzForwardedFor(f *testing.F) {
	f.Add("1.2.3.4, 10.0.0.1")
	f.Add("[::1]:80, ,,")
	trusted := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	f.Fuzz(func(t *testing.T, chain string) {
		if got := nearestUntrusted(chain, netip.MustParseAddr("10.0.0.9"), trusted); !got.IsValid() || got.Zone() != "" {
			t.Errorf("%q: %v", chain, got)
		}
	})
}

func TestLaps(t *testing.T) {
	if n := laps([]string{"1.1 pyserve, 1.0 fred", "2.0 pyserve (comment)", "1.1 pyserver", "pyserve"}); n != 2 {
		t.Errorf("%d laps, want 2", n)
	}
}

func TestOptionsThatAreMissing(t *testing.T) {
	if _, err := NewHandler(Options{}); err == nil || !strings.Contains(err.Error(), "Source") {
		t.Error(err)
	}
	if !idempotent(http.MethodPut) || idempotent(http.MethodPost) || idempotent("get") {
		t.Error("methods")
	}
}

func TestValidHost(t *testing.T) {
	for host, want := range map[string]bool{
		"": true, "a": true, "a.example": true, "a:80": true, "a:": true, "127.0.0.1:8080": true, "[::1]": true, "[::1]:80": true,
		"xn--e1a.example.": true, "a_b": true,
		"a:99999": false, "a:0": false, "a:-1": false, "a:b": false, "[::1": false, "::1": false, "[a]": false, "[127.0.0.1]": false,
		"u@a": false, "a/b": false, "a,b": false, "a b": false, "a:80:80": false, "[::1]x": false,
	} {
		if got := validHost(host); got != want {
			t.Errorf("validHost(%q) = %t", host, got)
		}
	}
}
