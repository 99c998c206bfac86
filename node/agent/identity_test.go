package agent

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pyserve/pyserve/control/identity"
)

func TestIdentityIsKeptForItsUserAlone(t *testing.T) {
	s, dir := newScript(t), t.TempDir()
	id := s.identity(t)
	id.GossipKeys, id.GossipSeeds = [][]byte{make([]byte, 32)}, []string{"127.0.0.1:7402"}
	if err := id.save(dir); err != nil {
		t.Fatal(err)
	}
	if err := id.save(dir); err != nil { // over the one that is there
		t.Fatal(err)
	}
	path := filepath.Join(dir, identityFile)
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("its mode is %v, %v", info.Mode(), err)
	}
	if files, _ := filepath.Glob(filepath.Join(dir, "*")); len(files) != 1 {
		t.Errorf("the directory holds %v", files)
	}
	got, err := LoadIdentity(dir)
	if err != nil {
		t.Fatal(err)
	}
	if got.Name != "n1" || got.ClusterID != id.ClusterID || got.KeyPEM != id.KeyPEM || got.CAPEM != id.CAPEM ||
		!slices.Equal(got.ReleaseKey, id.ReleaseKey) || !slices.EqualFunc(got.GossipKeys, id.GossipKeys, slices.Equal) || !slices.Equal(got.GossipSeeds, id.GossipSeeds) {
		t.Errorf("loaded %v", got)
	}
	from, until := got.Lifetime()
	if now := time.Now(); now.Before(from) || until.Before(now.Add(23*time.Hour)) {
		t.Errorf("good from %s until %s", from, until)
	}
}

func TestIdentityThatIsNotThere(t *testing.T) {
	if _, err := LoadIdentity(t.TempDir()); !errors.Is(err, ErrNotEnrolled) {
		t.Errorf("the error is %v", err)
	}
}

func TestIdentityThatCannotBeRead(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, identityFile), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadIdentity(dir); err == nil || errors.Is(err, ErrNotEnrolled) {
		t.Errorf("the error is %v: it must not lead to a new enrolment", err)
	}
}

func TestDamagedIdentitySaysWhatToDo(t *testing.T) {
	s, dir := newScript(t), t.TempDir()
	if err := s.identity(t).save(dir); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, identityFile)
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{
		"empty":                nil,
		"cut":                  good[:len(good)/2],
		"not JSON":             []byte("hello"),
		"an unknown field":     []byte(strings.Replace(string(good), `"name"`, `"nome"`, 1)),
		"no name":              []byte(strings.Replace(string(good), `"n1"`, `""`, 1)),
		"another's key":        []byte(strings.Replace(string(good), `"key": "-----BEGIN`, `"key": "x-----BEGIN`, 1)),
		"no authority":         []byte(strings.Replace(string(good), `"ca": "-----BEGIN`, `"ca": "-----GONE`, 1)),
		"more than one object": append(slices.Clone(good), good...),
		"endless":              make([]byte, maxIdentityBytes+1),
	} {
		t.Run(name, func(t *testing.T) {
			if err := os.WriteFile(path, data, 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := LoadIdentity(dir)
			if name == "another's key" { // PEM takes what stands before a block
				return
			}
			if err == nil || errors.Is(err, ErrNotEnrolled) || !strings.Contains(err.Error(), path) {
				t.Fatalf("the error is %v", err)
			}
			if !strings.Contains(err.Error(), "remove it and start the node with a join token") {
				t.Errorf("the error does not say what to do: %v", err)
			}
			if strings.Contains(err.Error(), "PRIVATE") {
				t.Errorf("the error quotes a key: %v", err)
			}
		})
	}
}

func TestIdentityThatCannotBeKept(t *testing.T) {
	if err := newScript(t).identity(t).save(filepath.Join(t.TempDir(), "gone")); err == nil || !strings.Contains(err.Error(), "write the node's identity") {
		t.Errorf("the error is %v", err)
	}
}

func TestIssuedIdentityThatCannotBeUsed(t *testing.T) {
	s := newScript(t)
	keyPEM, _, err := newKey("n1")
	if err != nil {
		t.Fatal(err)
	}
	_, request, err := newKey("n1")
	if err != nil {
		t.Fatal(err)
	}
	issued, err := s.authority.IssueNode("n1", request) // for another key
	if err != nil {
		t.Fatal(err)
	}
	if _, err := received("n1", keyPEM, issued); err == nil || !strings.Contains(err.Error(), "control issued an identity that cannot be used") {
		t.Errorf("the error is %v", err)
	}
	if _, err := received("n1", keyPEM, nil); err == nil {
		t.Error("nothing was taken for an identity")
	}
}

