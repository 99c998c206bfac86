package identity

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// clock is a clock that a test turns by hand.
type clock struct{ now time.Time }

func (c *clock) Now() time.Time { return c.now }

func open(t testing.TB, dir string) *Authority {
	t.Helper()
	a, err := Open(Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestSecondOpenFindsTheSameIdentity(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "not", "there [yet]")
	first, second := open(t, dir), open(t, dir)
	if first.ClusterID() != second.ClusterID() || first.ClusterID() == "" {
		t.Errorf("cluster ids %q and %q", first.ClusterID(), second.ClusterID())
	}
	if !first.ReleaseKey().Equal(second.ReleaseKey()) {
		t.Error("another release key")
	}
	if !slices.EqualFunc(first.GossipKeys(), second.GossipKeys(), bytes.Equal) || len(first.GossipKeys()[0]) != 32 {
		t.Error("another gossip key")
	}
	if !bytes.Equal(first.SealKey(), second.SealKey()) || len(first.SealKey()) != 32 {
		t.Error("another seal key")
	}
	if !first.ca.Equal(second.ca) || !first.caKey.Equal(second.caKey) {
		t.Error("another authority")
	}
	if first.ca.Subject.CommonName != "pyserve "+first.ClusterID() {
		t.Errorf("the authority is called %q", first.ca.Subject.CommonName)
	}
}

func TestSecretsAreReadableByTheOwnerAlone(t *testing.T) {
	dir := t.TempDir()
	open(t, dir)
	files := 0
	err := filepath.WalkDir(filepath.Join(dir, "identity"), func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		want := fs.FileMode(0o600)
		if e.IsDir() {
			want = 0o700
		} else {
			files++
		}
		if info, _ := e.Info(); info.Mode().Perm() != want {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		return nil
	})
	if err != nil || files != 6 {
		t.Fatalf("%d files, %v", files, err)
	}
}

func TestLooseModeIsPutRight(t *testing.T) {
	dir := t.TempDir()
	open(t, dir)
	path := filepath.Join(dir, "identity", caKeyFile)
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	open(t, dir)
	if info, _ := os.Stat(path); info.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v", info.Mode())
	}
}

func TestMissingOrDamagedFileIsNamedAndNothingIsMadeAnew(t *testing.T) {
	other := t.TempDir()
	open(t, other)
	files := []string{caFile, caKeyFile, releaseFile, gossipFile, clusterFile, sealFile}
	for _, file := range files {
		foreign, err := os.ReadFile(filepath.Join(other, "identity", file))
		if err != nil {
			t.Fatal(err)
		}
		for name, damage := range map[string]func(path string) error{
			"missing":   os.Remove,
			"empty":     func(path string) error { return os.WriteFile(path, nil, 0o600) },
			"garbage":   func(path string) error { return os.WriteFile(path, []byte("\x00\xff no key"), 0o600) },
			"huge":      func(path string) error { return os.WriteFile(path, bytes.Repeat([]byte("a"), maxKeyFile+1), 0o600) },
			"directory": func(path string) error { return errors.Join(os.Remove(path), os.Mkdir(path, 0o700)) },
			"foreign": func(path string) error {
				if file == releaseFile || file == gossipFile || file == sealFile {
					return os.WriteFile(path, append(foreign, foreign[:10]...), 0o600) // any key would do, but only one
				}
				return os.WriteFile(path, foreign, 0o600)
			},
		} {
			t.Run(file+"/"+name, func(t *testing.T) {
				dir := t.TempDir()
				open(t, dir)
				path := filepath.Join(dir, "identity", file)
				if err := damage(path); err != nil {
					t.Fatal(err)
				}
				_, err := Open(Options{Dir: dir})
				// Another cluster's id shows first at the certificate that does not fit it.
				fits := err != nil && (strings.Contains(err.Error(), path) || file == clusterFile && strings.Contains(err.Error(), caFile))
				if !fits {
					t.Fatalf("got %v, want an error that names %s", err, path)
				}
				if name == "missing" {
					if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
						t.Fatal("the file was made anew")
					}
				}
			})
		}
	}
}

