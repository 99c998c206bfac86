package forward

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
)

func TestPipelinedRequestsAreAnsweredInOrder(t *testing.T) {
	p := start(t, whole(mirror(t).Port()))
	for _, c := range []struct {
		name     string
		count    int
		filling  string
		atRandom bool
	}{
		{"three", 3, "", false},
		{"a hundred in one write", 100, "", false},
		{"a hundred that fill several buffers", 100, "X-Filling: " + strings.Repeat("x", 2000) + "\r\n", false},
		{"a hundred in pieces", 100, "X-Filling: " + strings.Repeat("x", 300) + "\r\n", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			var all strings.Builder
			for i := range c.count {
				fmt.Fprintf(&all, "GET /%d HTTP/1.1\r\nHost: x\r\n%s\r\n", i, c.filling)
			}
			w := connect(t, p)
			done := make(chan struct{})
			go func() {
				defer close(done)
				sendPieces(w, all.String(), c.atRandom)
			}()
			for i := range c.count {
				w.want("GET", 200, fmt.Sprintf("GET /%d", i))
			}
			<-done
		})
	}
}

// sendPieces writes text in one piece, or in many of random sizes.
func sendPieces(w *wire, text string, atRandom bool) {
	random := rand.New(rand.NewPCG(1, 2))
	for len(text) > 0 {
		n := len(text)
		if atRandom {
			n = min(n, 1+random.IntN(700))
		}
		if _, err := w.Write([]byte(text[:n])); err != nil {
			w.t.Error(err)
			return
		}
		text = text[n:]
	}
}

func TestABodyInAPipelineIsNotTheNextRequest(t *testing.T) {
	p := start(t, whole(mirror(t).Port()))
	const smuggled = "GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
	for _, atRandom := range []bool{false, true} {
		w := connect(t, p)
		go sendPieces(w, ask("/1")+
			fmt.Sprintf("POST /2 HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", len(smuggled), smuggled)+
			ask("/3")+
			fmt.Sprintf("POST /4 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTrailer: X-T\r\n\r\n%x\r\n%s\r\n0\r\nX-T: end\r\n\r\n", len(smuggled), smuggled)+
			ask("/5"), atRandom)
		w.want("GET", 200, "GET /1")
		w.want("POST", 200, strings.TrimSpace("POST /2 "+smuggled))
		w.want("GET", 200, "GET /3")
		w.want("POST", 200, "POST /4 "+smuggled+" end")
		w.want("GET", 200, "GET /5")
	}
}

func TestARefusalInAPipelineEndsIt(t *testing.T) {
	p := start(t, to("/x", mirror(t).Port()))
	for _, bad := range []struct {
		request string
		status  int
	}{
		{"nonsense\r\n\r\n", 400},
		{"GET /x HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400},
		{"GET /x/../.. HTTP/1.1\r\nHost: x\r\n\r\n", 400},
		{"POST /x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400},
		{"CONNECT x:1 HTTP/1.1\r\nHost: x:1\r\n\r\n", 501},
	} {
		w := connect(t, p)
		w.say(ask("/x/1") + bad.request + ask("/x/never"))
		w.want("GET", 200, "GET /1")
		res, body, err := w.answer("GET")
		if err != nil || res.StatusCode != bad.status || !res.Close {
			t.Errorf("%q: %v %q %v", bad.request, res, body, err)
		}
		w.ended()
	}
}

func TestARefusalWithNothingWrongAboutTheConnectionKeepsIt(t *testing.T) {
	p := start(t, to("/x", mirror(t).Port()))
	w := connect(t, p)
	w.say(ask("/none") + "POST /none HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc" +
		"POST /none HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n" + ask("/x/after"))
	for _, method := range []string{"GET", "POST", "POST"} {
		if res, _, err := w.answer(method); err != nil || res.StatusCode != 404 || res.Close {
			t.Fatal(res, err)
		}
	}
	w.want("GET", 200, "GET /after")
}
