package forward

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/textproto"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pyserve/pyserve/node/nodetest"
)

// The oracle is net/http: a server of it with httputil.ReverseProxy, see twin. The same requests and answers go through both,
// and what arrives at the backend and at the client must be the same bytes, but for the differences that are written here. They
// are the only ways in which the bytes are changed before they are compared.

// A difference is what the two proxies write differently, on purpose.
type difference struct {
	name, why string
	// An exchange that shows it: a request, and its answer.
	request, answer string
	// makeUp takes it away, from either or both.
	makeUp func(*story)
	// chance is that it shows only at times: what is made up for is there always, on both sides.
	chance bool
}

const (
	plainGet    = "GET /api HTTP/1.1\r\nHost: x\r\n\r\n"
	chunkedPut  = "PUT /api HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
	datedAnswer = "HTTP/1.1 200 OK\r\nDate: Mon, 01 Jan 2001 00:00:00 GMT\r\nContent-Type: text/plain\r\n"
)

var differences = []difference{
	{
		name: "case of names", why: "ours stay as they came; names mean the same in any case (RFC 9110 section 5.1)",
		request: "GET /api HTTP/1.1\r\nHost: x\r\nx-lower: 1\r\n\r\n", answer: datedAnswer + "Content-Length: 0\r\n\r\n",
		makeUp: func(s *story) {
			s.all(func(m *message) {
				for _, section := range [][]line{m.fields, m.trailers} {
					for i := range section {
						section[i].name = textproto.CanonicalMIMEHeaderKey(section[i].name)
					}
				}
			})
		},
	},
	{
		name: "edges of chunks", why: "ours are the sender's; RFC 9112 section 7.1 gives them no meaning",
		request: chunkedPut + "\r\n1\r\na\r\n2\r\nbc\r\n0\r\n\r\n", answer: datedAnswer + "Content-Length: 0\r\n\r\n",
		makeUp: func(s *story) {
			s.all(func(m *message) { m.body = []string{strings.Join(m.body, "")} })
		},
	},
	{
		name: "request id", why: "128 random bits for everybody who is not to choose it",
		request: plainGet, answer: datedAnswer + "Content-Length: 0\r\n\r\n",
		makeUp: func(s *story) {
			s.backend.each(func(m *message) {
				if id := m.get("X-Request-Id"); len(id) == len(generatedID) && strings.Trim(id, "0123456789abcdef") == "" {
					m.set("X-Request-Id", "generated")
				}
			})
		},
	},
	{
		name: "length of no body",
		why: "theirs adds Content-Length: 0 to PUT, POST and PATCH, and takes it from all others; ours leaves it (RFC 9110 " +
			"section 8.6: it is not needed, and does no harm)",
		request: "PUT /api HTTP/1.1\r\nHost: x\r\n\r\n", answer: datedAnswer + "Content-Length: 0\r\n\r\n",
		makeUp: func(s *story) {
			s.backend.each(func(m *message) {
				if m.get("Content-Length") == "0" {
					m.drop("Content-Length")
				}
			})
		},
	},
	{
		name:    "expectation without a body",
		why:     "RFC 9110 section 10.1.1: a client must not; ours takes it out, since there is nothing to continue with",
		request: "GET /api HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n\r\n", answer: datedAnswer + "Content-Length: 0\r\n\r\n",
		makeUp: func(s *story) {
			s.backend.each(func(m *message) {
				if m.how == boundNot {
					m.drop("Expect")
				}
			})
		},
	},
	{
		name: "User-Agent without a value", why: "theirs takes it for the way to say that there is none",
		request: "GET /api HTTP/1.1\r\nHost: x\r\nUser-Agent:\r\n\r\n", answer: datedAnswer + "Content-Length: 0\r\n\r\n",
		makeUp: func(s *story) {
			s.backend.each(func(m *message) {
				if m.get("User-Agent") == "" {
					m.drop("User-Agent")
				}
			})
		},
	},
	{
		name: "Pragma", why: "theirs adds Cache-Control, which RFC 9111 section 5.4 has been asking nobody to do",
		request: "GET /api HTTP/1.1\r\nHost: x\r\nPragma: no-cache\r\n\r\n", answer: datedAnswer + "Content-Length: 0\r\n\r\n",
		makeUp: func(s *story) {
			s.all(func(m *message) { // of ours where the sender said both
				if m.get("Pragma") == "no-cache" && m.get("Cache-Control") == "no-cache" {
					m.drop("Cache-Control")
				}
			})
		},
	},
	{
		name: "announcement of trailers", why: "ours stays as it came; theirs is written anew from a set of names (RFC 9110 section 6.6.2)",
		request: chunkedPut + "Trailer: x-b , X-A\r\nTrailer: x-b\r\n\r\n0\r\nX-A: 1\r\nx-b: 2\r\n\r\n", answer: datedAnswer + "Content-Length: 0\r\n\r\n",
		makeUp: func(s *story) {
			s.all(func(m *message) {
				var names []string
				for _, value := range m.values("Trailer") {
					for name := range strings.SplitSeq(value, ",") {
						names = append(names, textproto.CanonicalMIMEHeaderKey(strings.TrimSpace(name)))
					}
				}
				slices.Sort(names)
				if m.drop("Trailer"); names != nil {
					m.fields = append(m.fields, line{"Trailer", strings.Join(slices.Compact(names), ", ")})
				}
			})
		},
	},
	{
		name:    "trailers that say who asks, or how to understand the content",
		why:     "RFC 9110 section 6.5.1: ours do not pass, since some take them for fields of the head",
		request: chunkedPut + "\r\n0\r\nX-Forwarded-For: 6.6.6.6\r\nX-A: 1\r\n\r\n", answer: datedAnswer + "Content-Length: 0\r\n\r\n",
		makeUp: func(s *story) {
			s.theirs(func(m *message) {
				m.trailers = slices.DeleteFunc(m.trailers, func(l line) bool {
					return slices.Contains([]string{"x-forwarded-for", "authorization", "cookie", "set-cookie", "x_real_ip"}, strings.ToLower(l.name))
				})
			})
		},
	},
	{
		name: "trailer of a name that the head has", why: "theirs keeps one map for both, and says the head's values again",
		request: plainGet, answer: datedAnswer + "X-A: 1\r\nTrailer: X-A\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX-A: 2\r\n\r\n",
		makeUp: func(s *story) {
			s.finals(func(_, answer, _, theirs *message) {
				for _, l := range answer.trailers {
					if answer.values(l.name) != nil {
						theirs.keepTrailers(l.name, len(l.named(answer.trailers)))
					}
				}
			})
		},
	},
	{
		name: "100 that nobody sent",
		why: "RFC 9110 section 10.1.1 lets a proxy answer for the backend; ours leaves it to the backend, which may be " +
			"about to refuse. theirs does it at the client's first read, and may be so quick that it does beside the " +
			"backend's",
		request: "POST /api HTTP/1.1\r\nHost: x\r\nX-Silent: 1\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\nabc", answer: datedAnswer + "Content-Length: 0\r\n\r\n",
		makeUp: func(s *story) {
			sent, number := continues(s.answers), 0 // of the request
			theirs := continues(s.client.theirs)
			s.client.theirs = slices.DeleteFunc(s.client.theirs, func(m *message) bool {
				if m.status() >= 200 {
					number++
				}
				own := m.status() == 100 && m.fields == nil && theirs[number] > sent[number]
				if own {
					theirs[number]--
				}
				return own
			})
		},
	},
	{
		name: "reason phrase", why: "ours stays as it came; it has no meaning (RFC 9112 section 4)",
		request: plainGet, answer: strings.Replace(datedAnswer, "OK", "Fine", 1) + "Content-Length: 0\r\n\r\n",
		makeUp: func(s *story) {
			s.client.each(func(m *message) { m.first = m.first[:len("HTTP/1.1 200")] })
		},
	},
	{
		name: "426", why: "RFC 9110 section 15.5.22: it MUST say Upgrade, and that is no use without a proxy that lets it pass",
		request: plainGet, answer: strings.Replace(datedAnswer, "200 OK", "426 Upgrade Required", 1) + "Connection: Upgrade\r\nUpgrade: x/1\r\nContent-Length: 0\r\n\r\n",
		makeUp: func(s *story) {
			s.finals(func(_, _, ours, _ *message) {
				if ours.status() == 426 {
					ours.drop("Upgrade")
					ours.set("Connection", strings.TrimSuffix(strings.TrimSuffix(ours.get("Connection"), "Upgrade"), ", "))
					if ours.get("Connection") == "" {
						ours.drop("Connection")
					}
				}
			})
		},
	},
	{
		name: "close beside keep-alive", why: "RFC 9112 section 9.3: close wins; theirs keeps the connection of HTTP/1.0",
		request: "GET /api HTTP/1.0\r\nConnection: keep-alive, close\r\n\r\n", answer: datedAnswer + "Content-Length: 0\r\n\r\n",
		makeUp: func(s *story) {
			s.finals(func(request, _, _, theirs *message) {
				if request.closes() && theirs.get("Connection") == "keep-alive" {
					theirs.drop("Connection")
				}
			})
		},
	},
	{
		name:    "keep-alive in another line than the first",
		why:     "RFC 9110 section 5.3: the lines are one list; theirs looks for it in the first",
		request: "GET /api HTTP/1.0\r\nConnection: x\r\nConnection: keep-alive\r\n\r\n", answer: datedAnswer + "Content-Length: 0\r\n\r\n",
		makeUp: func(s *story) {
			s.finals(func(request, _, ours, _ *message) {
				if ours.get("Connection") == "keep-alive" && !strings.Contains(strings.ToLower(request.get("Connection")), "keep-alive") {
					ours.drop("Connection")
				}
			})
		},
	},
	{
		name: "version of answers to HTTP/1.0", why: "RFC 9110 section 2.5: a server says its own, whatever the client's",
		request: "GET /api HTTP/1.0\r\n\r\n", answer: datedAnswer + "Content-Length: 0\r\n\r\n",
		makeUp: func(s *story) {
			for _, m := range s.client.theirs {
				m.first = strings.Replace(m.first, "HTTP/1.0", "HTTP/1.1", 1)
			}
		},
	},
	{
		name: "close to HTTP/1.0",
		why: "ours says that the connection closes, though HTTP/1.0 expects nothing else (RFC 9112 section 9.6: a server " +
			"SHOULD)",
		request: "GET /api HTTP/1.0\r\n\r\n", answer: datedAnswer + "Content-Length: 0\r\n\r\n",
		makeUp: func(s *story) {
			s.finals(func(request, _, ours, _ *message) {
				if strings.HasSuffix(request.first, "HTTP/1.0") && ours.get("Connection") == "close" {
					ours.drop("Connection")
				}
			})
		},
	},
	{
		name: "1xx to HTTP/1.0", why: "RFC 9110 section 15.2: a server MUST NOT",
		request: "GET /api HTTP/1.0\r\n\r\n", answer: "HTTP/1.1 103 Early Hints\r\nX-A: 1\r\n\r\n" + datedAnswer + "Content-Length: 0\r\n\r\n",
		makeUp: func(s *story) {
			number := 0 // of the request
			s.client.theirs = slices.DeleteFunc(s.client.theirs, func(m *message) bool {
				if m.status() >= 200 {
					number++
					return false
				}
				return strings.HasSuffix(s.requests[number].first, "HTTP/1.0")
			})
		},
	},
	{
		name: "hop-by-hop fields of 1xx", why: "RFC 9110 section 7.6.1 makes no exception for them; ReverseProxy does",
		request: plainGet, answer: "HTTP/1.1 103 Early Hints\r\nConnection: X-Hop\r\nX-Hop: 1\r\nKeep-Alive: x\r\n\r\n" + datedAnswer + "Content-Length: 0\r\n\r\n",
		makeUp: func(s *story) {
			s.client.each(func(m *message) {
				if m.status() < 200 {
					for _, name := range append(strings.Split(m.get("Connection"), ", "), "Connection", "Keep-Alive") {
						m.drop(name)
					}
				}
			})
		},
	},
	{
		name:    "fields that are named beside close",
		why:     "RFC 9110 section 7.6.1: they are hop-by-hop all the same; theirs forgets the names with the option",
		request: plainGet, answer: datedAnswer + "Connection: X-Hop, close\r\nX-Hop: 1\r\nContent-Length: 0\r\n\r\n",
		makeUp: func(s *story) {
			s.finals(func(_, answer, _, theirs *message) {
				for _, value := range answer.values("Connection") {
					for name := range strings.SplitSeq(value, ",") {
						theirs.drop(strings.TrimSpace(name))
					}
				}
			})
		},
	},
	{
		name:    "Content-Type that nobody sent",
		why:     "theirs guesses one; ours does not (RFC 9110 section 8.3: a proxy has no business with it)",
		request: plainGet, answer: "HTTP/1.1 200 OK\r\nDate: Mon, 01 Jan 2001 00:00:00 GMT\r\nContent-Length: 3\r\n\r\nabc",
		makeUp: func(s *story) {
			s.finals(func(_, answer, _, theirs *message) {
				if answer.values("Content-Type") == nil {
					theirs.drop("Content-Type")
				}
			})
		},
	},
	{
		name: "304 with type and length", why: "RFC 9110 section 15.4.5 lets it say what the 200 would; theirs takes it out",
		request: plainGet, answer: "HTTP/1.1 304 Not Modified\r\nDate: Mon, 01 Jan 2001 00:00:00 GMT\r\nContent-Type: text/plain\r\nContent-Length: 7\r\n\r\n",
		makeUp: func(s *story) {
			s.client.each(func(m *message) { // over HTTP/2, theirs has them too
				if m.status() == 304 {
					m.drop("Content-Length")
					m.drop("Content-Type")
				}
			})
		},
	},
	{
		name: "answer of unknown length with nothing in it", chance: true,
		why: "theirs knows its length, where that comes as fast as the head; ours says the head at once (RFC 9112 section " +
			"6.3)",
		request: plainGet, answer: datedAnswer + "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		makeUp: func(s *story) {
			s.finals(func(_, answer, ours, theirs *message) {
				if answer.values("Content-Length") == nil && strings.Join(answer.body, "") == "" {
					for _, m := range []*message{ours, theirs} {
						m.drop("Transfer-Encoding")
						m.drop("Content-Length") // of ours, over HTTP/2
					}
				}
			})
		},
	},
	{
		name:    "zeros before a length",
		why:     "ours writes the number anew, as for requests; they are valid (RFC 9110 section 8.6), and octal to some",
		request: plainGet, answer: datedAnswer + "Content-Length: 003\r\n\r\nabc",
		makeUp: func(s *story) {
			s.client.each(func(m *message) {
				if n, err := strconv.Atoi(m.get("Content-Length")); err == nil {
					m.set("Content-Length", strconv.Itoa(n))
				}
			})
		},
	},
	{
		name: "date", why: "RFC 9110 section 6.6.1: both add one where there is none, in what second they do it", chance: true,
		request: plainGet, answer: "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 0\r\n\r\n",
		makeUp: func(s *story) {
			s.finals(func(_, answer, ours, theirs *message) {
				if answer.values("Date") != nil {
					return
				}
				for _, m := range []*message{ours, theirs} {
					if _, err := http.ParseTime(m.get("Date")); err == nil {
						m.set("Date", "now")
					}
				}
			})
		},
	},
	{
		name:    "order of fields",
		why:     "ours stay as they came (RFC 9110 section 5.3 says only that it is good practice); theirs come out of a map",
		request: "GET /api HTTP/1.1\r\nHost: x\r\nX-B: 1\r\nX-A: 2\r\n\r\n", answer: datedAnswer + "Content-Length: 0\r\n\r\n",
		makeUp: func(s *story) {
			s.all(func(m *message) {
				byName := func(a, b line) int { return strings.Compare(strings.ToLower(a.name), strings.ToLower(b.name)) }
				slices.SortStableFunc(m.fields, byName)
				slices.SortStableFunc(m.trailers, byName)
			})
		},
	},
}

