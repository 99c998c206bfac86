package forward

import (
	"bytes"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/pyserve/pyserve/node/upstream"
	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

// sticky keeps the clients of a route with the backends that they were given, by a cookie.
type sticky struct {
	cookie string
	ttl    time.Duration // 0: until the client's session ends
	pools  []*upstream.Pool
	tokens atomic.Pointer[tokens]
}

// newSticky is that of a route; nil: clients are not kept. Backends are looked for in the pools in turn.
func newSticky(s *resourcev1.Sticky, pools ...*upstream.Pool) *sticky {
	if s == nil {
		return nil
	}
	return &sticky{cookie: s.GetCookie(), ttl: s.GetTtl().AsDuration(), pools: pools}
}

// token is what a cookie holds: the first half of a keyed hash of a backend's address. Who does not have the key can neither read an
// address in it nor make one up. The route is not in it: two routes to the same backends, pages and their WebSockets say, are to lead
// a client to the same one, and a route that is given one more host has another name, and should not lose its clients.
type token [sha256.Size / 2]byte

// tokenLength is that of a token in a cookie.
var tokenLength = base64.RawURLEncoding.EncodedLen(len(token{}))

// tokens are those of all backends of a route.
type tokens struct {
	secrets *secrets // that they were made with
	of      map[*upstream.Backend]token
	by      map[token]stuck
}

// stuck is where a client belongs.
type stuck struct {
	pool    *upstream.Pool
	backend *upstream.Backend
	old     bool // by a key that is about to go: the cookie is to be replaced
}

// secrets are the keys of tokens; the first makes them, all are believed.
type secrets struct {
	keys [][]byte
}

// newSecrets derives keys for cookies from secrets that serve other purposes as well.
func newSecrets(from [][]byte) (*secrets, error) {
	s := &secrets{}
	for _, secret := range from {
		key, err := hkdf.Key(sha256.New, secret, nil, "pyserve sticky cookies", sha256.Size)
		if err != nil {
			return nil, fmt.Errorf("derive the key of sticky cookies: %w", err)
		}
		s.keys = append(s.keys, key)
	}
	return s, nil
}

// ownSecrets are good for this process alone.
func ownSecrets() *secrets {
	key := make([]byte, sha256.Size)
	rand.Read(key) // which does not fail, see its documentation
	return &secrets{keys: [][]byte{key}}
}

// SetStickySecrets makes the keys of sticky cookies from secrets that all nodes of a cluster share. Cookies are made with the
// first, and taken by any of them. Until it is called, and where it is given none, the keys are this process's own.
func (p *Proxy) SetStickySecrets(shared [][]byte) error {
	if len(shared) == 0 {
		return nil
	}
	s, err := newSecrets(shared)
	if err != nil {
		return err
	}
	if old := p.secrets.Load(); !slices.EqualFunc(old.keys, s.keys, bytes.Equal) { // or every route would make its tokens anew
		p.secrets.Store(s)
	}
	return nil
}

// known gives the tokens that go with the keys of this moment. They are made by the first request that comes with new ones: of
// many routes, most are never asked for.
func (s *sticky) known(with *secrets) *tokens {
	if t := s.tokens.Load(); t != nil && t.secrets == with {
		return t
	}
	t := &tokens{secrets: with, of: make(map[*upstream.Backend]token), by: make(map[token]stuck)}
	for k, key := range with.keys {
		h := hmac.New(sha256.New, key)
		for _, pool := range s.pools {
			for _, m := range pool.Members() {
				// The address alone: another interval of its health check makes it no other backend.
				h.Reset()
				h.Write([]byte(m.Backend.Address()))
				token := token(h.Sum(nil)[:len(token{})])
				if k == 0 {
					t.of[m.Backend] = token
				}
				if _, there := t.by[token]; !there { // or the address stands in two pools, and the first has it
					t.by[token] = stuck{pool: pool, backend: m.Backend, old: k > 0}
				}
			}
		}
	}
	s.tokens.Store(t)
	return t
}

// where is the backend that a cookie's value stands for, as long as it takes its clients.
func (s *sticky) where(value []byte, with *secrets) (stuck, bool) {
	var t token
	if len(value) != tokenLength {
		return stuck{}, false
	}
	if _, err := base64.RawURLEncoding.Decode(t[:], value); err != nil {
		return stuck{}, false
	}
	at, ok := s.known(with).by[t]
	return at, ok && at.pool.TakesBack(at.backend)
}

// stuck is where the client belongs, by its cookie; false: nowhere, or its backend takes nobody at the moment.
func (x *exchange) stuck() (stuck, bool) {
	s := x.route.sticky
	if s == nil {
		return stuck{}, false
	}
	value := x.cookie(s.cookie)
	if value == nil {
		return stuck{}, false
	}
	return s.where(value, x.secrets.Load())
}

// first is the backend of the first attempt: the client's own, or the pool's pick. A client whose backend is full is served by
// another, and comes back to its own with the next request: the cookie stays, by whatever key it was made.
func (x *exchange) first() (*upstream.Backend, *failure) {
	at, stuck := x.stuck()
	if stuck {
		x.goTo(at.pool)
		if x.mayAsk(at.pool, at.backend) {
			if !at.old {
				x.holds = at.backend
			}
			return at.backend, nil
		}
	}
	b := x.pick(nil)
	switch {
	case b == nil && x.places.full:
		var f *failure
		if b, f = x.await(); f != nil {
			return nil, f
		}
	case b == nil && stuck: // its own takes nobody but its clients, and there is no other
		at.pool.Refuse()
		return nil, overloaded(upstream.ErrFull)
	case b == nil:
		return nil, noBackend()
	}
	if stuck {
		x.holds = b
	}
	return b, nil
}

// likely is the backend that would be asked, without a pick. takes is that it takes requests.
func (x *exchange) likely() (b *upstream.Backend, takes bool) {
	if at, ok := x.stuck(); ok {
		x.goTo(at.pool)
		return at.backend, true
	}
	return x.upcoming()
}

// appendSticky gives the client a cookie for the backend that has answered, unless it has that one.
func (x *exchange) appendSticky(out []byte) []byte {
	s := x.route.sticky
	if s == nil {
		return out
	}
	if x.asked == x.holds {
		x.stickies[stickyKept].Add(1)
		return out
	}
	token := s.known(x.secrets.Load()).of[x.asked]
	x.stickies[stickyGiven].Add(1)
	out = append(out, "Set-Cookie: "...)
	out = append(out, s.cookie...)
	out = append(out, '=')
	out = base64.RawURLEncoding.AppendEncode(out, token[:])
	out = append(out, "; Path=/"...)
	if s.ttl > 0 {
		out = append(out, "; Max-Age="...)
		out = strconv.AppendInt(out, int64((s.ttl+time.Second-1)/time.Second), 10)
	}
	out = append(out, "; HttpOnly; SameSite=Lax"...)
	if bytes.EqualFold(x.origin.scheme, schemeHTTPS) { // as a trusted proxy may spell it
		out = append(out, "; Secure"...)
	}
	return append(out, "\r\n"...)
}

// What became of the clients of sticky routes.
const (
	stickyKept = iota
	stickyGiven
	stickyKinds
)

// StickyAnswers is how many answers of sticky routes left a client the cookie that it had, and how many gave it one.
func (p *Proxy) StickyAnswers() (kept, given uint64) {
	return p.stickies[stickyKept].Load(), p.stickies[stickyGiven].Load()
}
