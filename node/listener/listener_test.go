package listener

import (
	"errors"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"

	"github.com/pyserve/pyserve/node/nodetest"
)

func TestAPortInUseIsSaidPlainly(t *testing.T) {
	l := started(t, Options{})
	_, err := Bind(t.Context(), l.Address(), Options{Front: &front{}})
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
		_, err := Bind(t.Context(), address, Options{Front: &front{}})
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

func TestOptionsAreChecked(t *testing.T) {
	for field, o := range map[string]Options{
		"Options.Front":            {},
		"Options.HandshakeTimeout": {Front: &front{}, HandshakeTimeout: -1},
		"Options.MaxConnections":   {Front: &front{}, MaxConnections: -1},
	} {
		if _, err := Bind(t.Context(), "127.0.0.1:0", o); err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("%v, want one that names %s", err, field)
		}
	}
}

func TestTheSamePortMayBeBoundBesideOurOwn(t *testing.T) {
	old := bound(t, Options{})
	old.Start()
	beside, err := Bind(t.Context(), old.Address(), Options{Front: &front{}, Beside: old})
	if err != nil {
		t.Fatal(err)
	}
	beside.Start()
	drain(t, old)
	if answer := get(t, beside); !strings.Contains(answer, " 200 OK") {
		t.Error(answer)
	}
	if _, err := Bind(t.Context(), beside.Address(), Options{Front: &front{}}); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("the port can be shared for good: %v", err)
	}
	drain(t, beside)
}

func TestConnectionsWaitUntilStart(t *testing.T) {
	l := bound(t, Options{})
	c := nodetest.Dial(t, l.Address())
	io.WriteString(c, request)
	l.Start()
	defer drain(t, l)
	if answer, err := io.ReadAll(c); err != nil || !strings.Contains(string(answer), " 200 OK") {
		t.Errorf("%q %v", answer, err)
	}
}

func TestCloseGivesThePortBack(t *testing.T) {
	l := bound(t, Options{})
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := Bind(t.Context(), l.Address(), Options{Front: &front{}})
	if err != nil {
		t.Fatal(err)
	}
	again.Close()
}

func TestIPv4MeansIPv4(t *testing.T) {
	for address, want := range map[string]string{
		"0.0.0.0:80": "tcp4", "127.0.0.1:1": "tcp4", "[::]:1": "tcp", "localhost:1": "tcp", ":1": "tcp", "x": "tcp",
	} {
		if got := network(address); got != want {
			t.Errorf("%s: %s, want %s", address, got, want)
		}
	}
}
