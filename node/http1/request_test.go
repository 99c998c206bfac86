package http1

import (
	"fmt"
	"strings"
	"testing"
)

// refusedRequests are heads that must not be understood, each by the rule that it breaks.
var refusedRequests = []struct {
	rule, head string
	reason     Reason
}{
	// Lines.
	{"9112-2.2 bare CR in a value", get("A: b\rc"), BareCR},
	{"9112-2.2 bare CR before CRLF", get("A: b\r"), BareCR},
	{"9112-2.2 bare CR in the target", "GET /\rx HTTP/1.1\r\nHost: a\r\n\r\n", BareCR},
	{"9112-2.2 bare CR after the version", "GET / HTTP/1.1\rHost: a\r\n\r\n", BareCR},
	{"9112-2.2 bare CR in a name", get("A\r: b"), BareCR},
	{"9112-2.2 bare CR for the last line", "GET / HTTP/1.1\r\nHost: a\r\n\r\r\n", BareCR},
	{"9112-2.2 bare CR before the request", "\rGET / HTTP/1.1\r\nHost: a\r\n\r\n", BareCR},
	{"9112-2.2 bare LF everywhere", "GET / HTTP/1.1\nHost: a\n\n", BareLF},
	{"9112-2.2 bare LF in the head", "GET / HTTP/1.1\r\nHost: a\nB: c\r\n\r\n", BareLF},
	{"9112-2.2 bare LF for the last line", "GET / HTTP/1.1\r\nHost: a\r\n\n", BareLF},
	{"9112-2.2 bare LF before the request", "\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", BareLF},
	{"9112-2.2 bare LF ends a name", get("A\n: b"), BareLF},
	{"9112-2.2 three empty lines", "\r\n\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", EmptyLines},

	// Request line.
	{"9112-3 space before the method", " GET / HTTP/1.1\r\nHost: a\r\n\r\n", BadRequestLine},
	{"9112-3 two spaces after the method", "GET  / HTTP/1.1\r\nHost: a\r\n\r\n", BadRequestLine},
	{"9112-3 two spaces before the version", "GET /  HTTP/1.1\r\nHost: a\r\n\r\n", BadRequestLine},
	{"9112-3 tab after the method", "GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n", BadRequestLine},
	{"9112-3 tab before the version", "GET /\tHTTP/1.1\r\nHost: a\r\n\r\n", BadRequestLine},
	{"9112-3 vertical tab for a space", "GET /\vHTTP/1.1\r\nHost: a\r\n\r\n", ControlInTarget},
	{"9112-3 space after the version", "GET / HTTP/1.1 \r\nHost: a\r\n\r\n", BadRequestLine},
	{"9112-3 a fourth word", "GET / HTTP/1.1 HTTP/1.1\r\nHost: a\r\n\r\n", BadRequestLine},
	{"9112-3 space in the target", "GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", BadVersion},
	{"9112-3 method alone", "GET\r\n\r\n", BadRequestLine},
	{"9112-3 method and space", "GET \r\n\r\n", BadRequestLine},
	{"9112-3 no method", "/ HTTP/1.1\r\nHost: a\r\n\r\n", BadMethod},
	{"9110-9.1 method is no token", "G@T / HTTP/1.1\r\nHost: a\r\n\r\n", BadMethod},
	{"9110-9.1 method in brackets", "(GET) / HTTP/1.1\r\nHost: a\r\n\r\n", BadMethod},
	{"9110-9.1 NUL in the method", "G\x00T / HTTP/1.1\r\nHost: a\r\n\r\n", BadMethod},
	{"9110-9.1 method above ASCII", "G\xc3\x8bT / HTTP/1.1\r\nHost: a\r\n\r\n", BadMethod},
	{"9112-3 method too long", strings.Repeat("A", MaxMethod+1) + " / HTTP/1.1\r\nHost: a\r\n\r\n", MethodTooLong},
	{"9112-3 target too long", "GET /" + strings.Repeat("a", MaxTarget) + " HTTP/1.1\r\nHost: a\r\n\r\n", TargetTooLong},
	{"TLS on a plain port", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", TLSHandshake},
	{"9113-3.4 HTTP/2 preface that comes late", "\r\nPRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", UnsupportedVersion},
	{"9113-3.4 HTTP/2 preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", HTTP2Preface},

	{"9113-3.4 preface of another protocol", "INVALID CONNECTION PREFACE\r\n\r\n", UnknownProtocol},
	{"9113-3.4 preface in lower case", "hello my friend\r\n", UnknownProtocol},
	{"9113-3.4 preface that is nearly a version", "GET / HTT\r\nHost: a\r\n\r\n", UnknownProtocol},
	{"9113-3.4 preface of a path and a word", "GET /a b\r\nHost: a\r\n\r\n", UnknownProtocol},
	{"9113-3.4 preface that is long", "A B " + strings.Repeat("c", MaxMethod) + "\r\n", UnknownProtocol},
	{"9113-3.4 preface that is too long", "A B " + strings.Repeat("c", MaxMethod+1) + "\r\n", BadVersion},
	{"9113-3.4 preface that comes late", "\r\nINVALID CONNECTION PREFACE\r\n\r\n", BadVersion},
	{"9113-3.4 preface of four words", "AN INVALID CONNECTION PREFACE\r\n\r\n", BadVersion},
	{"9113-3.4 preface with a space behind it", "INVALID CONNECTION PREFACE \r\n\r\n", BadVersion},
	{"9113-3.4 preface that ends in LF", "INVALID CONNECTION PREFACE\n\n", BadVersion},
	{"9113-3.4 preface that ends in CR", "INVALID CONNECTION PREFACE\r\r\n", BadVersion},
	{"9113-3.4 preface with a control character", "INVALID CONNECTION PRE\x00FACE\r\n\r\n", BadVersion},
	{"9113-3.4 preface with a slash", "INVALID CONNECTION PREFACE/2\r\n\r\n", BadVersion},

	// Version.
	{"9112-2.3 without a slash", "GET / HTTP1.1\r\nHost: a\r\n\r\n", BadVersion},
	{"9112-2.3 name alone", "GET / HTTP\r\nHost: a\r\n\r\n", BadVersion},
	{"9112-2.3 name alone in lower case", "GET / http\r\nHost: a\r\n\r\n", BadVersion},
	{"9112-2.3 no name", "GET / /1.1\r\nHost: a\r\n\r\n", BadVersion},
	{"9112-2.3 nothing", "GET / \r\nHost: a\r\n\r\n", BadVersion},
	{"9112-2.3 lower case", "GET / http/1.1\r\nHost: a\r\n\r\n", BadVersion},
	{"9112-2.3 mixed case", "GET / Http/1.1\r\nHost: a\r\n\r\n", BadVersion},
	{"9112-2.3 no version", "GET /\r\n\r\n", BadVersion},
	{"9112-2.3 two digits", "GET / HTTP/1.10\r\nHost: a\r\n\r\n", BadVersion},
	{"9112-2.3 leading zero", "GET / HTTP/01.1\r\nHost: a\r\n\r\n", BadVersion},
	{"9112-2.3 one number", "GET / HTTP/1\r\nHost: a\r\n\r\n", BadVersion},
	{"9112-2.3 comma", "GET / HTTP/1,1\r\nHost: a\r\n\r\n", BadVersion},
	{"9112-2.3 sign", "GET / HTTP/1.+1\r\nHost: a\r\n\r\n", BadVersion},
	{"9112-2.3 letter after", "GET / HTTP/1.1x\r\nHost: a\r\n\r\n", BadVersion},
	{"9112-2.3 another protocol", "GET / RTSP/1.0\r\nHost: a\r\n\r\n", BadVersion},
	{"9110-15.6.6 HTTP/0.9", "GET / HTTP/0.9\r\nHost: a\r\n\r\n", UnsupportedVersion},
	{"9110-15.6.6 HTTP/2.0 without preface", "GET / HTTP/2.0\r\nHost: a\r\n\r\n", UnsupportedVersion},
	{"9110-15.6.6 HTTP/3.0", "GET / HTTP/3.0\r\nHost: a\r\n\r\n", UnsupportedVersion},

	// Target.
	{"9112-3.2 NUL", "GET /\x00 HTTP/1.1\r\nHost: a\r\n\r\n", ControlInTarget},
	{"9112-3.2 DEL", "GET /\x7f HTTP/1.1\r\nHost: a\r\n\r\n", ControlInTarget},
	{"9112-3.2 form feed in the query", "GET /?a=\fb HTTP/1.1\r\nHost: a\r\n\r\n", ControlInTarget},
	{"9112-3.2 fragment", "GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n", FragmentInTarget},
	{"9112-3.2 fragment in the query", "GET /a?b#c HTTP/1.1\r\nHost: a\r\n\r\n", FragmentInTarget},
	{"9112-3.2 path without slash", "GET a HTTP/1.1\r\nHost: a\r\n\r\n", BadTarget},
	{"9112-3.2 query alone", "GET ?a HTTP/1.1\r\nHost: a\r\n\r\n", BadTarget},
	{"9112-3.2 backslash", "GET \\a HTTP/1.1\r\nHost: a\r\n\r\n", BadTarget},
	{"9112-3.2.4 asterisk of GET", "GET * HTTP/1.1\r\nHost: a\r\n\r\n", BadTarget},
	{"9112-3.2.4 asterisk and path", "OPTIONS */a HTTP/1.1\r\nHost: a\r\n\r\n", BadTarget},
	{"9112-3.2.3 authority of GET", "GET a:80 HTTP/1.1\r\nHost: a\r\n\r\n", BadTarget},
	{"9112-3.2.3 path of CONNECT", "CONNECT / HTTP/1.1\r\nHost: a\r\n\r\n", BadAuthority},
	{"9112-3.2.3 URI of CONNECT", "CONNECT http://a:80/ HTTP/1.1\r\nHost: a:80\r\n\r\n", BadAuthority},
	{"9112-3.2.3 CONNECT without port", "CONNECT a HTTP/1.1\r\nHost: a\r\n\r\n", BadAuthority},
	{"9112-3.2.3 CONNECT with empty port", "CONNECT a: HTTP/1.1\r\nHost: a\r\n\r\n", BadAuthority},
	{"9112-3.2.2 other scheme", "GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n", BadTarget},
	{"9112-3.2.2 ws scheme", "GET ws://a/ HTTP/1.1\r\nHost: a\r\n\r\n", BadTarget},
	{"9112-3.2.2 one slash", "GET http:/a/ HTTP/1.1\r\nHost: a\r\n\r\n", BadTarget},
	{"9112-3.2.2 opaque", "GET http:a HTTP/1.1\r\nHost: a\r\n\r\n", BadTarget},
	{"9110-4.2.1 no host", "GET http:///a HTTP/1.1\r\nHost: a\r\n\r\n", BadAuthority},
	{"9110-4.2.4 userinfo", "GET http://u@a/ HTTP/1.1\r\nHost: a\r\n\r\n", BadAuthority},
	{"9110-4.2.4 userinfo with password", "GET http://u:p@a/ HTTP/1.1\r\nHost: a\r\n\r\n", BadAuthority},
	{"9112-3.2.2 backslash after the host", "GET http://a\\@b/ HTTP/1.1\r\nHost: a\r\n\r\n", BadAuthority},
	{"9112-3.2.2 port without host", "GET http://:80/ HTTP/1.1\r\nHost: a\r\n\r\n", BadAuthority},

	// Host.
	{"9112-3.2 no Host", "GET / HTTP/1.1\r\n\r\n", MissingHost},
	{"9112-3.2 no Host in HTTP/1.2", "GET / HTTP/1.2\r\n\r\n", MissingHost},
	{"9112-3.2 no Host, absolute-form", "GET http://a/ HTTP/1.1\r\n\r\n", MissingHost},
	{"9112-3.2 two Hosts", "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", DuplicateHost},
	{"9112-3.2 two equal Hosts", "GET / HTTP/1.1\r\nHost: a\r\nhost: a\r\n\r\n", DuplicateHost},
	{"9112-3.2 two Hosts in HTTP/1.0", "GET / HTTP/1.0\r\nHost: a\r\nHost: a\r\n\r\n", DuplicateHost},
	{"9112-3.2 userinfo in Host", "GET / HTTP/1.1\r\nHost: u@a\r\n\r\n", BadHost},
	{"9112-3.2 space in Host", "GET / HTTP/1.1\r\nHost: a b\r\n\r\n", BadHost},
	{"9112-3.2 comma in Host", "GET / HTTP/1.1\r\nHost: a, b\r\n\r\n", BadHost},
	{"9112-3.2 slash in Host", "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", BadHost},
	{"9112-3.2 URI in Host", "GET / HTTP/1.1\r\nHost: http://a\r\n\r\n", BadHost},
	{"9112-3.2 backslash in Host", "GET / HTTP/1.1\r\nHost: a\\b\r\n\r\n", BadHost},
	{"9112-3.2 percent in Host", "GET / HTTP/1.1\r\nHost: %61\r\n\r\n", BadHost},
	{"9112-3.2 query in Host", "GET / HTTP/1.1\r\nHost: a?b\r\n\r\n", BadHost},
	{"9112-3.2 above ASCII in Host", "GET / HTTP/1.1\r\nHost: \xc3\xa9\r\n\r\n", BadHost},
	{"9112-3.2 tab in Host", "GET / HTTP/1.1\r\nHost: a\tb\r\n\r\n", BadHost},
	{"9112-3.2 quotes in Host", "GET / HTTP/1.1\r\nHost: \"a\"\r\n\r\n", BadHost},
	{"9112-3.2 port alone", "GET / HTTP/1.1\r\nHost: :80\r\n\r\n", BadHost},
	{"9112-3.2 letters in the port", "GET / HTTP/1.1\r\nHost: a:b\r\n\r\n", BadHost},
	{"9112-3.2 two ports", "GET / HTTP/1.1\r\nHost: a:80:80\r\n\r\n", BadHost},
	{"9112-3.2 port too great", "GET / HTTP/1.1\r\nHost: a:65536\r\n\r\n", BadHost},
	{"9112-3.2 port with many zeros", "GET / HTTP/1.1\r\nHost: a:000080\r\n\r\n", BadHost},
	{"9112-3.2 signed port", "GET / HTTP/1.1\r\nHost: a:+80\r\n\r\n", BadHost},
	{"9112-3.2 IPv6 without brackets", "GET / HTTP/1.1\r\nHost: ::1\r\n\r\n", BadHost},
	{"9112-3.2 bracket not closed", "GET / HTTP/1.1\r\nHost: [::1\r\n\r\n", BadHost},
	{"9112-3.2 name in brackets", "GET / HTTP/1.1\r\nHost: [a.b]\r\n\r\n", BadHost},
	{"9112-3.2 text after the bracket", "GET / HTTP/1.1\r\nHost: [::1]a\r\n\r\n", BadHost},
	{"9112-3.2 zone", "GET / HTTP/1.1\r\nHost: [fe80::1%25eth0]\r\n\r\n", BadHost},
	{"9112-3.2 space before the colon of Host", "GET / HTTP/1.1\r\nHost : a\r\n\r\n", SpaceBeforeColon},

	// Fields.
	{"9112-5.1 space before the colon", get("A : b"), SpaceBeforeColon},
	{"9112-5.1 tab before the colon", get("A\t: b"), SpaceBeforeColon},
	{"9112-5.1 space in the name", get("A B: c"), SpaceBeforeColon},
	{"9112-5.2 obs-fold with a space", get("A: b", " c"), ObsFold},
	{"9112-5.2 obs-fold with a tab", get("A: b", "\tc"), ObsFold},
	{"9112-2.2 space before the first field", "GET / HTTP/1.1\r\n Host: a\r\n\r\n", ObsFold},
	{"9112-5 no colon", get("A"), NoColon},
	{"9112-5 a second request line", get("GET / HTTP/1.1"), SpaceBeforeColon},
	{"9110-5.1 empty name", get(": a"), EmptyName},
	{"9110-5.1 name in brackets", get("(A): b"), BadName},
	{"9110-5.1 slash in the name", get("A/B: c"), BadName},
	{"9110-5.1 quotes in the name", get("\"A\": c"), BadName},
	{"9110-5.1 NUL in the name", get("A\x00: b"), BadName},
	{"9110-5.1 NUL before the name", get("\x00A: b"), BadName},
	{"9110-5.1 vertical tab in the name", get("A\v: b"), BadName},
	{"9110-5.1 name above ASCII", get("\xc3\xa9: b"), BadName},
	{"9110-5.1 DEL in the name", get("A\x7f: b"), BadName},
	{"9110-5.5 NUL", get("A: \x00"), ControlInValue},
	{"9110-5.5 backspace", get("A: b\bc"), ControlInValue},
	{"9110-5.5 vertical tab", get("A: b\v"), ControlInValue},
	{"9110-5.5 form feed", get("A:\fb"), ControlInValue},
	{"9110-5.5 escape", get("A: \x1b[0m"), ControlInValue},
	{"9110-5.5 DEL", get("A: b\x7fc"), ControlInValue},
	{"6585-5 head too long", get("A: " + strings.Repeat("b", MaxHead)), HeadTooLong},
	{"6585-5 head too long, line by line", get(strings.Repeat("A: "+strings.Repeat("b", 200)+"\r\n", MaxHead/200)), HeadTooLong},
	{"6585-5 too many fields", get(strings.Repeat("A:\r\n", MaxFields)), TooManyFields},

	// Framing.
	{"9112-6.3 CL.TE", get("Content-Length: 5", "Transfer-Encoding: chunked"), CodingWithLength},
	{"9112-6.3 TE.CL", get("Transfer-Encoding: chunked", "Content-Length: 5"), CodingWithLength},
	{"9112-6.3 TE with CL 0", get("Transfer-Encoding: chunked", "Content-Length: 0"), CodingWithLength},
	{"9112-6.1 TE in HTTP/1.0", "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", CodingInHTTP10},
	{"9112-6.1 TE.TE xchunked", get("Transfer-Encoding: xchunked"), UnknownCoding},
	{"9112-6.1 TE.TE identity", get("Transfer-Encoding: identity"), UnknownCoding},
	{"9112-6.1 TE.TE chunked, identity", get("Transfer-Encoding: chunked, identity"), ChunkedNotLast},
	{"9112-6.1 TE.TE identity, chunked", get("Transfer-Encoding: identity, chunked"), UnknownCoding},
	{"9112-6.1 TE.TE two lines", get("Transfer-Encoding: chunked", "Transfer-Encoding: identity"), RepeatedCoding},
	{"9112-6.1 TE.TE two equal lines", get("Transfer-Encoding: chunked", "Transfer-encoding: chunked"), RepeatedCoding},
	{"9112-6.1 TE.TE two lines, chunked last", get("Transfer-Encoding: x", "Transfer-Encoding: chunked"), UnknownCoding},
	{"9112-6.1 TE.TE x", get("Transfer-Encoding: x"), UnknownCoding},
	{"9112-6.1 TE.TE comma after", get("Transfer-Encoding: chunked,"), BadCoding},
	{"9112-6.1 TE.TE comma before", get("Transfer-Encoding: ,chunked"), BadCoding},
	{"9112-6.1 TE.TE quoted", get("Transfer-Encoding: \"chunked\""), BadCoding},
	{"9112-6.1 TE.TE quoted with apostrophes", get("Transfer-Encoding: 'chunked'"), UnknownCoding},
	{"9112-6.1 TE.TE semicolon", get("Transfer-Encoding: chunked;"), BadCoding},
	{"9112-6.1 TE.TE parameter", get("Transfer-Encoding: chunked;q=1"), BadCoding},
	{"9112-6.1 TE.TE word after", get("Transfer-Encoding: chunked foo"), BadCoding},
	{"9112-6.1 TE.TE vertical tab before", get("Transfer-Encoding: \vchunked"), ControlInValue},
	{"9112-6.1 TE.TE form feed after", get("Transfer-Encoding: chunked\f"), ControlInValue},
	{"9112-6.1 TE.TE NUL after", get("Transfer-Encoding: chunked\x00"), ControlInValue},
	{"9112-6.1 TE.TE above ASCII", get("Transfer-Encoding: chun\xe2\x84\xaaed"), BadCoding},
	{"9112-6.1 TE.TE Kelvin sign as k", get("Transfer-Encoding: chun\u212aed"), BadCoding},
	{"9112-6.1 TE.TE space before the colon", get("Transfer-Encoding : chunked"), SpaceBeforeColon},
	{"9112-6.1 TE.TE in a folded line", get("Transfer-Encoding:", " chunked"), BadCoding},
	{"9112-6.1 TE.TE folded after another field", get("A: b", " Transfer-Encoding: chunked"), ObsFold},
	{"9112-6.1 TE.TE folded value", get("Transfer-Encoding: chunked", "\tidentity"), ObsFold},
	{"9112-6.1 TE.TE hidden by LF", get("A: b\nTransfer-Encoding: chunked"), BareLF},
	{"9112-6.1 TE.TE hidden by CR", get("A: b\rTransfer-Encoding: chunked"), BareCR},
	{"9112-6.1 gzip", get("Transfer-Encoding: gzip"), UnknownCoding},
	{"9112-6.1 gzip, chunked", get("Transfer-Encoding: gzip, chunked"), UnknownCoding},
	{"9112-6.1 chunked, gzip", get("Transfer-Encoding: chunked, gzip"), ChunkedNotLast},
	{"9112-6.1 chunked, chunked", get("Transfer-Encoding: chunked, chunked"), ChunkedTwice},
	{"9112-6.1 chunked, gzip, chunked", get("Transfer-Encoding: chunked, gzip, chunked"), ChunkedTwice},
	{"9112-6.1 empty TE", get("Transfer-Encoding:"), BadCoding},
	{"9112-6.1 TE of commas", get("Transfer-Encoding: , ,"), BadCoding},
	{"9110-8.6 CL empty", get("Content-Length:"), BadContentLength},
	{"9110-8.6 CL with plus", get("Content-Length: +5"), BadContentLength},
	{"9110-8.6 CL negative", get("Content-Length: -5"), BadContentLength},
	{"9110-8.6 CL hexadecimal", get("Content-Length: 0x5"), BadContentLength},
	{"9110-8.6 CL with a space", get("Content-Length: 5 5"), BadContentLength},
	{"9110-8.6 CL with a point", get("Content-Length: 5.0"), BadContentLength},
	{"9110-8.6 CL with an exponent", get("Content-Length: 1e3"), BadContentLength},
	{"9110-8.6 CL with an underscore", get("Content-Length: 1_000"), BadContentLength},
	{"9110-8.6 CL as a list", get("Content-Length: 5, 5"), BadContentLength},
	{"9110-8.6 CL as a list that differs", get("Content-Length: 5, 6"), BadContentLength},
	{"9110-8.6 CL with a comma", get("Content-Length: 5,"), BadContentLength},
	{"9110-8.6 CL quoted", get("Content-Length: \"5\""), BadContentLength},
	{"9110-8.6 CL in other digits", get("Content-Length: \u0665"), BadContentLength},
	{"9110-8.6 CL 2^63", get("Content-Length: 9223372036854775808"), ContentLengthOverflow},
	{"9110-8.6 CL 2^64+5", get("Content-Length: 18446744073709551621"), ContentLengthOverflow},
	{"9110-8.6 CL of many digits", get("Content-Length: " + strings.Repeat("9", 100)), ContentLengthOverflow},
	{"9110-8.6 CL too great and no number", get("Content-Length: " + strings.Repeat("9", 100) + "x"), BadContentLength},
	{"9110-8.6 two CL that differ", get("Content-Length: 5", "Content-Length: 6"), DifferingContentLengths},
	{"9110-8.6 two CL that differ as text", get("Content-Length: 5", "Content-Length: 05"), DifferingContentLengths},
	{"9110-8.6 CL and an empty one", get("Content-Length: 5", "Content-Length:"), DifferingContentLengths},

	// Connection, Upgrade, Expect.
	{"9110-7.6.1 option is no token", get("Connection: a b"), BadConnection},
	{"9110-7.6.1 option with a parameter", get("Connection: close;x"), BadConnection},
	{"9110-7.6.1 quoted option", get("Connection: \"close\""), BadConnection},
	{"9110-7.6.1 too many options", get("Connection: " + strings.Repeat("a,", MaxOptions+1)), TooManyOptions},
	{"9110-7.6.1 too many options in two lines", get("Connection: "+strings.Repeat("a,", MaxOptions), "Connection: b"), TooManyOptions},
	{"9110-7.8 protocol is no token", get("Upgrade: web socket"), BadUpgrade},
	{"9110-7.8 version is no token", get("Upgrade: a/"), BadUpgrade},
	{"9110-10.1.1 other expectation", get("Expect: 200-ok"), UnknownExpectation},
	{"9110-10.1.1 empty expectation", get("Expect:"), UnknownExpectation},
	{"9110-10.1.1 one expectation too many", get("Expect: 100-continue, x"), UnknownExpectation},
}

func TestRefusedRequests(t *testing.T) {
	for _, c := range refusedRequests {
		t.Run(c.rule, func(t *testing.T) {
			var r Request
			for name, p := range map[string]parse{"whole": whole, "dripped": dripped} {
				if name == "dripped" && len(c.head) > 4<<10 {
					continue
				}
				r.Reset()
				n, err := p(r.Parse, []byte(c.head))
				if got := reasonOf(t, err); got != c.reason || n != 0 {
					t.Errorf("%s: %d, %q, want %q", name, n, got, c.reason)
				}
			}
		})
	}
}

// Every split must give the same reason: what is wrong cannot depend on how it was sent.
func TestRefusedRequestsInTwoParts(t *testing.T) {
	var r Request
	for _, c := range refusedRequests {
		for at := 1; at < min(len(c.head), 1<<10); at++ {
			r.Reset()
			if n, err := splitAt(at)(r.Parse, []byte(c.head)); reasonOf(t, err) != c.reason || n != 0 {
				t.Errorf("%s, split at %d: %d, %v, want %q", c.rule, at, n, err, c.reason)
			}
		}
	}
}

// acceptedRequests are heads at the border of what is valid.
var acceptedRequests = []struct{ rule, head string }{
	{"small", smallGet},
	{"browser", browserGet},
	{"9112-2.2 one empty line before", "\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"},
	{"9112-2.2 two empty lines before", "\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"},
	{"9112-2.3 HTTP/1.0 without Host", "GET / HTTP/1.0\r\n\r\n"},
	{"9110-2.5 HTTP/1.2", "GET / HTTP/1.2\r\nHost: a\r\n\r\n"},
	{"9110-2.5 HTTP/1.9", "GET / HTTP/1.9\r\nHost: a\r\n\r\n"},
	{"9110-9.1 extension method", "M-SEARCH /a HTTP/1.1\r\nHost: a\r\n\r\n"},
	{"9110-9.1 lower case is another method", "get / HTTP/1.1\r\nHost: a\r\n\r\n"},
	{"9112-3 longest method", strings.Repeat("A", MaxMethod) + " / HTTP/1.1\r\nHost: a\r\n\r\n"},
	{"9112-3.2.1 empty query", "GET /? HTTP/1.1\r\nHost: a\r\n\r\n"},
	{"9112-3.2.1 two marks", "GET /a?b?c=/../%2e HTTP/1.1\r\nHost: a\r\n\r\n"},
	{"9112-3.2.1 two slashes", "GET //a//b HTTP/1.1\r\nHost: a\r\n\r\n"},
	{"9112-3.2.1 what browsers send raw", "GET /a|b\"<>^`{}\\?c|d\"<>^`{}\\ HTTP/1.1\r\nHost: a\r\n\r\n"},
	{"9112-3.2.1 above ASCII", "GET /\xc3\xa9?\xff HTTP/1.1\r\nHost: a\r\n\r\n"},
	{"9112-3.2.2 absolute-form", "GET http://a.example:8080/b?c HTTP/1.1\r\nHost: a.example:8080\r\n\r\n"},
	{"9112-3.2.2 absolute-form without path", "GET http://a HTTP/1.1\r\nHost: a\r\n\r\n"},
	{"9112-3.2.2 absolute-form with a query alone", "GET http://a?b HTTP/1.1\r\nHost: a\r\n\r\n"},
	{"9112-3.2.2 scheme and host in any case", "GET HTTPS://A/ HTTP/1.1\r\nHost: a:443\r\n\r\n"},
	{"9112-3.2.2 absolute-form in HTTP/1.0", "GET http://a/ HTTP/1.0\r\n\r\n"},
	{"9112-3.2.2 empty port", "GET http://a:/ HTTP/1.1\r\nHost: a:80\r\n\r\n"},
	{"9112-3.2.3 CONNECT", "CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n"},
	{"9112-3.2.3 CONNECT, Host without port", "CONNECT a:443 HTTP/1.1\r\nHost: A\r\n\r\n"},
	{"9112-3.2.3 CONNECT to IPv6", "CONNECT [2001:db8::1]:443 HTTP/1.1\r\nHost: [2001:db8::1]:443\r\n\r\n"},
	{"9112-3.2.4 asterisk-form", "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n"},
	{"9112-3.2 empty Host", "GET / HTTP/1.1\r\nHost:\r\n\r\n"},
	{"9112-3.2 Host with underscores and dots", "GET / HTTP/1.1\r\nHost: a_b.c-d.:65535\r\n\r\n"},
	{"9112-3.2 IPv4 Host", "GET / HTTP/1.1\r\nHost: 192.0.2.1:80\r\n\r\n"},
	{"9112-3.2 IPv6 Host", "GET / HTTP/1.1\r\nHost: [::ffff:192.0.2.1]:80\r\n\r\n"},
	{"9112-5.1 no space after the colon", "GET / HTTP/1.1\r\nHost:a\r\n\r\n"},
	{"9112-5.1 whitespace around the value", "GET / HTTP/1.1\r\nHost: \t a\t \r\nB:  c \t\r\n\r\n"},
	{"9110-5.5 empty value", get("A:", "B: ", "C: \t")},
	{"9110-5.5 tab within", get("A: b\tc")},
	{"9110-5.5 obs-text", get("A: \x80\xff\xc3\xa9")},
	{"9110-5.1 all of tchar", get("!#$%&'*+-.^_`|~09azAZ: a")},
	{"9112-6.1 chunked in capitals", get("Transfer-Encoding: CHUNKED")},
	{"9112-6.1 chunked with whitespace around", get("Transfer-Encoding:\tchunked \t")},
	{"9110-8.6 CL", get("Content-Length: 5")},
	{"9110-8.6 CL 0", get("Content-Length: 0")},
	{"9110-8.6 CL with zeros", get("Content-Length: 0005")},
	{"9110-8.6 CL 2^63-1", get("Content-Length: 9223372036854775807")},
	{"9110-8.6 two equal CL", get("Content-Length: 5", "content-length:  5")},
	{"9110-7.6.1 empty elements", get("Connection: , close,,\t keep-alive ,")},
	{"9110-7.6.1 most options", get("Connection: " + strings.Repeat("a,", MaxOptions))},
	{"9110-7.8 WebSocket", get("Connection: keep-alive, Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==")},
	{"9110-7.8 two protocols", get("Connection: upgrade", "Upgrade: HTTP/3.0, foo/1.2", "Upgrade: websocket")},
	{"9110-10.1.1 Expect", get("Expect: 100-Continue", "Content-Length: 5")},
	{"9110-10.1.4 TE", get("TE: deflate;q=0.5, trailers", "Connection: TE")},
	{"named options", get("Connection: X-A, x_b, Via", "X-a: 1", "X_B: 2", "Via: 3", "X-C: 4")},
	{"most fields", get(strings.Repeat("A:\r\n", MaxFields-1)[:4*(MaxFields-1)-2])},
	{"longest target", "GET /" + strings.Repeat("a", MaxTarget-1) + " HTTP/1.1\r\nHost: a\r\n\r\n"},
	{"longest head", longestHead()},
}

func longestHead() string {
	empty := get("A: ")
	return get("A: " + strings.Repeat("b", MaxHead-len(empty)))
}

func TestAcceptedRequests(t *testing.T) {
	for _, c := range acceptedRequests {
		t.Run(c.rule, func(t *testing.T) {
			want := describeRequest(request(t, c.head))
			for _, next := range []string{"", "GET /next HTTP/1.1\r\n", "\r\n", "\n\r \x00:"} {
				var r Request
				r.Reset()
				n, err := r.Parse([]byte(c.head + next))
				if err != nil || n != len(c.head) || describeRequest(&r) != want {
					t.Errorf("with %q behind it: %d of %d bytes, %v, %s", next, n, len(c.head), err, describeRequest(&r))
				}
			}
		})
	}
}

// Every prefix of a valid head is too short, never wrong, and every split of it gives the same.
func TestAcceptedRequestsInParts(t *testing.T) {
	var r Request
	for _, c := range acceptedRequests {
		head := []byte(c.head)
		want := describeRequest(request(t, c.head))
		step := 1 + len(head)/300
		for at := 0; at < len(head); at += step {
			r.Reset()
			if n, err := r.Parse(head[:at]); n != 0 || err != nil {
				t.Fatalf("%s: prefix of %d bytes: %d, %v", c.rule, at, n, err)
			}
			if n, err := r.Parse(head); n != len(head) || err != nil || describeRequest(&r) != want {
				t.Fatalf("%s: split at %d: %d, %v, %s", c.rule, at, n, err, describeRequest(&r))
			}
		}
		if len(head) > 4<<10 {
			continue
		}
		r.Reset()
		if n, err := dripped(r.Parse, head); n != len(head) || err != nil || describeRequest(&r) != want {
			t.Errorf("%s: dripped: %d, %v, %s", c.rule, n, err, describeRequest(&r))
		}
	}
}

func TestRequestTargets(t *testing.T) {
	for _, c := range []struct {
		line      string
		form      Form
		path      string
		query     string
		present   bool
		authority string
	}{
		{"GET /a/b?c=d", OriginForm, "/a/b", "c=d", true, "h:1"},
		{"GET /", OriginForm, "/", "", false, "h:1"},
		{"GET /?", OriginForm, "/", "", true, "h:1"},
		{"GET //x/y??", OriginForm, "//x/y", "?", true, "h:1"},
		{"GET http://H:01/a?b", AbsoluteForm, "/a", "b", true, "H:01"},
		{"GET hTTp://h:1", AbsoluteForm, "", "", false, "h:1"},
		{"GET http://h:1?", AbsoluteForm, "", "", true, "h:1"},
		{"GET http://h:1?/a", AbsoluteForm, "", "/a", true, "h:1"},
		{"CONNECT h:1", AuthorityForm, "", "", false, "h:1"},
		{"OPTIONS *", AsteriskForm, "*", "", false, "h:1"},
		{"OPTIONS http://h:1", AbsoluteForm, "", "", false, "h:1"},
	} {
		r := request(t, c.line+" HTTP/1.1\r\nHost: h:1\r\n\r\n")
		query, present := r.Query()
		got := fmt.Sprint(r.Form, string(r.Path()), string(query), present, string(r.Authority()))
		if want := fmt.Sprint(c.form, c.path, c.query, c.present, c.authority); got != want {
			t.Errorf("%s: %s, want %s", c.line, got, want)
		}
		if _, target, _ := strings.Cut(c.line, " "); string(r.RawTarget()) != target {
			t.Errorf("%s: target %q", c.line, r.RawTarget())
		}
	}
	if r := request(t, "GET https://a/ HTTP/1.0\r\n\r\n"); !r.HTTPS || string(r.Authority()) != "a" {
		t.Error("https is not seen")
	}
	if r := request(t, "GET / HTTP/1.0\r\n\r\n"); len(r.Authority()) != 0 {
		t.Errorf("authority %q from nowhere", r.Authority())
	}
}

func TestMethods(t *testing.T) {
	for name, want := range map[string]Method{
		"GET": GET, "HEAD": HEAD, "POST": POST, "PUT": PUT, "DELETE": DELETE, "OPTIONS": OPTIONS, "TRACE": TRACE, "PATCH": PATCH,
		"get": OtherMethod, "PROPFIND": OtherMethod, "G": OtherMethod, "PRI": OtherMethod,
	} {
		if r := request(t, name+" / HTTP/1.1\r\nHost: a\r\n\r\n"); r.Method != want || string(r.MethodName()) != name {
			t.Errorf("%s: %d, %q", name, r.Method, r.MethodName())
		}
	}
}

func TestRequestFraming(t *testing.T) {
	for _, c := range []struct {
		head    string
		framing Framing
		length  int64
	}{
		{get(), None, -1},
		{get("Content-Length: 0"), None, 0},
		{get("Content-Length: 7"), Length, 7},
		{get("Content-Length: 7", "Content-Length: 7"), Length, 7},
		{get("Content-Length: 9223372036854775807"), Length, 1<<63 - 1},
		{get("Transfer-Encoding: Chunked"), Chunked, -1},
		{"POST / HTTP/1.0\r\n\r\n", None, -1},
		{"POST / HTTP/1.0\r\nContent-Length: 3\r\n\r\n", Length, 3},
		{"HEAD / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n", Length, 3},
		// What looks like framing and is none.
		{get("Content_Length: 7", "Transfer_Encoding: chunked", "X-Content-Length: 7", "Content-Lengt: 7", "Content-Lengthy: 7"), None, -1},
	} {
		if r := request(t, c.head); r.Framing != c.framing || r.ContentLength != c.length {
			t.Errorf("%q: %d of %d, want %d of %d", c.head, r.Framing, r.ContentLength, c.framing, c.length)
		}
	}
}

func TestKeepAlive(t *testing.T) {
	for head, want := range map[string]bool{
		get():                                                     true,
		get("Connection: close"):                                  false,
		get("Connection: Close"):                                  false,
		get("Connection: keep-alive, CLOSE"):                      false,
		get("Connection: foo", "Connection: close"):               false,
		get("Connection: closed"):                                 true,
		get("Proxy-Connection: close"):                            true,
		"GET / HTTP/1.0\r\n\r\n":                                  false,
		"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n":        true,
		"GET / HTTP/1.0\r\nConnection: keep-alive, close\r\n\r\n": false,
		"GET / HTTP/1.0\r\nProxy-Connection: keep-alive\r\n\r\n":  false,
		"GET / HTTP/1.2\r\nHost: a\r\n\r\n":                       true,
	} {
		if r := request(t, head); r.KeepAlive != want {
			t.Errorf("%q: %t", head, r.KeepAlive)
		}
	}
}

func TestUpgrade(t *testing.T) {
	for _, c := range []struct {
		head               string
		upgrade, webSocket bool
	}{
		{get("Connection: Upgrade", "Upgrade: WebSocket"), true, true},
		{get("Upgrade: a/1", "Connection: x", "Connection: keep-alive,UPGRADE", "Upgrade: b, websocket"), true, true},
		{get("Connection: Upgrade", "Upgrade: h2c"), true, false},
		{get("Connection: Upgrade", "Upgrade: websocket/13"), true, false},
		{get("Connection: Upgrade"), false, false},
		{get("Connection: Upgrade", "Upgrade:"), false, false},
		{get("Upgrade: websocket"), false, false},
		{"GET / HTTP/1.0\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n", false, false},
	} {
		if r := request(t, c.head); r.Upgrade != c.upgrade || r.WebSocket != c.webSocket {
			t.Errorf("%q: %t, %t", c.head, r.Upgrade, r.WebSocket)
		}
	}
}

func TestExpectAndTE(t *testing.T) {
	for head, want := range map[string][2]bool{
		get("Expect: 100-CONTINUE"):                       {true, false},
		"POST / HTTP/1.0\r\nExpect: 100-continue\r\n\r\n": {false, false},
		get("TE: trailers"):                               {false, true},
		get("TE: gzip , Trailers"):                        {false, true},
		get("TE: xtrailers", "TE: trailers;q=0.5"):        {false, false}, // trailers takes no parameters
		"GET / HTTP/1.0\r\nTE: trailers\r\n\r\n":          {false, false},
		get("TE: gzip", "te: trailers"):                   {false, true},
	} {
		if r := request(t, head); r.ExpectContinue != want[0] || r.TakesTrailers != want[1] {
			t.Errorf("%q: %t, %t", head, r.ExpectContinue, r.TakesTrailers)
		}
	}
}

// hops gives the names of the fields that are not to be forwarded.
func hops(f *Fields) string {
	var names []string
	for i, l := range f.List() {
		if l.Hop {
			names = append(names, string(f.Name(i)))
		}
	}
	return strings.Join(names, " ")
}

func TestHopByHopFields(t *testing.T) {
	for _, c := range []struct{ head, want string }{
		{get("Connection: keep-alive", "Keep-Alive: 5", "Proxy-Connection: x", "TE: trailers", "Upgrade: a", "HTTP2-Settings: b", "Trailer: c", "Via: d"),
			"Connection Keep-Alive Proxy-Connection TE Upgrade HTTP2-Settings"},
		{get("transfer-encoding: chunked", "proxy-authorization: a", "PROXY-AUTHENTICATE: b", "Proxy-Authentication-Info: c", "Authorization: d"),
			"transfer-encoding proxy-authorization PROXY-AUTHENTICATE Proxy-Authentication-Info"},
		{get("X-Before: 1", "Connection: x-BEFORE, X-After", "X-After: 2", "x-after: 3", "X-Afte: 4", "X-After-: 5"), "X-Before Connection X-After x-after"},
		{get("Connection: X-Forwarded-For, Cookie", "X-Forwarded-For: a", "Cookie: b", "X-Forwarded-Foo: c"), "Connection X-Forwarded-For Cookie"},
		{get("Connection: X-Forwarded-Foo", "X-Forwarded-For: a", "X-Forwarded-Foo: b", "X-Forwarded-Bar: c"), "Connection X-Forwarded-Foo"},
		{get("Connection: X_Forwarded_For", "X-Forwarded-For: a", "X_Forwarded_For: b", "X_Real_IP: c"), "Connection X_Forwarded_For"},
		{get("Content_Length: 5", "transfer_encoding: chunked", "HOST_: a", "Host_: b", "Proxy_Connection: c", "X_Forwarded_For: d"),
			"Content_Length transfer_encoding Proxy_Connection"},
		// Naming these changes nothing: they are written anew.
		{get("Connection: Host, Content-Length", "Content-Length: 3"), "Connection"},
		{get("Connection: Host, Content-Length, X-A", "Content-Length: 3", "X-A: 1"), "Connection X-A"},
		{get("Connection: close, trailer", "Trailer: a", "Close: b"), "Connection Trailer"},
	} {
		if got := hops(&request(t, c.head).Fields); got != c.want {
			t.Errorf("%q: %s, want %s", c.head, got, c.want)
		}
	}
}

func TestReuseOfARequest(t *testing.T) {
	var r Request
	for range 2 {
		for _, c := range acceptedRequests {
			r.Reset()
			if _, err := r.Parse([]byte(c.head)); err != nil {
				t.Fatalf("%s: %v", c.rule, err)
			}
			if got, want := describeRequest(&r), describeRequest(request(t, c.head)); got != want {
				t.Errorf("%s: a reused request says\n%s, a new one\n%s", c.rule, got, want)
			}
		}
		for _, c := range refusedRequests {
			r.Reset()
			if _, err := r.Parse([]byte(c.head)); reasonOf(t, err) != c.reason {
				t.Errorf("%s: %v in a reused request", c.rule, err)
			}
		}
	}
}

func TestTheZeroRequestIsReady(t *testing.T) {
	var r Request
	if n, err := r.Parse([]byte(get("Content-Length: 3"))); n == 0 || err != nil || r.ContentLength != 3 {
		t.Error(n, err, r.ContentLength)
	}
	var s Response
	if n, err := s.Parse([]byte(ok()), GET); n == 0 || err != nil || s.ContentLength != -1 {
		t.Error(n, err, s.ContentLength)
	}
}

func TestAGreatListIsNotKept(t *testing.T) {
	r := request(t, get(strings.Repeat("A:\r\n", MaxFields-1)[:4*(MaxFields-1)-2]))
	if r.Len() != MaxFields {
		t.Fatal(r.Len())
	}
	r.Reset()
	if cap(r.list) > keptFields {
		t.Errorf("%d fields are kept", cap(r.list))
	}
}