// TestEachDifferenceIsThere says that a difference is one, and the only one of its example. One that has gone is to be taken from
// the list.
func TestEachDifferenceIsThere(t *testing.T) {
	o := newOracle(t, false)
	for i, d := range differences {
		t.Run(d.name, func(t *testing.T) {
			seen := o.play(t, []string{d.request}, []string{d.answer})
			diff := seen.compare(slices.Delete(slices.Clone(differences), i, i+1))
			if diff == "" && !d.chance || d.chance && !seen.concerns(d) {
				t.Errorf("it has gone:\n%s", seen.raw())
			}
			if diff := seen.compare(differences); diff != "" {
				t.Errorf("it is not the only one: %s\n%s", diff, seen.raw())
			}
		})
	}
}

// concerns says whether there is something to make up for in what both sent to the client.
func (s *seen) concerns(d difference) bool {
	before, err := s.story()
	after, again := s.story()
	if err != nil || again != nil {
		return false
	}
	d.makeUp(after)
	changed := func(a, b []*message) bool {
		return !slices.EqualFunc(a, b, func(a, b *message) bool { return a.String() == b.String() })
	}
	return changed(before.client.ours, after.client.ours) && changed(before.client.theirs, after.client.theirs)
}

// TestOracle sends many generated exchanges both ways. The seeds are fixed.
func TestOracle(t *testing.T) {
	n := uint64(2000) // connections, with one to three exchanges each
	if testing.Short() {
		n = 200
	}
	for _, trusted := range []bool{false, true} {
		t.Run(fmt.Sprintf("trusted %t", trusted), func(t *testing.T) {
			o := newOracle(t, trusted)
			eachSeed(t, n, func(seed uint64) { o.check(t, seed) })
		})
	}
}

