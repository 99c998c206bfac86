package forward

import (
	"fmt"
	"math/rand/v2"
	"strings"
)

// generator makes exchanges that are valid, as odd as the RFCs allow, from a seed.
type generator struct {
	*rand.Rand
	backend string
}

func (g *generator) pick(from ...string) string { return from[g.IntN(len(from))] }

// one says yes once in n times.
func (g *generator) one(n int) bool { return g.IntN(n) == 0 }

// exchanges are one to three on a connection; all but the last leave it open.
func (g *generator) exchanges() (requests, answers []string) {
	n := []int{1, 1, 1, 2, 2, 3}[g.IntN(6)]
	for i := range n {
		request, answer := g.exchange(i == n-1)
		requests, answers = append(requests, request), append(answers, answer)
	}
	return requests, answers
}

func (g *generator) exchange(last bool) (request, answer string) {
	old := last && g.one(6) // HTTP/1.0
	kept := !last || g.one(3)
	method := g.pick("GET", "GET", "GET", "POST", "POST", "PUT", "HEAD", "DELETE", "PATCH", "OPTIONS", "PROPFIND", "get", "M-SEARCH")
	body := g.body()
	var head []string
	framing, continued := g.pick("none", "length", "chunked"), false
	if framing == "chunked" && old {
		framing = "length"
	}
	tail := ""
	switch framing {
	case "length":
		head = append(head, g.name("Content-Length")+": "+g.pick("", "", "", "00")+fmt.Sprint(len(body)))
		if g.one(10) {
			head = append(head, head[0])
		}
		tail = body
	case "chunked":
		head = append(head, g.name("Transfer-Encoding")+": "+g.pick("chunked", "Chunked"))
		var announced string
		tail, announced = g.chunks(body)
		if announced != "" {
			head = append(head, announced)
		}
	}
	if framing != "none" && len(body) > 0 && !old && g.one(6) {
		head, continued = append(head, g.name("Expect")+": "+g.pick("100-continue", "100-Continue")), true
	}
	target, host := g.target()
	if host = g.name("Host") + ": " + host; !old || !strings.HasPrefix(target, "/api") || g.one(2) {
		head = append(head, host)
	}
	head = append(head, g.requestFields(old, kept)...)
	g.Shuffle(len(head), func(i, j int) { head[i], head[j] = head[j], head[i] })
	version := "HTTP/1.1"
	if old {
		version = "HTTP/1.0"
	}
	request = method + " " + target + " " + version + "\r\n" + strings.Join(head, "\r\n") + "\r\n\r\n" + tail
	return request, g.answer(method, old, kept, continued)
}

// name is a field's name in some case.
func (g *generator) name(name string) string {
	switch g.IntN(4) {
	case 0:
		return strings.ToLower(name)
	case 1:
		return strings.ToUpper(name)
	}
	return name
}

// body is of any bytes, mostly short.
func (g *generator) body() string {
	size := g.IntN(50)
	switch g.IntN(20) {
	case 0:
		size = 0
	case 1:
		size = g.IntN(100_000)
	case 2:
		size = g.IntN(5000)
	}
	b := make([]byte, size)
	for i := range b {
		b[i] = "\r\n0123456789abcdef\x00\xff GET/"[g.IntN(25)]
	}
	return string(b)
}

// chunks is the body as chunks, perhaps with trailers and what announces them.
func (g *generator) chunks(body string) (chunks, announced string) {
	var out strings.Builder
	for len(body) > 0 {
		n := 1 + g.IntN(len(body))
		fmt.Fprintf(&out, g.pick("%x", "%X", "0%x", "%x;a=b", "%x;a;b=\"c;d\"")+"\r\n", n)
		out.WriteString(body[:n] + "\r\n")
		body = body[n:]
	}
	out.WriteString(g.pick("0", "0", "00", "0;x") + "\r\n")
	var names []string
	if g.one(3) {
		for range 1 + g.IntN(3) {
			name := g.pick("X-T", "x-sum", "Grpc-Status", "ETag", "Server-Timing", "X-Forwarded-For", "Authorization", "X-T")
			out.WriteString(name + ":" + g.pick("", " ", "\t") + g.value() + g.pick("", " ") + "\r\n")
			names = append(names, name)
		}
	}
	out.WriteString("\r\n")
	if names != nil && g.one(2) || g.one(10) {
		announced = g.name("Trailer") + ": " + strings.Join(append(names, "X-Never"), g.pick(",", ", ", " , "))
	}
	return out.String(), announced
}

