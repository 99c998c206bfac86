package forward

import (
	"context"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"net/textproto"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// twin is the same proxy as net/http makes it: httputil.ReverseProxy does what it does, and a Rewrite and a ModifyResponse the
// rest of what the node promises. Nothing of it is of this package or of http1 and route, so that a mistake would have to be
// made twice.
type twin struct {
	address string
	backend string // host:port
	trusted bool   // the clients are trusted proxies
}

// twinRoute is a prefix route of the twin.
type twinRoute struct {
	prefix             string // "" for "/"
	strip, preserve    bool
	patient, impatient *httputil.ReverseProxy
}

// newTwin serves the routes of oracleSites.
func newTwin(t testing.TB, backend string, trusted bool) *twin {
	t.Helper()
	w := &twin{backend: backend, trusted: trusted}
	// A backend that says 100 is waited for, the other is not: which one it is, only the test can know.
	patient := &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 100, ExpectContinueTimeout: time.Minute}
	impatient := &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 100, ExpectContinueTimeout: time.Millisecond}
	var routes []*twinRoute
	for _, r := range []*twinRoute{{prefix: "/keep", preserve: true}, {prefix: "/api", strip: true}, {strip: true}} {
		r.patient, r.impatient = w.proxy(r, patient), w.proxy(r, impatient)
		routes = append(routes, r)
	}
	s := &http.Server{
		Handler:  http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) { w.serve(rw, r, routes) }),
		ErrorLog: log.New(io.Discard, "", 0), Protocols: new(http.Protocols),
	}
	s.Protocols.SetHTTP1(true)
	s.Protocols.SetUnencryptedHTTP2(true)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w.address = l.Addr().String()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s.Serve(l)
	}()
	t.Cleanup(func() {
		s.Close()
		<-ended
		patient.CloseIdleConnections()
		impatient.CloseIdleConnections()
	})
	return w
}

func (w *twin) proxy(r *twinRoute, transport *http.Transport) *httputil.ReverseProxy {
	return &httputil.ReverseProxy{
		Transport: transport, ErrorLog: log.New(io.Discard, "", 0),
		Rewrite:        func(pr *httputil.ProxyRequest) { w.rewrite(r, pr) },
		ModifyResponse: func(res *http.Response) error { w.public(res); return nil },
	}
}

func (w *twin) serve(rw http.ResponseWriter, in *http.Request, routes []*twinRoute) {
	path, _, _ := twinTarget(in.RequestURI)
	if in.Trailer == nil && in.ContentLength < 0 {
		in.Trailer = make(http.Header) // or trailers that are not announced would get lost, see rewrite
	}
	for _, r := range routes {
		if path == r.prefix || strings.HasPrefix(path, r.prefix+"/") {
			if in.Header.Get("X-Silent") != "" {
				r.impatient.ServeHTTP(rw, in)
			} else {
				r.patient.ServeHTTP(rw, in)
			}
			return
		}
	}
	rw.WriteHeader(http.StatusNotFound)
}