// eachSeed calls check for the seeds from 1 to n, several at once, until one has failed.
func eachSeed(t *testing.T, n uint64, check func(seed uint64)) {
	var last atomic.Uint64
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for seed := last.Add(1); seed <= n && !t.Failed(); seed = last.Add(1) {
				check(seed)
			}
		})
	}
	all.Wait()
}

// check plays the exchange of a seed.
func (o *oracle) check(t *testing.T, seed uint64) {
	g := &generator{Rand: rand.New(rand.NewPCG(7, seed)), backend: o.stage.address()}
	requests, answers := g.exchanges()
	seen := o.play(t, requests, answers)
	if diff := seen.compare(differences); diff != "" {
		t.Errorf("seed %d: %s\n%s", seed, diff, seen.raw())
	}
}

// oracle is the two proxies in front of one backend.
type oracle struct {
	engine *proxy
	twin   *twin
	stage  *stage
	number atomic.Uint64
}

func newOracle(t *testing.T, trusted bool) *oracle {
	s := newStage(t)
	keep := to("/keep", s.Port())
	keep.route.StripPath, keep.route.PreserveHost = false, true
	o := &oracle{stage: s, twin: newTwin(t, s.address(), trusted)}
	var networks settings
	if trusted {
		networks.trusted = []string{"127.0.0.0/8"}
	}
	o.engine = startWith(t, networks, to("/api", s.Port()), keep, whole(s.Port()))
	return o
}

