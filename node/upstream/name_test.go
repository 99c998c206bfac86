package upstream

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pyserve/pyserve/node/certtest"
	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

// unresolved wants err to be a DialError because of a name, and returns what people are told.
func unresolved(t *testing.T, err error) string {
	t.Helper()
	var dial *DialError
	var resolve *ResolveError
	if !errors.As(err, &dial) || dial.Address != "api.internal:80" || !errors.As(err, &resolve) {
		t.Fatalf("got %v, want a DialError for a name that cannot be resolved", err)
	}
	return resolve.Error()
}

func TestOnlyTheFirstUseWaitsForALookup(t *testing.T) {
	inFakeTime(t, newNames("10.0.0.1").after(2*time.Second), func(t *testing.T, n *named) {
		if took := n.reach(t); took != 2*time.Second {
			t.Errorf("the first dial took %v, want the 2s of the lookup", took)
		}
		pass(resolveInterval + resolveInterval/10) // the next lookup is under way, or just over
		if took := n.reach(t); took != 0 {
			t.Errorf("a later dial took %v", took)
		}
	})
}

func TestNoRequestLooksUp(t *testing.T) {
	inFakeTime(t, newNames("10.0.0.1", "10.0.0.2"), func(t *testing.T, n *named) {
		for range 100 {
			n.ask(t)
			n.reach(t)
		}
		if got := len(n.lookups()); got != 1 {
			t.Errorf("%d lookups for 200 uses, want 1", got)
		}
		pass(10*time.Minute + time.Second)
		if got := len(n.lookups()); got != 21 {
			t.Errorf("%d lookups in ten minutes, want one at the beginning and one every 30s", got)
		}
	})
}

func TestWaitForTheFirstLookupEndsWithTheConnectTimeout(t *testing.T) {
	inFakeTime(t, newNames("10.0.0.1").after(time.Hour), func(t *testing.T, n *named) {
		begin := time.Now()
		_, err := n.Open(t.Context())
		if got := unresolved(t, err); got != "cannot resolve api.internal: lookup timed out" || time.Since(begin) != 5*time.Second {
			t.Errorf("%q after %v", got, time.Since(begin))
		}
		var timeout net.Error
		if !errors.As(err, &timeout) || !timeout.Timeout() {
			t.Errorf("%v is no timeout to net", err)
		}
		// The lookup itself has failed after ten seconds: nobody waits any more.
		pass(6 * time.Second)
		begin = time.Now()
		if _, err = n.Dial(t.Context()); unresolved(t, err) != "cannot resolve api.internal: lookup timed out" || time.Since(begin) != 0 {
			t.Errorf("%v after %v", err, time.Since(begin))
		}
	})
}

func TestWaitForTheFirstLookupEndsWithItsContext(t *testing.T) {
	inFakeTime(t, newNames().after(time.Hour), func(t *testing.T, n *named) {
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		if _, err := n.Dial(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v, want the cancelled context", err)
		}
	})
}

