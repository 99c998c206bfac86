package config

import (
	"bytes"
	"cmp"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"slices"
	"strings"
	"time"

	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
	"google.golang.org/protobuf/proto"
)

// maxDetails is how many details of one change are told. The rest is counted.
const maxDetails = 20

// Action is what happens to an object.
type Action string

// The actions there are.
const (
	Created Action = "created"
	Changed Action = "changed"
	Removed Action = "removed"
)

// Change is one object that differs between two sets of resources. Pools are no objects of their own here: they are
// shown as part of their route.
type Change struct {
	Action Action
	// Kind is KindListener, KindCertificate or KindRoute.
	Kind Kind
	Name string
	// Details say what about it, for people: "backends: + 10.0.0.3:8000". Keys are never among them. Removed objects
	// have none.
	Details []string
}

// Diff compares two sets of resources by meaning: what is written in another order or another form and means the same
// is no change. Nil resources are none at all. Changes are sorted: the listener, certificates, routes, each by name.
func Diff(old, new *Resources) []Change {
	if old == nil {
		old = &Resources{}
	}
	if new == nil {
		new = &Resources{}
	}
	moved := movedRegexes(old.Routes, new.Routes)
	changes := diffKind(KindListener, listeners(old), listeners(new), func(_ string, a, b *resourcev1.Listener) []string {
		return listenerDetails(a, b)
	})
	changes = append(changes, diffKind(KindCertificate, old.Certificates, new.Certificates, func(_ string, a, b *resourcev1.Certificate) []string {
		return certificateDetails(a, b)
	})...)
	return append(changes, diffKind(KindRoute, old.Routes, new.Routes, func(name string, a, b *resourcev1.Route) []string {
		details := append(routeDetails(a, b), routePools(old, new, a, b)...)
		if moved[name] {
			details = append(details, "order: changed among the regular expressions")
		}
		return details
	})...)
}

// listeners gives a set's listener by name, as its other resources are kept.
func listeners(r *Resources) map[string]*resourcev1.Listener {
	if r.Listener == nil {
		return nil
	}
	return map[string]*resourcev1.Listener{ListenerName: r.Listener}
}

// diffKind compares objects of one kind. details compares two objects of one name, or, where the first is nil, describes
// the second; no details of two objects mean that they are the same.
func diffKind[T any](kind Kind, old, new map[string]*T, details func(name string, a, b *T) []string) []Change {
	var changes []Change
	for name, a := range old {
		b, ok := new[name]
		if !ok {
			changes = append(changes, Change{Action: Removed, Kind: kind, Name: name})
		} else if d := details(name, a, b); len(d) > 0 {
			changes = append(changes, Change{Changed, kind, name, shorten(d)})
		}
	}
	for name, b := range new {
		if _, ok := old[name]; !ok {
			changes = append(changes, Change{Created, kind, name, shorten(details(name, nil, b))})
		}
	}
	slices.SortFunc(changes, func(a, b Change) int { return strings.Compare(a.Name, b.Name) })
	return changes
}

func shorten(details []string) []string {
	if len(details) <= maxDetails {
		return details
	}
	return append(details[:maxDetails:maxDetails], fmt.Sprintf("and %d more", len(details)-maxDetails))
}

// detail gives "name: a → b", or nothing where they are the same. first gives "name: b": there was nothing before.
func detail[V comparable](first bool, name string, a, b V) []string {
	switch {
	case first:
		return []string{fmt.Sprintf("%s: %v", name, b)}
	case a != b:
		return []string{fmt.Sprintf("%s: %v → %v", name, a, b)}
	}
	return nil
}

// detailUnless is detail, but silent at first where the value is the one that nobody needs to be told of.
func detailUnless[V comparable](silent V, first bool, name string, a, b V) []string {
	if first && b == silent {
		return nil
	}
	return detail(first, name, a, b)
}

func listenerDetails(a, b *resourcev1.Listener) []string {
	first := a == nil
	address := func(l *resourcev1.Listener) string {
		return backendAddress(&resourcev1.Backend{Host: l.GetHost(), Port: l.GetPort()})
	}
	onOff := func(l *resourcev1.Listener) string {
		if l.GetCertificate() == "" {
			return "off"
		}
		return "on"
	}
	details := detail(first, "host/port", address(a), address(b))
	details = append(details, detailUnless("off", first, "ssl", onOff(a), onOff(b))...)
	details = append(details, detailUnless(false, first, "proxy_protocol", a.GetProxyProtocol(), b.GetProxyProtocol())...)
	return append(details, setDetails("trusted_proxies", a.GetTrustedProxies(), b.GetTrustedProxies())...)
}

// setDetails gives what came into a list and what left it, "+" before "-".
func setDetails(name string, a, b []string) []string {
	var details []string
	tell := func(sign string, these, others []string) {
		known := make(map[string]bool, len(others))
		for _, x := range others {
			known[x] = true
		}
		for _, x := range these {
			if !known[x] {
				details = append(details, name+": "+sign+" "+x)
			}
		}
	}
	tell("+", b, a)
	tell("-", a, b)
	return details
}

