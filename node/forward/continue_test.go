package forward

import (
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/pyserve/pyserve/node/nodetest"
)

const expecting = "POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n"

func TestTheBodyFollowsTheBackendsContinue(t *testing.T) {
	b, _ := scripted(t, func(w *wire) {
		for {
			head, err := nodetest.ReadHead(w.in)
			if err != nil {
				return
			}
			if !slices.Equal(fields(head, "Expect"), []string{"100-continue"}) || w.in.Buffered() > 0 {
				t.Errorf("head %q, %d bytes of the body", head, w.in.Buffered())
			}
			io.WriteString(w, "HTTP/1.1 100 Go On\r\nX-Own: 1\r\n\r\n")
			body := make([]byte, 3)
			io.ReadFull(w.in, body)
			io.WriteString(w, sized(string(body)))
		}
	})
	p := start(t, whole(b.Port()))
	w := connect(t, p)
	for _, body := range []string{"abc", "def"} {
		w.say(expecting)
		if head := w.head("HTTP/1.1 100 Go On\r\n"); !slices.Equal(fields(head, "X-Own"), []string{"1"}) {
			t.Errorf("%q", head)
		}
		w.say(body)
		if res := w.want("POST", 200, body); res.Close {
			t.Error("the client's connection is closed")
		}
	}
}

func TestABodyThatDoesNotWaitForContinue(t *testing.T) {
	b, _ := scripted(t, func(w *wire) {
		w.request()
		io.WriteString(w, "HTTP/1.1 100 Continue\r\n\r\n"+sized("done"))
		w.request()
	})
	p := start(t, whole(b.Port()))
	w := connect(t, p)
	w.say(expecting + "abc")
	w.head("HTTP/1.1 100 ")
	w.want("POST", 200, "done")
}

func TestARefusedExpectationPasses(t *testing.T) {
	for _, answer := range []string{
		"HTTP/1.1 417 Not That\r\nContent-Length: 2\r\n\r\nno", "HTTP/1.1 401 Who\r\nContent-Length: 2\r\n\r\nno", "HTTP/1.1 413 Big\r\nContent-Length: 2\r\n\r\nno",
	} {
		rest := make(chan string, 1)
		b, _ := scripted(t, func(w *wire) {
			nodetest.ReadHead(w.in)
			io.WriteString(w, answer)
			all, _ := io.ReadAll(w.in)
			rest <- string(all)
		})
		p := start(t, whole(b.Port()))
		w := connect(t, p)
		w.say(expecting)
		head := w.head(lines(answer)[0] + "\r\n")
		if !slices.Equal(fields(head, "Connection"), []string{"close"}) {
			t.Errorf("%q: what the client may send now would be its next request", head)
		}
		if body := w.read(2); body != "no" {
			t.Errorf("%q", body)
		}
		w.ended()
		if got := <-rest; got != "" {
			t.Errorf("the backend was sent %q", got)
		}
	}
}

func TestAnUnknownExpectationIs417(t *testing.T) {
	b := nodetest.NewRecorder(t, emptyAnswer)
	p := start(t, whole(b.Port()))
	answer := p.exchange(t, "POST / HTTP/1.1\r\nHost: x\r\nExpect: miracles\r\nContent-Length: 3\r\n\r\n")
	if !strings.HasPrefix(answer, "HTTP/1.1 417 ") || b.Requests() != 0 {
		t.Errorf("%q, %d requests", answer, b.Requests())
	}
}

func TestAnExpectationWithoutABodyStays(t *testing.T) {
	b := nodetest.NewRecorder(t, emptyAnswer)
	p := start(t, whole(b.Port()))
	p.exchange(t, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nExpect: 100-continue\r\n\r\n")
	if head := b.Head(t); fields(head, "Expect") != nil {
		t.Errorf("%q: nothing can follow", head)
	}
}

// RFC 9110 section 15.2: there may be any number of them, which nobody who waits for the last can bear.
func TestInterimAnswersAreBounded(t *testing.T) {
	hints := "HTTP/1.1 103 Early Hints\r\nLink: <" + strings.Repeat("x", 1000) + ">\r\n\r\n"
	for _, c := range []struct{ count, status int }{{maxInterims, 200}, {maxInterims + 1, 502}} {
		b := answering(t, strings.Repeat(hints, c.count)+sized("final"))
		p := start(t, whole(b.Port()))
		w := connect(t, p)
		w.say(ask("/"))
		for range maxInterims {
			w.head("HTTP/1.1 103 ")
		}
		if res, body, err := w.answer("GET"); err != nil || res.StatusCode != c.status || (body == "final") != (c.status == 200) {
			t.Errorf("%d hints: %v %q %v", c.count, res, body, err)
		}
	}
}

func TestHTTP10IsSentNoInterimAnswer(t *testing.T) {
	b := answering(t, "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\n"+sized("final"))
	p := start(t, whole(b.Port()))
	answer := p.exchange(t, "POST / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\nabc")
	if !strings.HasPrefix(answer, "HTTP/1.1 200 ") || !strings.HasSuffix(answer, "\r\n\r\nfinal") {
		t.Errorf("%q", answer)
	}
}
