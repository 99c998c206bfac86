package identity

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// rotate has a new authority take the place of the one that there is, and gives both.
func rotate(t *testing.T, a *Authority) (both []Issuer) {
	t.Helper()
	old, err := a.Issuers()
	if err != nil {
		t.Fatal(err)
	}
	next, err := a.NewIssuer()
	if err != nil {
		t.Fatal(err)
	}
	both = []Issuer{next, old[0]}
	if err := a.Install(both); err != nil {
		t.Fatal(err)
	}
	return both
}

func believing(certificates ...*x509.Certificate) *tls.Config {
	roots := x509.NewCertPool()
	for _, c := range certificates {
		roots.AddCert(c)
	}
	return &tls.Config{MinVersion: tls.VersionTLS13, ServerName: ServerName, RootCAs: roots}
}

// TestDuringARotationEverybodyIsBelieved: nodes of before and of since, and control by both of them.
func TestDuringARotationEverybodyIsBelieved(t *testing.T) {
	a := open(t, t.TempDir())
	server := serverTLS(t, a)
	oldRoot, oldNode := a.newest().certificate, issueNode(t, a, "n1")
	both := rotate(t, a)
	newRoot, newNode := a.newest().certificate, issueNode(t, a, "n2")
	if newRoot.Equal(oldRoot) || len(a.CACertificates()) != 2 {
		t.Fatal("nothing was rotated")
	}
	for name, c := range map[string]*tls.Config{"an old node": believing(oldRoot), "a new node": believing(newRoot, oldRoot)} {
		c.Certificates = []tls.Certificate{oldNode}
		if name == "a new node" {
			c.Certificates = []tls.Certificate{newNode}
		}
		state, err := handshake(t, server, c)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		peer, err := a.PeerOf(state)
		if err != nil || (peer.Authority == a.AuthorityHash()) != (name == "a new node") {
			t.Errorf("%s is %+v, %v", name, peer, err)
		}
	}
	if err := a.Install(both[:1]); err != nil {
		t.Fatal(err)
	}
	if _, err := handshake(t, server, believing(newRoot)); err != nil {
		t.Errorf("after the end: %v", err)
	}
	if _, err := handshake(t, server, believing(oldRoot)); err == nil {
		t.Error("control is still the old authority's")
	}
	c := believing(newRoot)
	c.Certificates = []tls.Certificate{oldNode}
	if _, err := handshake(t, server, c); err == nil {
		t.Error("an old node is still believed")
	}
}

// TestTokensOfBeforeAndSincePinTheRightControl, as a node checks them: by the hash of an authority in control's chain.
func TestTokensOfBeforeAndSincePinTheRightControl(t *testing.T) {
	a := open(t, t.TempDir())
	before, record, err := a.NewToken(TokenJoin)
	if err != nil {
		t.Fatal(err)
	}
	both := rotate(t, a)
	since, _, err := a.NewToken(TokenJoin)
	if err != nil {
		t.Fatal(err)
	}
	verifies := func(token string) bool {
		t.Helper()
		certificate, err := serverTLS(t, a).GetCertificate(nil)
		if err != nil {
			t.Fatal(err)
		}
		roots, between := x509.NewCertPool(), x509.NewCertPool()
		for _, der := range certificate.Certificate[1:] {
			c, err := x509.ParseCertificate(der)
			if err != nil {
				t.Fatal(err)
			}
			between.AddCert(c)
			if hash := CertificateHash(der); strings.HasSuffix(token, hex.EncodeToString(hash[:])) {
				roots.AddCert(c)
			}
		}
		_, err = certificate.Leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, DNSName: ServerName})
		return err == nil
	}
	if !verifies(before) || !verifies(since) {
		t.Errorf("before %t, since %t", verifies(before), verifies(since))
	}
	pinned, changed := a.Repin(before)
	if !changed || CheckToken(pinned, TokenJoin, book(record)) != nil {
		t.Error("the token is another one")
	}
	if again, changed := a.Repin(pinned); changed || again != pinned {
		t.Error("pinned twice")
	}
	if err := a.Install(both[:1]); err != nil {
		t.Fatal(err)
	}
	if verifies(before) || !verifies(since) || !verifies(pinned) {
		t.Errorf("after the end: before %t, since %t, pinned anew %t", verifies(before), verifies(since), verifies(pinned))
	}
}