// value is what a field may say.
func (g *generator) value() string {
	return g.pick("a", "1", "a b", "a\tb", "", "\"quoted, text\"", "é", "\xff\x80", "a,b, c", "a;b=c", "=?:@/", strings.Repeat("long ", 20)+"x")
}

// target is a request's target, and a Host.
func (g *generator) target() (target, host string) {
	host = g.pick("x", "Example.COM", "example.com:8080", "127.0.0.1:81", "[::1]:80", "a_b.example")
	var path string
	for {
		path = g.pick("/api", "/api", "/keep", "", "/apix", "/%61pi", "/other/../api")
		for range g.IntN(4) {
			path += "/" + g.pick("a", "b", "", ".", "..", "%2e", "%2E%2e", "%2F", "%2f", "c%20d", "%7Euser", "~", "é", "a|b", "x;y=z", "%c3%A9", "a:b@c",
				"%25", "%00", "\"<>^`{}", "[x]", "\\", "...", "%2", "!$&'()*+,=")
		}
		if strings.HasSuffix(path, "%2") {
			path += "5"
		}
		path = strings.ReplaceAll(path, "%2/", "%252/")
		if path == "" {
			path = "/"
		}
		if normal, _, _ := twinTarget(path); normal != "" {
			break
		}
	}
	if g.one(2) {
		path += "?"
		for range g.IntN(6) {
			path += g.pick("a=b", "&", ";", "%zz", "%", "é", "?", "/../", "//", "|\"<>", "+", "=", "%0d%0a", "http://x/")
		}
	}
	if g.one(12) {
		return g.pick("http://", "HTTP://") + g.pick("abs.example", "Abs.example:81") + path, host
	}
	return path, host
}

// requestFields are all but those of target and framing.
func (g *generator) requestFields(old, kept bool) []string {
	head := g.someFields()
	add := func(name, value string) {
		head = append(head, g.name(name)+":"+g.pick(" ", "", "\t ")+value+g.pick("", "", " "))
	}
	options := g.options()
	switch {
	case !kept && !(old && g.one(2)):
		options = append(options, g.pick("close", "Close"))
	case kept && old:
		options = append(options, "keep-alive")
	}
	if g.one(6) {
		add("TE", g.pick("trailers", "gzip, trailers", "gzip;q=0.5", "Trailers"))
		options = append(options, "TE")
	}
	if g.one(8) {
		add("Upgrade", g.pick("websocket", "chat/1.0", "WebSocket"))
		if g.one(4) {
			add("HTTP2-Settings", "AAMAAABk")
		} else {
			options = append(options, g.pick("Upgrade", "upgrade"))
		}
	}
	for _, option := range options {
		if g.one(2) && len(options) > 1 {
			add("Connection", strings.Join(options, g.pick(",", ", ", " ,, ")))
			options = nil
			break
		}
		add("Connection", option)
	}
	if g.one(3) {
		add(g.pick("User-Agent", "Referer"), g.value())
	}
	for range g.IntN(3) {
		add("X-Forwarded-For", g.pick("1.2.3.4", "127.0.0.2, 127.0.0.3", "1.2.3.4, 127.0.0.9", "unknown", "2001:db8::1,127.0.0.1", "", "6.6.6.6, 1.2.3.4"))
	}
	for _, c := range [][]string{
		{"X-Forwarded-Proto", "https", "http, https", ""}, {"X-Forwarded-Host", "public.example", "a.example, b.example"}, {"X-Real-IP", "6.6.6.6"},
		{"X-Request-ID", "abc-123", "a b", ""}, {"X-Forwarded-Port", "443"}, {"X-Forwarded-Prefix", "/x"}, {"X_Forwarded_For", "6.6.6.6"},
		{"x-real_ip", "6.6.6.6"}, {"Via", "1.0 fred", "1.1 pyserve", "HTTP/2 a (b)"}, {"Forwarded", "for=1.2.3.4"}, {"Max-Forwards", "7"},
		{"Expect_", "x"}, {"Proxy-Authorization", "Basic eA=="}, {"Pragma", "no-cache", "x"}, {"Cache-Control", "no-cache", "max-age=0"},
	} {
		if g.one(6) {
			add(c[0], g.pick(c[1:]...))
		}
	}
	return head
}

// someFields are end-to-end, and go both ways.
func (g *generator) someFields() (head []string) {
	for range g.IntN(6) {
		name := g.pick("X-A", "X-A", "X-B", "x_under", "Cookie", "Set-Cookie", "Accept", "Content-Language", "Authorization", "ETag", "Range", "X-Hop", "!#$%&'*+-.^`|~")
		head = append(head, g.name(name)+":"+g.pick(" ", " ", "", "\t", "  ")+g.value()+g.pick("", "", " ", "\t"))
	}
	return head
}