func TestUnfinishedFirstStartIsBegunAgain(t *testing.T) {
	dir := t.TempDir()
	left := filepath.Join(dir, ".identity-123.tmp")
	if err := os.MkdirAll(left, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(left, caKeyFile), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	open(t, dir)
	if _, err := os.Stat(left); !errors.Is(err, fs.ErrNotExist) {
		t.Fatal("the unfinished identity still lies there")
	}
}

func TestIdentityThatMustExistIsNotMade(t *testing.T) {
	dir := t.TempDir()
	if _, err := Open(Options{Dir: dir, MustExist: true}); err == nil {
		t.Fatal("want an error")
	}
	if entries, _ := os.ReadDir(dir); len(entries) > 0 {
		t.Fatalf("there is %v", entries)
	}
	open(t, dir)
	if _, err := Open(Options{Dir: dir, MustExist: true}); err != nil {
		t.Fatal(err)
	}
}

func TestOpenWhereNoDirectoryCanBeIsAnError(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"", file, filepath.Join(file, "below")} {
		if _, err := Open(Options{Dir: dir}); err == nil {
			t.Errorf("%q: want an error", dir)
		}
	}
}

func TestExpiredAuthorityIsRefused(t *testing.T) {
	dir := t.TempDir()
	open(t, dir)
	_, err := Open(Options{Dir: dir, Now: (&clock{time.Now().Add(authorityLifetime + time.Hour)}).Now})
	if err == nil || !strings.Contains(err.Error(), "expired") {
		t.Fatalf("got %v", err)
	}
}

// request makes a certificate request and gives the key that it is for.
func request(t testing.TB) ([]byte, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	return der, key
}

func issueNode(t testing.TB, a *Authority, name string) tls.Certificate {
	t.Helper()
	csr, key := request(t)
	id, err := a.IssueNode(name, csr)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{id.GetCertificate()}, PrivateKey: key}
}

func TestNodeCertificateSaysWhoseItIs(t *testing.T) {
	now := time.Now().Truncate(time.Second)
	a, err := Open(Options{Dir: t.TempDir(), Now: (&clock{now}).Now})
	if err != nil {
		t.Fatal(err)
	}
	csr, _ := request(t)
	id, err := a.IssueNode("n1", csr)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(id.GetCertificate())
	if err != nil {
		t.Fatal(err)
	}
	if len(c.URIs) != 1 || c.URIs[0].String() != "pyserve://"+a.ClusterID()+"/node/n1" {
		t.Errorf("URIs %v", c.URIs)
	}
	if !slices.Equal(c.DNSNames, []string{"node.pyserve.internal"}) {
		t.Errorf("DNS names %v", c.DNSNames)
	}
	if !c.NotBefore.Equal(now.Add(-5*time.Minute)) || !c.NotAfter.Equal(now.Add(24*time.Hour)) {
		t.Errorf("good from %v to %v", c.NotBefore, c.NotAfter)
	}
	if c.IsCA || c.CheckSignatureFrom(a.ca) != nil {
		t.Error("not a leaf of the authority")
	}
	if !bytes.Equal(id.GetCaCertificate(), a.ca.Raw) || id.GetClusterId() != a.ClusterID() {
		t.Error("another cluster's identity")
	}
	if !a.ReleaseKey().Public().(ed25519.PublicKey).Equal(ed25519.PublicKey(id.GetReleaseKey())) {
		t.Error("another release key")
	}
}

func TestNoCertificateOutlivesTheAuthority(t *testing.T) {
	c := &clock{time.Now()}
	a, err := Open(Options{Dir: t.TempDir(), Now: c.Now})
	if err != nil {
		t.Fatal(err)
	}
	c.now = a.ca.NotAfter.Add(-time.Hour)
	leaf := issueNode(t, a, "n1")
	parsed, _ := x509.ParseCertificate(leaf.Certificate[0])
	if parsed.NotAfter.After(a.ca.NotAfter) {
		t.Fatalf("good until %v, the authority until %v", parsed.NotAfter, a.ca.NotAfter)
	}
}

func TestEd25519NodesAreTaken(t *testing.T) {
	a := open(t, t.TempDir())
	_, key, _ := ed25519.GenerateKey(rand.Reader)
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.IssueNode("n1", csr); err != nil {
		t.Fatal(err)
	}
}

