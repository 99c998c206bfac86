package http1

// Response is the head of a response. The zero value is ready for the first one.
type Response struct {
	Head

	// Status is from 100 to 999. Those above 599 have no meaning of their own and pass as they are (RFC 9110 section 15).
	Status int

	reason span
}

// Reset makes r ready for the next response, which may be to the same request if this one was interim. What it grew to is
// kept.
func (r *Response) Reset() {
	r.Head.reset()
	*r = Response{Head: r.Head}
}

// Interim says whether another response to the same request follows: a 1xx that is not 101 (RFC 9110 section 15.2).
func (r *Response) Interim() bool { return r.Status < 200 && r.Status != 101 }

// ReasonPhrase is the text after the status, often empty.
func (r *Response) ReasonPhrase() []byte { return r.bytes(r.reason) }

// Parse is like [Request.Parse], for a response to a request with the given method, which must be the same in all calls. No
// empty line may stand before a response.
func (r *Response) Parse(buf []byte, method Method) (int, error) {
	if r.failed != none {
		return 0, r.failed
	}
	n, reason := r.parse(buf, method)
	r.failed = reason
	return n, asError(reason)
}

func (r *Response) parse(buf []byte, method Method) (int, Reason) {
	window := buf[:min(len(buf), MaxHead)]
	if r.awaits(window, MaxHead) {
		return 0, none
	}
	if !r.started {
		if reason := r.statusLine(window); reason != none {
			return 0, r.orWait(reason, window, MaxHead, HeadTooLong)
		}
		r.started = true
	}
	if reason := r.parseFields(window, false); reason != endOfSection {
		return 0, r.orWait(reason, window, MaxHead, HeadTooLong)
	}
	if reason := r.settleResponse(window[:r.next:r.next], method); reason != none {
		return 0, reason
	}
	return r.next, none
}

// statusLine reads version, status and reason phrase (RFC 9112 section 4). The space before a reason phrase that is empty is
// due, but so often forgotten, and so harmless, that it need not be there.
func (r *Response) statusLine(buf []byte) Reason {
	version, i, reason := versionAt(buf, 0)
	if reason != none {
		return reason
	}
	status := 0
	for k := range 4 {
		if i == len(buf) {
			return needMore
		}
		c := buf[i]
		switch {
		case k == 0 && c != ' ':
			return BadVersion
		case k > 0 && !is(c, isDigit):
			return BadStatus
		case k > 0:
			status = status*10 + int(c-'0')
		}
		i++
	}
	if i == len(buf) {
		return needMore
	}
	phrase := i
	if buf[i] == ' ' {
		phrase++
		for i = skipText(buf, phrase); i < len(buf) && buf[i] == '\t'; i = skipText(buf, i+1) {
		}
		if i == len(buf) {
			return needMore
		}
	}
	if reason := endOfLine(buf, i, BadStatusLine); reason != none {
		return reason
	}
	switch {
	case version.major != 1:
		return UnsupportedVersion
	case status < 100:
		return BadStatus
	}
	r.Minor, r.Status = min(version.minor, 1), status
	r.reason = span{uint32(phrase), uint32(i)}
	r.next = i + 2
	return none
}

// settleResponse is called at the end of the head and finds the framing by RFC 9112 section 6.3.
func (r *Response) settleResponse(buf []byte, method Method) Reason {
	if reason := r.settle(buf); reason != none {
		return reason
	}
	announced := r.Has(TransferEncoding) || r.ContentLength > 0
	switch {
	case r.Status < 200 && announced:
		// It says that a body follows, and the rules say that none does.
		return BodyOnInterim
	case r.Status == 101 && !r.Has(Upgrade):
		return UpgradeNotNamed
	case r.Status < 200:
	case r.Status == 204:
		// The same, but it is common, and safe if nothing else is read from this connection.
		r.KeepAlive = r.KeepAlive && !announced
	case r.Status == 304 || method == HEAD:
	case method == CONNECT && r.Status < 300:
	case r.Has(TransferEncoding):
		r.Framing = Chunked
	case r.ContentLength > 0:
		r.Framing = Length
	case r.ContentLength < 0:
		r.Framing, r.KeepAlive = UntilClose, false
	}
	return none
}
