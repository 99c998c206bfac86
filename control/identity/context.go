package identity

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"gopkg.in/yaml.v3"
)

// maxContext is how large a context file may be, in bytes.
const maxContext = 1 << 20

// contextHeading begins every context file that is written.
const contextHeading = "# A way into a pyserve cluster: whoever holds this file may do there what the role in its certificate may.\n"

// Context is what an operator needs to reach a cluster: where, whom to believe, and as whom.
type Context struct {
	// Cluster is the cluster's id.
	Cluster string `yaml:"cluster"`
	// Endpoints are the controls' addresses, host:port.
	Endpoints []string `yaml:"endpoints"`
	// CA, Certificate and Key are PEM; CA may hold several certificates, while an authority takes the place of another.
	CA          string `yaml:"ca"`
	Certificate string `yaml:"certificate"`
	Key         string `yaml:"key"`

	// Warnings are what [LoadContext] found unwise about the file, a sentence each; for people.
	Warnings []string `yaml:"-"`
}

// NewContext makes an administrator's context with a new key and certificate, good for two years, and issued after a moment
// as in [Authority.IssuePerson].
func (a *Authority) NewContext(name string, endpoints []string, after time.Time) (*Context, error) {
	request, err := NewContextRequest()
	if err != nil {
		return nil, err
	}
	certificate, err := a.IssuePerson(name, RoleAdmin, request.DER, operatorLifetime, after)
	if err != nil {
		return nil, err
	}
	return request.Context(a.clusterID, endpoints, certificate, a.CACertificates())
}

// ContextRequest is a context that still wants its certificate. Its key is nowhere else.
type ContextRequest struct {
	// DER is the PKCS #10 request for the certificate.
	DER []byte
	key *ecdsa.PrivateKey
}

// NewContextRequest makes a key and the request for its certificate.
func NewContextRequest() (*ContextRequest, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make the context's key: %w", err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, fmt.Errorf("make the context's certificate request: %w", err)
	}
	return &ContextRequest{DER: der, key: key}, nil
}

// Context makes the context with what was issued for the request; certificate and authorities are DER.
func (r *ContextRequest) Context(cluster string, endpoints []string, certificate []byte, authorities [][]byte) (*Context, error) {
	keyDER, err := x509.MarshalPKCS8PrivateKey(r.key)
	if err != nil {
		return nil, fmt.Errorf("encode the context's key: %w", err)
	}
	var ca strings.Builder
	for _, der := range authorities {
		ca.Write(encodePEM(certificatePEM, der))
	}
	c := &Context{
		Cluster: cluster, Endpoints: slices.Clone(endpoints), CA: ca.String(),
		Certificate: string(encodePEM(certificatePEM, certificate)), Key: string(encodePEM(privateKeyPEM, keyDER)),
	}
	return c, c.check()
}

// Encode gives the context as its file holds it.
func (c *Context) Encode() ([]byte, error) {
	var out bytes.Buffer
	out.WriteString(contextHeading)
	encoder := yaml.NewEncoder(&out)
	encoder.SetIndent(2)
	if err := encoder.Encode(c); err != nil {
		return nil, fmt.Errorf("encode the context: %w", err)
	}
	return out.Bytes(), nil
}

// Save writes the context to the file at path, mode 0600, whole or not at all.
func (c *Context) Save(path string) error {
	data, err := c.Encode()
	if err != nil {
		return err
	}
	return WriteSecret(path, data)
}

// LoadContext reads the context file at path. Its errors name the file and say what to do.
func LoadContext(path string) (*Context, error) {
	data, warnings, err := readContext(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("there is no context file %s: copy admin.yaml from a control's data directory, or name one with --context", path)
	}
	if err != nil {
		return nil, fmt.Errorf("read the context file: %w", err)
	}
	c, err := parseContext(data)
	if err != nil {
		return nil, fmt.Errorf("the context file %s is damaged: %w; copy admin.yaml from a control's data directory again", path, err)
	}
	c.Warnings = warnings
	return c, nil
}

func readContext(path string) (data []byte, warnings []string, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, nil, fmt.Errorf("%s is not a regular file", path)
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		warnings = append(warnings, fmt.Sprintf("%s holds a private key and others may read it (mode %#o): chmod 600 it", path, mode))
	}
	data, err = io.ReadAll(io.LimitReader(f, maxContext+1))
	return data, warnings, err
}

