package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// certificate names the files that every proxy serves TLS from.
type certificate struct {
	// PEM; BothFile holds the certificate and the key, as HAProxy wants them.
	CertFile, KeyFile, BothFile string
	roots                       *x509.CertPool
}

// newCertificate makes a self-signed certificate, ECDSA over P-256, good for a day.
func newCertificate(dir string) (certificate, error) {
	c := certificate{filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"), filepath.Join(dir, "both.pem"), x509.NewCertPool()}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return c, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: hostName},
		DNSNames:     []string{hostName},
		IPAddresses:  []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(24 * time.Hour),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return c, err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return c, err
	}
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
	c.roots.AppendCertsFromPEM(certPEM)
	for file, text := range map[string][]byte{c.CertFile: certPEM, c.KeyFile: keyPEM, c.BothFile: slices.Concat(certPEM, keyPEM)} {
		if err := os.WriteFile(file, text, 0o600); err != nil {
			return c, err
		}
	}
	return c, nil
}
