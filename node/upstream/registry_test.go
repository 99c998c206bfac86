package upstream

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/pyserve/pyserve/node/certtest"
)

// newRegistry asks no name server: to a test that does not say otherwise, every name is this machine.
func newRegistry(t testing.TB, o Options) *Registry {
	if o.Resolver == nil {
		o.Resolver = newNames("127.0.0.1")
	}
	r := NewRegistry(o)
	t.Cleanup(r.Close)
	return r
}

func acquire(t testing.TB, r *Registry, s Spec) *Backend {
	t.Helper()
	b, err := r.Acquire(s)
	if err != nil {
		t.Fatalf("acquiring %v: %v", s, err)
	}
	return b
}

func tcpCheck(interval time.Duration) *resourcev1.HealthCheck {
	return &resourcev1.HealthCheck{Type: resourcev1.HealthCheckType_HEALTH_CHECK_TYPE_TCP, Interval: durationpb.New(interval)}
}

func TestVerdictOutlivesTheGenerationThatItCameFrom(t *testing.T) {
	r := newRegistry(t, Options{})
	spec := func() Spec { // new messages each time, as each bundle brings
		return Spec{Host: "10.0.0.1", Port: 80, TLS: &resourcev1.BackendTls{ServerName: "a"}, Check: tcpCheck(time.Second)}
	}
	first := acquire(t, r, spec())
	if v := first.Verdict(); v.State != Unknown || v.Reason != "" || v.Since.IsZero() {
		t.Errorf("a new backend's verdict is %+v, want unknown since now", v)
	}
	down := Verdict{State: Unhealthy, Reason: "connection refused", Since: time.Unix(1, 0)}
	first.SetVerdict(down)

	second := acquire(t, r, spec())
	first.Release()
	if second != first {
		t.Fatal("the same spec gave another backend")
	}
	if got := second.Verdict(); got != down {
		t.Errorf("the verdict is %+v after the apply, want %+v", got, down)
	}
}

func TestLastReleaseForgetsTheBackend(t *testing.T) {
	var events []string
	note := func(what string) func(*Backend) {
		return func(b *Backend) { events = append(events, what+" "+b.Address()) }
	}
	r := newRegistry(t, Options{Added: note("added"), Removed: note("removed")})
	b := acquire(t, r, Spec{Host: "10.0.0.1", Port: 80})
	acquire(t, r, Spec{Host: "10.0.0.1", Port: 80})
	b.SetVerdict(Verdict{State: Unhealthy})
	b.Release()
	b.Release()
	b.Release() // once too often: nothing
	again := acquire(t, r, Spec{Host: "10.0.0.1", Port: 80})
	b.Release() // of the old one: must not take the new one's reference
	if again == b || again.Verdict().State != Unknown {
		t.Error("a backend that was gone came back with its old verdict")
	}
	want := []string{"added 10.0.0.1:80", "removed 10.0.0.1:80", "added 10.0.0.1:80"}
	if !slices.Equal(events, want) {
		t.Errorf("hooks saw %q, want %q", events, want)
	}
}

func TestIdentityIsAddressTLSAndCheck(t *testing.T) {
	base := Spec{Host: "a.example", Port: 80, Check: tcpCheck(time.Second)}
	with := func(change func(*Spec)) Spec {
		s := base
		change(&s)
		return s
	}
	for name, c := range map[string]struct {
		other Spec
		same  bool
	}{
		"equal content":           {with(func(s *Spec) { s.Check = proto.CloneOf(s.Check) }), true},
		"other case":              {with(func(s *Spec) { s.Host = "A.Example" }), true},
		"other port":              {with(func(s *Spec) { s.Port = 81 }), false},
		"other host":              {with(func(s *Spec) { s.Host = "b.example" }), false},
		"other interval":          {with(func(s *Spec) { s.Check = tcpCheck(2 * time.Second) }), false},
		"no check":                {with(func(s *Spec) { s.Check = nil }), false},
		"TLS by default settings": {with(func(s *Spec) { s.TLS = &resourcev1.BackendTls{} }), false},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRegistry(t, Options{})
			if same := acquire(t, r, base) == acquire(t, r, c.other); same != c.same {
				t.Errorf("same backend: %v, want %v", same, c.same)
			}
		})
	}
}

func TestTLSSettingsTellBackendsApart(t *testing.T) {
	r := newRegistry(t, Options{})
	a := acquire(t, r, Spec{Host: "a", Port: 443, TLS: &resourcev1.BackendTls{ServerName: "x"}})
	b := acquire(t, r, Spec{Host: "a", Port: 443, TLS: &resourcev1.BackendTls{ServerName: "y"}})
	if a == b {
		t.Error("two server names gave one backend")
	}
}

func TestTLSMaterialIsSharedAndForgotten(t *testing.T) {
	r := newRegistry(t, Options{})
	settings := &resourcev1.BackendTls{CaPem: certtest.New(t).PEM}
	a := acquire(t, r, Spec{Host: "a", Port: 443, TLS: settings})
	b := acquire(t, r, Spec{Host: "b", Port: 443, TLS: settings})
	if a.tls.RootCAs != b.tls.RootCAs {
		t.Error("each backend parsed the authorities for itself")
	}
	if a.tls.ServerName != "a" || b.tls.ServerName != "b" {
		t.Errorf("names verified: %q, %q; want each its own host", a.tls.ServerName, b.tls.ServerName)
	}
	a.Release()
	b.Release()
	if len(r.material) != 0 || len(r.backends) != 0 {
		t.Errorf("%d materials, %d backends are kept after the last release", len(r.material), len(r.backends))
	}
}

