package agent

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"time"

	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
)

// controlServerName is the name that every control's certificate carries, whatever address it is dialled at: who
// answers is proved by the cluster's authority, not by an address.
const controlServerName = "control.pyserve.internal"

// identityFile lies in a node's data directory.
const identityFile = "identity.json"

// maxIdentityBytes bounds what is read of it.
const maxIdentityBytes = 1 << 20

// Identity is what a node is, whom it believes, and what it needs to find the others without control. It is not
// changed once made.
type Identity struct {
	Name           string `json:"name"`
	ClusterID      string `json:"cluster_id"`
	KeyPEM         string `json:"key"`
	CertificatePEM string `json:"certificate"`
	// CAPEM are the authorities believed; the first issued the certificate.
	CAPEM      string `json:"ca"`
	ReleaseKey []byte `json:"release_key"`
	// Voucher is control's word, for gossip, that Name and the certificate's key belong together; empty: none was given yet.
	Voucher     []byte   `json:"voucher,omitempty"`
	GossipKeys  [][]byte `json:"gossip_keys,omitempty"`
	GossipSeeds []string `json:"gossip_seeds,omitempty"`
	// Controls are those that control told of; the node uses any.
	Controls []string `json:"controls,omitempty"`

	pair tls.Certificate
	pool *x509.CertPool
}

// ErrNotEnrolled says that a data directory holds no identity yet.
var ErrNotEnrolled = errors.New("not enrolled yet")

// LoadIdentity reads the identity in a node's data directory. It fails with [ErrNotEnrolled] where there is none.
func LoadIdentity(dataDir string) (*Identity, error) {
	path := filepath.Join(dataDir, identityFile)
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNotEnrolled
	}
	if err != nil {
		return nil, fmt.Errorf("read the node's identity: %w", err)
	}
	if info.Size() > maxIdentityBytes {
		return nil, damagedIdentity(path, fmt.Errorf("it has %d bytes", info.Size()))
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the node's identity: %w", err)
	}
	id, err := parseIdentity(data)
	if err != nil {
		return nil, damagedIdentity(path, err)
	}
	return id, nil
}

func damagedIdentity(path string, how error) error {
	return fmt.Errorf("%s is damaged (%w); remove it and start the node with a join token to enrol anew", path, how)
}

func parseIdentity(data []byte) (*Identity, error) {
	id := &Identity{}
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(id); err != nil {
		return nil, err
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something follows the identity")
	}
	return id, id.check()
}

// check fills in what TLS needs.
func (id *Identity) check() (err error) {
	if id.pair, err = tls.X509KeyPair([]byte(id.CertificatePEM), []byte(id.KeyPEM)); err != nil {
		return fmt.Errorf("certificate and key: %w", err)
	}
	id.pool = x509.NewCertPool()
	if !id.pool.AppendCertsFromPEM([]byte(id.CAPEM)) {
		return errors.New("the authority's certificate cannot be read")
	}
	if len(id.ReleaseKey) != 32 || id.Name == "" || id.ClusterID == "" {
		return errors.New("a field is missing")
	}
	return nil
}

// save writes the identity, mode 0600, whole or not at all.
func (id *Identity) save(dataDir string) error {
	data, err := json.MarshalIndent(id, "", "  ")
	if err != nil {
		return fmt.Errorf("encode the node's identity: %w", err)
	}
	// An identity that a power cut takes back would need a token anew.
	if err := writeWhole(dataDir, identityFile, append(data, '\n')); err != nil {
		return fmt.Errorf("write the node's identity: %w", err)
	}
	return nil
}

// tls is how the node speaks to control: it shows its certificate, also one that has ended, and believes only the
// cluster's authority.
func (id *Identity) tls(now func() time.Time) *tls.Config {
	return &tls.Config{
		Time:         now,
		MinVersion:   tls.VersionTLS13,
		ServerName:   controlServerName,
		RootCAs:      id.pool,
		Certificates: []tls.Certificate{id.pair},
	}
}

// Signer is the certificate's private key.
func (id *Identity) Signer() crypto.Signer { return id.pair.PrivateKey.(crypto.Signer) }

// Lifetime gives when the certificate became and ceases to be valid.
func (id *Identity) Lifetime() (from, until time.Time) {
	return id.pair.Leaf.NotBefore, id.pair.Leaf.NotAfter
}

// renewAt is when the certificate is to be renewed: when half of its life is over, or up to a tenth of it later, so that
// nodes that were enrolled together are not all there at once. The same certificate has always the same moment.
func (id *Identity) renewAt() time.Time {
	from, until := id.Lifetime()
	life := until.Sub(from)
	sum := sha256.Sum256(id.pair.Leaf.Raw)
	later := time.Duration(float64(life) / 10 * float64(binary.BigEndian.Uint32(sum[:])) / math.MaxUint32)
	return from.Add(life/2 + later)
}

// authority is the hash of the authority that issued the certificate.
func (id *Identity) authority() []byte {
	block, _ := pem.Decode([]byte(id.CAPEM)) // check saw that there is one
	sum := sha256.Sum256(block.Bytes)
	return sum[:]
}

// request makes a certificate request with the identity's key.
func (id *Identity) request() ([]byte, error) {
	return x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: id.Name},
	}, id.pair.PrivateKey)
}

// newKey makes a key and the request for its first certificate.
func newKey(name string) (keyPEM string, request []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return "", nil, err
	}
	request, err = x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: name},
	}, key)
	return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})), request, err
}

// received makes an identity of what control issued for a key.
func received(name, keyPEM string, m *fleetv1.Identity) (*Identity, error) {
	id := &Identity{
		Name:           name,
		ClusterID:      m.GetClusterId(),
		KeyPEM:         keyPEM,
		CertificatePEM: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: m.GetCertificate()})),
		ReleaseKey:     m.GetReleaseKey(),
		Voucher:        m.GetVoucher(),
	}
	for _, der := range append([][]byte{m.GetCaCertificate()}, m.GetOtherCaCertificates()...) {
		id.CAPEM += string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	}
	if err := id.check(); err != nil {
		return nil, fmt.Errorf("control issued an identity that cannot be used: %w", err)
	}
	return id, nil
}
