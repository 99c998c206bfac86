package forward

import (
	"context"
	"net/http"
	"net/textproto"
	"strings"

	"github.com/pyserve/pyserve/node/http1"
)

// The answer's way to a client of HTTP/2.

// interim passes on a 1xx. A 100 the server sends itself.
func (s *stream) interim() error {
	if s.x.response.Status == http.StatusContinue {
		s.ask()
		return nil
	}
	if s.key != "" {
		return nil // what comes before the answer to CONNECT, few clients would expect
	}
	h := s.w.Header()
	s.x.out, _ = s.x.appendResponseFields(s.x.out[:0])
	s.addFields(h)
	s.in.alone()
	s.w.WriteHeader(s.x.response.Status)
	clear(h)
	return nil
}

// fill copies the end-to-end fields of a final answer or a 101.
func (s *stream) fill(h http.Header) *failure {
	x := s.x
	out, dated, err := x.appendEditedFields(x.out[:0])
	if err != nil {
		return headFailure(err)
	}
	if !dated && x.response.Status >= 200 { // RFC 9110 section 6.6.1
		out = append(out, *s.front.date.Load()...)
	}
	x.out = out
	s.addFields(h)
	return nil
}

// addFields adds the lines that were written.
func (s *stream) addFields(h http.Header) {
	addLines(h, string(s.x.out))
	delete(h, "Upgrade") // the one that HTTP/1 lets pass, with 426
}

// addLines adds lines that http1 has checked. Names and values are parts of lines.
func addLines(h http.Header, lines string) {
	values := make([]string, 0, strings.Count(lines, "\r\n"))
	for line := range strings.SplitSeq(lines, "\r\n") {
		name, value, ok := strings.Cut(line, ": ")
		if !ok {
			continue // the last one, which is empty
		}
		name = textproto.CanonicalMIMEHeaderKey(name)
		if there := h[name]; there != nil {
			h[name] = append(there, value)
			continue
		}
		n := len(values)
		values = append(values, value)
		h[name] = values[n : n+1 : n+1]
	}
}

// relay passes on the final answer.
func (s *stream) relay() *failure {
	x := s.x
	if s.key != "" && x.response.Status/100 == 2 {
		return s.notSwitched()
	}
	h := s.w.Header()
	if f := s.fill(h); f != nil {
		return f
	}
	if _, sent := h["Content-Type"]; !sent {
		h["Content-Type"] = nil // the server would guess one
	}
	s.sayClosing(h)
	if s.expected != nil {
		s.expected.final.Store(true)
	}
	if idle := x.route.timeouts.Idle; idle > 0 {
		s.patience.Store(int64(idle / 2)) // what is written at a time is little
		s.restTime = idle
	} else {
		s.restTime = stallTimeout
	}
	if !s.arm(&s.main, phaseBody, s.front.after(x.route.timeouts.Idle)) {
		return x.relayFailure(context.Canceled)
	}
	x.status, x.headSent = x.response.Status, true
	s.w.WriteHeader(x.status)
	clear(h) // or what is announced as a trailer and is in the head, too, would be said again
	if x.from == x.to && !x.downBody.Done() {
		s.in.alone()
		s.w.FlushError() // a client that has gone is noticed at the next write
	}
	for !x.downBody.Done() {
		if f := s.relayMore(); f != nil {
			return f
		}
	}
	addTrailers(h, x.downBody.Trailer())
	return nil
}

// addTrailers adds the trailers as the server knows them behind a head that was sent.
func addTrailers(h http.Header, t *http1.Fields) {
	for i, field := range t.List() {
		if !field.Hop {
			h.Add(http.TrailerPrefix+string(t.Name(i)), string(t.Value(i)))
		}
	}
}

// relayMore sends a piece of the body, or reads more.
func (s *stream) relayMore() *failure {
	x := s.x
	data, n, err := x.downBody.Next(x.back[x.from:x.to])
	x.from += n
	if err != nil {
		return x.nonsense(err)
	}
	if !s.arm(&s.main, phaseBody, s.front.after(x.route.timeouts.Idle)) {
		return x.relayFailure(context.Canceled)
	}
	if len(data) == 0 {
		if n > 0 || x.downBody.Done() {
			return nil
		}
		return x.readMore()
	}
	x.sent += int64(len(data))
	if _, err = s.w.Write(data); err == nil && !x.downBody.Done() {
		err = s.w.FlushError()
	}
	s.held = x.downBody.Done()
	if err != nil {
		if f := x.interruption(err); f != nil {
			return f
		}
		return &failure{class: ClassClient, err: err}
	}
	return nil
}

// sayClosing makes the server send GOAWAY with this answer.
func (s *stream) sayClosing(h http.Header) {
	if s.front.leaving.Load() || s.stale != nil && s.stale() {
		h.Set("Connection", "close")
	}
}

// reply answers for the proxy itself.
func (s *stream) reply(status int, kind string, body []byte) error {
	x := s.x
	h := s.w.Header()
	clear(h)
	x.out = append(x.appendReplyFields(x.out[:0], status, kind, len(body)), *s.front.date.Load()...)
	addLines(h, string(x.out))
	if _, sent := h["Content-Type"]; !sent {
		h["Content-Type"] = nil // as in relay
	}
	s.sayClosing(h)
	if !s.arm(&s.main, phaseBody, s.front.after(writeTimeout)) {
		s.main.due.Store(0) // it was the backend that was too slow
	}
	x.status, x.headSent = status, true
	s.w.WriteHeader(status)
	if s.r.Method == http.MethodHead || len(body) == 0 { // the server would not take nothing for a 204
		return nil
	}
	x.sent = int64(len(body))
	_, err := s.w.Write(body)
	s.held = true
	return err
}
