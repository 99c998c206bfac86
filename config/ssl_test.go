package config

import (
	"bytes"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"slices"
	"strings"
	"testing"
)

const sslDocument = `server: {reverse_proxy: [{}]}
ssl:
  enabled: true
  cert_file: ./ssl/cert.pem
  key_file: ./ssl/key.pem
`

func TestCertificateIsReadFromFiles(t *testing.T) {
	files := sslFiles(t)
	r := mustParse(t, sslDocument, files)
	if r.Listener.Certificate != CertificateName {
		t.Errorf("the listener's certificate is %q", r.Listener.Certificate)
	}
	c := r.Certificates[CertificateName]
	if _, err := tls.X509KeyPair(c.ChainPem, c.KeyPem); err != nil {
		t.Error(err)
	}
}

func TestOnlyTheCertificateIsTakenFromItsFile(t *testing.T) {
	files := sslFiles(t)
	both := slices.Concat([]byte("some words\n"), files["./ssl/key.pem"], files["./ssl/cert.pem"])
	r := mustParse(t, sslDocument, map[string][]byte{"./ssl/cert.pem": both, "./ssl/key.pem": both})
	if got := r.Certificates[CertificateName].ChainPem; !bytes.Equal(got, files["./ssl/cert.pem"]) {
		t.Errorf("the chain is\n%s", got)
	}
}

func TestCertificateProblems(t *testing.T) {
	files := sslFiles(t)
	cert, key := files["./ssl/cert.pem"], files["./ssl/key.pem"]
	_, otherKey := newAuthority(t).pair(today.AddDate(1, 0, 0))
	expired, expiredKey := newAuthority(t).pair(today.AddDate(0, 0, -1))
	block, _ := pem.Decode(key)
	locked := pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: block.Bytes})
	nonsense := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("secret secret")})
	broken := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("no certificate")})
	const certAt, keyAt = "4: ssl.cert_file: ", "5: ssl.key_file: "
	for name, test := range map[string]struct {
		cert, key []byte
		want      []string
	}{
		"missing":       {nil, key, []string{certAt + `"./ssl/cert.pem" cannot be read: file does not exist`}},
		"both missing":  {nil, nil, []string{certAt + `"./ssl/cert.pem" cannot be read: file does not exist`, keyAt + `"./ssl/key.pem" cannot be read: file does not exist`}},
		"no PEM":        {[]byte("x"), key, []string{certAt + `"./ssl/cert.pem" holds no certificate in PEM form, which begins with -----BEGIN CERTIFICATE-----`}},
		"broken":        {broken, key, []string{certAt + `certificate 1 in "./ssl/cert.pem" cannot be read: malformed certificate`}},
		"swapped":       {key, cert, []string{certAt + `"./ssl/cert.pem" holds no certificate in PEM form, which begins with -----BEGIN CERTIFICATE-----`, keyAt + `"./ssl/key.pem" holds no private key in PEM form, which begins with -----BEGIN PRIVATE KEY-----`}},
		"another's key": {cert, otherKey, []string{keyAt + `"./ssl/key.pem" is not the key of the certificate in "./ssl/cert.pem": name two that belong together`}},
		"locked key":    {cert, locked, []string{keyAt + `the key in "./ssl/key.pem" is locked with a passphrase: write it out without one (openssl pkey -in … -out …)`}},
		"nonsense key":  {cert, nonsense, []string{keyAt + `the key in "./ssl/key.pem" is of no known form: write a PKCS #8, PKCS #1 or SEC 1 key in PEM`}},
		"too large":     {bytes.Repeat([]byte("x"), maxFileBytes+1), key, []string{certAt + `"./ssl/cert.pem" cannot be read: it has 1048577 bytes, at most 1048576 are read`}},
		"expired":       {expired, expiredKey, []string{certAt + `warning: the certificate in "./ssl/cert.pem" expired on 2026-04-30: it will be refused`}},
	} {
		t.Run(name, func(t *testing.T) {
			files := make(map[string][]byte)
			if test.cert != nil {
				files["./ssl/cert.pem"] = test.cert
			}
			if test.key != nil {
				files["./ssl/key.pem"] = test.key
			}
			wantProblems(t, sslDocument, files, test.want...)
			_, problems := parse([]byte(sslDocument), memory(files), today)
			body := strings.Split(string(test.key), "\n")
			if len(body) > 1 && strings.Contains(joined(problems), body[1][:8]) {
				t.Error("a problem tells the key")
			}
		})
	}
}

