package voucher

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"strings"
	"testing"
	"time"
)

var ends = time.Unix(2_000_000_000, 0)

func newIssuer(t *testing.T) ed25519.PrivateKey {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func newECDSA(t *testing.T, curve elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func issue(t *testing.T, issuer ed25519.PrivateKey, key crypto.Signer) []byte {
	t.Helper()
	packed, err := KeyOf(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	raw, err := Issue(issuer, "cluster", "node:n1", packed, ends)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func publicOf(issuer ed25519.PrivateKey) ed25519.PublicKey {
	return issuer.Public().(ed25519.PublicKey)
}

func TestHoldersAreBelievedWithBothKindsOfKey(t *testing.T) {
	issuer := newIssuer(t)
	for range 20 { // points of both signs
		for _, key := range []crypto.Signer{newECDSA(t, elliptic.P256()), newIssuer(t)} {
			v, err := Open(publicOf(issuer), "cluster", "node:n1", issue(t, issuer, key))
			if err != nil {
				t.Fatal(err)
			}
			if !v.Ends.Equal(ends) || v.Ended(ends) || !v.Ended(ends.Add(time.Second)) {
				t.Errorf("it ends on %s", v.Ends)
			}
			signature, err := Sign(key, []byte("word"))
			if err != nil {
				t.Fatal(err)
			}
			if !v.Signed([]byte("word"), signature) {
				t.Errorf("%T: the holder is not believed", key)
			}
			if v.Signed([]byte("work"), signature) || v.Signed([]byte("word"), signature[1:]) {
				t.Errorf("%T: something else is believed", key)
			}
		}
	}
}

func TestAVoucherIsForOneNameOfOneCluster(t *testing.T) {
	issuer := newIssuer(t)
	raw := issue(t, issuer, newECDSA(t, elliptic.P256()))
	for what, err := range map[string]error{
		"another name":    second(Open(publicOf(issuer), "cluster", "node:n2", raw)),
		"another cluster": second(Open(publicOf(issuer), "clusters", "node:n1", raw)),
		"moved letters":   second(Open(publicOf(issuer), "clustern", "ode:n1", raw)),
		"another issuer":  second(Open(publicOf(newIssuer(t)), "cluster", "node:n1", raw)),
		"no issuer":       second(Open(nil, "cluster", "node:n1", raw)),
		"a long name":     second(Open(publicOf(issuer), "cluster", strings.Repeat("n", 256), raw)),
	} {
		if err == nil {
			t.Errorf("%s: believed", what)
		}
	}
}

func second(_ Voucher, err error) error { return err }

func TestNoBitOfAVoucherMayBeOther(t *testing.T) {
	issuer := newIssuer(t)
	raw := issue(t, issuer, newECDSA(t, elliptic.P256()))
	for i := range 8 * len(raw) {
		bent := bytes.Clone(raw)
		bent[i/8] ^= 1 << (i % 8)
		if _, err := Open(publicOf(issuer), "cluster", "node:n1", bent); err == nil {
			t.Fatalf("believed with bit %d turned", i)
		}
	}
	for n := range raw {
		if _, err := Open(publicOf(issuer), "cluster", "node:n1", raw[:n]); err == nil {
			t.Fatalf("believed when cut to %d bytes", n)
		}
	}
}

func TestOnlyKeysThatFitAreTaken(t *testing.T) {
	if _, err := KeyOf(newECDSA(t, elliptic.P384()).Public()); err == nil {
		t.Error("a key of P-384 is taken")
	}
	if _, err := KeyOf("key"); err == nil {
		t.Error("a text is taken")
	}
	if _, err := Issue(newIssuer(t), "cluster", "n", Key{}, ends); err == nil {
		t.Error("no key is taken")
	}
	if _, err := Sign(newECDSA(t, elliptic.P384()), []byte("word")); err == nil {
		t.Error("P-384 signs")
	}
}

func TestIssueNamesWhatDoesNotFit(t *testing.T) {
	issuer := newIssuer(t)
	key, err := KeyOf(issuer.Public())
	if err != nil {
		t.Fatal(err)
	}
	for what, err := range map[string]error{
		"cluster": first(Issue(issuer, "", "n", key, ends)),
		"holder":  first(Issue(issuer, "c", strings.Repeat("n", 256), key, ends)),
		"end":     first(Issue(issuer, "c", "n", key, time.Unix(1<<33, 0))),
	} {
		if err == nil {
			t.Errorf("the %s is taken", what)
		}
	}
}

func first(_ []byte, err error) error { return err }

func FuzzOpen(f *testing.F) {
	issuer := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	key, err := KeyOf(issuer.Public())
	if err != nil {
		f.Fatal(err)
	}
	good, err := Issue(issuer, "cluster", "node:n1", key, ends)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good, good[:SignatureSize])
	f.Fuzz(func(t *testing.T, raw, signature []byte) {
		v, err := Open(publicOf(issuer), "cluster", "node:n1", raw)
		if err == nil && !bytes.Equal(raw, good) {
			t.Errorf("%x is believed", raw)
		}
		if v.Signed([]byte("word"), signature) {
			t.Errorf("%x is a signature", signature)
		}
	})
}