// seen is what went in, and what came out of each of the two.
type seen struct {
	requests, answers []string
	ours, theirs      sight
}

// sight is raw bytes, and over HTTP/2, where those say little, what the client made of them.
type sight struct {
	backend  []string // one for each request
	client   string
	messages []*message
	problem  error
}

// play sends the requests in one write, on a connection of their own, first through the one and then through the other.
func (o *oracle) play(t testing.TB, requests, answers []string) *seen {
	name := strconv.FormatUint(o.number.Add(1), 10)
	out := &seen{answers: answers}
	for i, r := range requests {
		first, rest, _ := strings.Cut(r, "\r\n")
		out.requests = append(out.requests, fmt.Sprintf("%s\r\n%s: %s %d\r\n%s", first, actName, name, i, rest))
	}
	out.ours = o.through(o.engine.address, name, out.requests, answers)
	out.theirs = o.through(o.twin.address, name, out.requests, answers)
	return out
}

func (o *oracle) through(address, name string, requests, answers []string) sight {
	return o.stage.show(name, answers, func() sight { return speak(address, requests) })
}

// speak is a client of HTTP/1.
func speak(address string, requests []string) (out sight) {
	c, err := net.Dial("tcp", address)
	if err != nil {
		return sight{problem: err}
	}
	c.SetDeadline(time.Now().Add(20 * time.Second))
	wrote := make(chan struct{})
	go func() {
		defer close(wrote)
		io.WriteString(c, strings.Join(requests, "")) // an error shows in what is missing
	}()
	out.client, out.problem = readAnswers(c, requests)
	c.Close()
	<-wrote
	return out
}

