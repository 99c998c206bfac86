package listener

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"sync/atomic"
	"testing"

	"github.com/pyserve/pyserve/node/certtest"
)

// visitor is a client that remembers its sessions.
type visitor struct {
	l      *Listener
	config *tls.Config
}

// resumed says whether a visit went on with an earlier session. The answer is read to the end because TLS 1.3 brings the
// ticket after the handshake.
func (v visitor) resumed(t *testing.T) bool {
	t.Helper()
	c, err := tls.Dial("tcp", v.l.Address(), v.config)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, request)
	if _, err := io.ReadAll(c); err != nil {
		t.Error(err)
	}
	return c.ConnectionState().DidResume
}

func TestSessionsOutliveAConfigButNotItsCertificate(t *testing.T) {
	authority := certtest.New(t)
	config, other := serverConfig(t, authority), serverConfig(t, authority)
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		var now atomic.Pointer[tls.Config]
		v := visitor{
			l: started(t, Options{TLS: now.Load}),
			config: &tls.Config{
				RootCAs: authority.Pool(), MaxVersion: version, ClientSessionCache: tls.NewLRUClientSessionCache(0),
			},
		}
		for _, step := range []struct {
			what    string
			config  *tls.Config
			resumed bool
		}{
			{"the first visit", config, false},
			{"the same config", config, true},
			{"the next generation's", config.Clone(), true},
			{"the one after", config.Clone(), true},
			{"another certificate", other, false},
			{"the same config", other, true},
			{"the old certificate", config, false},
		} {
			now.Store(step.config)
			if got := v.resumed(t); got != step.resumed {
				t.Errorf("%s, %s: resumed %t", tls.VersionName(version), step.what, got)
			}
		}
		now.Store(nil)
		get(t, v.l)
		now.Store(config.Clone())
		if !v.resumed(t) {
			t.Errorf("%s: a while of plain HTTP forgets the sessions", tls.VersionName(version))
		}
	}
}

func TestAHandshakeTakesTheNewestConfig(t *testing.T) {
	config := serverConfig(t, certtest.New(t))
	var r resumption
	first := r.config(config)
	if again := r.config(config); again != first {
		t.Error("the same config begins anew")
	}
	next := config.Clone()
	if r.config(next) != first {
		t.Fatal("the keys are gone")
	}
	if got, err := first.GetConfigForClient(nil); err != nil || got != next {
		t.Errorf("a handshake under way takes %p %v, want %p", got, err, next)
	}
	if r.config(nil) != nil {
		t.Error("plain became TLS")
	}
}

func TestKeysAreNotSharedWhereThatWouldSkipACheck(t *testing.T) {
	authority := certtest.New(t)
	config := serverConfig(t, authority)
	for what, change := range map[string]func(*tls.Config){
		"ClientAuth":   func(c *tls.Config) { c.ClientAuth = tls.RequireAndVerifyClientCert },
		"ClientCAs":    func(c *tls.Config) { c.ClientCAs = authority.Pool() },
		"Certificates": func(c *tls.Config) { c.Certificates = append(c.Certificates, config.Certificates...) },
		"GetCertificate": func(c *tls.Config) {
			c.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return nil, nil }
		},
		"GetConfigForClient": func(c *tls.Config) {
			c.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { return nil, nil }
		},
		"WrapSession": func(c *tls.Config) { c.WrapSession = c.EncryptTicket },
		"VerifyPeerCertificate": func(c *tls.Config) {
			c.VerifyPeerCertificate = func([][]byte, [][]*x509.Certificate) error { return nil }
		},
	} {
		var r resumption
		first := r.config(config)
		changed := config.Clone()
		changed.Certificates = append([]tls.Certificate(nil), config.Certificates...)
		change(changed)
		if r.config(changed) == first {
			t.Errorf("%s: the keys stayed", what)
		}
		if r.config(config.Clone()) == first {
			t.Errorf("%s: the old keys came back", what)
		}
	}
}