func TestBadRequestsAndNamesAreRefused(t *testing.T) {
	a := open(t, t.TempDir())
	good, _ := request(t)
	forged := bytes.Clone(good)
	forged[len(forged)-1] ^= 1
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	rsaRequest, _ := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, rsaKey)
	p384, _ := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	p384Request, _ := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, p384)
	for name, csr := range map[string][]byte{
		"nothing": nil, "garbage": []byte("garbage"), "forged": forged, "RSA": rsaRequest, "P-384": p384Request,
		"huge": make([]byte, maxRequest+1),
	} {
		if _, err := a.IssueNode("n1", csr); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
	for _, name := range []string{"", ".n", "-n", "_n", "a/b", "a b", "ä", "n\n", "../control/c1", strings.Repeat("n", 64)} {
		if _, err := a.IssueNode(name, good); err == nil {
			t.Errorf("the name %q was accepted", name)
		}
	}
	for _, name := range []string{"n", "N1", "1", "a.b_c-d", strings.Repeat("n", 63)} {
		if _, err := a.IssueNode(name, good); err != nil {
			t.Errorf("the name %q was refused: %v", name, err)
		}
	}
}

// handshake shakes hands over 127.0.0.1 and gives what the server saw.
func handshake(t *testing.T, server, client *tls.Config) (tls.ConnectionState, error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	type result struct {
		state tls.ConnectionState
		err   error
	}
	done := make(chan result, 1)
	go func() {
		raw, err := l.Accept()
		if err != nil {
			done <- result{err: err}
			return
		}
		conn := tls.Server(raw, server)
		defer conn.Close()
		err = conn.Handshake()
		done <- result{conn.ConnectionState(), err}
	}()
	raw, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	clientErr := tls.Client(raw, client).Handshake()
	if clientErr != nil {
		raw.Close()
	}
	seen := <-done
	return seen.state, errors.Join(clientErr, seen.err)
}

