package config

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

// maxFileBytes is how large a file that a document names may be. A bundle of every public authority has 220 KiB.
const maxFileBytes = 1 << 20

// Files gives the content of a file that a document names: relative names as the document has them. An error becomes a
// problem of the line that names the file. With [ErrHeld] it is a warning, and the content that comes with it is used.
type Files func(name string) ([]byte, error)

// ErrHeld says that a file is not where its document is, but that control has its content from an earlier apply. Where a
// [Files] gives no content with it, the resources have the file's name in the place of the content, and are good for
// checking the rest of the document alone.
var ErrHeld = errors.New("control holds it")

// fileCache reads each file once, however many routes name it, and keeps what was found in it. So a problem of a file is
// told once as well.
type fileCache struct {
	read        Files
	content     map[string]fileContent
	keyPairs    map[[2]string]keyPair
	authorities map[string][]byte
}

func newFileCache(read Files) *fileCache {
	return &fileCache{read, make(map[string]fileContent), make(map[[2]string]keyPair), make(map[string][]byte)}
}

type fileContent struct {
	data []byte
	err  error
}

func (c *fileCache) get(name string) ([]byte, error) {
	found, ok := c.content[name]
	if !ok {
		found.data, found.err = c.read(name)
		if len(found.data) > maxFileBytes {
			found = fileContent{err: fmt.Errorf("it has %d bytes, at most %d are read", len(found.data), maxFileBytes)}
		}
		c.content[name] = found
	}
	return found.data, found.err
}

// fileName reads the name of a file. Empty text stands for no file.
func (r *reader) fileName(v value) (string, bool) {
	name, ok := r.text(v, "the path of a PEM file")
	if !ok {
		return "", false
	}
	if len(name) > 4096 || strings.ContainsFunc(name, func(c rune) bool { return c < ' ' || c == 0x7F }) {
		r.errorf(v, "%s is not a file name: write the path of a PEM file", quote(name))
		return "", false
	}
	return name, name != ""
}

// content gives what the named file holds.
func (r *reader) content(name option[string]) ([]byte, bool) {
	data, err := r.files.get(name.value)
	if errors.Is(err, ErrHeld) {
		r.warnf(name.at, "%s was not found: the one that control holds is used", quote(name.value))
		return data, true
	}
	if err != nil {
		// The name stands in the message already.
		if e, ok := errors.AsType[*fs.PathError](err); ok {
			err = e.Err
		}
		r.errorf(name.at, "%s cannot be read: %s", quote(name.value), err)
		return nil, false
	}
	return data, true
}

// standIn says that there is only the file's name to go by.
func (r *reader) standIn(file option[string]) bool {
	if !file.isSet() {
		return false
	}
	data, err := r.files.get(file.value)
	return data == nil && errors.Is(err, ErrHeld)
}

// sslSettings are the ssl section as written.
type sslSettings struct {
	enabled           option[bool]
	certFile, keyFile option[string]
}

var sslSection = section[sslSettings]{
	form: "a mapping with enabled, cert_file and key_file",
	keys: []key[sslSettings]{
		{name: "enabled", form: "true or false", initial: "false", about: "`server.port` speaks TLS (1.2 and up; HTTP/1.1 and HTTP/2), and only TLS",
			read: func(r *reader, v value, s *sslSettings) { take(&s.enabled, v, r.boolean) }},
		{name: "cert_file", form: "file name", about: "PEM: the certificate, then its intermediates; read next to the document and sent along with it",
			read: func(r *reader, v value, s *sslSettings) { take(&s.certFile, v, r.fileName) }},
		{name: "key_file", form: "file name", about: "PEM: the certificate's private key, without a passphrase",
			read: func(r *reader, v value, s *sslSettings) { take(&s.keyFile, v, r.fileName) }},
	},
}

// certificate makes the certificate of an ssl section, nil where TLS is off. An ssl section that is off may name files
// that do not exist: they are not read.
func (r *reader) certificate(at place, s *sslSettings) *resourcev1.Certificate {
	if !s.enabled.isSet() && s.certFile.isSet() {
		r.warnf(at, "TLS is off: write enabled: true if it should be on")
	}
	if !s.enabled.value {
		return nil
	}
	if !s.certFile.isSet() {
		r.errorf(s.enabled.at, "TLS needs a certificate: write cert_file, the path of a PEM file")
	}
	if !s.keyFile.isSet() {
		r.errorf(s.enabled.at, "TLS needs the certificate's key: write key_file, the path of a PEM file")
	}
	pair := r.keyPair(s.certFile, s.keyFile)
	return &resourcev1.Certificate{ChainPem: pair.chain, KeyPem: pair.key}
}

