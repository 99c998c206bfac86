package node

import (
	"crypto/tls"
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/pyserve/pyserve/config/bundle"
	"github.com/pyserve/pyserve/node/certtest"
	"github.com/pyserve/pyserve/node/forward"
	"github.com/pyserve/pyserve/node/nodetest"
	"github.com/pyserve/pyserve/node/upstream"
	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

func TestWhatHasNotChangedIsTakenOver(t *testing.T) {
	n := newNode(t, Options{})
	b := nodetest.NewBuild().Route("/a", 1).Route("/b", 2).Route("/c", 3).Route("/d", 4)
	first := apply(t, n, 1, b)
	b.Pools["/b"].Backends[0].Weight = 2
	b.Routes["/c"].PreserveHost = true
	delete(b.Routes, "/d")
	delete(b.Pools, "/d")
	second := apply(t, n, 2, b.Route("/e", 5))
	for name, want := range map[string]struct{ route, pool bool }{
		"/a": {true, true}, "/b": {false, false}, "/c": {false, true},
	} {
		before, after := first.route(name), second.route(name)
		if (before == after) != want.route || (poolOf(before) == poolOf(after)) != want.pool {
			t.Errorf("%s: the same route: %v, the same pool: %v, want %v", name, before == after, poolOf(before) == poolOf(after), want)
		}
	}
	for path, want := range map[string]string{"/a": "/a", "/b": "/b", "/c": "/c", "/d": "", "/e": "/e"} {
		got, _, _ := second.table.Routes.Lookup(nil, []byte(path), nil)
		if got == nil && want != "" || got != nil && (got.Name() != want || got != second.route(want)) {
			t.Errorf("%s leads to %v, want %q", path, got, want)
		}
	}
	if weight := poolOf(second.route("/b")).Members()[0].Weight; weight != 2 {
		t.Errorf("the changed weight is %d", weight)
	}
}

// A pool is let go of with the last generation that uses it, whichever that is.
func TestASharedPoolLivesAsLongAsOneUsesIt(t *testing.T) {
	n := newNode(t, Options{})
	both := nodetest.NewBuild().Route("/a", 1).Route("/b", 2)
	first := apply(t, n, 1, both)
	_, unpin := source{&n.live}.Pin() // a request that takes long
	a, b := first.pools[0], first.pools[1]
	uses := func(what string, ofA, ofB int32) {
		t.Helper()
		nodetest.Eventually(t, what, func() bool { return a.uses.Load() == ofA && b.uses.Load() == ofB })
	}
	given, err := n.Prepare(release(2), both.Bundle(t))
	if err != nil {
		t.Fatal(err)
	}
	uses("prepared", 2, 2)
	n.Discard(given)
	uses("discarded", 1, 1)
	apply(t, n, 3, nodetest.NewBuild().Route("/a", 1))
	uses("one of them is gone, but for the request", 2, 1)
	refused := nodetest.NewBuild().Route("/a", 1)
	refused.Routes["/a"].Match = resourcev1.PathMatch_PATH_MATCH_REGEX
	if _, err := n.Prepare(release(4), refused.Bundle(t)); err == nil {
		t.Error("not refused")
	}
	uses("refused", 2, 1)
	unpin()
	uses("the request has ended", 1, 0)
	apply(t, n, 5, nodetest.NewBuild().Route("/c", 3))
	uses("the other one is gone", 0, 0)
}

// somePorts are of backends that nobody asks.
var somePorts = rapid.SliceOfN(rapid.Uint32Range(1, 4), 0, 3)

// someBuild has few places for routes, so that many of two builds have one in common.
func someBuild(t *rapid.T) *nodetest.Build {
	b := nodetest.NewBuild()
	for range rapid.IntRange(0, 12).Draw(t, "routes") {
		path := rapid.SampledFrom([]string{"/", "/a", "/a/b", "/c"}).Draw(t, "path")
		host := rapid.SampledFrom([]string{"", "h", "*.h"}).Draw(t, "host")
		match := rapid.SampledFrom([]resourcev1.PathMatch{
			resourcev1.PathMatch_PATH_MATCH_PREFIX, resourcev1.PathMatch_PATH_MATCH_EXACT, resourcev1.PathMatch_PATH_MATCH_REGEX,
		}).Draw(t, "match")
		name := fmt.Sprint(host, path, match)
		b.Route(name, somePorts.Draw(t, "ports")...)
		r := b.Routes[name]
		r.Path, r.Match, r.StripPath = path, match, false
		r.PreserveHost = rapid.Bool().Draw(t, "preserve host")
		if host != "" {
			r.Hosts = []string{host}
		}
	}
	return b
}

// told is what can be asked of a generation.
func told(g *Generation) string {
	var out strings.Builder
	tell := func(what string, r *forward.Route) {
		fmt.Fprintf(&out, "%s: ", what)
		if r != nil {
			fmt.Fprint(&out, r.Name())
			for _, m := range poolOf(r).Members() {
				fmt.Fprintf(&out, " %s/%d", m.Backend.Address(), m.Weight)
			}
		}
		fmt.Fprintln(&out)
	}
	for _, host := range []string{"", "h", "x.h"} {
		for _, path := range []string{"/", "/a", "/a/b", "/a/b/c", "/c", "/d"} {
			r, _, _ := g.table.Routes.Lookup([]byte(host), []byte(path), nil)
			tell(host+path, r)
			fmt.Fprintln(&out, len(g.table.Routes.Trace([]byte(host), []byte(path), nil)))
		}
	}
	for _, r := range g.routes {
		tell("route", r)
	}
	for b := range g.backends() {
		fmt.Fprintln(&out, b.Address())
	}
	return out.String()
}

func TestAGenerationIsTheSameWhateverWasThereBefore(t *testing.T) {
	n, fresh := newNode(t, Options{}), newNode(t, Options{})
	revision := uint64(0)
	rapid.Check(t, func(r *rapid.T) {
		revision++
		b, err := bundle.Encode(&someBuild(r).Resources)
		if err != nil {
			r.Fatal(err)
		}
		g, err := n.Prepare(release(revision), b)
		if err != nil {
			r.Fatal(err)
		}
		n.Apply(g)
		alone, err := fresh.Prepare(release(revision), b)
		if err != nil {
			r.Fatal(err)
		}
		got, want := told(g), told(alone)
		fresh.Discard(alone)
		if got != want {
			r.Fatalf("tells\n%s\nand made anew\n%s", got, want)
		}
	})
}

func TestSessionsOutliveAnApplyThatKeepsTheCertificate(t *testing.T) {
	n := newNode(t, Options{})
	authority := certtest.New(t)
	certificate := authority.Issue(t, "x")
	port := saying(t, "x")
	build := func() *nodetest.Build {
		return nodetest.NewBuild().Route("/", port).Serve(certificate.ChainPEM, certificate.KeyPEM)
	}
	first := apply(t, n, 1, build())
	c := client(t, &tls.Config{RootCAs: authority.Pool(), ServerName: "x", ClientSessionCache: tls.NewLRUClientSessionCache(1)})
	resumed := func() bool {
		t.Helper()
		res, err := c.Get("https://" + n.ListenAddress() + "/")
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		c.CloseIdleConnections()
		return res.TLS.DidResume
	}
	resumed()
	if second := apply(t, n, 2, build().Route("/other", port)); second.tls != first.tls || !resumed() {
		t.Error("a session did not outlive the apply")
	}
	certificate = authority.Issue(t, "x")
	if third := apply(t, n, 3, build()); third.tls == first.tls || resumed() {
		t.Error("the new certificate is not served")
	}
}

func TestABundleThatCannotBeReadIsRefused(t *testing.T) {
	whole := nodetest.NewBuild().Route("/a", 1).Bundle(t)
	damaged := []byte{0xff}
	for name, change := range map[string]struct {
		resource bundle.Resource
		want     string
	}{
		"listener":         {bundle.Resource{Key: bundle.Key{Kind: "listener", Name: "default"}, Body: damaged}, `decode listener "default": `},
		"pool":             {bundle.Resource{Key: bundle.Key{Kind: "pool", Name: "/a"}, Body: damaged}, `decode pool "/a": `},
		"route":            {bundle.Resource{Key: bundle.Key{Kind: "route", Name: "/a"}, Body: damaged}, `decode route "/a": `},
		"unknown kind":     {bundle.Resource{Key: bundle.Key{Kind: "wasm", Name: "x"}}, `the bundle holds a resource of kind "wasm"`},
		"another listener": {bundle.Resource{Key: bundle.Key{Kind: "listener", Name: "other"}}, `the bundle holds a listener "other"`},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, Options{})
			b, err := bundle.Delta{Base: whole.Digest(), Upserted: []bundle.Resource{change.resource}}.Apply(whole)
			if err != nil {
				t.Fatal(err)
			}
			_, err = n.Prepare(release(1), b)
			if r := refusals(t, err); !strings.HasPrefix(r[0].Reason, change.want) {
				t.Errorf("%q, want %q", r, change.want)
			}
		})
	}
}

// poolOf is the only pool of a route.
func poolOf(r *forward.Route) (only *upstream.Pool) {
	for _, p := range r.EachPool {
		only = p
	}
	return only
}
