package forward

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/pyserve/pyserve/node/upstream"
	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

// stickyOf is a route to backends that say their names, a, b, …
func stickyOf(t testing.TB, n int, s *resourcev1.Sticky) site {
	t.Helper()
	var ports []uint32
	for i := range n {
		ports = append(ports, portOf(backend(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, string(rune('a'+i))) })))
	}
	one := whole(ports...)
	one.route.Sticky = s
	return one
}

var hourly = &resourcev1.Sticky{Cookie: "lane", Ttl: durationpb.New(time.Hour)}

// visit asks with a cookie, and gives the backend's name and the cookie that came with its answer.
func visit(t testing.TB, p *proxy, cookie string) (name, set string) {
	t.Helper()
	var header []string
	if cookie != "" {
		header = []string{"Cookie", "theme=dark; " + cookie}
	}
	r, body := get(t, http.DefaultClient, "http://"+p.address+"/", header...)
	return body, strings.Join(r.Header.Values("Set-Cookie"), "\n")
}

// pair is the part of a Set-Cookie field that comes back.
func pair(set string) string {
	cookie, _, _ := strings.Cut(set, ";")
	return cookie
}

func TestAClientStaysWhereItsCookieSays(t *testing.T) {
	p := start(t, stickyOf(t, 3, hourly))
	for range 4 {
		name, set := visit(t, p, "")
		if !strings.HasPrefix(set, "lane=") || !strings.HasSuffix(set, "; Path=/; Max-Age=3600; HttpOnly; SameSite=Lax") {
			t.Fatalf("Set-Cookie %q", set)
		}
		for range 5 {
			if again, more := visit(t, p, pair(set)); again != name || more != "" {
				t.Errorf("%s after %s, Set-Cookie %q", again, name, more)
			}
		}
	}
	if kept, given := p.proxy.StickyAnswers(); kept != 20 || given != 4 {
		t.Errorf("%d kept, %d given", kept, given)
	}
}

func TestACookieWithoutTTLEndsWithTheSession(t *testing.T) {
	p := start(t, stickyOf(t, 1, &resourcev1.Sticky{Cookie: "lane"}))
	if _, set := visit(t, p, ""); strings.Contains(set, "Max-Age") || !strings.Contains(set, "HttpOnly") {
		t.Errorf("Set-Cookie %q", set)
	}
}

func TestACookieOverTLSIsSecure(t *testing.T) {
	front, client := secure(t)
	p := startWith(t, settings{tls: front}, stickyOf(t, 1, hourly))
	w := connectTLS(t, p, client)
	w.say("GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	if head := w.head("HTTP/1.1 200 "); !strings.Contains(head, "SameSite=Lax; Secure\r\n") {
		t.Error(head)
	}
}

func TestACookieNamesNoAddress(t *testing.T) {
	p := start(t, stickyOf(t, 2, hourly))
	_, set := visit(t, p, "")
	for _, b := range p.backends {
		_, port, _ := strings.Cut(b.Address(), ":")
		if strings.Contains(set, port) {
			t.Errorf("Set-Cookie %q names %s", set, b.Address())
		}
	}
}

func TestAClientOfABackendThatIsDownGetsAnotherAndAnotherCookie(t *testing.T) {
	p := start(t, stickyOf(t, 2, hourly))
	name, set := visit(t, p, "")
	p.backends[name[0]-'a'].SetVerdict(upstream.Verdict{State: upstream.Unhealthy})
	other, more := visit(t, p, pair(set))
	if other == name || pair(more) == pair(set) || pair(more) == "" {
		t.Fatalf("%s after %s, Set-Cookie %q after %q", other, name, more, set)
	}
	p.backends[name[0]-'a'].SetVerdict(upstream.Verdict{State: upstream.Healthy})
	if again, _ := visit(t, p, pair(more)); again != other {
		t.Errorf("%s after %s", again, other)
	}
}

func TestAClientWhoseBackendRefusesIsTakenElsewhere(t *testing.T) {
	servers := []*httptest.Server{}
	var ports []uint32
	for i := range 2 {
		servers = append(servers, backend(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, string(rune('a'+i))) }))
		ports = append(ports, portOf(servers[i]))
	}
	s := whole(ports...)
	s.route.Sticky = hourly
	p := start(t, s)
	name, set := visit(t, p, "")
	gone := servers[name[0]-'a']
	gone.CloseClientConnections()
	gone.Close()
	other, more := visit(t, p, pair(set))
	if other == name || pair(more) == pair(set) || pair(more) == "" {
		t.Errorf("%s after %s, Set-Cookie %q after %q", other, name, more, set)
	}
}

