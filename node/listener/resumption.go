package listener

import (
	"bytes"
	"crypto/tls"
	"slices"
	"sync/atomic"
)

// resumption lets a client resume a TLS session after the config was replaced by another that shows the same certificates.
//
// A ticket can be read by whoever has the key that it was encrypted with, and crypto/tls keeps those keys in the config that
// a connection begins with; a new config for each generation would make every client shake hands in full after each apply.
// So connections begin with one config for as long as the certificates stay, which holds the keys and nothing else of
// account: in the handshake it answers with the newest of the configs that Options.TLS gave (GetConfigForClient). crypto/tls
// changes the key every day and forgets it after seven, as it does for any config.
//
// With other certificates the keys go: whoever replaces a certificate, because its key was stolen, say, means clients to see
// the new one, which resumed sessions do not. Keys are each Listener's own; a ticket of one is no good at another.
//
// The zero value is ready. It is used by one goroutine.
type resumption struct {
	asked *tls.Config // the config that the last connection was to have
	begin *tls.Config // what it began with
	// The newest config with the certificates of begin. Handshakes that began on it before the next change still read it.
	newest *atomic.Pointer[tls.Config]
}

// config is what a connection begins with that is to have c; nil if c is.
func (r *resumption) config(c *tls.Config) *tls.Config {
	switch {
	case c == nil:
		return nil // asked stays: TLS may be turned on again with the same certificates
	case c == r.asked:
	case r.asked != nil && samePresence(r.asked, c):
		r.asked = c
		r.newest.Store(c)
	default:
		r.renew(c)
	}
	return r.begin
}

// renew begins with new keys.
func (r *resumption) renew(c *tls.Config) {
	r.asked = c
	if choosesItself(c) {
		r.begin, r.newest = c, nil
		return
	}
	newest := new(atomic.Pointer[tls.Config])
	newest.Store(c)
	r.newest, r.begin = newest, c.Clone()
	r.begin.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { return newest.Load(), nil }
}

// choosesItself says that what c does with a client cannot be known beforehand. Such a config keeps its own keys.
func choosesItself(c *tls.Config) bool {
	return c.GetConfigForClient != nil || c.GetCertificate != nil || c.VerifyPeerCertificate != nil || c.WrapSession != nil
}

// samePresence says that who has shaken hands under a need not do so again under b: the server shows the same chains, and
// demands the same of the client.
func samePresence(a, b *tls.Config) bool {
	return !choosesItself(a) && !choosesItself(b) &&
		slices.EqualFunc(a.Certificates, b.Certificates, sameChain) &&
		a.ClientAuth == b.ClientAuth && a.ClientCAs.Equal(b.ClientCAs)
}

func sameChain(a, b tls.Certificate) bool {
	return slices.EqualFunc(a.Certificate, b.Certificate, bytes.Equal)
}
