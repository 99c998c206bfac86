package config

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io/fs"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"
)

// today is when all tests take place.
var today = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)

// memory gives files from a map.
func memory(files map[string][]byte) Files {
	return func(name string) ([]byte, error) {
		data, ok := files[name]
		if !ok {
			return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
		}
		return data, nil
	}
}

// mustParse gives the resources of a document that has no errors.
func mustParse(t *testing.T, document string, files map[string][]byte) *Resources {
	t.Helper()
	resources, problems := parse([]byte(document), memory(files), today)
	if resources == nil || problems.HasErrors() {
		t.Fatalf("the document was refused:\n%s", joined(problems))
	}
	return resources
}

// wantProblems compares all problems of a document, one to a line. Resources must be there only without errors.
func wantProblems(t *testing.T, document string, files map[string][]byte, want ...string) {
	t.Helper()
	resources, problems := parse([]byte(document), memory(files), today)
	if got := joined(problems); got != strings.Join(want, "\n") {
		t.Errorf("problems of\n%s\ngot:\n%s\nwant:\n%s", document, got, strings.Join(want, "\n"))
	}
	if (resources == nil) != problems.HasErrors() {
		t.Errorf("resources are nil: %v, errors: %v", resources == nil, problems.HasErrors())
	}
}

func joined(problems Problems) string {
	var lines []string
	for _, p := range problems {
		lines = append(lines, p.String())
	}
	return strings.Join(lines, "\n")
}

// authority signs certificates for tests.
type authority struct {
	t           *testing.T
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t}
	a.certificate, a.key = a.sign(&x509.Certificate{IsCA: true, BasicConstraintsValid: true, NotAfter: today.AddDate(10, 0, 0)})
	return a
}

// sign fills a template in and gives it signed: by itself where the authority has no key yet.
func (a *authority) sign(template *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	template.SerialNumber = big.NewInt(1)
	template.Subject = pkix.Name{CommonName: "test"}
	if template.NotBefore.IsZero() {
		template.NotBefore = today.AddDate(-1, 0, 0)
	}
	parent, signer := a.certificate, a.key
	if signer == nil {
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		a.t.Fatal(err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return certificate, key
}

// pair gives a certificate that ends at some time, and its key, in PEM.
func (a *authority) pair(notAfter time.Time) (chain, key []byte) {
	a.t.Helper()
	certificate, private := a.sign(&x509.Certificate{NotAfter: notAfter, DNSNames: []string{"localhost"}})
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		a.t.Fatal(err)
	}
	return inPEM(certificate), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

func inPEM(certificate *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate.Raw})
}

// sslFiles gives the files that documents of the tests name.
func sslFiles(t *testing.T) map[string][]byte {
	t.Helper()
	a := newAuthority(t)
	chain, key := a.pair(time.Date(2027, 1, 2, 0, 0, 0, 0, time.UTC))
	return map[string][]byte{"./ssl/cert.pem": chain, "./ssl/key.pem": key, "./ca.pem": inPEM(a.certificate)}
}

func names[V any](m map[string]V) []string {
	var out []string
	for name := range m {
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}

// routeEntry puts the lines of one route, which begin at line 3, into a document.
func routeEntry(lines string) string {
	return "server:\n  reverse_proxy:\n    - " + strings.ReplaceAll(strings.TrimSpace(lines), "\n", "\n      ") + "\n"
}
