package health

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/pyserve/pyserve/node/certtest"
	"github.com/pyserve/pyserve/node/upstream"
	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
	"google.golang.org/protobuf/types/known/durationpb"
)

func httpCheck(path string, expected ...*resourcev1.StatusRange) *resourcev1.HealthCheck {
	return &resourcev1.HealthCheck{
		Type:             resourcev1.HealthCheckType_HEALTH_CHECK_TYPE_HTTP,
		Path:             path,
		Timeout:          durationpb.New(5 * time.Second),
		ExpectedStatuses: expected,
	}
}

// try probes a real socket once.
func try(t *testing.T, address string, c *resourcev1.HealthCheck, settings *resourcev1.BackendTls) string {
	t.Helper()
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		t.Fatal(err)
	}
	r := upstream.NewRegistry(upstream.Options{})
	defer r.Close()
	b, err := r.Acquire(upstream.Spec{Host: host, Port: uint32(n), Check: c, TLS: settings})
	if err != nil {
		t.Fatal(err)
	}
	target := newTarget(b)
	defer target.close()
	reason, _ := target.try(t.Context())
	return reason
}

// listen answers each connection by hand, one after the other.
func listen(t *testing.T, answer func(net.Conn)) (address string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			answer(c)
			c.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return l.Addr().String()
}

// says is an HTTP backend of fixed words.
func says(answer string) func(net.Conn) {
	return func(c net.Conn) {
		if _, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
			io.WriteString(c, answer)
		}
	}
}

func TestTCPProbe(t *testing.T) {
	address := listen(t, func(net.Conn) {})
	if reason := try(t, address, tcpCheck(), nil); reason != "" {
		t.Errorf("a listening backend failed: %s", reason)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if reason := try(t, l.Addr().String(), tcpCheck(), nil); reason != "connection refused" {
		t.Errorf("nobody listens: %q", reason)
	}
}

func TestHTTPProbeAsksAsWritten(t *testing.T) {
	got := make(chan *http.Request, 1)
	s := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got <- r }))
	defer s.Close()
	address := s.Listener.Addr().String()
	if reason := try(t, address, httpCheck("/healthz?deep=1"), nil); reason != "" {
		t.Fatal(reason)
	}
	r := <-got
	if r.Method != "GET" || r.RequestURI != "/healthz?deep=1" || r.Host != address || r.UserAgent() != "pyserve-health" || !r.Close {
		t.Errorf("the backend saw %s %s, Host %s, User-Agent %s, close %v", r.Method, r.RequestURI, r.Host, r.UserAgent(), r.Close)
	}
}

func TestHTTPProbeJudgesByStatus(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		status, _ := strconv.Atoi(r.URL.Path[1:])
		w.Header().Set("Location", "/500") // must not be followed
		w.WriteHeader(status)
		if status == 200 {
			io.Copy(w, io.LimitReader(zeros{}, 10<<20)) // more than a probe reads
		}
	}))
	defer s.Close()
	narrow := []*resourcev1.StatusRange{{First: 200, Last: 299}, {First: 401, Last: 401}}
	for _, c := range []struct {
		path     string
		expected []*resourcev1.StatusRange
		want     string
	}{
		{"/200", nil, ""},
		{"/302", nil, ""},
		{"/399", nil, ""},
		{"/400", nil, "status 400, expected 200-399"},
		{"/500", nil, "status 500, expected 200-399"},
		{"/204", narrow, ""},
		{"/401", narrow, ""},
		{"/302", narrow, "status 302, expected 200-299,401"},
	} {
		if got := try(t, s.Listener.Addr().String(), httpCheck(c.path, c.expected...), nil); got != c.want {
			t.Errorf("GET %s: %q, want %q", c.path, got, c.want)
		}
	}
}

