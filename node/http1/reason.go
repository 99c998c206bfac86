package http1

// A Reason is why a message was refused; all errors of parsing are one. Reasons are numbered from 1 to [NumReasons]-1, so that
// counters of refusals can be an array. The zero value is no error.
type Reason uint8

const (
	none Reason = iota

	// Lines of the head.

	BareCR           // a CR that is not followed by LF (RFC 9112 section 2.2)
	BareLF           // a line that ends in LF alone
	EmptyLines       // more than two empty lines before the message
	HeadTooLong      // the head is longer than MaxHead
	TooManyFields    // more than MaxFields
	NoColon          // a field line without a colon
	SpaceBeforeColon // whitespace between field name and colon (RFC 9112 section 5.1)
	ObsFold          // a line that begins with whitespace (RFC 9112 section 5.2)
	EmptyName        // a field without a name
	BadName          // a field name that is not a token
	ControlInValue   // a control character in a field value (RFC 9110 section 5.5)

	// The request line.

	TLSHandshake       // the client speaks TLS
	HTTP2Preface       // the client speaks HTTP/2 with prior knowledge (RFC 9113 section 3.4)
	BadRequestLine     // anything but single spaces between method, target and version
	BadMethod          // a method that is not a token
	MethodTooLong      // a method longer than MaxMethod
	TargetTooLong      // a target longer than MaxTarget
	ControlInTarget    // a control character in the target
	FragmentInTarget   // a "#" in the target
	BadTarget          // a target in none of the four forms, or in one that the method does not have
	BadAuthority       // userinfo, or no valid host and port, in the target
	UnknownProtocol    // three words, of which the last is nothing like a version: what another protocol may begin with
	BadVersion         // not a version of HTTP, "http/1.1" and "HTTP/1.10" included
	UnsupportedVersion // another major version than 1

	// Host.

	MissingHost   // none in HTTP/1.1
	DuplicateHost // more than one
	BadHost       // not a host with an optional port

	// Framing.

	CodingInHTTP10          // Transfer-Encoding in HTTP/1.0 (RFC 9112 section 6.1)
	CodingWithLength        // Transfer-Encoding with Content-Length
	RepeatedCoding          // more than one Transfer-Encoding line
	UnknownCoding           // a transfer coding other than chunked
	ChunkedNotLast          // a coding after chunked
	ChunkedTwice            // chunked more than once
	BadCoding               // an empty Transfer-Encoding, or one that is not a list of codings, or chunked with parameters
	BadContentLength        // anything but digits
	ContentLengthOverflow   // more than 2^63-1
	DifferingContentLengths // two that are not the same text

	// Connection and expectations.

	BadConnection      // an option that is not a token
	TooManyOptions     // more connection options than MaxOptions
	BadUpgrade         // a protocol that is not a token with an optional version
	UnknownExpectation // an expectation other than 100-continue

	// The status line.

	BadStatusLine   // not "HTTP-version SP status-code [SP reason-phrase]"
	BadStatus       // a status that is not three digits from 100 to 999
	BodyOnInterim   // a 1xx response that announces a body
	UpgradeNotNamed // a 101 response without Upgrade

	// Bodies.

	BadChunkSize      // not a hexadecimal number, or whitespace after it
	ChunkSizeOverflow // more than 2^63-1
	ChunkLineTooLong  // longer than MaxChunkLine
	BadChunkExtension // not by RFC 9112 section 7.1.1
	ChunkOverrun      // no CRLF where the chunk should end
	ChunkOverhead     // far more framing than data
	TrailerTooLong    // trailers longer than MaxTrailer
	TooManyTrailers   // more trailer fields than MaxTrailers
	ForbiddenTrailer  // Content-Length, Transfer-Encoding or Host as a trailer
	Truncated         // the connection ended before the body
	BodyTooLong       // chunks of more data than Body.Limit allows

	// NumReasons is one more than the highest reason.
	NumReasons int = iota
)

