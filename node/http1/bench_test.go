package http1

import (
	"bytes"
	"fmt"
	"testing"
)

const (
	smallGet = "GET / HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nUser-Agent: wrk\r\nAccept: */*\r\n\r\n"

	browserGet = "GET /app/dashboard/overview?range=30d&tz=Europe%2FBerlin HTTP/1.1\r\n" +
		"Host: www.example.com\r\n" +
		"Connection: keep-alive\r\n" +
		"Cache-Control: max-age=0\r\n" +
		"sec-ch-ua: \"Chromium\";v=\"128\", \"Not;A=Brand\";v=\"24\", \"Google Chrome\";v=\"128\"\r\n" +
		"sec-ch-ua-mobile: ?0\r\n" +
		"sec-ch-ua-platform: \"Linux\"\r\n" +
		"Upgrade-Insecure-Requests: 1\r\n" +
		"User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/128.0.0.0 Safari/537.36\r\n" +
		"Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/apng,*/*;q=0.8\r\n" +
		"Sec-Fetch-Site: same-origin\r\n" +
		"Sec-Fetch-Mode: navigate\r\n" +
		"Sec-Fetch-User: ?1\r\n" +
		"Sec-Fetch-Dest: document\r\n" +
		"Referer: https://www.example.com/app/login?next=%2Fapp%2Fdashboard\r\n" +
		"Accept-Encoding: gzip, deflate, br, zstd\r\n" +
		"Accept-Language: en-GB,en;q=0.9,de;q=0.8\r\n" +
		"Cookie: session=6f1c2d9e8b7a4c3d2e1f0a9b8c7d6e5f; csrftoken=Zk3nV0qYt1JrX8mP; _ga=GA1.1.1234567890.1700000000; theme=dark; consent=yes\r\n" +
		"If-None-Match: W/\"5f3c-1a2b3c4d5e6f\"\r\n" +
		"DNT: 1\r\n" +
		"Priority: u=0, i\r\n\r\n"

	apiResponse = "HTTP/1.1 200 OK\r\n" +
		"Date: Mon, 23 Nov 2026 19:01:43 GMT\r\n" +
		"Server: gunicorn/22.0\r\n" +
		"Content-Type: application/json; charset=utf-8\r\n" +
		"Content-Length: 512\r\n" +
		"Connection: keep-alive\r\n" +
		"Cache-Control: no-store\r\n" +
		"ETag: W/\"200-abcdef\"\r\n" +
		"Vary: Accept-Encoding, Origin\r\n" +
		"X-Request-Id: 0f1e2d3c4b5a69788796a5b4c3d2e1f0\r\n\r\n"
)

func BenchmarkRequest(b *testing.B) {
	for _, c := range []struct{ name, head string }{{"small", smallGet}, {"browser", browserGet}} {
		b.Run(c.name, func(b *testing.B) {
			buf := []byte(c.head)
			var r Request
			b.SetBytes(int64(len(buf)))
			b.ReportAllocs()
			for b.Loop() {
				r.Reset()
				if n, err := r.Parse(buf); n != len(buf) || err != nil {
					b.Fatal(n, err)
				}
			}
		})
	}
}

func BenchmarkResponse(b *testing.B) {
	buf := []byte(apiResponse)
	var r Response
	b.SetBytes(int64(len(buf)))
	b.ReportAllocs()
	for b.Loop() {
		r.Reset()
		if n, err := r.Parse(buf, GET); n != len(buf) || err != nil {
			b.Fatal(n, err)
		}
	}
}

// A head that comes in by single bytes, per head.
func BenchmarkDrip(b *testing.B) {
	buf := []byte(browserGet)
	var r Request
	b.SetBytes(int64(len(buf)))
	b.ReportAllocs()
	for b.Loop() {
		r.Reset()
		for i := range buf {
			if _, err := r.Parse(buf[:i+1]); err != nil {
				b.Fatal(err)
			}
		}
	}
}

// forward is the copying loop of a proxy.
func forward(dst []byte, r *Request) []byte {
	query, present := r.Query()
	dst, _ = AppendRequestLine(dst, r.MethodName(), r.Path(), query, present)
	dst, _ = AppendField(dst, "Host", r.Authority())
	for i, f := range r.List() {
		if f.Hop || f.ID == Host || f.ID == XForwardedFor {
			continue
		}
		dst = r.AppendLine(dst, i)
	}
	dst, _ = AppendField(dst, "X-Forwarded-For", "192.0.2.1")
	return AppendHeadEnd(dst)
}

func BenchmarkForward(b *testing.B) {
	buf := []byte(browserGet)
	out := make([]byte, 0, 8<<10)
	var r Request
	r.Reset()
	if _, err := r.Parse(buf); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(buf)))
	b.ReportAllocs()
	for b.Loop() {
		out = forward(out[:0], &r)
	}
}

func BenchmarkChunked(b *testing.B) {
	for _, size := range []int{16, 1 << 10, 16 << 10} {
		var body bytes.Buffer
		for body.Len() < 64<<10 {
			fmt.Fprintf(&body, "%x\r\n%s\r\n", size, bytes.Repeat([]byte("x"), size))
		}
		body.WriteString("0\r\n\r\n")
		for _, c := range []struct {
			name string
			next func(*Body, []byte) ([]byte, int, error)
		}{{"Next", (*Body).Next}, {"NextRaw", (*Body).NextRaw}} {
			b.Run(fmt.Sprintf("%s/%d", c.name, size), func(b *testing.B) {
				var body_ Body
				b.SetBytes(int64(body.Len()))
				b.ReportAllocs()
				for b.Loop() {
					body_.Reset(&Head{Framing: Chunked})
					for buf := body.Bytes(); !body_.Done(); {
						_, n, err := c.next(&body_, buf)
						if err != nil {
							b.Fatal(err)
						}
						buf = buf[n:]
					}
				}
			})
		}
	}
}
