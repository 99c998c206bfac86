package forward

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"

	"github.com/pyserve/pyserve/node/nodetest"
	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

// browserHead is what a browser sends beside the request line and Host, 1.2 KiB with them.
const browserHead = "Connection: keep-alive\r\n" +
	"sec-ch-ua: \"Chromium\";v=\"130\", \"Google Chrome\";v=\"130\", \"Not?A_Brand\";v=\"99\"\r\n" +
	"sec-ch-ua-mobile: ?0\r\nsec-ch-ua-platform: \"Linux\"\r\nUpgrade-Insecure-Requests: 1\r\n" +
	"User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/130.0.0.0 Safari/537.36\r\n" +
	"Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/apng,*/*;q=0.8,application/signed-exchange;v=b3;q=0.7\r\n" +
	"Sec-Fetch-Site: same-origin\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-User: ?1\r\nSec-Fetch-Dest: document\r\n" +
	"Referer: https://www.example.com/catalogue/books?page=3&sort=price\r\n" +
	"Accept-Encoding: gzip, deflate, br, zstd\r\nAccept-Language: en-GB,en-US;q=0.9,en;q=0.8,de;q=0.7\r\n" +
	"Cookie: session=9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08; theme=dark; consent=analytics%3D1%26marketing%3D0; " +
	"_ga=GA1.1.1234567890.1730000000; _ga_ABCDEFGHIJ=GS1.1.1730000000.5.1.1730000123.0.0.0\r\n" +
	"If-None-Match: W/\"5e8c-18f0c1d2a40\"\r\nIf-Modified-Since: Fri, 01 Nov 2024 10:00:00 GMT\r\nCache-Control: max-age=0\r\nDNT: 1\r\n"

// load is one kind of request with its answer.
type load struct {
	name    string
	request string
	body    int // of the request
	answer  string
}

// typical is an answer's head as backends write them, with a body.
func typical(size int) string {
	return fmt.Sprintf("HTTP/1.1 200 OK\r\nServer: theirs\r\nDate: Mon, 02 Nov 2026 10:00:00 GMT\r\nContent-Type: application/json\r\n"+
		"ETag: \"abc\"\r\nCache-Control: no-cache\r\nContent-Length: %d\r\n\r\n%s", size, strings.Repeat("x", size))
}

var loads = []load{
	{"small", "GET /api/users?x=1 HTTP/1.1\r\nHost: example.com\r\n\r\n", 0, sized("hello, world")},
	{"browser", "GET /catalogue/books?page=4&sort=price HTTP/1.1\r\nHost: www.example.com\r\n" + browserHead + "\r\n", 0, typical(200)},
	{"16KiB answer", "GET /api HTTP/1.1\r\nHost: example.com\r\n\r\n", 0, typical(16 << 10)},
	{"chunked answer", "GET /api HTTP/1.1\r\nHost: example.com\r\n\r\n", 0,
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n400\r\n" + strings.Repeat("x", 1024) + "\r\n0\r\n\r\n"},
	{"small POST", "POST /api HTTP/1.1\r\nHost: example.com\r\nContent-Length: 100\r\n\r\n" + strings.Repeat("x", 100), 100, sized("done")},
	{"64KiB upload", "POST /api HTTP/1.1\r\nHost: example.com\r\nContent-Length: 65536\r\n\r\n" + strings.Repeat("x", 64<<10), 64 << 10, sized("done")},
}

var headEnd = []byte("\r\n\r\n")

// answerAll answers requests that have a body of known size, without allocating.
func answerAll(c net.Conn, body int, answer []byte) {
	buf := make([]byte, 64<<10)
	for {
		have, missing := 0, 1
		for missing > 0 {
			n, err := c.Read(buf[have:])
			if err != nil {
				return
			}
			if have += n; missing > 1 {
				have, missing = 0, missing-n
				continue
			}
			if end := bytes.Index(buf[:have], headEnd); end >= 0 {
				missing = end + len(headEnd) + body - have
				have = 0
				if missing == 1 { // or it would be taken for a head that has not ended
					panic("a body of another size than told")
				}
			}
		}
		if _, err := c.Write(answer); err != nil {
			return
		}
	}
}

// asker asks over one connection, without allocating from the second time on.
type asker struct {
	conn    net.Conn
	request []byte
	answer  []byte // room for a whole one
}

// newAsker asks once, to learn how long an answer is: all are as long, since the Date is.
func newAsker(t testing.TB, l load) *asker { return newAskerOf(t, l, site{route: &resourcev1.Route{}}) }

// newAskerOf asks by a route that does more.
func newAskerOf(t testing.TB, l load, s site) *asker {
	t.Helper()
	b := nodetest.NewRawBackend(t, func(c net.Conn) { answerAll(c, l.body, []byte(l.answer)) })
	one := whole(b.Port())
	s.backends, s.route.Path, s.route.Match, s.route.StripPath = one.backends, one.route.Path, one.route.Match, true
	p := startWith(t, settings{options: Options{Logger: slog.New(slog.DiscardHandler)}}, s)
	w := connect(t, p)
	w.say(l.request)
	head := w.head("HTTP/1.1 200 ")
	_, body, _ := strings.Cut(l.answer, "\r\n\r\n")
	if got := w.read(len(body)); got != body {
		t.Fatalf("%d bytes %.100q", len(got), got)
	}
	return &asker{conn: w.Conn, request: []byte(l.request), answer: make([]byte, len(head)+len(body))}
}

func (a *asker) ask() error {
	if _, err := a.conn.Write(a.request); err != nil {
		return err
	}
	_, err := io.ReadFull(a.conn, a.answer)
	return err
}

func TestAKeptConnectionAllocatesNothingForARequest(t *testing.T) {
	if raceDetector {
		t.Skip("the race detector allocates")
	}
	for _, l := range loads {
		if l.name == "64KiB upload" {
			continue // its goroutine may
		}
		t.Run(l.name, func(t *testing.T) {
			a := newAsker(t, l)
			if n := testing.AllocsPerRun(1000, func() {
				if err := a.ask(); err != nil {
					t.Fatal(err)
				}
			}); n != 0 {
				t.Errorf("%v allocations", n)
			}
		})
	}
}

func BenchmarkGet(b *testing.B) {
	for _, l := range loads {
		b.Run(l.name, func(b *testing.B) {
			a := newAsker(b, l)
			b.ReportAllocs()
			b.SetBytes(int64(len(a.request) + len(a.answer)))
			for b.Loop() {
				if err := a.ask(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