// twinTarget is the path in normal form, by RFC 3986 section 6.2.2 step by step; empty where it climbs above the root.
func twinTarget(target string) (path, query string, hasQuery bool) {
	if !strings.HasPrefix(target, "/") {
		_, target, _ = strings.Cut(target, "//")
		target = strings.TrimLeft(target, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.:-[]")
	}
	target, query, hasQuery = strings.Cut(target, "?")
	if target == "" {
		target = "/"
	}
	segments := strings.Split(target, "/")[1:]
	var kept []string
	for i, segment := range segments {
		segment = twinSegment(segment)
		last := i == len(segments)-1
		switch segment {
		case "..":
			if len(kept) == 0 {
				return "", query, hasQuery
			}
			kept = kept[:len(kept)-1]
		case ".":
		default:
			kept = append(kept, segment)
			continue
		}
		if last {
			kept = append(kept, "")
		}
	}
	return "/" + strings.Join(kept, "/"), query, hasQuery
}

// twinSegment is a segment with the encodings that it needs, and no others.
func twinSegment(segment string) string {
	const unreserved = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~"
	var out strings.Builder
	for i := 0; i < len(segment); i++ {
		c := segment[i]
		switch {
		case c == '%':
			n, _ := strconv.ParseUint(segment[i+1:i+3], 16, 8)
			if strings.IndexByte(unreserved, byte(n)) >= 0 {
				out.WriteByte(byte(n))
			} else {
				out.WriteString(strings.ToUpper(segment[i : i+3]))
			}
			i += 2
		case strings.IndexByte(unreserved+"!$&'()*+,;=:@", c) >= 0:
			out.WriteByte(c)
		default:
			out.WriteString("%" + strings.ToUpper(strconv.FormatUint(uint64(c)+0x100, 16)[1:]))
		}
	}
	return out.String()
}

// rewrite does what ReverseProxy leaves to its user, and takes back what the node promises otherwise.
func (w *twin) rewrite(r *twinRoute, pr *httputil.ProxyRequest) {
	in, out := pr.In, pr.Out
	path, query, hasQuery := twinTarget(in.RequestURI)
	if r.strip {
		path = strings.TrimPrefix(path, r.prefix)
	}
	if path == "" {
		path = "/"
	}
	out.URL = &url.URL{Scheme: "http", Host: w.backend, RawPath: path, RawQuery: query, ForceQuery: hasQuery}
	out.URL.Path, _ = url.PathUnescape(path)
	out.Host = ""
	if r.preserve {
		out.Host = in.Host
	}
	out.Trailer = in.Trailer // the map that the server fills when it comes to them
	w.endToEnd(in, out)
	public := w.origin(in, out)
	public.host = w.backend
	if r.preserve {
		public.host = in.Host
	}
	if r.strip {
		public.stripped = r.prefix
	}
	pr.Out = out.WithContext(context.WithValue(out.Context(), publicKey{}, public))
}

// endToEnd is about the fields that pass.
func (w *twin) endToEnd(in, out *http.Request) {
	named := connectionOptions(in.Header)
	if forwarded := in.Header["Forwarded"]; forwarded != nil && !named["Forwarded"] {
		out.Header["Forwarded"] = forwarded // only X-Forwarded-* is ours
	}
	out.Header.Del("Http2-Settings")
	out.Header.Del("Proxy-Authentication-Info")
	for name := range out.Header {
		hyphened := textproto.CanonicalMIMEHeaderKey(strings.ReplaceAll(name, "_", "-"))
		if hyphened != name && isManaged(hyphened) || strings.HasPrefix(name, "X-Forwarded-") && !w.trusted {
			out.Header.Del(name)
			delete(out.Header, name)
		}
	}
	if n, err := strconv.Atoi(out.Header.Get("Max-Forwards")); err == nil && (in.Method == "OPTIONS" || in.Method == "TRACE") {
		out.Header.Set("Max-Forwards", strconv.Itoa(n-1)) // RFC 9110 section 7.6.2
	}
	var options []string
	if in.ProtoMinor == 0 && in.ProtoMajor == 1 { // RFC 9110 section 7.8 and 10.1.4
		out.Header.Del("Upgrade")
		out.Header.Del("Te")
	}
	if out.Header.Get("Upgrade") != "" && named["Upgrade"] {
		options = append(options, "Upgrade")
	}
	if out.Header.Get("Te") != "" {
		options = append(options, "TE")
	}
	if out.Header.Del("Connection"); options != nil {
		out.Header.Set("Connection", strings.Join(options, ", "))
	}
}

// isManaged says whether the proxy writes or judges a field itself; other spellings of such a name are dropped.
func isManaged(name string) bool {
	return strings.HasPrefix(name, "X-Forwarded-") || slices.Contains([]string{
		"X-Real-Ip", "X-Request-Id", "Content-Length", "Transfer-Encoding", "User-Agent",
	}, name)
}

// connectionOptions are the names that Connection has in it.
func connectionOptions(h http.Header) map[string]bool {
	named := make(map[string]bool)
	for _, value := range h["Connection"] {
		for option := range strings.SplitSeq(value, ",") {
			named[textproto.CanonicalMIMEHeaderKey(strings.TrimSpace(option))] = true
		}
	}
	return named
}

// publicName is what answers need to know of the request.
type publicName struct{ scheme, authority, host, stripped string }

type publicKey struct{}

// origin writes who the client is.
func (w *twin) origin(in, out *http.Request) publicName {
	peer, _, _ := net.SplitHostPort(in.RemoteAddr)
	said := func(name string) []string {
		if !w.trusted || connectionOptions(in.Header)[name] {
			return nil
		}
		return in.Header[name]
	}
	first := func(name, otherwise string) string {
		if values := said(name); len(values) > 0 {
			value, _, _ := strings.Cut(values[0], ",")
			if value = strings.TrimSpace(value); value != "" {
				return value
			}
		}
		return otherwise
	}
	chain := slices.DeleteFunc(slices.Clone(said("X-Forwarded-For")), func(s string) bool { return s == "" })
	out.Header["X-Forwarded-For"] = []string{strings.Join(append(slices.Clone(chain), peer), ", ")}
	p := publicName{scheme: first("X-Forwarded-Proto", "http"), authority: first("X-Forwarded-Host", in.Host)}
	out.Header["X-Forwarded-Proto"] = []string{p.scheme}
	if p.authority != "" {
		out.Header["X-Forwarded-Host"] = []string{p.authority}
	}
	out.Header["X-Real-Ip"] = []string{twinNearest(chain, peer)}
	id := generatedID
	if sent := said("X-Request-Id"); len(sent) > 0 && sent[0] != "" && strings.Trim(sent[0], "abcdefghijklmnopqrstuvwxyz0123456789-") == "" {
		id = sent[0]
	}
	out.Header["X-Request-Id"] = []string{id}
	version := strconv.Itoa(in.ProtoMajor) + "." + strconv.Itoa(in.ProtoMinor)
	out.Header["Via"] = append(out.Header["Via"], version+" pyserve")
	return p
}

// generatedID stands for the request's id where the client is not to say it.
const generatedID = "0123456789abcdef0123456789abcdef"

// twinNearest is the nearest address that is not on the loopback, which is whom the oracle's proxies trust.
func twinNearest(chain []string, peer string) string {
	nearest := netip.MustParseAddr(peer)
	entries := strings.Split(strings.Join(chain, ","), ",")
	for _, entry := range slices.Backward(entries) {
		at, err := netip.ParseAddr(strings.TrimSpace(entry))
		if err != nil {
			break
		}
		if nearest = at; !at.IsLoopback() {
			break
		}
	}
	return nearest.String()
}

// public is about the answer's fields: where it points at the backend, it is to point at us.
func (w *twin) public(res *http.Response) {
	res.Header.Del("Http2-Settings")
	res.Header.Del("Proxy-Authentication-Info")
	p := res.Request.Context().Value(publicKey{}).(publicName)
	for _, name := range []string{"Location", "Content-Location"} {
		for i, ref := range res.Header[name] {
			res.Header[name][i] = w.publicReference(p, ref)
		}
	}
}

func (w *twin) publicReference(p publicName, ref string) string {
	u, err := url.Parse(ref)
	switch {
	case err != nil, u.Opaque != "":
		return ref
	case u.Host == "" && u.Scheme == "" && strings.HasPrefix(ref, "/") && !strings.HasPrefix(ref, "//"):
		return p.stripped + ref
	case u.Host == "", u.User != nil, u.Scheme != "" && u.Scheme != "http":
		return ref
	case !sameAuthority(u.Host, w.backend) && !sameAuthority(u.Host, p.host):
		return ref
	}
	_, rest, _ := strings.Cut(ref, "//")
	rest = p.stripped + rest[len(u.Host):]
	switch {
	case p.authority == "" && !strings.HasPrefix(rest, "/"):
		return "/" + rest
	case p.authority == "":
		return rest
	case u.Scheme == "":
		return "//" + p.authority + rest
	}
	return p.scheme + "://" + p.authority + rest
}

// sameAuthority compares what follows http://.
func sameAuthority(a, b string) bool {
	ported := func(s string) string {
		if u := (&url.URL{Host: s}); u.Port() == "" {
			s = u.Hostname() + ":80"
		}
		return strings.ToLower(s)
	}
	return b != "" && ported(a) == ported(b)
}