// parseContext is strict: a misspelt key must not silently point an operator at the wrong cluster.
func parseContext(data []byte) (*Context, error) {
	if len(data) > maxContext {
		return nil, fmt.Errorf("it is longer than %d bytes", maxContext)
	}
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	decoder.KnownFields(true)
	c := &Context{}
	if err := decoder.Decode(c); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, errors.New("it is empty")
		}
		return nil, err
	}
	if err := decoder.Decode(new(any)); !errors.Is(err, io.EOF) {
		return nil, errors.New("it holds more than one document")
	}
	return c, c.check()
}

func (c *Context) check() error {
	if c.Cluster == "" {
		return errors.New("cluster is missing")
	}
	if len(c.Endpoints) == 0 {
		return errors.New("endpoints is missing: the controls' addresses, host:port")
	}
	for _, endpoint := range c.Endpoints {
		if _, port, err := net.SplitHostPort(endpoint); err != nil || port == "" {
			return fmt.Errorf("the endpoint %.200q is not host:port", endpoint)
		}
	}
	if _, err := c.authorities(); err != nil {
		return err
	}
	_, err := c.keyPair()
	return err
}

// maxAuthorities is how many authorities a context, or a cluster, may believe at a time.
const maxAuthorities = 4

func (c *Context) authorities() (*x509.CertPool, error) {
	blocks, err := decodePEMs(certificatePEM, []byte(c.CA), maxAuthorities)
	if err != nil {
		return nil, fmt.Errorf("ca: %w", err)
	}
	pool := x509.NewCertPool()
	for _, der := range blocks {
		certificate, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("ca: %w", err)
		}
		pool.AddCert(certificate)
	}
	return pool, nil
}

// Recognizes says whether a context was issued by the authority that issues now, and believes whom the cluster believes.
func (a *Authority) Recognizes(c *Context) bool {
	pair, err := c.keyPair()
	if err != nil {
		return false
	}
	believed, err := decodePEMs(certificatePEM, []byte(c.CA), maxAuthorities)
	return err == nil && slices.EqualFunc(believed, a.CACertificates(), bytes.Equal) &&
		pair.Leaf.CheckSignatureFrom(a.newest().certificate) == nil
}

func (c *Context) keyPair() (tls.Certificate, error) {
	pair, err := tls.X509KeyPair([]byte(c.Certificate), []byte(c.Key))
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("certificate and key do not make a pair: %w", err)
	}
	return pair, nil
}

// ClientTLS gives the configuration to dial a control with: TLS 1.3, [ServerName], this cluster's authority and no
// other.
func (c *Context) ClientTLS() (*tls.Config, error) {
	roots, err := c.authorities()
	if err != nil {
		return nil, err
	}
	pair, err := c.keyPair()
	if err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion:   tls.VersionTLS13,
		ServerName:   ServerName,
		RootCAs:      roots,
		Certificates: []tls.Certificate{pair},
	}, nil
}

// ReaderTLS is ClientTLS for calls that only read and carry no secret: those a node of the cluster may answer as well, see
// [IsNode].
func (c *Context) ReaderTLS() (*tls.Config, error) {
	config, err := c.ClientTLS()
	if err != nil {
		return nil, err
	}
	roots := config.RootCAs
	config.InsecureSkipVerify = true // of the one name: VerifyConnection takes either
	config.VerifyConnection = func(state tls.ConnectionState) error {
		between := x509.NewCertPool()
		for _, c := range state.PeerCertificates[1:] {
			between.AddCert(c)
		}
		var err error
		for _, name := range []string{nodeServerName, ServerName} {
			_, err = state.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, DNSName: name})
			if err == nil {
				return nil
			}
		}
		return err
	}
	return config, nil
}

// IsNode says whether the server of a connection that was made with ReaderTLS is a node, not a control.
func IsNode(state tls.ConnectionState) bool {
	return len(state.PeerCertificates) > 0 && state.PeerCertificates[0].VerifyHostname(nodeServerName) == nil
}

// ExpiresAt says until when the operator's certificate is good.
func (c *Context) ExpiresAt() (time.Time, error) {
	pair, err := c.keyPair()
	if err != nil {
		return time.Time{}, err
	}
	return pair.Leaf.NotAfter, nil
}

// Issued says when the operator's certificate was made, to the second, and for which key, as in [Peer].
func (c *Context) Issued() (at time.Time, keyHash [32]byte, err error) {
	pair, err := c.keyPair()
	if err != nil {
		return time.Time{}, [32]byte{}, err
	}
	return IssuedAt(pair.Leaf), sha256.Sum256(pair.Leaf.RawSubjectPublicKeyInfo), nil
}
