package forward

import (
	"log/slog"
	"strings"
	"testing"

	"github.com/pyserve/pyserve/node/http1"
	"github.com/pyserve/pyserve/node/nodetest"
	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

// rewritten is a site whose expression matches and whose template is what is forwarded.
func rewritten(expression, template string, port uint32) site {
	s := to(expression, port)
	s.route.Match, s.route.StripPath, s.route.ForwardPath, s.route.Order = resourcev1.PathMatch_PATH_MATCH_REGEX, false, template, 1
	return s
}

func TestARewrittenPathIsForwarded(t *testing.T) {
	b := nodetest.NewRecorder(t, emptyAnswer)
	for _, c := range []struct{ expression, template, asked, want string }{
		{`^/v(?P<n>[0-9]+)/(?P<rest>.*)$`, "/{rest}/{n}", "/v12/a/b?x={n}", "/a/b/12?x={n}"},
		{`^/a/(?P<rest>.*)$`, "/b/{rest}", "/a/", "/b/"},
		{`^/a/(?P<rest>.*)$`, "/b/{rest}", "/a/./x/../y%2fz%41", "/b/y%2FzA"},
		{`^/a/(?P<rest>.*)$`, "/b/{rest}", "/a//c", "/b//c"},
		{`^/a(?P<rest>/x)?`, "/b{rest}/c", "/a/y", "/b/c"},
		{`^/a`, "/b", "/a/anything", "/b"},
		{`^/a`, "/b{path}", "/a/c", "/b/a/c"},
	} {
		p := start(t, rewritten(c.expression, c.template, b.Port()))
		p.exchange(t, "GET "+c.asked+" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
		if got, _, _ := strings.Cut(b.Head(t), " HTTP/1.1\r\n"); got != "GET "+c.want {
			t.Errorf("%s as %s: %s came as %s, want %s", c.expression, c.template, c.asked, got, c.want)
		}
	}
}

// What is put together of parts in normal form need not be.
func TestARewrittenPathThatIsNotInNormalFormIsRefused(t *testing.T) {
	b := nodetest.NewRecorder(t, emptyAnswer)
	for _, c := range []struct{ expression, template, asked string }{
		{`^/a\.(?P<rest>.*)$`, "/b/{rest}", "/a../secret"},
		{`^/a\.(?P<rest>.*)$`, "/b/{rest}", "/a.../secret"},
		{`^/a(?P<dot>\.)/`, "/b/{dot}{dot}/c", "/a./"},
		{`^/a(?P<half>%2)`, "/b{half}", "/a%2F"},
		{`^/a(?P<half>%2)`, "/b{half}e", "/a%2F"},
	} {
		p := start(t, rewritten(c.expression, c.template, b.Port()))
		w := connect(t, p)
		w.say("GET " + c.asked + " HTTP/1.1\r\nHost: x\r\n\r\n")
		if res, _, err := w.answer("GET"); err != nil || res.StatusCode != 400 {
			t.Errorf("%s as %s: %s: %v, %v", c.expression, c.template, c.asked, res, err)
		}
	}
	if b.Requests() != 0 {
		t.Errorf("the backend was asked %d times", b.Requests())
	}
}

func TestTheNextRequestOfAConnectionHasAPathOfItsOwn(t *testing.T) {
	b, _ := scripted(t, serve(emptyAnswer))
	recorder := nodetest.NewRecorder(t, emptyAnswer)
	plain := to("/plain", recorder.Port())
	p := start(t, rewritten("^/a", "/b", b.Port()), plain)
	w := connect(t, p)
	w.say(ask("/a"))
	w.want("GET", 200, "")
	w.say(ask("/plain/x"))
	w.want("GET", 200, "")
	if got, _, _ := strings.Cut(recorder.Head(t), " HTTP/1.1\r\n"); got != "GET /x" {
		t.Errorf("got %s", got)
	}
}

func TestARewrittenPathAllocatesNothing(t *testing.T) {
	if raceDetector {
		t.Skip("the race detector allocates")
	}
	a := newAskerOf(t, loads[1], site{route: &resourcev1.Route{ForwardPath: "/under{path}"}})
	if n := testing.AllocsPerRun(1000, func() {
		if err := a.ask(); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestARewrittenPathThatIsTooLongIsRefused(t *testing.T) {
	b := nodetest.NewRecorder(t, emptyAnswer)
	w := connect(t, startWith(t, settings{options: Options{Logger: slog.New(slog.DiscardHandler)}}, rewritten("^/", "/a{path}{path}", b.Port())))
	w.say(ask("/" + strings.Repeat("x", http1.MaxTarget/2)))
	if res, _, err := w.answer("GET"); err != nil || res.StatusCode != 414 || b.Requests() != 0 {
		t.Errorf("%v, %v, and %d requests", res, err, b.Requests())
	}
}