func TestChangedAddressesAreFollowed(t *testing.T) {
	inFakeTime(t, newNames("10.0.0.1"), func(t *testing.T, n *named) {
		if got := n.ask(t); got != "10.0.0.1:80" {
			t.Fatalf("answered by %s", got)
		}
		// A second connection, in use when the change comes.
		pass(29500 * time.Millisecond)
		held := open(t, n.Backend)
		fmt.Fprint(held, "GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
		answer, err := http.ReadResponse(bufio.NewReader(held), nil)
		if err != nil {
			t.Fatal(err)
		}
		n.names.set(nil, "10.0.0.2")
		pass(800 * time.Millisecond)
		if got := n.connections(); !maps.Equal(got, map[string]int{"10.0.0.1:80": 1}) {
			t.Errorf("open after the change: %v, want only what is in use", got)
		}
		if got := n.ask(t); got != "10.0.0.2:80" {
			t.Errorf("answered by %s after the change", got)
		}
		if body, err := io.ReadAll(answer.Body); err != nil || string(body) != "10.0.0.1:80" {
			t.Errorf("the answer under way ended as %q, %v", body, err)
		}
		answer.Body.Close()
		held.Keep()
		synctest.Wait()
		if got := n.connections(); !maps.Equal(got, map[string]int{"10.0.0.2:80": 1}) {
			t.Errorf("open after the answer's end: %v", got)
		}
		if n.journal.told("addresses have changed") != 1 {
			t.Errorf("the log tells %q", n.journal)
		}
	})
}

func TestShuffledAnswerChangesNothing(t *testing.T) {
	inFakeTime(t, newNames("10.0.0.1", "2001:db8::1", "10.0.0.2"), func(t *testing.T, n *named) {
		n.ask(t)
		n.dialled()
		n.names.set(nil, "10.0.0.2", "::ffff:10.0.0.1", "2001:db8::1", "10.0.0.2")
		pass(40 * time.Second)
		n.ask(t)
		if got := n.dialled(); len(got) != 0 {
			t.Errorf("dialled %v although a connection was open", got)
		}
	})
}

func TestFailedLookupKeepsTheAddresses(t *testing.T) {
	inFakeTime(t, newNames("10.0.0.1"), func(t *testing.T, n *named) {
		n.ask(t)
		n.names.set(errServers)
		pass(time.Hour)
		if got := n.ask(t); got != "10.0.0.1:80" {
			t.Errorf("answered by %s", got)
		}
		n.names.set(nil, "10.0.0.1")
		pass(time.Minute)
		if n.journal.told("cannot be resolved, its last addresses stay in use") != 1 || n.journal.told("resolved again") != 1 || n.journal.told("level=") != 2 {
			t.Errorf("the log tells:\n%s", n.journal)
		}
	})
}

func TestNameThatDisappearedKeepsItsAddressesForTenMinutes(t *testing.T) {
	for name, answer := range map[string]error{"no such host": errGone, "no address": nil} {
		t.Run(name, func(t *testing.T) {
			inFakeTime(t, newNames("10.0.0.1"), func(t *testing.T, n *named) {
				n.names.set(answer)
				pass(10 * time.Minute)
				if got := n.ask(t); got != "10.0.0.1:80" {
					t.Errorf("answered by %s", got)
				}
				pass(90 * time.Second)
				if got := n.connections(); len(got) != 0 {
					t.Errorf("open to addresses that were given up: %v", got)
				}
				_, err := n.Open(t.Context())
				if got := unresolved(t, err); got != "cannot resolve api.internal: no such host" {
					t.Errorf("%q", got)
				}
				if n.journal.told("level=WARN") != 2 {
					t.Errorf("the log tells:\n%s", n.journal)
				}
				n.names.set(nil, "10.0.0.2")
				pass(40 * time.Second)
				if got := n.ask(t); got != "10.0.0.2:80" {
					t.Errorf("answered by %s after the name came back", got)
				}
			})
		})
	}
}

// Only an answer that the name is gone gives addresses up, however old the first such answer is.
func TestFailuresAfterADisappearanceGiveNothingUp(t *testing.T) {
	inFakeTime(t, newNames("10.0.0.1"), func(t *testing.T, n *named) {
		n.names.set(errGone)
		pass(time.Minute)
		n.names.set(errServers)
		pass(time.Hour)
		if got := n.ask(t); got != "10.0.0.1:80" {
			t.Errorf("answered by %s", got)
		}
	})
}

func TestFailedLookupIsRepeatedSoonAndThenLessOften(t *testing.T) {
	inFakeTime(t, newNames(), func(t *testing.T, n *named) {
		pass(2 * time.Minute)
		var pauses []time.Duration
		at := n.lookups()
		for i := range at[1:] {
			pauses = append(pauses, at[i+1].Sub(at[i]).Round(10*time.Millisecond))
		}
		want := []time.Duration{750 * time.Millisecond, 1500 * time.Millisecond, 3 * time.Second, 6 * time.Second, 12 * time.Second, 22500 * time.Millisecond, 22500 * time.Millisecond}
		if !slices.Equal(pauses[:len(want)], want) {
			t.Errorf("pauses of %v, want %v", pauses, want)
		}
		n.names.set(nil, "10.0.0.1")
		pass(30 * time.Second)
		if got := n.ask(t); got != "10.0.0.1:80" {
			t.Errorf("answered by %s", got)
		}
		if n.journal.told("cannot be resolved") != 1 {
			t.Errorf("the log tells:\n%s", n.journal)
		}
	})
}

func TestPausesStayWithinTheirBounds(t *testing.T) {
	for _, c := range []struct {
		failures    int
		least, most time.Duration
	}{
		{0, 27 * time.Second, 33 * time.Second},
		{1, 500 * time.Millisecond, time.Second},
		{3, 2 * time.Second, 4 * time.Second},
		{6, 15 * time.Second, 30 * time.Second},
		{1 << 40, 15 * time.Second, 30 * time.Second},
	} {
		least := &name{failures: c.failures, random: func(int64) int64 { return 0 }}
		most := &name{failures: c.failures, random: func(n int64) int64 { return n - 1 }}
		if least.pause() != c.least || most.pause() != c.most {
			t.Errorf("after %d failures: %v to %v, want %v to %v", c.failures, least.pause(), most.pause(), c.least, c.most)
		}
	}
}

func TestLastReleaseEndsTheLookups(t *testing.T) {
	inFakeTime(t, newNames(), func(t *testing.T, n *named) {
		n.names.set(errServers)
		pass(time.Second)
		n.names.after(time.Hour)
		pass(time.Minute) // a lookup is under way
		begin := time.Now()
		n.Release()
		if took := time.Since(begin); took != 0 {
			t.Errorf("the release waited %v for a lookup", took)
		}
		before := len(n.lookups())
		pass(time.Hour)
		if after := len(n.lookups()); after != before {
			t.Errorf("%d lookups after the release", after-before)
		}
	})
}

func TestReleaseSendsAwayWhoWaitsForTheFirstLookup(t *testing.T) {
	inFakeTime(t, newNames("10.0.0.1").after(time.Hour), func(t *testing.T, n *named) {
		begin := time.Now()
		time.AfterFunc(time.Second, n.Release)
		_, err := n.Dial(t.Context())
		if got := unresolved(t, err); !strings.Contains(got, "released") || time.Since(begin) != time.Second {
			t.Errorf("%q after %v", got, time.Since(begin))
		}
	})
}

func TestManyNamesAreNotAllLookedUpAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		names := newNames("10.0.0.1").after(time.Second)
		r := NewRegistry(Options{Resolver: names})
		defer r.Close()
		for i := range 3 * maxLookups {
			acquire(t, r, Spec{Host: fmt.Sprint("h", i), Port: 80})
		}
		pass(4 * time.Second)
		if got := len(names.lookups()); got != 3*maxLookups || names.most != maxLookups {
			t.Errorf("%d lookups, %d at once; want %d, %d", got, names.most, 3*maxLookups, maxLookups)
		}
	})
}