func TestHTTPProbeLooksIntoTheBody(t *testing.T) {
	body := func(size int, rest string) string {
		return "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + strings.Repeat(".", size) + rest
	}
	for name, c := range map[string]struct{ answer, wanted, want string }{
		"it alone":                {body(0, "ready"), "ready", ""},
		"amid others":             {body(10, `{"status":"ok"}`), `"status":"ok"`, ""},
		"across two reads":        {body(4096-2, "ready"), "ready", ""},
		"in chunks":               {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nrea\r\n2\r\ndy\r\n0\r\n\r\n", "ready", ""},
		"before it is cut short":  {"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nready", "ready", ""},
		"as the last that counts": {body(maxBody-5, "ready"), "ready", ""},
		"too late":                {body(maxBody-4, "ready"), "ready", `the first 64 KiB of the body do not hold "ready"`},
		"not there":               {body(10, "starting"), "ready", `the body does not hold "ready"`},
		"other letters":           {body(0, "Ready"), "ready", `the body does not hold "ready"`},
		"no body":                 {"HTTP/1.1 204 No Content\r\n\r\n", "ready", `the body does not hold "ready"`},
		"cut short":               {"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nrea", "ready", `the body does not hold "ready"`},
		"status before body":      {"HTTP/1.1 500 x\r\n\r\nready", "ready", "status 500, expected 200-399"},
		"odd text":                {body(0, "x"), "a\nb", `the body does not hold "a\nb"`},
	} {
		t.Run(name, func(t *testing.T) {
			check := httpCheck("/")
			check.ExpectedBody = c.wanted
			if got := try(t, listen(t, says(c.answer)), check, nil); got != c.want {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
}

// What is wanted has come: that the rest never does is no matter. What has not come by the timeout has not come.
func TestHTTPProbeOfAnEndlessBody(t *testing.T) {
	over := make(chan struct{})
	defer close(over)
	for wanted, want := range map[string]string{"ready": "", "steady": "timeout after 300ms"} {
		c := httpCheck("/")
		c.Timeout, c.ExpectedBody = durationpb.New(300*time.Millisecond), wanted
		address := listen(t, func(conn net.Conn) { says("HTTP/1.1 200 OK\r\n\r\ndata: ready\n\n")(conn); <-over })
		if wanted == "ready" {
			c.Timeout = durationpb.New(time.Minute)
		}
		if got := try(t, address, c, nil); got != want {
			t.Errorf("%s: %q, want %q", wanted, got, want)
		}
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestHTTPProbeOfOddAnswers(t *testing.T) {
	const ok = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
	for name, c := range map[string]struct{ answer, want string }{
		"interim answers first": {"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + ok, ""},
		"only interim answers":  {strings.Repeat("HTTP/1.1 102 Processing\r\n\r\n", 20), "nothing but interim answers"},
		"body cut short":        {"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf", ""},
		"HTTP/1.0":              {"HTTP/1.0 200 OK\r\n\r\nbody", ""},
		"nothing":               {"", "connection closed without an answer"},
		"half a head":           {"HTTP/1.1 200 OK\r\nA: b", "connection closed without an answer"},
		"another protocol":      {"SSH-2.0-OpenSSH_9.6\r\n", "the answer is not HTTP"},
		"bad status":            {"HTTP/1.1 abc\r\n\r\n", "the answer is not HTTP"},
		"endless head":          {"HTTP/1.1 200 OK\r\nA: " + strings.Repeat("a", 100<<10), "the answer's head is over 64 KiB"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := try(t, listen(t, says(c.answer)), httpCheck("/"), nil); got != c.want {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
}

// answered is a connection on which the whole answer lies ready.
type answered struct {
	net.Conn // nil: nothing else is called
	io.Reader
}

func (a answered) Read(p []byte) (int, error)  { return a.Reader.Read(p) }
func (a answered) Write(p []byte) (int, error) { return len(p), nil }

func FuzzAnswer(f *testing.F) {
	for _, seed := range []string{"", "HTTP/1.1 200 OK\r\n\r\n", "HTTP/1.1 103 x\r\n\r\nHTTP/1.1 500 y\r\n\r\n", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz", "\x16\x03\x01"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, answer []byte) {
		probe := target{request: "GET / HTTP/1.1\r\n\r\n", expected: []*resourcev1.StatusRange{{First: 200, Last: 399}}}
		if len(answer)%2 == 1 {
			probe.wanted = []byte("ok")
		}
		err := probe.exchange(answered{Reader: bytes.NewReader(answer)})
		if err == nil && len(probe.wanted) > 0 && !bytes.ContainsRune(answer, 'o') {
			t.Errorf("%q holds ok", answer)
		}
		if err == nil {
			if !bytes.HasPrefix(answer, []byte("HTTP/")) {
				t.Errorf("%q is a success", answer)
			}
			return
		}
		reason := reasonFor(err, time.Now())
		if reason == "" || len(reason) > maxReason+len("…") || strings.ContainsFunc(reason, unicode.IsControl) {
			t.Errorf("%q fails with %q", answer, reason)
		}
	})
}

func TestSilentBackendTimesOut(t *testing.T) {
	over := make(chan struct{})
	defer close(over)
	c := httpCheck("/")
	c.Timeout = durationpb.New(30 * time.Millisecond)
	address := listen(t, func(net.Conn) { <-over })
	if got := try(t, address, c, nil); got != "timeout after 30ms" {
		t.Errorf("%q", got)
	}
}

// An event stream never ends, which must not make it unhealthy: its status has been seen.
func TestEndlessBodyIsHealthy(t *testing.T) {
	over := make(chan struct{})
	defer close(over)
	c := httpCheck("/")
	c.Timeout = durationpb.New(30 * time.Millisecond)
	address := listen(t, func(conn net.Conn) { says("HTTP/1.1 200 OK\r\n\r\ndata: 1\n\n")(conn); <-over })
	if got := try(t, address, c, nil); got != "" {
		t.Errorf("%q", got)
	}
}

// A probe believes the same servers as traffic does, and says why it does not believe one.
func TestTLSProbeVerifies(t *testing.T) {
	authority, stranger := certtest.New(t), certtest.New(t)
	end := time.Now().Add(-time.Hour).UTC().Truncate(time.Second)
	serve := func(pair certtest.Pair) string {
		s := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
		s.TLS = &tls.Config{Certificates: []tls.Certificate{pair.TLS}}
		s.StartTLS()
		t.Cleanup(s.Close)
		return s.Listener.Addr().String()
	}
	good := serve(authority.Issue(t, "127.0.0.1", "backend.example"))
	expired := serve(authority.IssueUntil(t, end, "127.0.0.1"))
	plain := listen(t, func(c net.Conn) { bufio.NewReader(c).ReadByte(); fmt.Fprint(c, "HTTP/1.1 400 Bad Request\r\n\r\n") })
	trust := &resourcev1.BackendTls{CaPem: authority.PEM}
	for _, c := range []struct {
		name, address string
		tls           *resourcev1.BackendTls
		want          string
	}{
		{"good", good, trust, ""},
		{"good by name", good, &resourcev1.BackendTls{CaPem: authority.PEM, ServerName: "backend.example"}, ""},
		{"not verified", expired, &resourcev1.BackendTls{InsecureSkipVerify: true}, ""},
		{"another name", good, &resourcev1.BackendTls{CaPem: authority.PEM, ServerName: "other.example"}, "certificate is not for other.example"},
		{"another authority", good, &resourcev1.BackendTls{CaPem: stranger.PEM}, "certificate signed by unknown authority"},
		{"expired", expired, trust, "certificate expired at " + end.Format(time.RFC3339)},
		{"no TLS", plain, trust, "the backend does not speak TLS"},
	} {
		t.Run(c.name, func(t *testing.T) {
			for word, check := range map[string]*resourcev1.HealthCheck{"tcp": tcpCheck(), "http": httpCheck("/")} {
				if got := try(t, c.address, check, c.tls); got != c.want {
					t.Errorf("%s: %q, want %q", word, got, c.want)
				}
			}
		})
	}
}

// The whole of it over real sockets: a backend dies, leaves, comes back and returns.
func TestDeadBackendLeavesAndReturns(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().(*net.TCPAddr)
	changed := make(chan upstream.Verdict, 10)
	p := NewProber(Options{})
	defer p.Close()
	r := upstream.NewRegistry(upstream.Options{Added: p.Watch, Removed: p.Unwatch, Changed: func(b *upstream.Backend) { changed <- b.Verdict() }})
	defer r.Close()
	c := tcpCheck()
	c.Interval = durationpb.New(10 * time.Millisecond)
	if _, err := r.Acquire(upstream.Spec{Host: "127.0.0.1", Port: uint32(address.Port), Check: c}); err != nil {
		t.Fatal(err)
	}
	want := func(state upstream.State, reason string) {
		t.Helper()
		select {
		case v := <-changed:
			if v.State != state || v.Reason != reason {
				t.Fatalf("%v %q, want %v %q", v.State, v.Reason, state, reason)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("not %v after 10 s", state)
		}
	}
	want(upstream.Healthy, "")
	l.Close()
	want(upstream.Unhealthy, "connection refused")
	if l, err = net.ListenTCP("tcp", address); err != nil {
		t.Skipf("the port was taken by another: %v", err)
	}
	defer l.Close()
	want(upstream.Healthy, "")
}
