package identity

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"path/filepath"
	"strings"
	"time"
)

// maxIssuers is how many authorities a cluster has at a time: one, and one that takes its place.
const maxIssuers = 2

// issuer is an authority's certificate with its key.
type issuer struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

// Issuer is an authority as it is kept and told to other controls. Its key is a secret.
type Issuer struct {
	// Certificate is DER, and Key PKCS #8, DER.
	Certificate, Key []byte
}

// issuers gives the authorities, the newest first.
func (a *Authority) issuers() []issuer {
	a.mu.RLock()
	defer a.mu.RUnlock()
	all := []issuer{{a.ca, a.caKey}}
	if a.old != nil {
		all = append(all, *a.old)
	}
	return all
}

// newest issues the certificates of nodes and people.
func (a *Authority) newest() issuer { return a.issuers()[0] }

// oldest issues control's own certificate: everybody who has not heard of a newer one believes it, and everybody who has
// believes both.
func (a *Authority) oldest() issuer {
	all := a.issuers()
	return all[len(all)-1]
}

// AuthorityHash names the authority that issues: the SHA-256 of its certificate, DER.
func (a *Authority) AuthorityHash() [sha256.Size]byte {
	return sha256.Sum256(a.newest().certificate.Raw)
}

// CertificateHash is the SHA-256 of a certificate, DER.
func CertificateHash(der []byte) [sha256.Size]byte { return sha256.Sum256(der) }

// AuthorityExpires is the end of the authority that issues.
func (a *Authority) AuthorityExpires() time.Time { return a.newest().certificate.NotAfter }

// CACertificates are whom to believe in this cluster, DER, the newest first.
func (a *Authority) CACertificates() [][]byte {
	var out [][]byte
	for _, i := range a.issuers() {
		out = append(out, i.certificate.Raw)
	}
	return out
}

// pool are the authorities whose certificates are believed.
func (a *Authority) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	for _, i := range a.issuers() {
		pool.AddCert(i.certificate)
	}
	return pool
}

// NewIssuer makes an authority for the cluster, which [Authority.Install] puts to use.
func (a *Authority) NewIssuer() (Issuer, error) {
	made, err := a.makeIssuer()
	if err != nil {
		return Issuer{}, fmt.Errorf("make an authority: %w", err)
	}
	return made.export()
}

// makeIssuer makes a key and its certificate.
func (a *Authority) makeIssuer() (issuer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return issuer{}, err
	}
	template := a.template(pkix.Name{CommonName: authorityName(a.clusterID)}, authorityLifetime, time.Time{})
	template.IsCA = true
	template.MaxPathLen = 1 // see crossSign
	template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return issuer{}, err
	}
	certificate, err := x509.ParseCertificate(der)
	return issuer{certificate, key}, err
}

func (i issuer) export() (Issuer, error) {
	key, err := x509.MarshalPKCS8PrivateKey(i.key)
	if err != nil {
		return Issuer{}, fmt.Errorf("encode the authority's key: %w", err)
	}
	return Issuer{Certificate: i.certificate.Raw, Key: key}, nil
}

// Issuers gives the authorities, the newest first, for [Authority.Install] elsewhere.
func (a *Authority) Issuers() ([]Issuer, error) {
	var out []Issuer
	for _, i := range a.issuers() {
		exported, err := i.export()
		if err != nil {
			return nil, err
		}
		out = append(out, exported)
	}
	return out, nil
}

// Install puts authorities to use, the newest first: one, or two while one takes the other's place. They are on disk when
// it returns. After an error everything is as it was.
func (a *Authority) Install(all []Issuer) error {
	next := make([]issuer, 0, len(all))
	for _, raw := range all {
		i, err := parseIssuer(raw, a.clusterID)
		if err != nil {
			return fmt.Errorf("take an authority to use: %w", err)
		}
		next = append(next, i)
	}
	if len(next) == 0 || len(next) > maxIssuers {
		return fmt.Errorf("take an authority to use: a cluster has 1 to %d, not %d", maxIssuers, len(next))
	}
	if err := a.keep(next); err != nil {
		return fmt.Errorf("take an authority to use: %w", err)
	}
	a.use(next)
	a.logger.Info("the cluster's authorities changed", "issues", hashName(next[0].certificate.Raw), "believed", len(next))
	return nil
}