func FuzzParseIdentity(f *testing.F) {
	f.Add([]byte(`{}`))
	f.Add([]byte(`{"name":"n1","cluster_id":"x","key":"","certificate":"","ca":"","release_key":"AAAA"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		id, err := parseIdentity(data)
		if err != nil {
			return
		}
		if from, until := id.Lifetime(); id.Name == "" || len(id.ReleaseKey) != 32 || from.After(until) {
			t.Errorf("%+v was taken", id)
		}
		id.tls(time.Now)
	})
}

func TestDataDirectoryIsForOneProcess(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data", "n1")
	first, err := OpenDataDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(dir)
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("its mode is %v, %v", info.Mode(), err)
	}
	if _, err := OpenDataDir(dir); err == nil || !strings.Contains(err.Error(), "is in use by another process") {
		t.Errorf("the error is %v", err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := OpenDataDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenDataDir(filepath.Join(dir, "lock")); err == nil || !strings.Contains(err.Error(), "--data-dir") {
		t.Errorf("in the place of a file: %v", err)
	}
}

func joinToken(t *testing.T, a *identity.Authority, kind identity.TokenKind) string {
	t.Helper()
	token, _, err := a.NewToken(kind)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func TestPinOfAToken(t *testing.T) {
	s := newScript(t)
	good := joinToken(t, s.authority, identity.TokenJoin)
	fields := strings.Split(good, ".")
	for name, tt := range map[string]struct{ token, want string }{
		"good":                {good, ""},
		"with a line's end":   {good + "\n", ""},
		"empty":               {"", "four fields"},
		"five fields":         {good + ".x", "four fields"},
		"a control token":     {joinToken(t, s.authority, identity.TokenControl), "this is a control token"},
		"another prefix":      {"psx1" + strings.TrimPrefix(good, "psj1"), "damaged"},
		"a short hash":        {good[:len(good)-2], "damaged"},
		"a hash that is none": {good[:len(good)-1] + "x", "damaged"},
	} {
		t.Run(name, func(t *testing.T) {
			pin, err := pinOf(tt.token)
			switch {
			case tt.want == "" && (err != nil || pin != fields[3]):
				t.Errorf("got %q, %v", pin, err)
			case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("the error is %v, want %q", err, tt.want)
			case err != nil && len(tt.token) > 20 && strings.Contains(err.Error(), fields[2]):
				t.Errorf("the error quotes the secret: %v", err)
			}
		})
	}
}

func FuzzPinOf(f *testing.F) {
	f.Add("psj1.a.b." + strings.Repeat("0", 64))
	f.Add("psj1.a.b." + strings.Repeat("A", 64))
	f.Add("psc1...")
	f.Fuzz(func(t *testing.T, token string) {
		pin, err := pinOf(token)
		if err != nil {
			return
		}
		if raw, err := hex.DecodeString(pin); err != nil || len(raw) != sha256.Size || pin != strings.ToLower(pin) {
			t.Errorf("the pin is %q", pin)
		}
	})
}

// authority makes a certificate authority, and a certificate by it for a name.
func authority(t *testing.T, name string, ca bool) (root, leaf *x509.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	make := func(serial int64, parent *x509.Certificate, isCA bool, names ...string) *x509.Certificate {
		template := &x509.Certificate{
			SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "x"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
			IsCA: isCA, BasicConstraintsValid: true, DNSNames: names, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		}
		if parent == nil {
			parent = template
		}
		der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), key)
		if err != nil {
			t.Fatal(err)
		}
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	root = make(1, nil, ca)
	return root, make(2, root, false, name)
}

func TestControlIsBelievedOnlyByThePinnedAuthority(t *testing.T) {
	root, leaf := authority(t, controlServerName, true)
	otherRoot, otherLeaf := authority(t, controlServerName, true)
	_, wrongName := authority(t, "elsewhere.example.com", true)
	notCA, byNotCA := authority(t, controlServerName, false)
	pinned := func(c *x509.Certificate) string {
		sum := sha256.Sum256(c.Raw)
		return hex.EncodeToString(sum[:])
	}
	for name, tt := range map[string]struct {
		chain []*x509.Certificate
		pin   string
		want  string
	}{
		"the right one":                         {[]*x509.Certificate{leaf, root}, pinned(root), ""},
		"nothing shown":                         {nil, pinned(root), "another cluster"},
		"the authority is not shown":            {[]*x509.Certificate{leaf}, pinned(root), "another cluster"},
		"another cluster":                       {[]*x509.Certificate{otherLeaf, otherRoot}, pinned(root), "another cluster"},
		"the authority shown as itself":         {[]*x509.Certificate{root}, pinned(root), "another cluster"},
		"a leaf that is pinned":                 {[]*x509.Certificate{leaf, root}, pinned(leaf), "another cluster"},
		"a foreign leaf beside our authority":   {[]*x509.Certificate{otherLeaf, root}, pinned(root), "not good"},
		"a foreign leaf before our whole chain": {[]*x509.Certificate{otherLeaf, leaf, root}, pinned(root), "not good"},
		"another name":                          {[]*x509.Certificate{wrongName, root}, pinned(root), "not good"},
		"an authority that is none":             {[]*x509.Certificate{byNotCA, notCA}, pinned(notCA), "not good"},
	} {
		t.Run(name, func(t *testing.T) {
			err := verifyPinned(tls.ConnectionState{PeerCertificates: tt.chain}, tt.pin)
			if (tt.want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("the error is %v, want %q", err, tt.want)
			}
		})
	}
}