// options are names that Connection takes with it, and fields that go without being named.
func (g *generator) options() (options []string) {
	for range g.IntN(3) {
		options = append(options, g.pick("X-Hop", "x-hop", "X-A", "X-Forwarded-For", "X-Request-ID", "X-None", "Via", "Cookie", "Content-Length", "Host", "Keep-Alive"))
	}
	return options
}

// answer is a whole one, with what comes before it.
func (g *generator) answer(method string, old, kept, continued bool) string {
	var out strings.Builder
	if continued {
		out.WriteString("HTTP/1.1 100 " + g.pick("Continue", "Go On", "") + "\r\n" + g.pick("", "X-A: 1\r\n") + "\r\n")
	} else if g.one(8) {
		for range 1 + g.IntN(3) {
			out.WriteString("HTTP/1.1 " + g.pick("103 Early Hints", "102 Processing", "199 Odd") + "\r\n")
			out.WriteString(g.pick("", "Link: </a>\r\nlink: </b>\r\n", "Connection: X-Hop\r\nX-Hop: 1\r\nX-A: 2\r\n") + "\r\n")
		}
	}
	status := g.pick("200 OK", "200 OK", "200 OK", "200 Fine", "200 ", "201 Created", "206 Partial Content", "302 Found", "404 Not Found", "500 Oh", "204 No Content",
		"304 Not Modified", "599 x", "999 y", "426 Upgrade Required", "421 Misdirected Request")
	out.WriteString(g.pick("HTTP/1.1", "HTTP/1.1", "HTTP/1.1", "HTTP/1.0") + " " + status + "\r\n")
	head := g.answerFields(status)
	body, tail := g.body(), ""
	framing := g.pick("length", "length", "chunked", "close")
	if strings.Contains(out.String(), "HTTP/1.0 "+status) && framing == "chunked" || old && kept || status[:3] == "204" {
		framing = "length" // HTTP/1.0 has no other that keeps the connection
	}
	none := method == "HEAD" || status[:3] == "204" || status[:3] == "304"
	switch framing {
	case "length":
		if !none || g.one(2) && status[:3] != "204" {
			head = append(head, g.name("Content-Length")+": "+g.pick("", "", "", "0")+fmt.Sprint(len(body)))
		}
		tail = body
	case "chunked":
		head = append(head, g.name("Transfer-Encoding")+": chunked")
		var announced string
		tail, announced = g.chunks(body)
		if announced != "" && !none {
			head = append(head, announced)
		}
	case "close":
		tail = body
	}
	if none {
		tail = ""
	}
	g.Shuffle(len(head), func(i, j int) { head[i], head[j] = head[j], head[i] })
	for _, field := range head {
		out.WriteString(field + "\r\n")
	}
	return out.String() + "\r\n" + tail
}

func (g *generator) answerFields(status string) []string {
	head := g.someFields()
	add := func(name string, values ...string) { head = append(head, g.name(name)+": "+g.pick(values...)) }
	if !g.one(5) {
		add("Date", "Mon, 01 Jan 2001 00:00:00 GMT", "nonsense")
	}
	if !g.one(5) {
		add("Content-Type", "text/html", "text/plain; charset=utf-8", "")
	}
	if g.one(4) {
		add("Connection", "close", "X-Hop", "keep-alive, x-hop", "X-A, close")
		add("Keep-Alive", "timeout=5")
	}
	for _, c := range [][]string{
		{"Server", "theirs"}, {"Proxy-Authenticate", "Basic"}, {"Via", "1.0 fred"}, {"Content-Encoding", "gzip"}, {"Pragma", "no-cache"}, {"Proxy-Connection", "close"},
		{"X-Forwarded-For", "1.2.3.4"}, {"Vary", "*"}, {"Set-Cookie", "a=1; Path=/", "b=2"}, {"Set-Cookie", "c=3"}, {"WWW-Authenticate", "Basic realm=\"x\""},
	} {
		if g.one(6) {
			add(c[0], c[1:]...)
		}
	}
	for _, name := range []string{"Location", "Content-Location"} {
		if g.one(4) {
			add(name, "/login", "/", "x/y", "../x", "?q", "#f", "//other/x", "https://"+g.backend+"/x", "http://"+g.backend+"/x?y#z", "HTTP://"+g.backend, "//"+g.backend+"?q",
				"http://other.example/", "http://x/y", "http://Example.com/keep", "mailto:a@b", "/é%7Ez", "http://127.0.0.1/", "")
		}
	}
	if status[:3] == "426" {
		head = append(head, "Upgrade: x/1", "Connection: Upgrade")
	}
	return head
}
