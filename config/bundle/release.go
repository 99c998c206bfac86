package bundle

import (
	"crypto/ed25519"
	"encoding/binary"
	"errors"
	"fmt"

	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
)

// releaseMagic keeps a signature on a release from being one on anything else.
const releaseMagic = "pyserve release 1\n"

// ErrSignature says that a release was not signed by the key that was asked about.
var ErrSignature = errors.New("the release is not signed by this cluster's control")

// Sign makes the release of the bundle with this digest: its place in history, signed.
func Sign(key ed25519.PrivateKey, epoch, revision uint64, digest Digest) *fleetv1.Release {
	return &fleetv1.Release{
		Epoch:     epoch,
		Revision:  revision,
		Digest:    digest[:],
		Signature: ed25519.Sign(key, signed(epoch, revision, digest)),
	}
}

// VerifyRelease says whether release is signed by key, whatever it is a release of. It fails with [ErrSignature] where the
// signature is not good.
func VerifyRelease(key ed25519.PublicKey, release *fleetv1.Release) (Digest, error) {
	if len(key) != ed25519.PublicKeySize {
		return Digest{}, fmt.Errorf("a release key has %d bytes, this one has %d", ed25519.PublicKeySize, len(key))
	}
	digest, err := ParseDigest(release.GetDigest())
	if err != nil {
		return Digest{}, err
	}
	if !ed25519.Verify(key, signed(release.GetEpoch(), release.GetRevision(), digest), release.GetSignature()) {
		return Digest{}, ErrSignature
	}
	return digest, nil
}

// Verify says whether release is signed by key and is a release of b. It fails with [ErrSignature] where the
// signature is not good.
func Verify(key ed25519.PublicKey, release *fleetv1.Release, b *Bundle) error {
	digest, err := VerifyRelease(key, release)
	if err != nil {
		return err
	}
	if digest != b.digest {
		return fmt.Errorf("the bundle's digest is %s, its release says %s", b.digest.Short(), digest.Short())
	}
	return nil
}

func signed(epoch, revision uint64, digest Digest) []byte {
	out := make([]byte, 0, len(releaseMagic)+16+len(digest))
	out = append(out, releaseMagic...)
	out = binary.BigEndian.AppendUint64(out, epoch)
	out = binary.BigEndian.AppendUint64(out, revision)
	return append(out, digest[:]...)
}