func TestAddressIsNotLookedUp(t *testing.T) {
	names := newNames("10.0.0.1")
	r := newRegistry(t, Options{Resolver: names, DialContext: newMemory().dial})
	for _, host := range []string{"10.0.0.1", "::1", "[2001:db8::1]", "fe80::1%eth0"} {
		conn, err := acquire(t, r, Spec{Host: host, Port: 80}).Dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		conn.Close()
	}
	r.Close()
	if got := len(names.lookups()); got != 0 {
		t.Errorf("%d lookups", got)
	}
}

func TestLocalhostIsFoundByTheSystem(t *testing.T) {
	_, spec := serve(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "here") })
	spec.Host = "localhost"
	r := NewRegistry(Options{})
	defer r.Close()
	if got := ask(t, acquire(t, r, spec), "/"); got != "here" {
		t.Errorf("got %q", got)
	}
}

func TestTLSVerifiesTheNameNotTheAddress(t *testing.T) {
	authority := certtest.New(t)
	pair := authority.Issue(t, "api.internal")
	spec := serveTLS(t, &tls.Config{Certificates: []tls.Certificate{pair.TLS}}, func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, r.TLS.ServerName)
	})
	spec.Host, spec.TLS = "api.internal", &resourcev1.BackendTls{CaPem: authority.PEM}
	b := acquire(t, newRegistry(t, Options{}), spec)
	if got := ask(t, b, "/"); got != "api.internal" {
		t.Errorf("the backend was asked for %q", got)
	}
	if want := fmt.Sprint("api.internal:", spec.Port); b.Address() != want {
		t.Errorf("the address is %s, want %s", b.Address(), want)
	}
}

func TestResolveErrorsInWords(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
	}{
		{errGone, "no such host"},
		{errNoAddress, "no such host"},
		{&net.DNSError{Err: "i/o timeout", Server: "10.0.0.53:53", IsTimeout: true}, "lookup timed out"},
		{context.DeadlineExceeded, "lookup timed out"},
		{errServers, "server misbehaving"},
		{errors.New("odd"), "odd"},
	} {
		err := &ResolveError{Host: "api.internal", Err: c.err}
		if got := err.Error(); got != "cannot resolve api.internal: "+c.want || !errors.Is(err, c.err) {
			t.Errorf("%v: %q", c.err, got)
		}
	}
}