func serverTLS(t *testing.T, a *Authority) *tls.Config {
	t.Helper()
	c, err := a.ServerTLS("c1")
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func nodeClient(a *Authority, certificates ...tls.Certificate) *tls.Config {
	roots := x509.NewCertPool()
	roots.AddCert(a.ca)
	return &tls.Config{MinVersion: tls.VersionTLS13, ServerName: ServerName, RootCAs: roots, Certificates: certificates, Time: a.now}
}

func TestPeerIsWhoTheCertificateSays(t *testing.T) {
	a := open(t, t.TempDir())
	node := issueNode(t, a, "n1")
	state, err := handshake(t, serverTLS(t, a), nodeClient(a, node))
	if err != nil {
		t.Fatal(err)
	}
	peer, err := a.PeerOf(state)
	hash, hashErr := KeyHash(node.Certificate[0])
	if err != nil || hashErr != nil || peer.Role != RoleNode || peer.Name != "n1" || peer.KeyHash != hash || peer.Expired(time.Now()) {
		t.Fatalf("got %+v, %v, %v", peer, err, hashErr)
	}

	c, err := a.NewContext("admin", []string{"127.0.0.1:7400"}, time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	client, err := c.ClientTLS()
	if err != nil {
		t.Fatal(err)
	}
	if state, err = handshake(t, serverTLS(t, a), client); err != nil {
		t.Fatal(err)
	}
	if peer, err := a.PeerOf(state); err != nil || peer.Role != RoleAdmin || peer.Name != "admin" {
		t.Fatalf("got %+v, %v", peer, err)
	}

	control, err := serverTLS(t, a).GetCertificate(nil)
	if err != nil {
		t.Fatal(err)
	}
	if state, err = handshake(t, serverTLS(t, a), nodeClient(a, *control)); err != nil {
		t.Fatal(err)
	}
	if peer, err := a.PeerOf(state); err != nil || peer.Role != RoleControl || peer.Name != "c1" {
		t.Fatalf("got %+v, %v", peer, err)
	}
}

func TestPeerWithoutACertificateIsAnonymous(t *testing.T) {
	a := open(t, t.TempDir())
	state, err := handshake(t, serverTLS(t, a), nodeClient(a))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.PeerOf(state); !errors.Is(err, ErrAnonymous) {
		t.Fatalf("got %v", err)
	}
}

func TestCertificateWithoutProofOfItsKeyIsNobody(t *testing.T) {
	a := open(t, t.TempDir())
	leaf, _ := x509.ParseCertificate(issueNode(t, a, "n1").Certificate[0])
	if _, err := a.PeerOf(tls.ConnectionState{PeerCertificates: []*x509.Certificate{leaf}}); err == nil {
		t.Fatal("want an error")
	}
}

// issueOdd signs a certificate for something that no certificate of a cluster names.
func issueOdd(t *testing.T, a *Authority, uris ...string) *x509.Certificate {
	t.Helper()
	_, key := request(t)
	template := a.template(pkix.Name{CommonName: "n1"}, nodeLifetime, a.ca.NotAfter)
	template.KeyUsage, template.ExtKeyUsage = x509.KeyUsageDigitalSignature, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	for _, text := range uris {
		u, err := url.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		template.URIs = append(template.URIs, u)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.ca, key.Public(), a.caKey)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return leaf
}

func TestForeignAndOddCertificatesAreNobody(t *testing.T) {
	a, other := open(t, t.TempDir()), open(t, t.TempDir())
	intruder := issueNode(t, other, "n1")
	client := nodeClient(a)
	client.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		return &intruder, nil // whatever authorities the server asked for
	}
	if _, err := handshake(t, serverTLS(t, a), client); err == nil {
		t.Error("another cluster's node was let in")
	}
	foreign, _ := x509.ParseCertificate(issueNode(t, other, "n1").Certificate[0])
	own := "pyserve://" + a.ClusterID()
	for name, leaf := range map[string]*x509.Certificate{
		"another cluster's":       foreign,
		"another cluster's name":  issueOdd(t, a, "pyserve://"+other.ClusterID()+"/node/n1"),
		"no URI":                  issueOdd(t, a),
		"two URIs":                issueOdd(t, a, own+"/node/n1", own+"/admin/n1"),
		"unknown role":            issueOdd(t, a, own+"/root/n1"),
		"no name":                 issueOdd(t, a, own+"/node/"),
		"query":                   issueOdd(t, a, own+"/node/n1?x=1"),
		"somebody's user":         issueOdd(t, a, "pyserve://x@"+a.ClusterID()+"/node/n1"),
		"another scheme":          issueOdd(t, a, "https://"+a.ClusterID()+"/node/n1"),
		"another cluster's admin": issueOdd(t, other, own+"/admin/n1"),
	} {
		state := tls.ConnectionState{HandshakeComplete: true, PeerCertificates: []*x509.Certificate{leaf}}
		if peer, err := a.PeerOf(state); err == nil {
			t.Errorf("%s was taken for %+v", name, peer)
		}
	}
	good := tls.ConnectionState{HandshakeComplete: true, PeerCertificates: []*x509.Certificate{issueOdd(t, a, own+"/node/n1")}}
	if _, err := a.PeerOf(good); err != nil {
		t.Errorf("what is not odd: %v", err)
	}
}

func TestExpiredCertificateIsToldAsThat(t *testing.T) {
	c := &clock{time.Now()}
	a, err := Open(Options{Dir: t.TempDir(), Now: c.Now})
	if err != nil {
		t.Fatal(err)
	}
	node := issueNode(t, a, "n1")
	foreign := issueNode(t, open(t, t.TempDir()), "n1")
	c.now = c.now.Add(nodeLifetime + time.Hour)
	state, err := handshake(t, serverTLS(t, a), nodeClient(a, node))
	if err != nil {
		t.Fatal(err)
	}
	if peer, err := a.PeerOf(state); err != nil || !peer.Expired(c.now) || peer.Expired(c.now.Add(-2*time.Hour)) || peer.Name != "n1" {
		t.Errorf("got %+v, %v", peer, err)
	}
	client := nodeClient(a)
	client.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &foreign, nil }
	if _, err := handshake(t, serverTLS(t, a), client); err == nil {
		t.Error("an expired certificate of another cluster was let in")
	}
	c.now = c.now.Add(-3 * nodeLifetime)
	if _, err := handshake(t, serverTLS(t, a), nodeClient(a, node)); err == nil {
		t.Error("a certificate that is not good yet was let in")
	}
}