func TestSSLThatIsOff(t *testing.T) {
	off := strings.Replace(sslDocument, "enabled: true", "enabled: false", 1)
	wantProblems(t, off, nil)
	unsaid := strings.Replace(sslDocument, "enabled: true", "# enabled", 1)
	wantProblems(t, unsaid, nil, "4: ssl: warning: TLS is off: write enabled: true if it should be on")
}

func TestWithoutFilesNoneCanBeRead(t *testing.T) {
	_, problems := Parse([]byte(sslDocument), nil)
	if !strings.Contains(joined(problems), "no files can be read here") {
		t.Error(joined(problems))
	}
}

func TestBackendTLS(t *testing.T) {
	files := sslFiles(t)
	r := mustParse(t, routeEntry(`
host: a
port: 443
ssl: true
tls: {ca_file: ./ca.pem, cert_file: ./ssl/cert.pem, key_file: ./ssl/key.pem, server_name: B.example.com, insecure_skip_verify: no}`), files)
	got := r.Pools["/"].Tls
	if !bytes.Equal(got.CaPem, files["./ca.pem"]) || !bytes.Equal(got.ChainPem, files["./ssl/cert.pem"]) || !bytes.Equal(got.KeyPem, files["./ssl/key.pem"]) {
		t.Error("a file is not what it was")
	}
	if got.ServerName != "b.example.com" || got.InsecureSkipVerify {
		t.Errorf("got %q, %v", got.ServerName, got.InsecureSkipVerify)
	}
	r = mustParse(t, routeEntry(`{port: 443, ssl: true, tls: {ca_file: "", cert_file: "", key_file: "", server_name: "", insecure_skip_verify: false}}`), nil)
	if tls := r.Pools["/"].Tls; tls == nil || tls.CaPem != nil || tls.ServerName != "" {
		t.Errorf("got %v", tls)
	}
}

func TestBackendTLSProblems(t *testing.T) {
	files := sslFiles(t)
	const at = "3: server.reverse_proxy[0].tls"
	for written, want := range map[string]string{
		"port: 443, ssl: true, tls: {cert_file: ./ssl/cert.pem}":                     at + ": a client certificate and its key go together: write both cert_file and key_file, or neither",
		"port: 443, ssl: true, tls: {ca_file: ./none.pem}":                           at + `.ca_file: "./none.pem" cannot be read: file does not exist`,
		"port: 443, ssl: true, tls: {ca_file: ./ssl/key.pem}":                        at + `.ca_file: "./ssl/key.pem" holds no certificate in PEM form, which begins with -----BEGIN CERTIFICATE-----`,
		"port: 443, ssl: true, tls: {server_name: 'a:443'}":                          at + `.server_name: "a:443" is more than a host: write a`,
		"port: 443, ssl: true, tls: {ca_file: ./ca.pem, insecure_skip_verify: true}": at + ".ca_file: warning: is not used: insecure_skip_verify is true",
		"tls: {ca_file: ./ca.pem}":                                                   at + ": warning: is not used: no backend of this route has ssl: true",
		`port: 443, ssl: true, tls: {ca_file: "a\nb"}`:                               at + `.ca_file: "a\nb" is not a file name: write the path of a PEM file`,
	} {
		wantProblems(t, routeEntry("{"+written+"}"), files, want)
	}
}

func TestEachFileIsReadOnce(t *testing.T) {
	reads := make(map[string]int)
	document := "server:\n  reverse_proxy:\n" +
		"    - {path: /a, port: 443, ssl: true, tls: {ca_file: ca}}\n" +
		"    - {path: /b, port: 443, ssl: true, tls: {ca_file: ca}}\n"
	_, problems := Parse([]byte(document), func(name string) ([]byte, error) {
		reads[name]++
		return nil, errors.New("the disk is gone")
	})
	if got, want := joined(problems), `3: server.reverse_proxy[0].tls.ca_file: "ca" cannot be read: the disk is gone`; got != want || reads["ca"] != 1 {
		t.Errorf("%d reads, problems:\n%s", reads["ca"], got)
	}
}
