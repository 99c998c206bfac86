package forward

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
)

// TestOracleOfHTTP2 sends generated exchanges over HTTP/2 to both, which has them arrive at the backend as HTTP/1.
func TestOracleOfHTTP2(t *testing.T) {
	n := uint64(1000)
	if testing.Short() {
		n = 100
	}
	o, transport := newOracle(t, false), newPlainHTTP2(t)
	var played atomic.Uint64
	eachSeed(t, n, func(seed uint64) {
		g := &generator{Rand: rand.New(rand.NewPCG(8, seed)), backend: o.stage.address()}
		requests, answers := g.exchanges()
		request, ok := overHTTP2Text(requests[0])
		if !ok {
			return
		}
		played.Add(1)
		seen := o.playHTTP2(transport, request, answers[0])
		if diff := seen.compare(slices.Concat(differencesOfHTTP2, differences)); diff != "" {
			t.Errorf("seed %d: %s\n%s", seed, diff, seen.raw())
		}
	})
	if !t.Failed() && played.Load() < n/2 {
		t.Errorf("only %d of %d requests can be said in HTTP/2", played.Load(), n)
	}
}

// differencesOfHTTP2 are those that only HTTP/2 in front brings about.
var differencesOfHTTP2 = []difference{
	{
		name: "body of unknown length with nothing in it",
		why: "theirs waits for the first byte of a body that such a method seldom has; ours sends the head at once, and has " +
			"to say that there may be one. Where there is none, theirs loses the trailers",
		request: "OPTIONS /api HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", answer: datedAnswer + "Content-Length: 0\r\n\r\n",
		makeUp: func(s *story) {
			s.backend.each(func(m *message) {
				if m.how != boundLength && strings.Join(m.body, "") == "" {
					m.drop("Transfer-Encoding")
					m.drop("Trailer")
					m.trailers = nil
				}
			})
		},
	},
}

func TestEachDifferenceOfHTTP2IsThere(t *testing.T) {
	o, transport := newOracle(t, false), newPlainHTTP2(t)
	for i, d := range differencesOfHTTP2 {
		t.Run(d.name, func(t *testing.T) {
			request, ok := overHTTP2Text(d.request)
			if !ok {
				t.Fatal("the example cannot be said in HTTP/2")
			}
			seen := o.playHTTP2(transport, request, d.answer)
			others := slices.Delete(slices.Clone(differencesOfHTTP2), i, i+1)
			if diff := seen.compare(slices.Concat(others, differences)); diff == "" {
				t.Errorf("it has gone:\n%s", seen.raw())
			}
			if diff := seen.compare(slices.Concat(differencesOfHTTP2, differences)); diff != "" {
				t.Errorf("it is not the only one: %s\n%s", diff, seen.raw())
			}
		})
	}
}

// newPlainHTTP2 speaks HTTP/2 with prior knowledge.
func newPlainHTTP2(t *testing.T) *http.Transport {
	transport := &http.Transport{DisableCompression: true, Protocols: new(http.Protocols)}
	transport.Protocols.SetUnencryptedHTTP2(true)
	t.Cleanup(transport.CloseIdleConnections)
	return transport
}

// overHTTP2Text is a request without what HTTP/2 says otherwise, or lets nobody say; false where nothing of it would be left.
func overHTTP2Text(raw string) (string, bool) {
	m, err := parseMessages(raw)
	if err != nil || m[0].values("Expect") != nil { // that is about 1xx, which have tests of their own
		return "", false
	}
	if m[0].get("Host") == "" || headerOf(m[0].trailers)["Authorization"] != nil { // there is one always; refused by both
		return "", false
	}
	words := strings.Split(m[0].first, " ")
	if !strings.HasPrefix(words[1], "/") || strings.HasPrefix(words[1], "//") {
		return "", false
	}
	head, body, _ := strings.Cut(raw, "\r\n\r\n")
	kept := []string{words[0] + " " + words[1] + " HTTP/1.1"}
	for _, l := range lines(head)[1:] {
		name, _, _ := strings.Cut(l, ":")
		if !slices.Contains([]string{"connection", "te", "upgrade", "http2-settings", "proxy-connection", "keep-alive"}, strings.ToLower(name)) {
			kept = append(kept, l)
		}
	}
	return strings.Join(kept, "\r\n") + "\r\n\r\n" + body, true
}

func (o *oracle) playHTTP2(transport *http.Transport, request, answer string) *seen {
	name := strconv.FormatUint(o.number.Add(1), 10)
	first, rest, _ := strings.Cut(request, "\r\n")
	request = fmt.Sprintf("%s\r\n%s: %s 0\r\n%s", first, actName, name, rest)
	out := &seen{requests: []string{request}, answers: []string{answer}}
	out.ours = o.stage.show(name, out.answers, func() sight { return speakHTTP2(transport, o.engine.address, request) })
	out.theirs = o.stage.show(name, out.answers, func() sight { return speakHTTP2(transport, o.twin.address, request) })
	return out
}

// speakHTTP2 is a client that makes a request of the text of one.
func speakHTTP2(transport *http.Transport, address, text string) (out sight) {
	all, err := parseMessages(text)
	if err != nil {
		return sight{problem: err}
	}
	m := all[0]
	words := strings.Split(m.first, " ")
	path, query, asked := strings.Cut(words[1], "?")
	r := &http.Request{
		Method: words[0], Host: m.get("Host"), Header: make(http.Header), Trailer: headerOf(m.trailers),
		URL: &url.URL{Scheme: "http", Host: address, Opaque: path, RawQuery: query, ForceQuery: asked},
	}
	for name, values := range headerOf(m.fields) {
		switch name {
		case "Host", "Content-Length", "Transfer-Encoding", "Trailer":
		default:
			r.Header[name] = values
		}
	}
	if r.Header["User-Agent"] == nil {
		r.Header["User-Agent"] = []string{""} // or there would be one
	}
	if m.how != boundNot {
		r.Body, r.ContentLength = io.NopCloser(strings.NewReader(strings.Join(m.body, ""))), -1
		if m.how == boundLength {
			r.ContentLength, r.Trailer = int64(len(strings.Join(m.body, ""))), nil
		}
	}
	trace := &httptrace.ClientTrace{Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
		out.messages = append(out.messages, messageOf(code, http.Header(h), "", nil))
		return nil
	}}
	res, err := transport.RoundTrip(r.WithContext(httptrace.WithClientTrace(context.Background(), trace)))
	if err != nil {
		return sight{problem: err}
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if res.StatusCode != http.StatusNotModified { // whose length this client takes for the body's
		out.problem = err
	}
	out.messages = append(out.messages, messageOf(res.StatusCode, res.Header, string(body), res.Trailer))
	for _, m := range out.messages {
		out.client += m.String()
	}
	return out
}

func headerOf(all []line) http.Header {
	h := make(http.Header)
	for _, l := range all {
		h.Add(l.name, l.value)
	}
	return h
}

// messageOf is what a client of HTTP/2 got, told as if it were HTTP/1.
func messageOf(status int, h http.Header, body string, trailer http.Header) *message {
	m := &message{first: fmt.Sprintf("HTTP/1.1 %d ", status), body: []string{body}}
	section := func(h http.Header) (out []line) {
		for name, values := range h {
			for _, value := range values {
				out = append(out, line{name, value})
			}
		}
		return out
	}
	m.fields, m.trailers = section(h), section(trailer)
	return m
}
