package forward

import (
	"bytes"
	"net/netip"
	"strings"
	"testing"

	"github.com/pyserve/pyserve/node/http1"
	"github.com/pyserve/pyserve/node/meter"
	"github.com/pyserve/pyserve/node/tunnel"
)

// public is a publicURL of texts.
func public(address, host, backendScheme, scheme, public, prefix string) *publicURL {
	return &publicURL{
		address: []byte(address), host: []byte(host), backendScheme: backendScheme,
		scheme: []byte(scheme), public: []byte(public), prefix: prefix,
	}
}

func TestPublicURL(t *testing.T) {
	plain := public("api.internal:80", "api.internal", "http", "https", "example.com", "/api")
	secure := public("[::1]:8443", "[::1]:8443", "https", "http", "example.com:8080", "")
	kept := public("10.0.0.1:8000", "example.com", "http", "https", "example.com", "")
	nameless := public("10.0.0.1:8000", "10.0.0.1:8000", "http", "http", "", "")
	hostless := public("10.0.0.1:8000", "", "http", "http", "", "/api")
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
		{plain, "http://api.internal#f", "https://example.com/api#f"},
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
		{hostless, "http://10.0.0.1:8000?q", "/api?q"},
		{hostless, "http:///x", "http:///x"},
	} {
		if got := string(c.p.append([]byte("Location: "), []byte(c.ref))); got != "Location: "+c.want {
			t.Errorf("%q is %q, want %q", c.ref, got, c.want)
		}
	}
}

func FuzzPublicURL(f *testing.F) {
	f.Add("http://api.internal/x")
	f.Add("//api.internal:80")
	f.Add("\\\\api.internal")
	p := public("api.internal:80", "api.internal", "http", "https", "example.com", "/api")
	f.Fuzz(func(t *testing.T, ref string) {
		before := ref
		raw := []byte(ref)
		got := string(p.append(nil, raw))
		if string(raw) != before {
			t.Errorf("%q was changed to %q", before, raw)
		}
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
		if got := preferred(accept); got != want {
			t.Errorf("%q: %s, want %s", accept, got, want)
		}
	}
}

func FuzzPreferredForm(f *testing.F) {
	f.Add("text/html;q=0.5, */*;q=0.1")
	f.Fuzz(func(t *testing.T, accept string) {
		switch got := preferred(accept); got {
		case "text/plain", "application/json", "text/html":
		default:
			t.Errorf("%q: %q", accept, got)
		}
	})
}

func TestNearestUntrusted(t *testing.T) {
	trusted := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")}
	peer := netip.MustParseAddr("10.0.0.9")
	for _, c := range []struct {
		line, want string
		on         bool // the walk goes on to the line before
	}{
		{"", "10.0.0.9", true},
		{" \t", "10.0.0.9", true},
		{"1.2.3.4", "1.2.3.4", false},
		{"10.1.1.1", "10.1.1.1", true},
		{"6.6.6.6, 1.2.3.4, 10.1.1.1", "1.2.3.4", false},
		{"1.2.3.4,10.2.2.2,\t10.1.1.1 ", "1.2.3.4", false},
		{"10.3.3.3, fd00::1, 10.1.1.1", "10.3.3.3", true},
		{"1.2.3.4, nonsense, 10.1.1.1", "10.1.1.1", false},
		{"1.2.3.4, , 10.1.1.1", "10.1.1.1", false}, // an empty entry is none either
		{"1.2.3.4,", "10.0.0.9", false},
		{",10.1.1.1", "10.1.1.1", true},
		{"unknown", "10.0.0.9", false},
		{"_hidden", "10.0.0.9", false},
		{"1.2.3.4:55", "1.2.3.4", false},
		{"[2001:db8::1]:443", "2001:db8::1", false},
		{"[2001:db8::1]", "2001:db8::1", false},
		{"fe80::1%eth0", "fe80::1", false},
		{"::ffff:10.1.1.1", "10.1.1.1", true},
	} {
		got, on := nearestUntrusted([]byte(c.line), peer, trusted)
		if got != netip.MustParseAddr(c.want) || on != c.on {
			t.Errorf("%q: %v %t, want %s %t", c.line, got, on, c.want, c.on)
		}
	}
}

func FuzzForwardedFor(f *testing.F) {
	f.Add("1.2.3.4, 10.0.0.1")
	f.Add("[::1]:80, ,,")
	trusted := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	f.Fuzz(func(t *testing.T, chain string) {
		got, on := nearestUntrusted([]byte(chain), netip.MustParseAddr("10.0.0.9"), trusted)
		if !got.IsValid() || got.Zone() != "" || got.Is4In6() {
			t.Errorf("%q: %v", chain, got)
		}
		if on && !contains(trusted, got) {
			t.Errorf("%q: the walk went past %v, whom nobody trusts", chain, got)
		}
	})
}

// hopByTheBook is parseHop by net/netip alone.
func hopByTheBook(s string) (netip.Addr, bool) {
	a, err := netip.ParseAddr(strings.Trim(s, "[]"))
	if err != nil {
		var at netip.AddrPort
		at, err = netip.ParseAddrPort(s)
		a = at.Addr()
	}
	return a.Unmap().WithZone(""), err == nil
}

func FuzzParseHop(f *testing.F) {
	for _, s := range []string{
		"1.2.3.4", "255.255.255.255", "256.1.1.1", "01.2.3.4", "1.2.3", "1.2.3.4.5", "1..2.3", "1.2.3.", ".1.2.3", "0.0.0.0",
		"999.9.9.9", "1.2.3.4:80", "::1", "[::1]", "[::1]:80", "::ffff:1.2.3.4", "fe80::1%eth0", "", "[", "1.2.3.4 ", "00.0.0.0",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		want, valid := hopByTheBook(s)
		if got, ok := parseHop([]byte(s)); ok != valid || ok && got != want {
			t.Errorf("parseHop(%q) = %v %t, want %v %t", s, got, ok, want, valid)
		}
		// The short way must not take more, or another, than net/netip does.
		strict, err := netip.ParseAddr(s)
		if got, ok := parseIPv4([]byte(s)); ok != (err == nil && strict.Is4()) || ok && got != strict {
			t.Errorf("parseIPv4(%q) = %v %t, want %v %v", s, got, ok, strict, err)
		}
	})
}