// keyPair is a certificate and its key, in PEM.
type keyPair struct {
	chain, key []byte
}

// keyPair reads a certificate and its key, once for each two files. It gives them without anything else that the files
// may hold: a certificate file that holds a key too must not carry it to where certificates are shown. Where either is
// missing or wrong there is a problem, and both are empty.
func (r *reader) keyPair(certFile, keyFile option[string]) keyPair {
	names := [2]string{certFile.value, keyFile.value}
	pair, ok := r.files.keyPairs[names]
	if !ok {
		pair = r.readKeyPair(certFile, keyFile)
		r.files.keyPairs[names] = pair
	}
	return pair
}

func (r *reader) readKeyPair(certFile, keyFile option[string]) keyPair {
	if r.standIn(certFile) || r.standIn(keyFile) {
		return r.nameKeyPair(certFile, keyFile)
	}
	var certificates []*x509.Certificate
	var key *pem.Block
	if certFile.isSet() {
		certificates = r.certificates(certFile)
	}
	if keyFile.isSet() {
		key = r.privateKey(keyFile)
	}
	if certificates == nil || key == nil {
		return keyPair{}
	}
	pair := keyPair{encodeCertificates(certificates), pem.EncodeToMemory(key)}
	if _, err := tls.X509KeyPair(pair.chain, pair.key); err != nil {
		if strings.Contains(err.Error(), "does not match") {
			r.errorf(keyFile.at, "%s is not the key of the certificate in %s: name two that belong together", quote(keyFile.value), quote(certFile.value))
		} else {
			r.errorf(keyFile.at, "the key in %s is of no known form: write a PKCS #8, PKCS #1 or SEC 1 key in PEM", quote(keyFile.value))
		}
		return keyPair{}
	}
	r.warnOfDates(certFile, certificates[0])
	return pair
}

// nameKeyPair gives the files' names for a pair of which at least one is elsewhere, and looks into the other.
func (r *reader) nameKeyPair(certFile, keyFile option[string]) keyPair {
	if certFile.isSet() && !r.standIn(certFile) {
		r.certificates(certFile)
	}
	if keyFile.isSet() && !r.standIn(keyFile) {
		r.privateKey(keyFile)
	}
	return keyPair{[]byte(certFile.value), []byte(keyFile.value)}
}

// certificates gives those of a file, nil with a problem where there are none or one is broken.
func (r *reader) certificates(file option[string]) []*x509.Certificate {
	data, ok := r.content(file)
	if !ok {
		return nil
	}
	var out []*x509.Certificate
	for _, block := range pemBlocks(data, func(kind string) bool { return kind == "CERTIFICATE" }) {
		certificate, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			r.errorf(file.at, "certificate %d in %s cannot be read: %s", len(out)+1, quote(file.value), strings.TrimPrefix(err.Error(), "x509: "))
			return nil
		}
		out = append(out, certificate)
	}
	if out == nil {
		r.errorf(file.at, "%s holds no certificate in PEM form, which begins with -----BEGIN CERTIFICATE-----", quote(file.value))
	}
	return out
}

