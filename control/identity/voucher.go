package identity

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"time"

	"github.com/pyserve/pyserve/proto/voucher"
)

// Vouch gives control's word, for gossip, that the holder of a key goes by that name, for as long as the certificate that
// ends then could be renewed: members are to know each other also while control is away for longer than a certificate
// lives.
func (a *Authority) Vouch(role Role, name string, key voucher.Key, certificateEnds time.Time) ([]byte, error) {
	raw, err := voucher.Issue(a.release, a.clusterID, role.String()+":"+name, key, certificateEnds.Add(RenewGrace))
	if err != nil {
		return nil, fmt.Errorf("vouch for %s %q: %w", role, name, err)
	}
	return raw, nil
}

func (a *Authority) vouchForCertificate(role Role, name string, der []byte) ([]byte, error) {
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("parse the certificate: %w", err)
	}
	key, err := voucher.KeyOf(leaf.PublicKey)
	if err != nil {
		return nil, fmt.Errorf("vouch for %s %q: %w", role, name, err)
	}
	return a.Vouch(role, name, key, leaf.NotAfter)
}

// GossipIdentity makes the key that a control signs what it says in gossip with, and the voucher for it. The key lives as
// long as the process and lies nowhere; the voucher as long as the authority: who could steal the key holds the one that
// makes vouchers.
func (a *Authority) GossipIdentity(controlName string) (crypto.Signer, []byte, error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make control's key for gossip: %w", err)
	}
	key, err := voucher.KeyOf(private.Public())
	if err != nil {
		return nil, nil, err
	}
	raw, err := a.Vouch(RoleControl, controlName, key, a.newest().certificate.NotAfter)
	return private, raw, err
}

// VoucherKey is what vouchers of this cluster are checked with.
func (a *Authority) VoucherKey() ed25519.PublicKey { return a.release.Public().(ed25519.PublicKey) }