func TestTLS12IsRefused(t *testing.T) {
	a := open(t, t.TempDir())
	client := nodeClient(a)
	client.MinVersion, client.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	if _, err := handshake(t, serverTLS(t, a), client); err == nil {
		t.Fatal("want an error")
	}
}

func TestServerCertificateIsRenewedAtHalfItsLife(t *testing.T) {
	c := &clock{time.Now()}
	a, err := Open(Options{Dir: t.TempDir(), Now: c.Now})
	if err != nil {
		t.Fatal(err)
	}
	config := serverTLS(t, a)
	first, _ := config.GetCertificate(nil)
	c.now = c.now.Add(serverLifetime/2 - time.Hour)
	if same, _ := config.GetCertificate(nil); same != first {
		t.Error("renewed too early")
	}
	c.now = c.now.Add(2 * time.Hour)
	second, err := config.GetCertificate(nil)
	if err != nil || second == first {
		t.Fatalf("not renewed: %v", err)
	}
	if _, err := handshake(t, config, nodeClient(a)); err != nil {
		t.Error(err)
	}
}

func TestServerNameThatIsNoNameIsRefused(t *testing.T) {
	if _, err := open(t, t.TempDir()).ServerTLS("a/b"); err == nil {
		t.Fatal("want an error")
	}
}

// TestPinFindsTheAuthorityInTheServersChain does what a node does that knows nothing but its token.
func TestPinFindsTheAuthorityInTheServersChain(t *testing.T) {
	a := open(t, t.TempDir())
	token, _, err := a.NewToken(TokenJoin)
	if err != nil {
		t.Fatal(err)
	}
	pin := token[strings.LastIndexByte(token, '.')+1:]
	client := &tls.Config{
		MinVersion: tls.VersionTLS13, ServerName: ServerName, InsecureSkipVerify: true,
		VerifyConnection: func(state tls.ConnectionState) error {
			for _, c := range state.PeerCertificates {
				if sum := sha256.Sum256(c.Raw); hex.EncodeToString(sum[:]) == pin {
					roots := x509.NewCertPool()
					roots.AddCert(c)
					_, err := state.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: roots, DNSName: ServerName})
					return err
				}
			}
			return errors.New("no certificate of the chain has the pin")
		},
	}
	if _, err := handshake(t, serverTLS(t, a), client); err != nil {
		t.Fatal(err)
	}
	if _, err := handshake(t, serverTLS(t, open(t, t.TempDir())), client); err == nil {
		t.Fatal("another cluster's control was believed")
	}
}

func FuzzIssueNode(f *testing.F) {
	a := open(f, f.TempDir())
	csr, _ := request(f)
	f.Add("n1", csr)
	f.Fuzz(func(t *testing.T, name string, csr []byte) {
		id, err := a.IssueNode(name, csr)
		if err != nil {
			return
		}
		c, err := x509.ParseCertificate(id.GetCertificate())
		if err != nil || len(c.URIs) != 1 || !strings.HasSuffix(c.URIs[0].Path, "/node/"+name) {
			t.Fatalf("issued %v, %v", c, err)
		}
	})
}

func TestOtherGossipKeysAreKeptAndNothingElseIs(t *testing.T) {
	dir := t.TempDir()
	a := open(t, dir)
	first := a.GossipKeys()[0]
	next := [][]byte{bytes.Repeat([]byte{7}, 32), first}
	if err := a.SetGossipKeys(next); err != nil {
		t.Fatal(err)
	}
	for name, keys := range map[string][][]byte{"none": nil, "a short one": {{1}}, "too many": slices.Repeat([][]byte{first}, maxGossipKeys+1)} {
		if err := a.SetGossipKeys(keys); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	for _, now := range []*Authority{a, open(t, dir)} {
		if !slices.EqualFunc(now.GossipKeys(), next, bytes.Equal) {
			t.Errorf("there are %d keys, or others", len(now.GossipKeys()))
		}
	}
	if info, err := os.Stat(filepath.Join(dir, "identity", gossipFile)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
}