func certificateDetails(a, b *resourcev1.Certificate) []string {
	switch {
	case a == nil:
		return []string{"certificate: " + expiry(b.ChainPem)}
	case !bytes.Equal(a.ChainPem, b.ChainPem):
		return []string{"certificate: changed (" + expiry(b.ChainPem) + ")"}
	case !bytes.Equal(a.KeyPem, b.KeyPem):
		return []string{"key: written in another form"} // the certificate, and so its public key, is the same
	}
	return nil
}

// expiry gives "expires 2027-01-02" for the first certificate of a chain.
func expiry(chain []byte) string {
	if block, _ := pem.Decode(chain); block != nil {
		if certificate, err := x509.ParseCertificate(block.Bytes); err == nil {
			return "expires " + certificate.NotAfter.UTC().Format(time.DateOnly)
		}
	}
	return "cannot be read"
}

func routeDetails(a, b *resourcev1.Route) []string {
	first := a == nil
	regex := b.Match == resourcev1.PathMatch_PATH_MATCH_REGEX
	return slices.Concat(
		detailUnless(!regex, first, "strip_path", a.GetStripPath(), b.StripPath),
		detailUnless(false, first, "preserve_host", a.GetPreserveHost(), b.PreserveHost),
		timeoutDetails(first, TimeoutsOf(a), TimeoutsOf(b)),
		routePolicyDetails(a, b))
}

// movedRegexes gives the regex routes of both sets that are tried in another order than before. Their numbers alone tell
// nothing: they shift when a route before them comes or goes.
func movedRegexes(old, new map[string]*resourcev1.Route) map[string]bool {
	ranked := func(routes map[string]*resourcev1.Route) []string {
		var names []string
		for name, route := range routes {
			if route.Order != 0 && old[name].GetOrder() != 0 && new[name].GetOrder() != 0 {
				names = append(names, name)
			}
		}
		slices.SortFunc(names, func(a, b string) int { return cmp.Compare(routes[a].Order, routes[b].Order) })
		return names
	}
	moved := make(map[string]bool)
	after := ranked(new)
	for i, name := range ranked(old) {
		if after[i] != name {
			moved[name] = true
		}
	}
	return moved
}

func poolDetails(a, b *resourcev1.Pool) []string {
	return append(backendDetails(a.GetBackends(), b.GetBackends()), sharedDetails(a, b)...)
}

// sharedDetails compare all of two pools but their backends.
func sharedDetails(a, b *resourcev1.Pool) []string {
	details := checkDetails(a.GetHealthCheck(), b.GetHealthCheck())
	details = append(details, tlsDetails(a.GetTls(), b.GetTls())...)
	return append(details, poolPolicyDetails(a, b)...)
}

// backendDetails compares backends by address. What is new comes first, then what differs, then what is gone.
func backendDetails(a, b []*resourcev1.Backend) []string {
	if slices.EqualFunc(a, b, sameBackend) {
		return nil
	}
	before := make(map[string]*resourcev1.Backend, len(a))
	for _, one := range a {
		before[backendAddress(one)] = one
	}
	var added, changed, removed, stayed []string
	for _, one := range b {
		name := backendAddress(one)
		was, ok := before[name]
		if !ok {
			added = append(added, "backends: + "+describeBackend(name, one))
			continue
		}
		delete(before, name)
		stayed = append(stayed, name)
		if was.Weight != one.Weight {
			changed = append(changed, fmt.Sprintf("backends: %s weight %d → %d", name, was.Weight, one.Weight))
		}
		if was.Tls != one.Tls {
			changed = append(changed, fmt.Sprintf("backends: %s ssl %t → %t", name, was.Tls, one.Tls))
		}
	}
	var order []string // of those that stayed, as it was
	for _, one := range a {
		if name := backendAddress(one); before[name] != nil {
			removed = append(removed, "backends: - "+name)
		} else {
			order = append(order, name)
		}
	}
	details := slices.Concat(added, changed, removed)
	if details == nil && !slices.Equal(order, stayed) {
		return []string{"backends: in another order"}
	}
	return details
}

// sameBackend says whether nothing differs that backendDetails tells.
func sameBackend(a, b *resourcev1.Backend) bool {
	return a.Host == b.Host && a.Port == b.Port && a.Weight == b.Weight && a.Tls == b.Tls
}

func describeBackend(name string, b *resourcev1.Backend) string {
	if b.Weight != 1 {
		name += fmt.Sprintf(" weight %d", b.Weight)
	}
	if b.Tls {
		name += " ssl"
	}
	return name
}

