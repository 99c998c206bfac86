package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"
)

// http2Client speaks HTTP/2 alone: over TLS, or with prior knowledge. All of its requests to a node share a connection.
func (s *soak) http2Client() *http.Client {
	protocols := new(http.Protocols)
	protocols.SetHTTP2(s.tls != nil)
	protocols.SetUnencryptedHTTP2(s.tls == nil)
	return &http.Client{
		Transport:     &http.Transport{Protocols: protocols, TLSClientConfig: s.tls.Clone(), DisableCompression: true},
		Timeout:       2 * patience,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// kindsOfHTTP2 are for streams of HTTP/2.
func kindsOfHTTP2() []kind {
	return []kind{
		{"small, HTTP/2", 40, func(w *worker, name string) { w.request(name, w.order(http.MethodGet, 0, w.r.IntN(500))) }},
		{"16 KiB down, HTTP/2", 8, func(w *worker, name string) { w.request(name, w.chunky(w.order(http.MethodGet, 0, 16<<10))) }},
		{"1 MiB down, HTTP/2", 4, func(w *worker, name string) { w.request(name, w.chunky(w.order(http.MethodGet, 0, 1<<20))) }},
		{"16 KiB up, HTTP/2", 6, func(w *worker, name string) { w.request(name, w.chunky(w.order(http.MethodPost, 16<<10, 100))) }},
		{"1 MiB up, HTTP/2", 4, func(w *worker, name string) { w.request(name, w.chunky(w.order(http.MethodPost, 1<<20, 100))) }},
		{"early answer, HTTP/2", 3, func(w *worker, name string) {
			o := w.chunky(w.order(http.MethodPost, 1+w.r.IntN(400<<10), 100))
			o.early = true
			w.request(name, o)
		}},
		{"cut upload, HTTP/2", 3, func(w *worker, name string) {
			o := w.chunky(w.order(http.MethodPost, 200<<10, 100))
			ctx, cancel := context.WithCancel(w.ctx)
			defer cancel()
			w.abandon(ctx, name, o, &cutBody{bytes.NewReader(w.body(o.id, "up", o.up)[:w.r.IntN(o.up)]), cancel})
		}},
		{"cut download, HTTP/2", 3, func(w *worker, name string) {
			w.abandonAfter(name, w.chunky(w.order(http.MethodGet, 0, 1<<20)), 10*time.Millisecond)
		}},
		{"cut wait, HTTP/2", 3, func(w *worker, name string) {
			o := w.order(http.MethodGet, 0, 100)
			o.delay = time.Hour
			w.abandonAfter(name, o, 30*time.Millisecond)
		}},
	}
}

func (w *worker) newRequest(ctx context.Context, o order, body io.Reader) *http.Request {
	scheme := "http://"
	if w.tls != nil {
		scheme = "https://"
	}
	r, err := http.NewRequestWithContext(ctx, o.method, scheme+w.node+o.path, body)
	if err != nil {
		panic(err) // it is ours
	}
	for _, f := range o.fields() {
		r.Header.Set(f[0], f[1])
	}
	if body != nil {
		r.ContentLength = int64(o.up)
	}
	if o.upChunks { // which HTTP/2 has no word for: a body of unknown length with a trailer
		r.ContentLength = -1
		r.Trailer = http.Header{endField: {o.id}}
	}
	return r
}

// request makes one exchange. It goes on when the test is over, to its end.
func (w *worker) request(kind string, o order) {
	began := time.Now()
	var body io.Reader
	if o.up > 0 {
		// Not a reader that net/http knows: it would send the request again by itself.
		body = io.NopCloser(struct{ io.Reader }{bytes.NewReader(w.body(o.id, "up", o.up))})
	}
	response, err := w.h2.Do(w.newRequest(context.WithoutCancel(w.ctx), o, body))
	if err == nil && response.ProtoMajor != 2 {
		response.Body.Close()
		err = wrongly("the answer is one of %s", response.Proto)
	} else if err == nil {
		err = w.check(response, o)
	}
	w.judge(kind, o, began, err)
}

// abandonAfter breaks a request off after a random time, most at the longest.
func (w *worker) abandonAfter(kind string, o order, most time.Duration) {
	ctx, cancel := context.WithTimeout(w.ctx, between(w.r, 0, most))
	defer cancel()
	w.abandon(ctx, kind, o, nil)
}

// abandon makes an exchange that ctx breaks off, unless it is quicker.
func (w *worker) abandon(ctx context.Context, kind string, o order, body io.Reader) {
	response, err := w.h2.Do(w.newRequest(ctx, o, body))
	if err == nil {
		err = w.check(response, o)
	}
	var never wrong
	if errors.As(err, &never) {
		w.mistake("%s: %s: %v", kind, o.id, err)
	}
	w.begun.Delete(o.id)
	w.done.add(kind)
}

// cutBody is the beginning of a body whose rest never comes: its end cancels the request.
type cutBody struct {
	io.Reader
	cancel context.CancelFunc
}

func (b *cutBody) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	if err == io.EOF {
		b.cancel()
		return n, fmt.Errorf("cut: %w", context.Canceled)
	}
	return n, err
}