func encodeCertificates(certificates []*x509.Certificate) []byte {
	var out []byte
	for _, c := range certificates {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return out
}

func (r *reader) warnOfDates(file option[string], certificate *x509.Certificate) {
	switch {
	case r.now.After(certificate.NotAfter):
		r.warnf(file.at, "the certificate in %s expired on %s: it will be refused", quote(file.value), certificate.NotAfter.UTC().Format(time.DateOnly))
	case r.now.Before(certificate.NotBefore):
		r.warnf(file.at, "the certificate in %s is not valid before %s: it will be refused", quote(file.value), certificate.NotBefore.UTC().Format(time.DateOnly))
	}
}

// privateKey finds the private key of a file, nil with a problem where there is none. What stands in the file is never
// told, not even in the words of the library that cannot read it.
func (r *reader) privateKey(file option[string]) *pem.Block {
	data, ok := r.content(file)
	if !ok {
		return nil
	}
	blocks := pemBlocks(data, func(kind string) bool { return kind == "PRIVATE KEY" || strings.HasSuffix(kind, " PRIVATE KEY") })
	if len(blocks) == 0 {
		r.errorf(file.at, "%s holds no private key in PEM form, which begins with -----BEGIN PRIVATE KEY-----", quote(file.value))
		return nil
	}
	key := blocks[0]
	if key.Type == "ENCRYPTED PRIVATE KEY" || strings.Contains(key.Headers["Proc-Type"], "ENCRYPTED") {
		r.errorf(file.at, "the key in %s is locked with a passphrase: write it out without one (openssl pkey -in … -out …)", quote(file.value))
		return nil
	}
	return &pem.Block{Type: key.Type, Bytes: key.Bytes}
}

// authorities gives the certificates of a file in PEM. It looks into each file once.
func (r *reader) authorities(file option[string]) []byte {
	bundle, ok := r.files.authorities[file.value]
	if !ok {
		if r.standIn(file) {
			bundle = []byte(file.value)
		} else {
			bundle = encodeCertificates(r.certificates(file))
		}
		r.files.authorities[file.value] = bundle
	}
	return bundle
}

func pemBlocks(data []byte, wanted func(kind string) bool) []*pem.Block {
	var blocks []*pem.Block
	for {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			return blocks
		}
		if wanted(block.Type) {
			blocks = append(blocks, block)
		}
	}
}

// tlsSettings are the tls section of a route as written: TLS to its backends.
type tlsSettings struct {
	caFile, certFile, keyFile, serverName option[string]
	insecure                              option[bool]
}

var tlsSection = section[tlsSettings]{
	form: "a mapping such as {ca_file: ./ca.pem}",
	keys: []key[tlsSettings]{
		{name: "ca_file", form: "file name", about: "PEM: the authorities that may have signed the backend's certificate; without it, those of the node's system",
			read: func(r *reader, v value, s *tlsSettings) { take(&s.caFile, v, r.fileName) }},
		{name: "cert_file", form: "file name", about: "PEM: a client certificate to show to the backend",
			read: func(r *reader, v value, s *tlsSettings) { take(&s.certFile, v, r.fileName) }},
		{name: "key_file", form: "file name", about: "PEM: the client certificate's private key, without a passphrase",
			read: func(r *reader, v value, s *tlsSettings) { take(&s.keyFile, v, r.fileName) }},
		{name: "server_name", form: "host name", about: "the name to ask for (SNI) and to find in the backend's certificate; without it, the backend's host",
			read: func(r *reader, v value, s *tlsSettings) { take(&s.serverName, v, r.serverName) }},
		{name: "insecure_skip_verify", form: "true or false", initial: "false", about: "the backend's certificate is not verified at all",
			read: func(r *reader, v value, s *tlsSettings) { take(&s.insecure, v, r.boolean) }},
	},
}

// serverName reads a host, or empty text for none.
func (r *reader) serverName(v value) (string, bool) {
	if v.node.Value == "" && v.node.Tag == stringTag {
		return "", false
	}
	return r.host(v, address.hostOnly)
}

// backendTLS reads the tls section of a route.
func (r *reader) backendTLS(v value) (*resourcev1.BackendTls, bool) {
	before := r.errorCount()
	var s tlsSettings
	if !tlsSection.read(r, v, &s) {
		return nil, false
	}
	out := &resourcev1.BackendTls{ServerName: s.serverName.value, InsecureSkipVerify: s.insecure.value}
	if s.caFile.isSet() {
		out.CaPem = r.authorities(s.caFile)
		if s.insecure.value {
			r.warnf(s.caFile.at, "is not used: insecure_skip_verify is true")
		}
	}
	if s.certFile.isSet() != s.keyFile.isSet() {
		r.errorf(v, "a client certificate and its key go together: write both cert_file and key_file, or neither")
	}
	if s.certFile.isSet() || s.keyFile.isSet() {
		pair := r.keyPair(s.certFile, s.keyFile)
		out.ChainPem, out.KeyPem = pair.chain, pair.key
	}
	return out, r.errorCount() == before
}
