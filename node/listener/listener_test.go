package listener

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/pyserve/pyserve/node/certtest"
	"github.com/pyserve/pyserve/node/nodetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var hello = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.Proto) })

func started(t *testing.T, o Options) *Listener {
	t.Helper()
	l, err := Bind(t.Context(), "127.0.0.1:0", o)
	if err != nil {
		t.Fatal(err)
	}
	l.Start()
	t.Cleanup(func() { drain(t, l) })
	return l
}

func drain(t *testing.T, l *Listener) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := l.Drain(ctx); err != nil {
		t.Error(err)
	}
}

func get(t *testing.T, l *Listener) string {
	t.Helper()
	return nodetest.Exchange(t, l.Address(), "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
}

func TestAPortInUseIsSaidPlainly(t *testing.T) {
	l := started(t, Options{Handler: hello})
	_, err := Bind(t.Context(), l.Address(), Options{Handler: hello})
	if !errors.Is(err, syscall.EADDRINUSE) || Reason(err) != "address already in use" {
		t.Errorf("%v, reason %q", err, Reason(err))
	}
	if !strings.HasPrefix(err.Error(), "cannot listen on "+l.Address()+": ") {
		t.Error(err)
	}
}

func TestReasons(t *testing.T) {
	for address, want := range map[string]string{
		"127.0.0.1:99999": "invalid port",
		"192.0.2.1:1":     "cannot assign requested address",
		"nonsense":        "missing port in address",
	} {
		_, err := Bind(t.Context(), address, Options{Handler: hello})
		if err == nil || Reason(err) != want {
			t.Errorf("%s: %v, reason %q, want %q", address, err, Reason(err), want)
		}
	}
	if got := Reason(&net.OpError{Err: &net.DNSError{Err: "no such host", Name: "x"}}); got != "no such host" {
		t.Error(got)
	}
	if got := Reason(errors.New("plain")); got != "plain" {
		t.Error(got)
	}
}

func TestTheSamePortMayBeBoundBesideOurOwn(t *testing.T) {
	old, err := Bind(t.Context(), "127.0.0.1:0", Options{Handler: hello})
	if err != nil {
		t.Fatal(err)
	}
	old.Start()
	beside, err := Bind(t.Context(), old.Address(), Options{Handler: hello, Beside: old})
	if err != nil {
		t.Fatal(err)
	}
	beside.Start()
	drain(t, old)
	if answer := get(t, beside); !strings.Contains(answer, " 200 OK") {
		t.Error(answer)
	}
	if _, err := Bind(t.Context(), beside.Address(), Options{Handler: hello}); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("the port can be shared for good: %v", err)
	}
	drain(t, beside)
}

func TestConnectionsWaitUntilStart(t *testing.T) {
	l, err := Bind(t.Context(), "127.0.0.1:0", Options{Handler: hello})
	if err != nil {
		t.Fatal(err)
	}
	c := nodetest.Dial(t, l.Address())
	io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
	l.Start()
	defer drain(t, l)
	if answer, err := io.ReadAll(c); err != nil || !strings.Contains(string(answer), " 200 OK") {
		t.Errorf("%q %v", answer, err)
	}
}

func TestCloseGivesThePortBack(t *testing.T) {
	l, err := Bind(t.Context(), "127.0.0.1:0", Options{Handler: hello})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := Bind(t.Context(), l.Address(), Options{Handler: hello})
	if err != nil {
		t.Fatal(err)
	}
	again.Close()
}

func TestHeadsOver64KiBAre431(t *testing.T) {
	l := started(t, Options{Handler: hello})
	for size, want := range map[int]string{59 << 10: "200", 64<<10 + 1: "431"} {
		start, end := "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Long: ", "\r\n\r\n"
		c := nodetest.Dial(t, l.Address())
		go io.WriteString(c, start+strings.Repeat("a", size-len(start)-len(end))+end)
		if line, err := bufio.NewReader(c).ReadString('\n'); err != nil || !strings.HasPrefix(line, "HTTP/1.1 "+want) {
			t.Errorf("%d bytes: %q %v, want %s", size, line, err, want)
		}
	}
}

func TestASlowHeadIsCutOff(t *testing.T) {
	l := started(t, Options{Handler: hello, ReadHeaderTimeout: 20 * time.Millisecond})
	c := nodetest.Dial(t, l.Address())
	io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n")
	if _, err := io.ReadAll(c); err != nil {
		t.Error(err)
	}
}

