package identity

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"path/filepath"
	"slices"
	"sync"
	"time"
)

// ServerName is the DNS name in every control's certificate. Clients ask for it whatever address they dial, so that
// controls may move without new certificates.
const ServerName = "control.pyserve.internal"

// Lifetimes of what is issued.
const (
	authorityLifetime = 10 * 365 * 24 * time.Hour
	serverLifetime    = 24 * time.Hour
	nodeLifetime      = 24 * time.Hour
	operatorLifetime  = MaxContextLifetime
	// backdate is how far the clock of whoever checks a certificate may be behind ours.
	backdate = 5 * time.Minute
)

// RenewGrace is how long after its end a node's certificate can still be renewed, by who holds its key: a machine that was
// off for some time comes back by itself.
const RenewGrace = 30 * 24 * time.Hour

// MaxContextLifetime is how long an operator's certificate may be good.
const MaxContextLifetime = 2 * 365 * 24 * time.Hour

// Options say where an authority lives.
type Options struct {
	// Dir is control's data directory; the identity is the directory "identity" in it. Required.
	Dir string
	// MustExist makes it an error that there is no identity yet: for a control whose store says that there was one.
	MustExist bool
	// Now is the clock; nil: time.Now.
	Now func() time.Time
	// Logger is told what was made and what had to be repaired; nil: silence.
	Logger *slog.Logger
}

// Authority is a cluster's certificate authority with the keys that belong to it. Its methods may be called
// concurrently.
type Authority struct {
	now       func() time.Time
	logger    *slog.Logger
	directory string
	clusterID string
	release   ed25519.PrivateKey
	seal      []byte

	mu     sync.RWMutex // guards what follows
	ca     *x509.Certificate
	caKey  *ecdsa.PrivateKey
	old    *issuer // what ca takes the place of; nil: nothing
	gossip [][]byte
}

// Open loads the authority that lies in the directory, or makes one where there is none. A set that is damaged or
// lacks a file is an error that names it: a new authority in the place of a damaged one would lock every node out.
// Two processes must not call it on one directory at a time (the store's lock sees to that).
func Open(o Options) (*Authority, error) {
	if o.Dir == "" {
		return nil, errors.New("identity: Options.Dir is empty")
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	d := keyDirectory{parent: o.Dir, logger: o.Logger}
	a := &Authority{now: o.Now, logger: o.Logger, directory: d.path()}
	made, err := d.exists()
	if err != nil {
		return nil, err
	}
	if !made && o.MustExist {
		return nil, fmt.Errorf("the cluster's identity is missing: %s; restore it from a backup", d.path())
	}
	if !made {
		if err := a.create(); err != nil {
			return nil, fmt.Errorf("make the cluster's identity: %w", err)
		}
		if err := d.save(a); err != nil {
			return nil, err
		}
		o.Logger.Info("made a new cluster identity", "cluster", a.clusterID, "directory", d.path())
		return a, nil
	}
	if err := d.load(a); err != nil {
		return nil, err
	}
	if expires := a.ca.NotAfter; a.now().After(expires) {
		return nil, fmt.Errorf("the cluster's certificate authority in %s expired on %s", d.path(), expires.Format(time.DateOnly))
	}
	return a, nil
}

// create fills the authority with new keys.
func (a *Authority) create() error {
	id := make([]byte, 6)
	rand.Read(id) // never fails: crypto/rand ends the process instead
	a.clusterID = hex.EncodeToString(id)
	made, err := a.makeIssuer()
	if err != nil {
		return err
	}
	a.use([]issuer{made})
	if _, a.release, err = ed25519.GenerateKey(rand.Reader); err != nil {
		return err
	}
	key := make([]byte, 32)
	rand.Read(key)
	a.gossip = [][]byte{key}
	a.seal = make([]byte, sealKeyBytes)
	rand.Read(a.seal)
	return nil
}

func authorityName(clusterID string) string { return "pyserve " + clusterID }

// template is what every certificate begins as. It does not outlive limit, where that is not zero.
func (a *Authority) template(subject pkix.Name, lifetime time.Duration, limit time.Time) *x509.Certificate {
	serial := make([]byte, 16)
	rand.Read(serial)
	now := a.now()
	notAfter := now.Add(lifetime)
	if !limit.IsZero() && notAfter.After(limit) {
		notAfter = limit
	}
	return &x509.Certificate{
		SerialNumber:          new(big.Int).SetBytes(serial),
		Subject:               subject,
		NotBefore:             now.Add(-backdate),
		NotAfter:              notAfter,
		BasicConstraintsValid: true,
	}
}

// ClusterID names the cluster: twelve hexadecimal digits.
func (a *Authority) ClusterID() string { return a.clusterID }

// ReleaseKey signs releases. It is not to be changed.
func (a *Authority) ReleaseKey() ed25519.PrivateKey { return a.release }

// SealKey is what the store is sealed with on disk, 32 bytes. Every control of a cluster has the same one.
func (a *Authority) SealKey() []byte { return slices.Clone(a.seal) }

// GossipKeys are the AES-256 keys of the gossip layer, the one to encrypt with first.
func (a *Authority) GossipKeys() [][]byte {
	a.mu.RLock()
	defer a.mu.RUnlock()
	out := make([][]byte, len(a.gossip))
	for i, key := range a.gossip {
		out[i] = slices.Clone(key)
	}
	return out
}

// SetGossipKeys takes other keys of gossip to use. They are on disk when it returns; after an error everything is as it was.
func (a *Authority) SetGossipKeys(keys [][]byte) error {
	data := encodeGossip(keys)
	next, err := parseGossip(data)
	if err != nil {
		return fmt.Errorf("take the keys of gossip to use: %w", err)
	}
	if slices.EqualFunc(next, a.GossipKeys(), slices.Equal) {
		return nil
	}
	if err := WriteSecret(filepath.Join(a.directory, gossipFile), data); err != nil {
		return fmt.Errorf("keep the keys of gossip: %w", err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.gossip = next
	return nil
}

// KeyHash is the SHA-256 of a certificate's public key (SPKI, DER), as in [Peer].
func KeyHash(certificateDER []byte) ([32]byte, error) {
	c, err := x509.ParseCertificate(certificateDER)
	if err != nil {
		return [32]byte{}, fmt.Errorf("parse the certificate: %w", err)
	}
	return sha256.Sum256(c.RawSubjectPublicKeyInfo), nil
}
