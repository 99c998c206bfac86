package identity

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
	"github.com/pyserve/pyserve/proto/voucher"
)

// nodeServerName is the DNS name in every node's certificate, for nodes that serve one another.
const nodeServerName = "node.pyserve.internal"

// maxRequest is how long a certificate request may be, in bytes; one of ours has about 250.
const maxRequest = 16 << 10

// CheckName says whether a node, control or operator may be called so: 1 to 63 of a-z A-Z 0-9 . _ -, beginning with a
// letter or digit.
func CheckName(name string) error {
	if len(name) == 0 || len(name) > 63 {
		return fmt.Errorf("a name has 1 to 63 characters, this one has %d", len(name))
	}
	for i, c := range []byte(name) {
		alphanumeric := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
		if !alphanumeric && (i == 0 || !strings.ContainsRune("._-", rune(c))) {
			return fmt.Errorf("the name %q may hold a-z A-Z 0-9 . _ - and begins with a letter or digit", name)
		}
	}
	return nil
}

// Peer is who is at the other end of a connection.
type Peer struct {
	Role Role
	Name string
	// KeyHash is the SHA-256 of the public key (SPKI, DER): two certificates of one holder share it.
	KeyHash [32]byte
	// Key is the public key itself, zero where it is not of a kind that vouchers know.
	Key voucher.Key `json:"-"`
	// Until is the end of the certificate, which may be over: see [Peer.Expired].
	Until time.Time
	// Issued is when the certificate was made, to the second.
	Issued time.Time
	// Authority is the hash of the authority that issued the certificate, as [Authority.AuthorityHash].
	Authority [32]byte
}

// Expired says whether the peer's certificate has ended. Such a peer holds the key, and is who it says it was; what that
// is worth, the caller decides.
func (p Peer) Expired(now time.Time) bool { return now.After(p.Until) }

// ErrAnonymous says that the peer showed no certificate.
var ErrAnonymous = errors.New("no client certificate was shown")

// PeerOf says who is at the other end of a connection that [Authority.ServerTLS] accepted. It fails with
// [ErrAnonymous] where no certificate was shown, and for one that is not of this cluster or names no identity of it. One
// that has expired is no error, see [Peer.Expired].
func (a *Authority) PeerOf(state tls.ConnectionState) (Peer, error) {
	if len(state.PeerCertificates) == 0 {
		return Peer{}, ErrAnonymous
	}
	if !state.HandshakeComplete {
		return Peer{}, errors.New("the peer has not proved that it holds the key of its certificate")
	}
	leaf := state.PeerCertificates[0]
	by, err := a.issuerOf(leaf)
	if err != nil {
		return Peer{}, err
	}
	if len(leaf.URIs) != 1 {
		return Peer{}, fmt.Errorf("the client certificate names %d identities, want one", len(leaf.URIs))
	}
	u := leaf.URIs[0]
	roleName, name, _ := strings.Cut(strings.TrimPrefix(u.Path, "/"), "/")
	role, known := parseRole(roleName)
	if !known || CheckName(name) != nil || u.String() != a.identityURI(role, name).String() {
		return Peer{}, fmt.Errorf("the client certificate's identity %.200q is not one of cluster %s", u.String(), a.clusterID)
	}
	key, err := voucher.KeyOf(leaf.PublicKey)
	if err != nil {
		key = voucher.Key{} // whoever needs one says so
	}
	return Peer{
		Role: role, Name: name, KeyHash: sha256.Sum256(leaf.RawSubjectPublicKeyInfo), Key: key, Until: leaf.NotAfter, Issued: IssuedAt(leaf), Authority: sha256.Sum256(by.Raw),
	}, nil
}

// IssuedAt gives as of when a certificate of this cluster was made, to the second.
func IssuedAt(leaf *x509.Certificate) time.Time { return leaf.NotBefore.Add(backdate) }