func TestCookiesThatMeanNothingAreIgnored(t *testing.T) {
	p := start(t, stickyOf(t, 2, hourly))
	_, set := visit(t, p, "")
	value := strings.TrimPrefix(pair(set), "lane=")
	other := start(t, stickyOf(t, 2, hourly)) // of another key
	_, theirs := visit(t, other, "")
	for _, cookie := range []string{"lane=", "lane=x", "lane=" + strings.Repeat("A", 22), "lane=" + strings.Repeat("!", 22),
		"lane=" + value + "A", "lane=" + value[:21], "lane=" + strings.ToUpper(value), pair(theirs), "lan=" + value, "Lane=" + value} {
		if _, more := visit(t, p, cookie); pair(more) == "" {
			t.Errorf("%q was taken", cookie)
		}
	}
}

func TestNodesOfAClusterKnowEachOthersCookies(t *testing.T) {
	one := stickyOf(t, 3, hourly)
	first, second := start(t, one), start(t, one)
	older, newer := bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{2}, 32)
	share := func(p *proxy, keys ...[]byte) {
		t.Helper()
		if err := p.proxy.SetStickySecrets(keys); err != nil {
			t.Fatal(err)
		}
	}
	share(first, older)
	share(second, older)
	name, set := visit(t, first, "")
	if again, more := visit(t, second, pair(set)); again != name || more != "" {
		t.Errorf("%s after %s, Set-Cookie %q", again, name, more)
	}
	share(second, newer, older)
	again, more := visit(t, second, pair(set))
	if again != name || more == "" {
		t.Errorf("a cookie of the key before: %s after %s, Set-Cookie %q", again, name, more)
	}
	share(second, newer)
	if last, kept := visit(t, second, pair(more)); last != name || kept != "" {
		t.Errorf("%s after %s, Set-Cookie %q", last, name, kept)
	}
	share(second)
	if last, kept := visit(t, second, pair(more)); last != name || kept != "" {
		t.Errorf("no keys are none at all: %s after %s, Set-Cookie %q", last, name, kept)
	}
}

func TestTokensOutliveTheSameSecrets(t *testing.T) {
	p := start(t, stickyOf(t, 2, hourly))
	shared := [][]byte{bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{2}, 32)}
	var made []*secrets
	for range 2 { // as with every stream to control
		if err := p.proxy.SetStickySecrets(shared); err != nil {
			t.Fatal(err)
		}
		made = append(made, p.proxy.secrets.Load())
	}
	if made[0] != made[1] {
		t.Error("the same secrets made other keys")
	}
}

func TestRoutesToTheSameBackendsShareTheirClients(t *testing.T) {
	s := stickyOf(t, 3, hourly)
	other := to("/other", s.backends[0].Port, s.backends[1].Port, s.backends[2].Port)
	other.route.Sticky = hourly
	apart := to("/apart", portOf(backend(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "z") })))
	apart.route.Sticky = hourly
	p := start(t, s, other, apart)
	for range 5 {
		name, set := visit(t, p, "")
		if r, body := get(t, http.DefaultClient, p.url("/other"), "Cookie", pair(set)); body != name || r.Header.Get("Set-Cookie") != "" {
			t.Errorf("%s after %s, Set-Cookie %q", body, name, r.Header.Get("Set-Cookie"))
		}
		if r, _ := get(t, http.DefaultClient, p.url("/apart"), "Cookie", pair(set)); r.Header.Get("Set-Cookie") == "" {
			t.Error("a route that has not the backend has taken its cookie")
		}
	}
}