// checkDetails is silent about the check that every route has where nothing is said.
func checkDetails(a, b *resourcev1.HealthCheck) []string {
	switch {
	case b == nil:
		return nil // a route that answers itself has nothing to probe
	case a == nil:
		if proto.Equal(b, defaultHealthCheck()) {
			return nil
		}
		return []string{"health_check: " + describeCheck(b)}
	}
	var details []string
	// The texts are made only of what differs: most checks are the same, and there may be very many.
	compare := func(name string, same bool, text func(*resourcev1.HealthCheck) string) {
		if !same {
			details = append(details, fmt.Sprintf("health_check: %s %s → %s", name, cmp.Or(text(a), "none"), cmp.Or(text(b), "none")))
		}
	}
	compare("type", a.GetType() == b.GetType(), checkType)
	if b.GetType() == resourcev1.HealthCheckType_HEALTH_CHECK_TYPE_NONE || a.GetType() == resourcev1.HealthCheckType_HEALTH_CHECK_TYPE_NONE {
		return details // the rest is there only where there are probes
	}
	compare("path", a.GetPath() == b.GetPath(), (*resourcev1.HealthCheck).GetPath)
	compare("interval", a.GetInterval().AsDuration() == b.GetInterval().AsDuration(), func(c *resourcev1.HealthCheck) string {
		return span(c.GetInterval().AsDuration())
	})
	compare("timeout", a.GetTimeout().AsDuration() == b.GetTimeout().AsDuration(), func(c *resourcev1.HealthCheck) string {
		return span(c.GetTimeout().AsDuration())
	})
	compare("healthy_threshold", a.GetHealthyThreshold() == b.GetHealthyThreshold(), func(c *resourcev1.HealthCheck) string {
		return fmt.Sprint(c.GetHealthyThreshold())
	})
	compare("unhealthy_threshold", a.GetUnhealthyThreshold() == b.GetUnhealthyThreshold(), func(c *resourcev1.HealthCheck) string {
		return fmt.Sprint(c.GetUnhealthyThreshold())
	})
	compare("expected_status", slices.EqualFunc(a.GetExpectedStatuses(), b.GetExpectedStatuses(), sameRange), func(c *resourcev1.HealthCheck) string {
		return statusText(c.GetExpectedStatuses())
	})
	compare("expected_body", a.GetExpectedBody() == b.GetExpectedBody(), func(c *resourcev1.HealthCheck) string {
		if c.GetExpectedBody() == "" {
			return ""
		}
		return quote(c.GetExpectedBody())
	})
	return details
}

func sameRange(a, b *resourcev1.StatusRange) bool { return a.First == b.First && a.Last == b.Last }

// describeCheck gives "http /healthz every 5s".
func describeCheck(c *resourcev1.HealthCheck) string {
	if c.GetType() == resourcev1.HealthCheckType_HEALTH_CHECK_TYPE_NONE {
		return "none"
	}
	words := []string{checkType(c), c.GetPath(), "every", span(c.GetInterval().AsDuration())}
	return strings.Join(slices.DeleteFunc(words, func(word string) bool { return word == "" }), " ")
}

func checkType(c *resourcev1.HealthCheck) string {
	return strings.ToLower(strings.TrimPrefix(c.GetType().String(), "HEALTH_CHECK_TYPE_"))
}

// statusText writes statuses as the dialect does: "200-299,404".
func statusText(ranges []*resourcev1.StatusRange) string {
	var parts []string
	for _, r := range ranges {
		if r.First == r.Last {
			parts = append(parts, fmt.Sprint(r.First))
		} else {
			parts = append(parts, fmt.Sprintf("%d-%d", r.First, r.Last))
		}
	}
	return strings.Join(parts, ",")
}

func tlsDetails(a, b *resourcev1.BackendTls) []string {
	var details []string
	if !bytes.Equal(a.GetCaPem(), b.GetCaPem()) {
		details = append(details, "tls: ca_file "+present(a.GetCaPem(), b.GetCaPem()))
	}
	if !bytes.Equal(a.GetChainPem(), b.GetChainPem()) || !bytes.Equal(a.GetKeyPem(), b.GetKeyPem()) {
		text := "tls: client certificate " + present(a.GetChainPem(), b.GetChainPem())
		if len(b.GetChainPem()) > 0 {
			text += " (" + expiry(b.GetChainPem()) + ")"
		}
		details = append(details, text)
	}
	if from, to := a.GetServerName(), b.GetServerName(); from != to {
		details = append(details, fmt.Sprintf("tls: server_name %s → %s", cmp.Or(from, "none"), cmp.Or(to, "none")))
	}
	return append(details, detail(false, "tls: insecure_skip_verify", a.GetInsecureSkipVerify(), b.GetInsecureSkipVerify())...)
}

// present says what became of a file's content, which differs.
func present(a, b []byte) string {
	switch {
	case len(a) == 0:
		return "added"
	case len(b) == 0:
		return "removed"
	}
	return "changed"
}