// readAnswers reads what comes for the requests, and the end of the connection if the last of them asks for it.
func readAnswers(c net.Conn, requests []string) (raw string, err error) {
	in := bufio.NewReader(c)
	for _, r := range requests {
		method, _, _ := strings.Cut(r, " ")
		for {
			m, err := readMessage(in, method)
			raw += m.raw
			if err != nil {
				return raw, err
			}
			if m.status() >= 200 {
				break
			}
		}
	}
	last, err := parseMessages(requests[len(requests)-1])
	if err != nil || !last[0].closes() || last[0].asks("keep-alive") { // see "close beside keep-alive"
		return raw, err
	}
	rest, err := io.ReadAll(in)
	return raw + string(rest), err
}

// raw is all of it, for who has to find out what is wrong.
func (s *seen) raw() string {
	var out strings.Builder
	show := func(what string, texts ...string) {
		for _, text := range texts {
			if len(text) > 2000 {
				text = text[:2000] + fmt.Sprintf("… (%d bytes)", len(text))
			}
			fmt.Fprintf(&out, "--- %s\n%q\n", what, text)
		}
	}
	show("request", s.requests...)
	show("answer", s.answers...)
	show("to the backend, ours", s.ours.backend...)
	show("to the backend, theirs", s.theirs.backend...)
	show("to the client, ours", s.ours.client)
	show("to the client, theirs", s.theirs.client)
	return out.String()
}