// verify says whether a client's certificate, where it shows one, was issued by this cluster.
func (a *Authority) verify(state tls.ConnectionState) error {
	if len(state.PeerCertificates) == 0 {
		return nil
	}
	_, err := a.issuerOf(state.PeerCertificates[0])
	return err
}

// issuerOf gives the authority that issued a client's certificate. One that has ended is good for that still: TLS would
// refuse it with a number, where a call can be refused with a sentence, and a node's can be renewed.
func (a *Authority) issuerOf(leaf *x509.Certificate) (*x509.Certificate, error) {
	for _, i := range a.issuers() {
		if a.now().After(leaf.NotAfter) {
			if slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageClientAuth) && leaf.CheckSignatureFrom(i.certificate) == nil {
				return i.certificate, nil
			}
			continue
		}
		roots := x509.NewCertPool()
		roots.AddCert(i.certificate)
		_, err := leaf.Verify(x509.VerifyOptions{
			Roots: roots, CurrentTime: a.now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		})
		if err == nil {
			return i.certificate, nil
		}
	}
	return nil, fmt.Errorf("the client certificate is not one of cluster %s, or not good yet", a.clusterID)
}

func (a *Authority) identityURI(role Role, name string) *url.URL {
	return &url.URL{Scheme: "pyserve", Host: a.clusterID, Path: "/" + role.String() + "/" + name}
}

// issue signs a certificate for a peer as of a moment; dnsName may be empty.
func (a *Authority) issue(by issuer, at time.Time, public crypto.PublicKey, role Role, name, dnsName string, lifetime time.Duration, usage ...x509.ExtKeyUsage) ([]byte, error) {
	if err := CheckName(name); err != nil {
		return nil, err
	}
	template := a.template(pkix.Name{CommonName: name, OrganizationalUnit: []string{role.String()}}, lifetime, by.certificate.NotAfter)
	template.NotBefore = at.Add(-backdate)
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.ExtKeyUsage = usage
	template.URIs = []*url.URL{a.identityURI(role, name)}
	if dnsName != "" {
		template.DNSNames = []string{dnsName}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, by.certificate, public, by.key)
	if err != nil {
		return nil, fmt.Errorf("issue a certificate for %s %q: %w", role, name, err)
	}
	return der, nil
}

// IssueNode gives the node of that name its identity. Of the PKCS #10 request only the key is taken, ECDSA P-256 or
// Ed25519; its signature must be good. Whether the name is free, the caller knows.
func (a *Authority) IssueNode(name string, csrDER []byte) (*fleetv1.Identity, error) {
	public, err := requestedKey(csrDER)
	if err != nil {
		return nil, err
	}
	by := a.issuers()
	der, err := a.issue(by[0], a.now(), public, RoleNode, name, nodeServerName, nodeLifetime, x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth)
	if err != nil {
		return nil, err
	}
	vouched, err := a.vouchForCertificate(RoleNode, name, der)
	if err != nil {
		return nil, err
	}
	id := &fleetv1.Identity{
		Certificate:   der,
		CaCertificate: by[0].certificate.Raw,
		ReleaseKey:    a.release.Public().(ed25519.PublicKey),
		ClusterId:     a.clusterID,
		Voucher:       vouched,
	}
	for _, other := range by[1:] {
		id.OtherCaCertificates = append(id.OtherCaCertificates, other.certificate.Raw)
	}
	return id, nil
}

// IssuePerson gives a person a certificate. Of the PKCS #10 request only the key is taken, as in [Authority.IssueNode]. It
// counts as issued after a moment, whatever the clock says: until when those of the name were revoked; zero: they were not.
func (a *Authority) IssuePerson(name string, role Role, csrDER []byte, lifetime time.Duration, after time.Time) (certificate []byte, err error) {
	if !role.IsPerson() {
		return nil, fmt.Errorf("%s is not the role of a person", role)
	}
	public, err := requestedKey(csrDER)
	if err != nil {
		return nil, err
	}
	at := a.now()
	if least := after.Add(time.Second); !after.IsZero() && at.Before(least) {
		at = least // a certificate's time has whole seconds
	}
	return a.issue(a.newest(), at, public, role, name, "", lifetime, x509.ExtKeyUsageClientAuth)
}

