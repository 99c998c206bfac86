package identity

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/pyserve/pyserve/config/bundle"
)

// Export gives every file of the cluster's identity, by name, for a further control. Whoever has them is the cluster.
func (a *Authority) Export() (map[string][]byte, error) {
	files, err := a.files()
	if err != nil {
		return nil, fmt.Errorf("encode the cluster's identity: %w", err)
	}
	return files, nil
}

// Adopt keeps the identity that another control exported, mode 0600, complete or not at all. Where there is one already,
// it has to be the same cluster's. As for [Open], nobody else may use the directory meanwhile.
func Adopt(o Options, files map[string][]byte) error {
	d := keyDirectory{parent: o.Dir, logger: o.Logger}
	if err := os.MkdirAll(d.parent, 0o700); err != nil {
		return fmt.Errorf("make the data directory: %w", err)
	}
	if err := d.removeUnfinished(); err != nil {
		return err
	}
	temporary, err := os.MkdirTemp(d.parent, unfinished) // mode 0700
	if err != nil {
		return fmt.Errorf("make the identity directory: %w", err)
	}
	defer os.RemoveAll(temporary)
	next := keyDirectory{parent: temporary, logger: o.Logger}
	if err := os.Mkdir(next.path(), 0o700); err != nil {
		return fmt.Errorf("make the identity directory: %w", err)
	}
	for name, data := range files {
		if name != filepath.Base(name) || strings.HasPrefix(name, ".") || len(data) > maxKeyFile {
			return fmt.Errorf("the control sent %.80q, which is no file of an identity", name)
		}
		if err := WriteSecret(filepath.Join(next.path(), name), data); err != nil {
			return err
		}
	}
	received := &Authority{now: o.Now, logger: o.Logger}
	if err := next.load(received); err != nil {
		return fmt.Errorf("the control sent an identity that cannot be used: %w", err)
	}
	return d.replace(next, received)
}

// replace puts the identity that lies in next in this one's place.
func (d keyDirectory) replace(next keyDirectory, received *Authority) error {
	made, err := d.exists()
	if err != nil {
		return err
	}
	if made {
		own := &Authority{}
		if err := d.load(own); err != nil {
			return err
		}
		if own.clusterID != received.clusterID {
			return fmt.Errorf("%s is the identity of another cluster, %s; give this control a --data-dir of its own", d.path(), own.clusterID)
		}
		return nil
	}
	if err := os.Rename(next.path(), d.path()); err != nil {
		return fmt.Errorf("put the identity directory in its place: %w", err)
	}
	return bundle.SyncDirectory(d.parent)
}

// errNotControl says that a peer is of this cluster and no control.
var errNotControl = errors.New("the peer is not a control of this cluster")

// PeerTLS gives the configurations by which controls speak to each other: both sides show the certificate of a control
// of this cluster, which has not ended, or there is no connection.
func (a *Authority) PeerTLS(controlName string) (server, client *tls.Config, err error) {
	if server, err = a.ServerTLS(controlName); err != nil {
		return nil, nil, err
	}
	certificate := server.GetCertificate
	server.ClientAuth = tls.RequireAnyClientCert
	server.VerifyConnection = a.verifyControl
	client = &tls.Config{
		MinVersion: tls.VersionTLS13, Time: a.now, ServerName: ServerName,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return certificate(nil) },
		// verifyControl asks for more than a name that fits: it is this cluster's, by whom that believes now, and a control.
		InsecureSkipVerify: true,
		VerifyConnection:   a.verifyControl,
	}
	return server, client, nil
}

// verifyControl is asked within the handshake, which ends in failure where the peer does not hold its certificate's key.
func (a *Authority) verifyControl(state tls.ConnectionState) error {
	state.HandshakeComplete = true
	peer, err := a.PeerOf(state)
	switch {
	case err != nil:
		return err
	case peer.Role != RoleControl:
		return errNotControl
	case peer.Expired(a.now()):
		return fmt.Errorf("the certificate of control %q ended on %s", peer.Name, peer.Until)
	}
	return nil
}

// JoinTLS gives the configuration to dial a control with while nothing is known of its cluster but a token: the
// authority is the one whose hash the token carries. Its errors are those of a token that is malformed or of another
// kind.
func JoinTLS(token string) (*tls.Config, error) {
	kind, _, _, err := parseToken(token)
	if err == nil && kind != TokenControl {
		err = ErrTokenKind
	}
	if err != nil {
		return nil, err
	}
	pin := strings.Split(token, ".")[3]
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		ServerName: ServerName,
		// The authority is known by its hash alone: the chain is verified below against the certificate that has it.
		InsecureSkipVerify: true,
		VerifyConnection:   func(state tls.ConnectionState) error { return verifyPinned(state, pin) },
	}, nil
}

// ErrOtherCluster says that a control is not of the cluster that made the token.
var ErrOtherCluster = errors.New("it belongs to another cluster than the one that made the token")

func verifyPinned(state tls.ConnectionState, pin string) error {
	at := slices.IndexFunc(state.PeerCertificates, func(c *x509.Certificate) bool {
		sum := sha256.Sum256(c.Raw)
		return hex.EncodeToString(sum[:]) == strings.ToLower(pin)
	})
	if at < 1 {
		return ErrOtherCluster
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(state.PeerCertificates[at])
	for _, c := range state.PeerCertificates[1:] { // a new authority vouches for the one that it takes the place of
		between.AddCert(c)
	}
	options := x509.VerifyOptions{Roots: roots, Intermediates: between, DNSName: ServerName}
	if _, err := state.PeerCertificates[0].Verify(options); err != nil {
		return fmt.Errorf("its certificate is not good: %w", err)
	}
	return nil
}