// compare says what is different besides the differences; nothing, if all is well.
func (s *seen) compare(made []difference) string {
	if s.ours.problem != nil || s.theirs.problem != nil {
		return fmt.Sprintf("ours: %v, theirs: %v", s.ours.problem, s.theirs.problem)
	}
	story, err := s.story()
	if err != nil {
		return err.Error()
	}
	for _, d := range made {
		d.makeUp(story)
	}
	if diff := story.backend.differ(); diff != "" {
		return "to the backend: " + diff
	}
	if diff := story.client.differ(); diff != "" {
		return "to the client: " + diff
	}
	return ""
}

// story is what was seen, as messages.
type story struct {
	requests, answers []*message
	backend, client   sides
}

// sides are what the two sent to one place.
type sides struct{ ours, theirs []*message }

func (s *seen) story() (*story, error) {
	var out story
	var failed error
	read := func(into *[]*message, texts []string, methods []string) {
		for _, text := range texts {
			all, err := parseMessages(text, methods...)
			*into = append(*into, all...)
			failed = errors.Join(failed, err)
		}
	}
	read(&out.requests, s.requests, nil)
	read(&out.backend.ours, s.ours.backend, nil)
	read(&out.backend.theirs, s.theirs.backend, nil)
	var methods []string
	for i, r := range out.requests {
		method, _, _ := strings.Cut(r.first, " ")
		methods = append(methods, method)
		read(&out.answers, s.answers[i:i+1], methods[i:])
	}
	if out.client = (sides{s.ours.messages, s.theirs.messages}); out.client.ours == nil {
		read(&out.client.ours, []string{s.ours.client}, methods)
		read(&out.client.theirs, []string{s.theirs.client}, methods)
	}
	return &out, failed
}

func (s *sides) each(f func(*message)) {
	for _, m := range slices.Concat(s.ours, s.theirs) {
		f(m)
	}
}

func (s *sides) differ() string {
	for i := range max(len(s.ours), len(s.theirs)) {
		if i >= len(s.ours) || i >= len(s.theirs) {
			return fmt.Sprintf("ours sent %d messages, theirs %d", len(s.ours), len(s.theirs))
		}
		if ours, theirs := s.ours[i].String(), s.theirs[i].String(); ours != theirs {
			return fmt.Sprintf("message %d\nours   %.1000q\ntheirs %.1000q", i, ours, theirs)
		}
	}
	return ""
}

func (s *story) all(f func(*message)) { s.backend.each(f); s.client.each(f) }

func (s *story) theirs(f func(*message)) {
	for _, m := range slices.Concat(s.backend.theirs, s.client.theirs) {
		f(m)
	}
}

// finals calls f with each request, the backend's answer to it, and the two that the client got.
func (s *story) finals(f func(request, answer, ours, theirs *message)) {
	final := func(all []*message) []*message {
		return slices.DeleteFunc(slices.Clone(all), func(m *message) bool { return m.status() < 200 })
	}
	answers, ours, theirs := final(s.answers), final(s.client.ours), final(s.client.theirs)
	for i := range min(len(s.requests), len(answers), len(ours), len(theirs)) {
		f(s.requests[i], answers[i], ours[i], theirs[i])
	}
}

// continues are how many 100 there are before each final answer.
func continues(all []*message) []int {
	counts := []int{0}
	for _, m := range all {
		switch {
		case m.status() == 100:
			counts[len(counts)-1]++
		case m.status() >= 200:
			counts = append(counts, 0)
		}
	}
	return counts
}

