package http1

import "encoding/binary"

// An ID stands for a field name that a proxy knows. 0 is any other name.
type ID uint8

const (
	Other ID = iota

	Accept
	AcceptEncoding
	Authorization
	CacheControl
	Connection
	ContentEncoding
	ContentLength
	ContentLocation
	ContentRange
	ContentType
	Cookie
	Date
	Expect
	Forwarded
	Host
	HTTP2Settings
	KeepAlive
	Location
	MaxForwards
	Origin
	ProxyAuthenticate
	ProxyAuthenticationInfo
	ProxyAuthorization
	ProxyConnection
	Referer
	RetryAfter
	SecWebSocketAccept
	SecWebSocketExtensions
	SecWebSocketKey
	SecWebSocketProtocol
	SecWebSocketVersion
	Server
	SetCookie
	TE
	Trailer
	TransferEncoding
	Upgrade
	UserAgent
	Vary
	Via
	WWWAuthenticate
	XForwardedFor
	XForwardedHost
	XForwardedPort
	XForwardedProto
	XRealIP
	XRequestID

	// XForwardedOther is a name that begins with "X-Forwarded-" and has no ID of its own.
	XForwardedOther
	// Lookalike is a name that would be one of the above if its underscores were hyphens. CGI and what grew out of it make
	// both the same variable (RFC 3875 section 4.1.18), so that "X_Forwarded_For" is believed where X-Forwarded-For is.
	Lookalike

	numIDs int = iota
)

// names are in lower case.
var names = [numIDs]string{
	Accept: "accept", AcceptEncoding: "accept-encoding", Authorization: "authorization", CacheControl: "cache-control",
	Connection: "connection", ContentEncoding: "content-encoding", ContentLength: "content-length",
	ContentLocation: "content-location", ContentRange: "content-range", ContentType: "content-type", Cookie: "cookie",
	Date: "date", Expect: "expect", Forwarded: "forwarded", Host: "host", HTTP2Settings: "http2-settings",
	KeepAlive: "keep-alive", Location: "location", MaxForwards: "max-forwards", Origin: "origin",
	ProxyAuthenticate: "proxy-authenticate", ProxyAuthenticationInfo: "proxy-authentication-info",
	ProxyAuthorization: "proxy-authorization", ProxyConnection: "proxy-connection", Referer: "referer",
	RetryAfter: "retry-after", SecWebSocketAccept: "sec-websocket-accept",
	SecWebSocketExtensions: "sec-websocket-extensions", SecWebSocketKey: "sec-websocket-key",
	SecWebSocketProtocol: "sec-websocket-protocol", SecWebSocketVersion: "sec-websocket-version", Server: "server",
	SetCookie: "set-cookie", TE: "te", Trailer: "trailer", TransferEncoding: "transfer-encoding", Upgrade: "upgrade",
	UserAgent: "user-agent", Vary: "vary", Via: "via", WWWAuthenticate: "www-authenticate", XForwardedFor: "x-forwarded-for",
	XForwardedHost: "x-forwarded-host", XForwardedPort: "x-forwarded-port", XForwardedProto: "x-forwarded-proto",
	XRealIP: "x-real-ip", XRequestID: "x-request-id",
}

// set is a set of IDs, one bit each.
type set uint64

func (s set) has(id ID) bool { return s>>id&1 != 0 }

// slot is a known name in words, as identify compares it.
type slot struct {
	id    ID
	size  uint8
	words [4]uint64 // its full blocks of eight bytes
	last  uint64    // its last eight bytes, or all of them
}

// slots is a hash table without collisions; a test says so.
var slots = func() (table [256]slot) {
	for id, name := range names {
		if name == "" {
			continue
		}
		s := slot{id: ID(id), size: uint8(len(name))}
		for i := 0; i+8 <= len(name); i += 8 {
			s.words[i/8] = binary.LittleEndian.Uint64([]byte(name[i:]))
		}
		first := wordOf([]byte(name[:min(8, len(name))]))
		s.last = wordOf([]byte(name[max(0, len(name)-8):]))
		table[slotOf(first, s.last)] = s
	}
	return table
}()

// slotOf hashes the first and the last eight bytes of a name. The factor was found by trying.
func slotOf(first, last uint64) uint8 {
	return uint8((first + last<<1) * 0x3099fdf5ab99254b >> 56)
}

// wordOf is up to eight bytes as a little-endian number, the missing ones 0.
func wordOf(b []byte) (w uint64) {
	for i, c := range b {
		w |= uint64(c) << (8 * i)
	}
	return w
}

// identify gives the ID of a name, which must be a token. Setting the case bit of every byte makes the two cases of a letter
// one and leaves digits and "-" alone; no other byte of a token becomes one of those.
func identify(name []byte) ID {
	var first, last uint64
	if n := len(name); n >= 8 {
		first = binary.LittleEndian.Uint64(name) | caseBits
		last = binary.LittleEndian.Uint64(name[n-8:]) | caseBits
	} else {
		first = wordOf(name) | caseBits>>(64-8*n)
		last = first
	}
	s := &slots[slotOf(first, last)]
	if int(s.size) == len(name) && s.last == last && sameBlocks(s, name) {
		return s.id
	}
	if len(name) > len(xForwarded) && first == xForwardedWord && equalFold(name[:len(xForwarded)], xForwarded) {
		return XForwardedOther
	}
	return Other
}

const (
	xForwarded     = "x-forwarded-"
	xForwardedWord = 'x' | '-'<<8 | 'f'<<16 | 'o'<<24 | 'r'<<32 | 'w'<<40 | 'a'<<48 | 'r'<<56
)

// sameBlocks compares the full blocks of a name.
func sameBlocks(s *slot, name []byte) bool {
	for i := 0; i+8 <= len(name); i += 8 {
		if s.words[i/8] != binary.LittleEndian.Uint64(name[i:])|caseBits {
			return false
		}
	}
	return true
}

// longestName is more than any known name has, so that the beginning of a longer one is never taken for a known one.
const longestName = 32

// IDOf is the ID of any name, Other for what is none.
func IDOf(name string) ID {
	var b [longestName]byte
	n := copy(b[:], name)
	for i := range n {
		if !is(b[i], inToken) {
			return Other
		}
	}
	id := identify(b[:n])
	if id == Other && lookalike(b[:n]) != Other {
		return Lookalike
	}
	return id
}

// lookalike is the ID that a name would have if it had hyphens for underscores.
func lookalike(name []byte) ID {
	var hyphens [longestName]byte
	n := copy(hyphens[:], name)
	for i, c := range hyphens[:n] {
		if c == '_' {
			hyphens[i] = '-'
		}
	}
	return identify(hyphens[:n])
}
