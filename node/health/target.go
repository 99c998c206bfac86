package health

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/pyserve/pyserve/node/upstream"
	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

// userAgent is what probes call themselves.
const userAgent = "pyserve-health"

const (
	// A longer head than this is not a health check's answer.
	maxHead = 64 << 10
	// So much of a body is read, which lets the backend end in peace; beyond that the connection is cut.
	maxBody = 64 << 10
	// Interim answers (1xx) before the real one.
	maxInterim = 10
)

// target is a backend with what a probe of it does. One goroutine uses it.
type target struct {
	backend *upstream.Backend
	check   *resourcev1.HealthCheck
	timeout time.Duration

	probe func(context.Context) error
	close func() // ends what is kept from probe to probe

	request  string                    // for HTTP: what is written
	expected []*resourcev1.StatusRange // for HTTP
	wanted   []byte                    // for HTTP: what the body has to hold; empty: nothing
}

// newTarget returns the target of b, whose check is one that Supports. It is to be closed.
func newTarget(b *upstream.Backend) *target {
	c := b.Spec().Check
	t := &target{backend: b, check: c, timeout: cmp.Or(max(0, c.GetTimeout().AsDuration()), defaultTimeout)}
	t.probe, t.close = t.connect, func() {}
	switch c.GetType() {
	case resourcev1.HealthCheckType_HEALTH_CHECK_TYPE_HTTP:
		t.prepareHTTP(c)
	case resourcev1.HealthCheckType_HEALTH_CHECK_TYPE_GRPC:
		g := newGRPCProbe(b, c)
		t.probe, t.close = g.probe, g.close
	case resourcev1.HealthCheckType_HEALTH_CHECK_TYPE_WEBSOCKET:
		t.probe = newWebSocketProbe(b, c, t.timeout).probe
	}
	return t
}

func (t *target) prepareHTTP(c *resourcev1.HealthCheck) {
	t.request = "GET " + cmp.Or(c.GetPath(), "/") + " HTTP/1.1\r\nHost: " + t.backend.Authority() +
		"\r\nUser-Agent: " + userAgent + "\r\nAccept: */*\r\nConnection: close\r\n\r\n"
	if t.expected = c.GetExpectedStatuses(); len(t.expected) == 0 {
		t.expected = []*resourcev1.StatusRange{{First: 200, Last: 399}}
	}
	t.wanted = []byte(c.GetExpectedBody())
}

// try probes once, and returns why the probe failed, in a few words, or nothing if it did not. It is void if the reason says nothing of
// the backend.
func (t *target) try(ctx context.Context) (reason string, void bool) { return t.outcome(ctx, t.probe) }

// reach is try for a backend that is asked whatever its check says: it connects, and no more.
func (t *target) reach(ctx context.Context) (reason string, void bool) {
	return t.outcome(ctx, func(ctx context.Context) error {
		conn, err := t.backend.Dial(ctx)
		if err == nil {
			conn.Close()
		}
		return err
	})
}

func (t *target) outcome(ctx context.Context, probe func(context.Context) error) (reason string, void bool) {
	ctx, cancel := context.WithTimeout(ctx, t.timeout)
	defer cancel()
	err := probe(ctx)
	var (
		unknown *upstream.ResolveError
		known   failure
	)
	switch {
	case err == nil:
		return "", false
	case exhausted(err):
		return reasonFor(err, time.Now()), true
	case errors.As(err, &unknown), errors.As(err, &known):
		return reasonFor(err, time.Now()), false // even after the timeout: that was the lookup's, or is what the words are about
	case errors.Is(ctx.Err(), context.DeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		return "timeout after " + t.timeout.String(), false
	default:
		return reasonFor(err, time.Now()), false
	}
}

// connect opens a connection and, where the check says so, sends the request over it. A TCP check ends with the
// connection; with TLS 1.3 a backend that wants another client certificate says so only afterwards, which that check cannot
// see and an HTTP check does.
func (t *target) connect(ctx context.Context) error {
	conn, err := t.backend.Dial(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	if t.request == "" {
		return nil
	}
	// Whatever ends the context ends the conversation.
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	return t.exchange(conn)
}

// exchange sends the request and judges the answer. A redirect is an answer like any other: what it points at is not
// this backend.
func (t *target) exchange(conn net.Conn) error {
	if _, err := io.WriteString(conn, t.request); err != nil {
		return err
	}
	limited := &io.LimitedReader{R: conn, N: maxHead}
	status, body, err := readHead(bufio.NewReader(limited))
	if err != nil {
		if limited.N == 0 {
			return fmt.Errorf("the answer's head is over %d KiB", maxHead>>10)
		}
		return err
	}
	if !t.expects(status) {
		return fmt.Errorf("status %d, expected %s", status, ranges(t.expected))
	}
	defer body.Close()
	if len(t.wanted) > 0 {
		limited.N = 8 * maxBody // with the framing of small chunks
		return lookFor(t.wanted, body)
	}
	// The status has decided. How the body fares is no part of the check.
	limited.N = maxBody
	io.Copy(io.Discard, io.LimitReader(body, maxBody))
	return nil
}

// lookFor reads a body up to where it holds what is wanted, or as far as probes read. A body that never ends does not
// matter where the wanted stands at its beginning.
func lookFor(wanted []byte, body io.Reader) error {
	in := &io.LimitedReader{R: body, N: maxBody}
	window := make([]byte, 0, len(wanted)+4<<10)
	for {
		n, err := in.Read(window[len(window):cap(window)])
		window = window[:len(window)+n]
		if bytes.Contains(window, wanted) {
			return nil
		}
		if err != nil {
			return notFound(wanted, err, in.N == 0)
		}
		if kept := len(wanted) - 1; len(window) > kept { // it may have begun
			window = window[:copy(window, window[len(window)-kept:])]
		}
	}
}

func notFound(wanted []byte, err error, cut bool) error {
	var timeout net.Error
	switch {
	case errors.As(err, &timeout) && timeout.Timeout():
		return err
	case cut:
		return failure(fmt.Sprintf("the first %d KiB of the body do not hold %s", maxBody>>10, clip(strconv.Quote(string(wanted)))))
	}
	return failure("the body does not hold " + clip(strconv.Quote(string(wanted))))
}

// readHead reads the head of the final answer; the interim ones before it are passed over (RFC 9110 section 15.2).
func readHead(in *bufio.Reader) (status int, body io.ReadCloser, err error) {
	for range maxInterim {
		resp, err := http.ReadResponse(in, &http.Request{Method: http.MethodGet})
		if err != nil {
			return 0, nil, err
		}
		if resp.StatusCode >= 200 || resp.StatusCode == http.StatusSwitchingProtocols {
			return resp.StatusCode, resp.Body, nil
		}
	}
	return 0, nil, errors.New("nothing but interim answers")
}

func (t *target) expects(status int) bool {
	for _, r := range t.expected {
		if int(r.GetFirst()) <= status && status <= int(r.GetLast()) {
			return true
		}
	}
	return false
}

// ranges writes statuses as the document has them: "200-299,401".
func ranges(expected []*resourcev1.StatusRange) string {
	var words []string
	for _, r := range expected {
		word := fmt.Sprint(r.GetFirst())
		if r.GetLast() != r.GetFirst() {
			word += fmt.Sprint("-", r.GetLast())
		}
		words = append(words, word)
	}
	return strings.Join(words, ",")
}
