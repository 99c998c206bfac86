package upstream

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"strings"

	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
	"google.golang.org/protobuf/proto"
)

// digest identifies the content of a message within this process; protobuf promises no more for its deterministic form.
// A nil message and an empty one differ.
type digest [sha256.Size]byte

func digestOf(m proto.Message) digest {
	if !m.ProtoReflect().IsValid() {
		return digest{}
	}
	// Marshalling fails only on strings that are not UTF-8, which did not arrive as protobuf in the first place. Were there
	// one, such messages would count as one, so what could be written is hashed with the error.
	content, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		content = append(content, err.Error()...)
	}
	return sha256.Sum256(content)
}

// tlsMaterial is a BackendTls parsed: every backend of a pool shares it, because a thousand copies of a system-sized CA
// bundle would cost an apply seconds and the node its memory.
type tlsMaterial struct {
	config *tls.Config // a template: cloned for each backend
	refs   int         // guarded by Registry.mu
}

// parseTLS builds the template. What is verified is decided here and nowhere else, so that traffic, upgrades and probes
// cannot come to believe different servers.
func parseTLS(t *resourcev1.BackendTls) (*tls.Config, error) {
	config := &tls.Config{
		MinVersion: tls.VersionTLS12,
		ServerName: t.GetServerName(),
		// Without ALPN a server that prefers HTTP/2 may still assume it.
		NextProtos:         []string{"http/1.1"},
		InsecureSkipVerify: t.GetInsecureSkipVerify(),
	}
	if ca := t.GetCaPem(); len(ca) > 0 {
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(ca) {
			return nil, &SpecError{Field: "tls.ca_file", Reason: "holds no certificate in PEM form"}
		}
	}
	chain, key := t.GetChainPem(), t.GetKeyPem()
	switch {
	case len(chain) == 0 && len(key) == 0:
		return config, nil
	case len(chain) == 0:
		return nil, &SpecError{Field: "tls.cert_file", Reason: "is needed beside tls.key_file"}
	case len(key) == 0:
		return nil, &SpecError{Field: "tls.key_file", Reason: "is needed beside tls.cert_file"}
	}
	pair, err := tls.X509KeyPair(chain, key)
	if err != nil {
		// crypto/tls says which of the two it is only in words.
		return nil, &SpecError{Field: "tls.cert_file", Reason: "cannot be used with tls.key_file: " + strings.TrimPrefix(err.Error(), "tls: ")}
	}
	config.Certificates = []tls.Certificate{pair}
	return config, nil
}

// tlsFor is the template made one backend's own. The session cache is not shared: two servers that answer to the same name
// need not know each other's tickets.
//
// The cache holds one session, the newest: its key is the server name, of which a backend has one, so that more room would
// stay empty. Connections that are opened at once all offer the same ticket. That RFC 8446 appendix C.4 advises against, as
// it shows onlookers that they come from one client, which a backend's connections do in any case; a server that takes each
// ticket once falls back on a whole handshake.
func (m *tlsMaterial) tlsFor(host string) *tls.Config {
	config := m.config.Clone()
	if config.ServerName == "" {
		config.ServerName = strings.TrimSuffix(host, ".")
	}
	config.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	return config
}