func TestIPv4AddressesAreReadAsNetipDoes(t *testing.T) {
	for a := range 1000 {
		for _, form := range []string{"%.1.2.3", "1.%.2.3", "1.2.%.3", "1.2.3.%"} {
			s := strings.Replace(form, "%", itoa(uint32(a)), 1)
			want, err := netip.ParseAddr(s)
			if got, ok := parseIPv4([]byte(s)); ok != (err == nil) || ok && got != want {
				t.Errorf("%s: %v %t, want %v %v", s, got, ok, want, err)
			}
		}
	}
}

func TestFirstOf(t *testing.T) {
	for list, want := range map[string]string{"": "", "https": "https", " https ,http": "https", ",http": "", "a\t,b": "a"} {
		if got := string(firstOf([]byte(list))); got != want {
			t.Errorf("%q: %q, want %q", list, got, want)
		}
	}
}

func TestValidRequestID(t *testing.T) {
	for id, want := range map[string]bool{
		"": false, "a": true, "abc-123_.~:/+=@Z": true, "a b": false, "a\"b": false, "<script>": false, "a,b": false, "é": false, "a\x00": false,
		strings.Repeat("a", maxRequestID): true, strings.Repeat("a", maxRequestID+1): false,
	} {
		if got := validRequestID([]byte(id)); got != want {
			t.Errorf("%q: %t", id, got)
		}
	}
}

func TestRequestIDsAreNew(t *testing.T) {
	seen := make(map[string]bool)
	for range 1000 {
		id := string(appendRequestID([]byte("x")))[1:]
		if len(id) != 32 || !validRequestID([]byte(id)) || seen[id] {
			t.Fatalf("%q", id)
		}
		seen[id] = true
	}
}

// exchangeOf holds a request of these fields.
func exchangeOf(t testing.TB, fields string) *exchange {
	t.Helper()
	x := newExchange()
	head := "GET / HTTP/1.1\r\nHost: x\r\n" + fields + "\r\n"
	if n, err := x.request.Parse([]byte(head)); err != nil || n != len(head) {
		t.Fatalf("%q: %d %v", fields, n, err)
	}
	return x
}

