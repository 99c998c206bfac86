package forward

import (
	"bytes"

	"github.com/pyserve/pyserve/node/balance"
	"github.com/pyserve/pyserve/node/http1"
	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

// hashing says what of a request its backend is picked by.
type hashing struct {
	on   resourcev1.HashOn
	name string // of the header field, in lower case, or of the cookie
}

// hashingOf is that of a route; nil: its backends are not picked by what a request is.
func hashingOf(l *resourcev1.LoadBalancing) *hashing {
	if l.GetHashOn() == resourcev1.HashOn_HASH_ON_UNSPECIFIED {
		return nil
	}
	return &hashing{on: l.GetHashOn(), name: l.GetHashName()}
}

// hash is what Pool.Pick is given, the same on every node for the same client.
func (x *exchange) hash() uint64 {
	h := x.route.hashing
	if h == nil {
		return 0
	}
	switch h.on {
	case resourcev1.HashOn_HASH_ON_HEADER:
		if value := x.field(h.name); len(value) > 0 {
			return balance.Hash(value)
		}
	case resourcev1.HashOn_HASH_ON_COOKIE:
		if value := x.cookie(h.name); len(value) > 0 {
			return balance.Hash(value)
		}
	case resourcev1.HashOn_HASH_ON_PATH:
		return balance.Hash(x.path)
	}
	// The address, too, of who has sent nothing to go by: all of these together would be one backend's whole load.
	address := x.origin.real.Unmap().As16()
	return balance.Hash(address[:])
}

// field is the first value of a header field; name is in lower case.
func (x *exchange) field(name string) []byte {
	r := &x.request
	for i := range r.List() {
		if !r.List()[i].Hop && equalLower(r.Name(i), name) {
			return r.Value(i)
		}
	}
	return nil
}

// equalLower compares without regard to case; lower is in lower case.
func equalLower(b []byte, lower string) bool {
	if len(b) != len(lower) {
		return false
	}
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		if c != lower[i] {
			return false
		}
	}
	return true
}

// cookie is the value of the first cookie of a name; nil: there is none.
func (x *exchange) cookie(name string) []byte {
	r := &x.request
	for i := r.Find(http1.Cookie, 0); i >= 0; i = r.Find(http1.Cookie, i+1) {
		if value, ok := cookieIn(r.Value(i), name); ok {
			return value
		}
	}
	return nil
}

// cookieIn reads a Cookie field as servers do (RFC 6265 section 5.4 says what clients send): pairs between semicolons.
func cookieIn(field []byte, name string) (value []byte, ok bool) {
	for len(field) > 0 {
		pair := field
		if end := bytes.IndexByte(field, ';'); end >= 0 {
			pair, field = field[:end], field[end+1:]
		} else {
			field = nil
		}
		pair = bytes.Trim(pair, " \t")
		if len(pair) <= len(name) || pair[len(name)] != '=' || string(pair[:len(name)]) != name {
			continue
		}
		value = pair[len(name)+1:]
		if len(value) >= 2 && value[0] == '"' && value[len(value)-1] == '"' {
			value = value[1 : len(value)-1]
		}
		return value, true
	}
	return nil, false
}