// line is a field.
type line struct{ name, value string }

// named are the values of the fields of l's name.
func (l line) named(all []line) (values []string) {
	for _, other := range all {
		if strings.EqualFold(other.name, l.name) {
			values = append(values, other.value)
		}
	}
	return values
}

// bounds is how the end of a body is found.
type bounds uint8

const (
	boundNot bounds = iota
	boundLength
	boundChunks
	boundClose
)

// message is a request or an answer as it was on the wire, with nothing left out.
type message struct {
	raw      string
	first    string
	fields   []line
	how      bounds
	body     []string // the chunks, or all of it
	trailers []line
}

// readMessage reads a request, where method is empty, or an answer to a request of that method. It takes what is valid and
// nothing else, since it reads what proxies write.
func readMessage(in *bufio.Reader, method string) (*message, error) {
	m, err := readFirst(in, method)
	if err == nil {
		err = m.readBody(in)
	}
	return m, err
}

// readFirst reads a message's head.
func readFirst(in *bufio.Reader, method string) (*message, error) {
	m := &message{}
	var err error
	if m.raw, err = nodetest.ReadHead(in); err != nil {
		return m, err
	}
	all := lines(m.raw)
	m.first = all[0]
	if m.fields, err = splitLines(all[1:]); err != nil {
		return m, err
	}
	switch {
	case method == "HEAD", method != "" && (m.status() < 200 || m.status() == 204 || m.status() == 304):
	case strings.EqualFold(m.get("Transfer-Encoding"), "chunked"):
		m.how = boundChunks
	case m.values("Content-Length") != nil:
		m.how = boundLength
	case method != "":
		m.how = boundClose
	}
	return m, nil
}

func splitLines(all []string) (out []line, err error) {
	for _, text := range all {
		name, value, ok := strings.Cut(text, ":")
		if !ok {
			return nil, fmt.Errorf("no field: %q", text)
		}
		out = append(out, line{name, strings.Trim(value, " \t")})
	}
	return out, nil
}

func (m *message) readBody(in *bufio.Reader) error {
	switch m.how {
	case boundLength:
		n, err := strconv.Atoi(m.get("Content-Length"))
		if err != nil || n == 0 {
			return err
		}
		return m.take(in, n)
	case boundChunks:
		return m.readChunks(in)
	case boundClose:
		rest, err := io.ReadAll(in)
		m.raw += string(rest)
		m.body = []string{string(rest)}
		return err
	}
	return nil
}

// take is n bytes of body.
func (m *message) take(in *bufio.Reader, n int) error {
	piece := make([]byte, n)
	n, err := io.ReadFull(in, piece)
	m.raw += string(piece[:n])
	m.body = append(m.body, string(piece[:n]))
	return err
}

func (m *message) readChunks(in *bufio.Reader) error {
	for {
		size, err := in.ReadString('\n')
		m.raw += size
		if err != nil {
			return err
		}
		digits, _, _ := strings.Cut(strings.TrimSuffix(size, "\r\n"), ";")
		n, err := strconv.ParseUint(digits, 16, 31)
		if err != nil {
			return err
		}
		if n == 0 {
			break
		}
		if err := m.take(in, int(n)); err != nil {
			return err
		}
		end := make([]byte, 2)
		if _, err := io.ReadFull(in, end); err != nil || string(end) != "\r\n" {
			return fmt.Errorf("%q ends a chunk: %v", end, err)
		}
		m.raw += "\r\n"
	}
	section, err := nodetest.ReadHead(in)
	m.raw += section
	if err != nil || section == "\r\n" {
		return err
	}
	m.trailers, err = splitLines(lines(section))
	return err
}

// parseMessages reads what stands behind each other: requests, where there is no method, or answers to requests of these methods.
func parseMessages(text string, methods ...string) (all []*message, err error) {
	in := bufio.NewReader(strings.NewReader(text))
	for {
		if _, err := in.Peek(1); err != nil {
			return all, nil
		}
		method := ""
		if len(methods) > 0 {
			method = methods[0]
		}
		m, err := readMessage(in, method)
		if all = append(all, m); err != nil {
			return all, fmt.Errorf("%.200q: %w", m.raw, err)
		}
		if m.status() >= 200 && len(methods) > 1 {
			methods = methods[1:]
		}
	}
}