func hashName(der []byte) string {
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:6])
}

func (a *Authority) use(next []issuer) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.ca, a.caKey, a.old = next[0].certificate, next[0].key, nil
	if len(next) > 1 {
		a.old = &next[1]
	}
}

// keep writes the authorities into their two files. There is a key for every certificate at every moment, so that a crash
// in between leaves an identity that loads.
func (a *Authority) keep(next []issuer) error {
	for _, step := range []struct {
		file string
		all  []issuer
	}{{caKeyFile, append(next[:len(next):len(next)], a.issuers()...)}, {caFile, next}, {caKeyFile, next}} {
		crt, key, err := encodeIssuers(step.all)
		if err != nil {
			return err
		}
		data := key
		if step.file == caFile {
			data = crt
		}
		if err := WriteSecret(filepath.Join(a.directory, step.file), data); err != nil {
			return err
		}
	}
	return nil
}

// encodeIssuers gives what the two files hold.
func encodeIssuers(all []issuer) (crt, key []byte, err error) {
	for _, i := range all {
		exported, err := i.export()
		if err != nil {
			return nil, nil, err
		}
		crt = append(crt, encodePEM(certificatePEM, exported.Certificate)...)
		key = append(key, encodePEM(privateKeyPEM, exported.Key)...)
	}
	return crt, key, nil
}

func parseIssuer(raw Issuer, clusterID string) (issuer, error) {
	certificate, err := parseAuthority(raw.Certificate, clusterID)
	if err != nil {
		return issuer{}, err
	}
	key, err := parseKey[*ecdsa.PrivateKey](raw.Key)
	if err != nil {
		return issuer{}, err
	}
	if key.Curve != elliptic.P256() || !key.PublicKey.Equal(certificate.PublicKey) {
		return issuer{}, errors.New("the key is not the certificate's")
	}
	return issuer{certificate, key}, nil
}

func parseAuthority(der []byte, clusterID string) (*x509.Certificate, error) {
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	if want := authorityName(clusterID); certificate.Subject.CommonName != want {
		return nil, fmt.Errorf("it is the certificate of %q, not of %q", certificate.Subject.CommonName, want)
	}
	if !certificate.IsCA {
		return nil, errors.New("it is not the certificate of an authority")
	}
	return certificate, certificate.CheckSignatureFrom(certificate)
}

// crossSign has the newer authority vouch for the older one. A token that was made since carries the hash of the newer
// one, while control still shows a certificate by the older.
func crossSign(old, by issuer) ([]byte, error) {
	serial := make([]byte, 16)
	rand.Read(serial)
	until := old.certificate.NotAfter
	if by.certificate.NotAfter.Before(until) {
		until = by.certificate.NotAfter
	}
	template := &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(serial), Subject: old.certificate.Subject, SubjectKeyId: old.certificate.SubjectKeyId,
		NotBefore: by.certificate.NotBefore, NotAfter: until,
		BasicConstraintsValid: true, IsCA: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign,
	}
	return x509.CreateCertificate(rand.Reader, template, by.certificate, old.key.Public(), by.key)
}

// Repin gives a token with the hash of the authority that issues now, in the place of an older one's, and whether that is
// another token than before. The secret stays, so it is the same token to control.
func (a *Authority) Repin(token string) (string, bool) {
	if _, _, _, err := parseToken(token); err != nil {
		return token, false
	}
	hash := a.AuthorityHash()
	parts := strings.Split(token, ".")
	parts[3] = hex.EncodeToString(hash[:])
	pinned := strings.Join(parts, ".")
	return pinned, pinned != token
}