func requestedKey(csrDER []byte) (crypto.PublicKey, error) {
	if len(csrDER) > maxRequest {
		return nil, fmt.Errorf("the certificate request has %d bytes, at most %d are taken", len(csrDER), maxRequest)
	}
	request, err := x509.ParseCertificateRequest(csrDER)
	if err != nil {
		return nil, fmt.Errorf("parse the certificate request: %w", err)
	}
	switch key := request.PublicKey.(type) {
	case *ecdsa.PublicKey:
		if key.Curve != elliptic.P256() {
			return nil, errors.New("the certificate request's key is not on the curve P-256")
		}
	case ed25519.PublicKey:
	default:
		return nil, fmt.Errorf("the certificate request's key is neither ECDSA P-256 nor Ed25519 but %s", request.PublicKeyAlgorithm)
	}
	if err := request.CheckSignature(); err != nil {
		return nil, fmt.Errorf("the certificate request is not signed by its own key: %w", err)
	}
	return request.PublicKey, nil
}

// ServerTLS gives the configuration of control's listener: TLS 1.3, a certificate for [ServerName] that is issued anew
// before it expires, client certificates of this cluster verified where one is shown, expired ones
// included, which [Peer.Expired] tells. The chain holds the authority's
// own certificate, for a node that enrols and knows nothing but its hash.
func (a *Authority) ServerTLS(controlName string) (*tls.Config, error) {
	s := &serverCertificate{authority: a, name: controlName}
	if _, err := s.get(); err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		Time:       a.now,
		ClientCAs:  a.pool(), // a hint to clients; verify decides
		ClientAuth: tls.RequestClientCert,
		// Instead of crypto/tls's own check, which knows no expired certificates.
		VerifyConnection: a.verify,
		GetCertificate:   func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return s.get() },
		// A resumed session would carry a client's certificate past the day it is withdrawn.
		SessionTicketsDisabled: true,
	}, nil
}

// serverCertificate is control's certificate, issued anew at half of its life.
type serverCertificate struct {
	authority *Authority
	name      string

	mu      sync.Mutex // guards what follows
	current *tls.Certificate
	renewAt time.Time
	by      []issuer // who issued it and vouches for it
}

func (s *serverCertificate) get() (*tls.Certificate, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now, by := s.authority.now(), s.authority.issuers()
	if s.current != nil && now.Before(s.renewAt) && slices.Equal(by, s.by) {
		return s.current, nil
	}
	next, err := s.authority.issueServer(s.name)
	if err != nil {
		if s.current != nil && now.Before(s.current.Leaf.NotAfter) {
			s.authority.logger.Error("could not renew control's certificate; the current one is used on", "error", err)
			return s.current, nil
		}
		return nil, err
	}
	s.current, s.by = next, by
	s.renewAt = now.Add(next.Leaf.NotAfter.Sub(now) / 2)
	return s.current, nil
}

func (a *Authority) issueServer(name string) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make control's key: %w", err)
	}
	by := a.oldest()
	der, err := a.issue(by, a.now(), key.Public(), RoleControl, name, ServerName, serverLifetime, x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	chain := [][]byte{der, by.certificate.Raw}
	if newest := a.newest(); newest.certificate != by.certificate {
		cross, err := crossSign(by, newest)
		if err != nil {
			return nil, fmt.Errorf("have the new authority vouch for the old one: %w", err)
		}
		chain = append(chain, cross, newest.certificate.Raw)
	}
	return &tls.Certificate{Certificate: chain, PrivateKey: key, Leaf: leaf}, nil
}