func TestAuthoritiesInUseOutliveARestart(t *testing.T) {
	dir := t.TempDir()
	a := open(t, dir)
	both := rotate(t, a)
	again := open(t, dir)
	if !slices.EqualFunc(again.CACertificates(), a.CACertificates(), slices.Equal) || again.AuthorityHash() != CertificateHash(both[0].Certificate) {
		t.Error("other authorities after a restart")
	}
	if err := again.Install(both[:1]); err != nil {
		t.Fatal(err)
	}
	last := open(t, dir)
	if all := last.CACertificates(); len(all) != 1 || !slices.Equal(all[0], both[0].Certificate) {
		t.Errorf("%d authorities after the end", len(all))
	}
	keys, err := os.ReadFile(filepath.Join(dir, "identity", caKeyFile))
	if err != nil || strings.Count(string(keys), "BEGIN") != 1 {
		t.Errorf("the old key is still on disk: %v", err)
	}
	issueNode(t, last, "n1")
}

// A crash between the two files leaves a key more than there are certificates, which loads.
func TestCrashDuringARotationLeavesAnIdentityThatLoads(t *testing.T) {
	dir := t.TempDir()
	a := open(t, dir)
	crt, err := os.ReadFile(filepath.Join(dir, "identity", caFile))
	if err != nil {
		t.Fatal(err)
	}
	hash := a.AuthorityHash()
	rotate(t, a)
	if err := os.WriteFile(filepath.Join(dir, "identity", caFile), crt, 0o600); err != nil {
		t.Fatal(err)
	}
	if again := open(t, dir); again.AuthorityHash() != hash || len(again.CACertificates()) != 1 {
		t.Error("other authorities than the certificates say")
	}
}

func TestAuthoritiesThatCannotBeUsedChangeNothing(t *testing.T) {
	a, other := open(t, t.TempDir()), open(t, t.TempDir())
	own, _ := a.Issuers()
	foreign, _ := other.Issuers()
	next, _ := a.NewIssuer()
	hash := a.AuthorityHash()
	for name, all := range map[string][]Issuer{
		"none":              nil,
		"three":             {next, own[0], own[0]},
		"another cluster's": foreign,
		"another's key":     {{Certificate: next.Certificate, Key: own[0].Key}},
		"garbage":           {{Certificate: []byte("x"), Key: []byte("y")}},
		"one good, one bad": {next, foreign[0]},
	} {
		if err := a.Install(all); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	if a.AuthorityHash() != hash {
		t.Error("something changed")
	}
}

func TestContextOfARotationBelievesBoth(t *testing.T) {
	dir := t.TempDir()
	a := open(t, dir)
	before, err := a.NewContext("admin", []string{"127.0.0.1:1"}, time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	both := rotate(t, a)
	since, err := a.NewContext("admin", []string{"127.0.0.1:1"}, time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	if a.Recognizes(before) || !a.Recognizes(since) {
		t.Errorf("before %t, since %t", a.Recognizes(before), a.Recognizes(since))
	}
	check := func(name string, c *Context, want bool) {
		t.Helper()
		client, err := c.ClientTLS()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := handshake(t, serverTLS(t, a), client); (err == nil) != want {
			t.Errorf("%s: %v", name, err)
		}
	}
	check("before", before, true)
	check("since", since, true)
	if err := a.Install(both[:1]); err != nil {
		t.Fatal(err)
	}
	check("before, after the end", before, false)
	check("since, after the end", since, true)
}