func TestTLSIsDecidedForEachConnection(t *testing.T) {
	authority := certtest.New(t)
	config := &tls.Config{Certificates: []tls.Certificate{authority.Issue(t, "127.0.0.1").TLS}, NextProtos: []string{"h2", "http/1.1"}}
	var now atomic.Pointer[tls.Config]
	l := started(t, Options{Handler: hello, TLS: now.Load})
	plain := nodetest.Dial(t, l.Address())
	in := bufio.NewReader(plain)
	ask := func() string {
		io.WriteString(plain, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		head, err := nodetest.ReadHead(in)
		if err != nil {
			t.Fatal(err)
		}
		io.ReadFull(in, make([]byte, len("HTTP/1.1")))
		return head
	}
	if head := ask(); strings.Contains(head, "Connection: close") {
		t.Errorf("%q", head)
	}
	now.Store(config)
	for _, protocol := range []string{"h2", "http/1.1"} {
		c, err := tls.Dial("tcp", l.Address(), &tls.Config{RootCAs: authority.Pool(), NextProtos: []string{protocol}})
		if err != nil {
			t.Fatal(err)
		}
		if got := c.ConnectionState().NegotiatedProtocol; got != protocol {
			t.Errorf("negotiated %q, want %q", got, protocol)
		}
		c.Close()
	}
	// What came before still speaks plain HTTP, and is told to come back.
	if head := ask(); !strings.Contains(head, "Connection: close") {
		t.Errorf("%q", head)
	}
	if answer := get(t, l); !strings.Contains(answer, "400 Bad Request") {
		t.Errorf("plain HTTP to a TLS port: %q", answer)
	}
	now.Store(nil)
	if answer := get(t, l); !strings.Contains(answer, "200 OK") {
		t.Errorf("%q", answer)
	}
}

func TestDrainLetsRequestsEnd(t *testing.T) {
	entered, leave := make(chan struct{}), make(chan struct{})
	l, err := Bind(t.Context(), "127.0.0.1:0", Options{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		close(entered)
		<-leave
		io.WriteString(w, "whole")
	})})
	if err != nil {
		t.Fatal(err)
	}
	l.Start()
	c := nodetest.Dial(t, l.Address())
	io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	<-entered
	drained := make(chan struct{})
	go func() {
		drain(t, l)
		close(drained)
	}()
	nodetest.Eventually(t, "no more connections are taken", func() bool {
		c, err := net.Dial("tcp", l.Address())
		if err == nil {
			c.Close()
		}
		return err != nil
	})
	close(leave)
	if answer, err := io.ReadAll(c); err != nil || !strings.HasSuffix(string(answer), "whole") {
		t.Errorf("%q %v", answer, err)
	}
	<-drained
}

func TestDrainTellsKeptConnections(t *testing.T) {
	l := started(t, Options{Handler: hello})
	c := nodetest.Dial(t, l.Address())
	in := bufio.NewReader(c)
	exchange := func() *http.Response {
		t.Helper()
		if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		response, err := http.ReadResponse(in, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, response.Body); err != nil {
			t.Fatal(err)
		}
		return response
	}
	if exchange().Close {
		t.Error("told to close before the drain")
	}
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		drain(t, l)
	}()
	nodetest.Eventually(t, "the socket is closed", func() bool {
		probe, err := net.Dial("tcp", l.Address())
		if err == nil {
			probe.Close()
		}
		return err != nil
	})
	if !exchange().Close {
		t.Error("not told to close")
	}
	<-drained
}

func TestDrainCutsAtTheDeadlineAndWaits(t *testing.T) {
	entered, left := make(chan struct{}), false
	l, err := Bind(t.Context(), "127.0.0.1:0", Options{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		close(entered)
		<-r.Context().Done()
		left = true
	})})
	if err != nil {
		t.Fatal(err)
	}
	l.Start()
	c := nodetest.Dial(t, l.Address())
	io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	<-entered
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := l.Drain(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	if !left {
		t.Error("a handler still runs")
	}
}

func TestIPv4MeansIPv4(t *testing.T) {
	for address, want := range map[string]string{"0.0.0.0:" + strconv.Itoa(80): "tcp4", "127.0.0.1:1": "tcp4", "[::]:1": "tcp", "localhost:1": "tcp", ":1": "tcp", "x": "tcp"} {
		if got := network(address); got != want {
			t.Errorf("%s: %s, want %s", address, got, want)
		}
	}
}
