// Package voucher is control's word that a name belongs to the holder of a key, in a form small enough for gossip.
//
// A certificate says the same, and is ten times as long. Control makes vouchers, members of the cluster carry and check
// them; so this stands below both and knows neither. It owns the layout, the two signatures, and no policy: whose voucher
// is asked for, and what it is good for, others decide.
//
// A voucher is no secret: it is told to everybody, and whoever copies it gains nothing, since what is believed is what the
// holder's key has signed.
//
// Order of calls: [KeyOf] and [Issue] at control; [Open] once, then [Voucher.Signed] for everything that its holder says;
// [Sign] at the holder's.
package voucher

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/asn1"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/big"
	"time"
)

// The sizes, in bytes.
const (
	// Size is that of a voucher: end, key and signature.
	Size = endSize + KeySize + SignatureSize
	// KeySize is that of a [Key].
	KeySize = 33
	// SignatureSize is that of a holder's signature, and of control's.
	SignatureSize = 64

	endSize = 4
)

// Key is a public key: a point of P-256, compressed, or an Ed25519 key after its mark. The zero Key is none.
type Key [KeySize]byte

// markEd25519 is no first byte of a compressed point, which is 2 or 3.
const markEd25519 = 0xed

// KeyOf packs a public key, ECDSA P-256 or Ed25519; others are errors.
func KeyOf(public crypto.PublicKey) (Key, error) {
	switch key := public.(type) {
	case *ecdsa.PublicKey:
		if key.Curve != elliptic.P256() {
			return Key{}, errors.New("the key is not on the curve P-256")
		}
		point, err := key.Bytes()
		if err != nil {
			return Key{}, fmt.Errorf("the key cannot be packed: %w", err)
		}
		// 4, x, y: the last bit of y tells it from its mirror image.
		return Key(append([]byte{2 + point[64]&1}, point[1:33]...)), nil
	case ed25519.PublicKey:
		if len(key) == ed25519.PublicKeySize {
			return Key(append([]byte{markEd25519}, key...)), nil
		}
	}
	return Key{}, fmt.Errorf("the key is neither ECDSA P-256 nor Ed25519 but %T", public)
}

// public unpacks the key.
func (k Key) public() (crypto.PublicKey, error) {
	if k[0] == markEd25519 {
		return ed25519.PublicKey(k[1:]), nil
	}
	x, y := elliptic.UnmarshalCompressed(elliptic.P256(), k[:])
	if x == nil {
		return nil, errors.New("the voucher's key is none")
	}
	point := make([]byte, 65)
	point[0] = 4 // not compressed
	x.FillBytes(point[1:33])
	y.FillBytes(point[33:])
	return ecdsa.ParseUncompressedPublicKey(elliptic.P256(), point)
}

// Voucher is one that Open found good.
type Voucher struct {
	// Key is the holder's.
	Key Key
	// Ends is when the voucher ceases to be good, in whole seconds.
	Ends time.Time

	public crypto.PublicKey
}

// magic keeps control's signature on a voucher from being one on anything else.
const magic = "pyserve voucher 1\n"

// signed is what control signs. Lengths keep cluster and holder apart.
func signed(cluster, holder string, head []byte) []byte {
	out := make([]byte, 0, len(magic)+2+len(cluster)+len(holder)+len(head))
	out = append(out, magic...)
	out = append(append(out, byte(len(cluster))), cluster...)
	out = append(append(out, byte(len(holder))), holder...)
	return append(out, head...)
}

// maxName bounds cluster and holder, whose lengths are told in a byte.
const maxName = 255

// Issue makes the voucher for a holder in a cluster, 1 to 255 bytes each, good until ends, which is rounded down to the
// second.
func Issue(issuer ed25519.PrivateKey, cluster, holder string, key Key, ends time.Time) ([]byte, error) {
	if n := len(cluster); n == 0 || n > maxName {
		return nil, fmt.Errorf("a cluster's name has 1 to %d bytes, this one has %d", maxName, n)
	}
	if n := len(holder); n == 0 || n > maxName {
		return nil, fmt.Errorf("a holder's name has 1 to %d bytes, this one has %d", maxName, n)
	}
	if _, err := key.public(); err != nil {
		return nil, err
	}
	seconds := ends.Unix()
	if seconds < 0 || seconds > math.MaxUint32 {
		return nil, fmt.Errorf("a voucher cannot end on %s", ends.Format(time.DateOnly))
	}
	head := append(binary.BigEndian.AppendUint32(nil, uint32(seconds)), key[:]...)
	return append(head, ed25519.Sign(issuer, signed(cluster, holder, head))...), nil
}

// Open reads a voucher and proves that the issuer made it for the holder in the cluster. Whether it has ended, the caller
// asks.
func Open(issuer ed25519.PublicKey, cluster, holder string, raw []byte) (Voucher, error) {
	if len(raw) != Size {
		return Voucher{}, fmt.Errorf("a voucher has %d bytes, this one has %d", Size, len(raw))
	}
	if len(issuer) != ed25519.PublicKeySize {
		return Voucher{}, fmt.Errorf("the issuer's key has %d bytes, not %d", len(issuer), ed25519.PublicKeySize)
	}
	head, signature := raw[:endSize+KeySize], raw[endSize+KeySize:]
	if len(cluster) > maxName || len(holder) > maxName || !ed25519.Verify(issuer, signed(cluster, holder, head), signature) {
		return Voucher{}, errors.New("the voucher is not control's word for this name")
	}
	v := Voucher{Key: Key(head[endSize:]), Ends: time.Unix(int64(binary.BigEndian.Uint32(head)), 0)}
	var err error
	v.public, err = v.Key.public()
	return v, err
}

// Ended says whether the voucher is good no longer.
func (v Voucher) Ended(now time.Time) bool { return now.After(v.Ends) }

// Signed says whether the holder signed the message.
func (v Voucher) Signed(message, signature []byte) bool {
	return SignedBy(v.public, message, signature)
}

// SignedBy says whether Sign made the signature with the private key of public.
func SignedBy(public crypto.PublicKey, message, signature []byte) bool {
	if len(signature) != SignatureSize {
		return false
	}
	switch key := public.(type) {
	case ed25519.PublicKey:
		return ed25519.Verify(key, message, signature)
	case *ecdsa.PublicKey:
		digest := sha256.Sum256(message)
		r, s := new(big.Int).SetBytes(signature[:32]), new(big.Int).SetBytes(signature[32:])
		return ecdsa.Verify(key, digest[:], r, s)
	}
	return false
}

// Sign makes a holder's signature, as Signed wants it.
func Sign(key crypto.Signer, message []byte) ([]byte, error) {
	if _, ok := key.Public().(ed25519.PublicKey); ok {
		return key.Sign(rand.Reader, message, crypto.Hash(0))
	}
	digest := sha256.Sum256(message)
	der, err := key.Sign(rand.Reader, digest[:], crypto.SHA256)
	if err != nil {
		return nil, fmt.Errorf("sign with the member's key: %w", err)
	}
	var parts struct{ R, S *big.Int }
	if rest, err := asn1.Unmarshal(der, &parts); err != nil || len(rest) > 0 || parts.R.BitLen() > 256 || parts.S.BitLen() > 256 {
		return nil, errors.New("sign with the member's key: it is not of the curve P-256")
	}
	out := make([]byte, SignatureSize)
	parts.R.FillBytes(out[:32])
	parts.S.FillBytes(out[32:])
	return out, nil
}