// status is an answer's; of a request it is 0.
func (m *message) status() int {
	if !strings.HasPrefix(m.first, "HTTP/1.") {
		return 0
	}
	n, _ := strconv.Atoi(m.first[len("HTTP/1.1 "):][:3])
	return n
}

// closes says whether nothing comes after the message on its connection.
func (m *message) closes() bool {
	return m.how == boundClose || m.asks("close") || strings.Contains(m.first, "HTTP/1.0") && !m.asks("keep-alive")
}

// asks says whether Connection has such an option.
func (m *message) asks(option string) bool {
	return strings.Contains(strings.ToLower(strings.Join(m.values("Connection"), ",")), option)
}

func (m *message) values(name string) (out []string) {
	for _, l := range m.fields {
		if strings.EqualFold(l.name, name) {
			out = append(out, l.value)
		}
	}
	return out
}

func (m *message) get(name string) string {
	if values := m.values(name); values != nil {
		return values[0]
	}
	return ""
}

func (m *message) drop(name string) {
	m.fields = slices.DeleteFunc(m.fields, func(l line) bool { return strings.EqualFold(l.name, name) })
}

func (m *message) set(name, value string) {
	for i := range m.fields {
		if strings.EqualFold(m.fields[i].name, name) {
			m.fields[i].value = value
		}
	}
}

// keepTrailers takes the trailers of a name but for the last n.
func (m *message) keepTrailers(name string, n int) {
	for i, l := range slices.Backward(m.trailers) {
		if strings.EqualFold(l.name, name) {
			if n--; n < 0 {
				m.trailers = slices.Delete(m.trailers, i, i+1)
			}
		}
	}
}

// String is what is compared.
func (m *message) String() string {
	var out strings.Builder
	out.WriteString(m.first + "\r\n")
	for _, l := range m.fields {
		out.WriteString(l.name + ": " + l.value + "\r\n")
	}
	out.WriteString("\r\n")
	for _, piece := range m.body {
		out.WriteString(piece + "\r\n")
	}
	for _, l := range m.trailers {
		out.WriteString(l.name + ": " + l.value + "\r\n")
	}
	return out.String()
}

// stage is the backend of both. It answers by what a request's act says, and keeps what it was sent.
type stage struct {
	*nodetest.RawBackend
	acts sync.Map // name → *act
}

// act is one exchange, or several on one connection.
type act struct {
	answers []string
	mu      sync.Mutex
	got     []string
}

// actName is the field that tells the stage what to play: an act's name, and the number of the request.
const actName = "X-Act"

func newStage(t testing.TB) *stage {
	s := &stage{}
	s.RawBackend = nodetest.NewRawBackend(t, func(c net.Conn) {
		in := bufio.NewReader(c)
		for s.play(c, in) {
		}
	})
	return s
}

// show has one client play an act, and adds what came to the backend.
func (s *stage) show(name string, answers []string, client func() sight) sight {
	a := &act{answers: answers, got: make([]string, len(answers))}
	s.acts.Store(name, a)
	defer s.acts.Delete(name)
	out := client()
	a.mu.Lock()
	defer a.mu.Unlock()
	out.backend = slices.Clone(a.got)
	return out
}

func (s *stage) address() string { return "127.0.0.1:" + itoa(s.Port()) }

// play answers one request, and says whether the connection goes on.
func (s *stage) play(c net.Conn, in *bufio.Reader) bool {
	request, err := readFirst(in, "")
	if err != nil {
		return false
	}
	var name string
	var number int
	if _, err := fmt.Sscan(request.get(actName), &name, &number); err != nil {
		return false
	}
	found, ok := s.acts.Load(name)
	if !ok {
		return false
	}
	a := found.(*act)
	method, _, _ := strings.Cut(request.first, " ")
	answers, err := parseMessages(a.answers[number], method)
	if err != nil {
		return false
	}
	if request.get("Expect") != "" && request.how != boundNot {
		for len(answers) > 1 {
			io.WriteString(c, answers[0].raw)
			answers = answers[1:]
		}
	}
	err = request.readBody(in)
	a.mu.Lock()
	a.got[number] += request.raw
	a.mu.Unlock()
	if err != nil {
		return false
	}
	for _, answer := range answers {
		io.WriteString(c, answer.raw)
	}
	return !answers[len(answers)-1].closes()
}