func TestInterimAnswersSetNoCookie(t *testing.T) {
	b := answering(t, "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
	s := whole(b.Port())
	s.route.Sticky = hourly
	w := connect(t, start(t, s))
	w.say("GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	if head := w.head("HTTP/1.1 103 "); strings.Contains(head, "Set-Cookie") {
		t.Error(head)
	}
	if head := w.head("HTTP/1.1 200 "); strings.Count(head, "Set-Cookie: lane=") != 1 {
		t.Error(head)
	}
}

func TestCookieIn(t *testing.T) {
	for _, c := range []struct {
		field, want string
		ok          bool
	}{
		{"a=1", "1", true}, {"b=2; a=1", "1", true}, {"b=2;a=1;a=3", "1", true}, {" a=1 ; b", "1", true}, {`a="1"`, "1", true}, {"a=", "", true},
		{"a=b=c", "b=c", true}, {`a="`, `"`, true}, {"", "", false}, {"a", "", false}, {"aa=1", "", false}, {"A=1", "", false}, {"b=a=1", "", false}, {";;;", "", false},
	} {
		if got, ok := cookieIn([]byte(c.field), "a"); string(got) != c.want || ok != c.ok {
			t.Errorf("%q: %q %t", c.field, got, ok)
		}
	}
}

func FuzzCookieIn(f *testing.F) {
	f.Add([]byte(`a="1"; b=2`))
	f.Add([]byte(";=; a=;"))
	f.Fuzz(func(t *testing.T, field []byte) {
		value, ok := cookieIn(bytes.Clone(field), "a")
		if ok && !bytes.Contains(field, append([]byte("a="), value...)) && !bytes.Contains(field, append([]byte(`a="`), value...)) {
			t.Fatalf("%q is not in %q", value, field)
		}
		if ok && bytes.IndexByte(value, ';') >= 0 {
			t.Fatalf("%q", value)
		}
	})
}

// hashedBy is a route to five backends that are picked by a hash.
func hashedBy(t testing.TB, on resourcev1.HashOn, name string) *proxy {
	t.Helper()
	s := stickyOf(t, 5, nil)
	s.picks.Balancing = &resourcev1.LoadBalancing{
		Policy: resourcev1.BalancingPolicy_BALANCING_POLICY_MAGLEV, HashOn: on, HashName: name,
	}
	return startWith(t, settings{trusted: []string{"127.0.0.0/8"}}, s)
}

func TestRequestsThatAreAlikeGoToOneBackend(t *testing.T) {
	for name, c := range map[string]struct {
		on   resourcev1.HashOn
		name string
		// ask is as client number i, with something that does not count.
		ask func(i int, also string) (path string, header []string)
	}{
		"client_ip": {resourcev1.HashOn_HASH_ON_CLIENT_IP, "", func(i int, also string) (string, []string) {
			return "/" + also, []string{"X-Forwarded-For", fmt.Sprintf("192.0.2.%d", i)}
		}},
		"header": {resourcev1.HashOn_HASH_ON_HEADER, "x-user", func(i int, also string) (string, []string) {
			return "/" + also, []string{"X-User", fmt.Sprint("user ", i)}
		}},
		"cookie": {resourcev1.HashOn_HASH_ON_COOKIE, "user", func(i int, also string) (string, []string) {
			return "/", []string{"Cookie", fmt.Sprintf("x=%s; user=%d", also, i)}
		}},
		"path": {resourcev1.HashOn_HASH_ON_PATH, "", func(i int, also string) (string, []string) {
			return fmt.Sprintf("/%d?%s", i, also), nil
		}},
		"header that is not there": {resourcev1.HashOn_HASH_ON_HEADER, "x-user", func(i int, also string) (string, []string) {
			return "/" + also, []string{"X-Forwarded-For", fmt.Sprintf("192.0.2.%d", i)}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			p := hashedBy(t, c.on, c.name)
			var all []string
			for i := range 30 {
				var one string
				for _, also := range []string{"", "p", "q"} {
					path, header := c.ask(i, also)
					_, got := get(t, http.DefaultClient, "http://"+p.address+path, header...)
					if one != "" && got != one {
						t.Errorf("client %d: %s after %s", i, got, one)
					}
					one = got
				}
				all = append(all, one)
			}
			slices.Sort(all)
			if different := slices.Compact(all); len(different) < 3 {
				t.Errorf("30 clients are at %v", different)
			}
		})
	}
}

func TestPickingAllocatesNothingForARequest(t *testing.T) {
	if raceDetector {
		t.Skip("the race detector allocates")
	}
	for policy := range resourcev1.BalancingPolicy_name {
		s := site{route: &resourcev1.Route{Sticky: hourly}}
		s.picks = upstream.PoolOptions{SlowStart: time.Hour, Balancing: &resourcev1.LoadBalancing{
			Policy: resourcev1.BalancingPolicy(policy), HashOn: resourcev1.HashOn_HASH_ON_COOKIE, HashName: "theme",
		}}
		a := newAskerOf(t, loads[1], s) // with many cookies
		if n := testing.AllocsPerRun(1000, func() {
			if err := a.ask(); err != nil {
				t.Fatal(err)
			}
		}); n != 0 {
			t.Errorf("%v: %v allocations", resourcev1.BalancingPolicy(policy), n)
		}
	}
}

// The first of two backends of which nothing is known is asked again, as long as nothing is.
func TestHowLongAClientTakesToSendIsNotHeldAgainstTheBackend(t *testing.T) {
	begun := make(chan struct{}, 1)
	var ports []uint32
	for i := range 2 {
		ports = append(ports, portOf(backend(t, func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodPost {
				begun <- struct{}{}
				io.Copy(io.Discard, r.Body)
			}
			fmt.Fprint(w, string(rune('a'+i)))
		})))
	}
	s := whole(ports...)
	s.picks.Balancing = &resourcev1.LoadBalancing{Policy: resourcev1.BalancingPolicy_BALANCING_POLICY_P2C_EWMA}
	s.picks.Random = func() uint64 { return 0 }
	p := start(t, s)
	w := connect(t, p)
	w.say("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nConnection: close\r\n\r\n")
	<-begun
	w.say("late")
	_, uploadedTo, err := w.answer(http.MethodPost)
	if err != nil {
		t.Fatal(err)
	}
	if _, body := get(t, http.DefaultClient, p.url("/")); body != uploadedTo {
		t.Errorf("the next request went to %s, the upload to %s", body, uploadedTo)
	}
	if _, body := get(t, http.DefaultClient, p.url("/")); body == uploadedTo {
		t.Error("an answer to a request without a body is not measured")
	}
}