func TestAddressAndAuthority(t *testing.T) {
	for _, c := range []struct {
		host               string
		port               uint32
		tls                bool
		address, authority string
	}{
		{"api.internal", 8000, false, "api.internal:8000", "api.internal:8000"},
		{"API.internal", 80, false, "api.internal:80", "api.internal"},
		{"api.internal", 443, true, "api.internal:443", "api.internal"},
		{"api.internal", 443, false, "api.internal:443", "api.internal:443"},
		{"api.internal", 80, true, "api.internal:80", "api.internal:80"},
		{"::1", 3000, false, "[::1]:3000", "[::1]:3000"},
		{"[::1]", 80, false, "[::1]:80", "[::1]"},
		{"2001:DB8:0:0::1", 80, false, "[2001:db8::1]:80", "[2001:db8::1]"},
	} {
		spec := Spec{Host: c.host, Port: c.port}
		if c.tls {
			spec.TLS = &resourcev1.BackendTls{}
		}
		b := acquire(t, newRegistry(t, Options{}), spec)
		if b.Address() != c.address || b.Authority() != c.authority {
			t.Errorf("%s port %d: address %q, authority %q; want %q, %q", c.host, c.port, b.Address(), b.Authority(), c.address, c.authority)
		}
	}
}

func TestUnusableSpecsAreRefusedByField(t *testing.T) {
	authority := certtest.New(t)
	pair, other := authority.Issue(t, "a"), authority.Issue(t, "b")
	tlsSpec := func(settings *resourcev1.BackendTls) Spec { return Spec{Host: "a", Port: 1, TLS: settings} }
	for name, c := range map[string]struct {
		spec  Spec
		field string
	}{
		"no host":           {Spec{Port: 1}, "host"},
		"port 0":            {Spec{Host: "a"}, "port"},
		"port 65536":        {Spec{Host: "a", Port: 65536}, "port"},
		"CA is no PEM":      {tlsSpec(&resourcev1.BackendTls{CaPem: []byte("hello")}), "tls.ca_file"},
		"CA is a key":       {tlsSpec(&resourcev1.BackendTls{CaPem: pair.KeyPEM}), "tls.ca_file"},
		"certificate alone": {tlsSpec(&resourcev1.BackendTls{ChainPem: pair.ChainPEM}), "tls.key_file"},
		"key alone":         {tlsSpec(&resourcev1.BackendTls{KeyPem: pair.KeyPEM}), "tls.cert_file"},
		"key of another":    {tlsSpec(&resourcev1.BackendTls{ChainPem: pair.ChainPEM, KeyPem: other.KeyPEM}), "tls.cert_file"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRegistry(t, Options{Added: func(*Backend) { t.Error("the Added hook was called") }})
			_, err := r.Acquire(c.spec)
			var refused *SpecError
			if !errors.As(err, &refused) || refused.Field != c.field || refused.Reason == "" {
				t.Errorf("got %v, want a refusal of %s", err, c.field)
			}
			if len(r.backends) != 0 || len(r.material) != 0 {
				t.Error("something is left of a refused backend")
			}
		})
	}
}

func TestCloseRemovesWhatIsHeld(t *testing.T) {
	removed := 0
	r := NewRegistry(Options{Removed: func(*Backend) { removed++ }, Resolver: newNames("127.0.0.1")})
	a := acquire(t, r, Spec{Host: "a", Port: 1})
	acquire(t, r, Spec{Host: "b", Port: 1})
	r.Close()
	r.Close()
	a.Release()
	if removed != 2 {
		t.Errorf("%d backends were removed, want 2", removed)
	}
	if _, err := r.Acquire(Spec{Host: "a", Port: 1}); !errors.Is(err, ErrClosed) {
		t.Errorf("acquiring after Close: %v, want ErrClosed", err)
	}
}

func TestConcurrentGenerationsKeepCount(t *testing.T) {
	var mu sync.Mutex
	live := make(map[*Backend]int)
	count := func(by int) func(*Backend) {
		return func(b *Backend) {
			mu.Lock()
			defer mu.Unlock()
			if live[b] += by; live[b] < 0 || live[b] > 1 {
				t.Errorf("%s was added %d times more than removed", b.Address(), live[b])
			}
		}
	}
	r := newRegistry(t, Options{Added: count(1), Removed: count(-1)})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for i := range 200 {
				b, err := r.Acquire(Spec{Host: fmt.Sprint("h", i%5), Port: 1})
				if err != nil {
					t.Error(err)
					return
				}
				b.Release()
			}
		})
	}
	wg.Wait()
	for b, n := range live {
		if n != 0 {
			t.Errorf("%s is still there", b.Address())
		}
	}
	if len(r.backends) != 0 {
		t.Errorf("%d backends are kept", len(r.backends))
	}
}

func TestChangedTellsOfStateAndReasonOnly(t *testing.T) {
	var told []string
	r := newRegistry(t, Options{Changed: func(b *Backend) { told = append(told, b.Verdict().State.String()+" "+b.Verdict().Reason) }})
	b := acquire(t, r, Spec{Host: "a", Port: 1})
	for _, v := range []Verdict{
		{State: Unknown, Since: time.Unix(9, 0)},
		{State: Healthy},
		{State: Healthy},
		{State: Unhealthy, Reason: "timeout after 2s"},
		{State: Unhealthy, Reason: "connection refused"},
	} {
		b.SetVerdict(v)
	}
	if want := "healthy ,unhealthy timeout after 2s,unhealthy connection refused"; strings.Join(told, ",") != want {
		t.Errorf("told of %q, want %q", strings.Join(told, ","), want)
	}
}