func TestLaps(t *testing.T) {
	x := exchangeOf(t, "Via: 1.1 pyserve, 1.0 fred\r\nVia: 2.0 pyserve (comment)\r\nVia: 1.1 pyserver\r\nvia: pyserve\r\nVia: 1.1 \t pyserve\tx\r\n")
	if n := x.laps(); n != 3 {
		t.Errorf("%d laps, want 3", n)
	}
	if n := exchangeOf(t, "").laps(); n != 0 {
		t.Errorf("%d laps of a request without Via", n)
	}
}

func TestIsOurs(t *testing.T) {
	for element, want := range map[string]bool{
		"1.1 pyserve": true, "HTTP/1.1 pyserve": true, "1.1  pyserve": true, "1.1 pyserve (x)": true, "1.1 pyserve\t(x)": true,
		"pyserve": false, "1.1 pyserver": false, "1.1 PyServe": false, "1.1 fred (pyserve)": false, "1.1": false, "": false, "1.1 ": false,
	} {
		if got := isOurs([]byte(element)); got != want {
			t.Errorf("%q: %t", element, got)
		}
	}
}

func TestUpgradesThatAreTaken(t *testing.T) {
	for value, want := range map[string]string{
		"websocket": "Upgrade: websocket\r\n\r\n", "h2c, chat/1.0": "Upgrade: chat/1.0\r\n\r\n", "a, H2C, b": "Upgrade: a, b\r\n\r\n", "h2c": "", "h2c,h2c": "",
	} {
		x := exchangeOf(t, "Connection: Upgrade\r\nUpgrade: "+value+"\r\n")
		if got := x.takesUpgrade(); got != (want != "") {
			t.Errorf("%q: %t", value, got)
		}
		if want != "" {
			if got := string(x.appendUpgrade(nil)); got+"\r\n" != want {
				t.Errorf("%q: %q", value, got)
			}
		}
	}
}

func TestMaxForwardsIsOneLess(t *testing.T) {
	for value, want := range map[string]string{"3": "Max-Forwards: 2\r\n", "1": "Max-Forwards: 0\r\n", "0": "", "x": "", "99999999999": ""} {
		if got := string(appendLessForwards(nil, []byte(value))); got != want {
			t.Errorf("%q: %q", value, got)
		}
	}
}

func TestIdempotentMethods(t *testing.T) {
	for method, want := range map[http1.Method]bool{
		http1.GET: true, http1.HEAD: true, http1.PUT: true, http1.DELETE: true, http1.OPTIONS: true, http1.TRACE: true,
		http1.POST: false, http1.PATCH: false, http1.CONNECT: false, http1.OtherMethod: false,
	} {
		if got := idempotent(method); got != want {
			t.Errorf("%d: %t", method, got)
		}
	}
}

func TestOptionsThatAreMissing(t *testing.T) {
	counts, err := meter.NewSet(meter.Options{Classes: Classes(), RejectReasons: RejectReasons()})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		o    Options
		want string
	}{
		{Options{Tunnels: tunnel.NewSet(tunnel.Options{}), Meter: counts}, "Source"},
		{Options{Source: &proxy{}, Meter: counts}, "Tunnels"},
		{Options{Source: &proxy{}, Tunnels: tunnel.NewSet(tunnel.Options{})}, "Meter"},
	} {
		if _, err := New(c.o); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v, want %s", err, c.want)
		}
	}
}

func TestChunksAreFramedInPlace(t *testing.T) {
	x := newExchange()
	for _, size := range []int{1, 15, 16, 4095, len(x.back) - headroom - chunkRoom} {
		data := bytes.Repeat([]byte("x"), size)
		copy(x.back[headroom:], data)
		var body http1.Body
		var head http1.Response
		if _, err := head.Parse([]byte("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"), http1.GET); err != nil {
			t.Fatal(err)
		}
		body.Reset(&head.Head)
		chunk := x.chunk(headroom, size)
		if got, n, err := body.Next(chunk); err != nil || !bytes.Equal(got, data) || len(chunk)-n != chunkRoom {
			t.Errorf("%d bytes: got %d, used %d of %d, %v", size, len(got), n, len(chunk), err)
		}
	}
}