// What the parsing functions say besides reasons. Callers never see them.
const (
	needMore Reason = 255 - iota
	endOfSection
)

var reasons = [NumReasons]struct {
	text   string
	status int
}{
	none: {"none", 0},

	BareCR:           {"bare CR", 400},
	BareLF:           {"bare LF", 400},
	EmptyLines:       {"too many empty lines", 400},
	HeadTooLong:      {"head too long", 431},
	TooManyFields:    {"too many fields", 431},
	NoColon:          {"no colon", 400},
	SpaceBeforeColon: {"space before colon", 400},
	ObsFold:          {"obs-fold", 400},
	EmptyName:        {"empty field name", 400},
	BadName:          {"bad field name", 400},
	ControlInValue:   {"control character in value", 400},

	TLSHandshake:       {"TLS handshake", 400},
	HTTP2Preface:       {"HTTP/2 preface", 505},
	BadRequestLine:     {"bad request line", 400},
	BadMethod:          {"bad method", 400},
	MethodTooLong:      {"method too long", 501},
	TargetTooLong:      {"target too long", 414},
	ControlInTarget:    {"control character in target", 400},
	FragmentInTarget:   {"fragment in target", 400},
	BadTarget:          {"bad target", 400},
	BadAuthority:       {"bad authority", 400},
	UnknownProtocol:    {"unknown protocol", 400},
	BadVersion:         {"bad version", 400},
	UnsupportedVersion: {"unsupported version", 505},

	MissingHost:   {"missing host", 400},
	DuplicateHost: {"duplicate host", 400},
	BadHost:       {"bad host", 400},

	CodingInHTTP10:          {"te in HTTP/1.0", 400},
	CodingWithLength:        {"te with cl", 400},
	RepeatedCoding:          {"repeated te", 400},
	UnknownCoding:           {"unknown transfer coding", 501},
	ChunkedNotLast:          {"chunked not last", 400},
	ChunkedTwice:            {"chunked twice", 400},
	BadCoding:               {"bad te", 400},
	BadContentLength:        {"bad content-length", 400},
	ContentLengthOverflow:   {"content-length overflow", 400},
	DifferingContentLengths: {"differing content-lengths", 400},

	BadConnection:      {"bad connection option", 400},
	TooManyOptions:     {"too many connection options", 400},
	BadUpgrade:         {"bad upgrade", 400},
	UnknownExpectation: {"unknown expectation", 417},

	BadStatusLine:   {"bad status line", 400},
	BadStatus:       {"bad status", 400},
	BodyOnInterim:   {"body on interim response", 400},
	UpgradeNotNamed: {"101 without upgrade", 400},

	BadChunkSize:      {"bad chunk size", 400},
	ChunkSizeOverflow: {"chunk size overflow", 400},
	ChunkLineTooLong:  {"chunk line too long", 400},
	BadChunkExtension: {"bad chunk extension", 400},
	ChunkOverrun:      {"no CRLF after chunk", 400},
	ChunkOverhead:     {"chunk overhead", 400},
	TrailerTooLong:    {"trailer too long", 431},
	TooManyTrailers:   {"too many trailers", 431},
	ForbiddenTrailer:  {"forbidden trailer", 400},
	Truncated:         {"truncated body", 400},
	BodyTooLong:       {"body too long", 413},
}

// String is a short text that never changes and has no quotes in it: fit for the label of a metric.
func (r Reason) String() string {
	if int(r) >= NumReasons {
		return "unknown"
	}
	return reasons[r].text
}

// Error makes a Reason an error. Making an error of a Reason does not allocate.
func (r Reason) Error() string { return "http1: " + r.String() }

// Status is what a request that was refused for this reason is answered with. A response that was refused is always
// answered for with 502, whatever this says.
func (r Reason) Status() int {
	if int(r) >= NumReasons {
		return 400
	}
	return reasons[r].status
}

// asError keeps "no error" from becoming an error that says so.
func asError(r Reason) error {
	if r == none {
		return nil
	}
	return r
}
