package identity

import (
	"crypto/tls"
	"errors"
	"maps"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestAdoptedIdentityIsTheSameClusters(t *testing.T) {
	a := open(t, t.TempDir())
	files, err := a.Export()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for range 2 { // a second time changes nothing
		if err := Adopt(Options{Dir: dir, Logger: a.logger, Now: a.now}, files); err != nil {
			t.Fatal(err)
		}
	}
	b := open(t, dir)
	if b.ClusterID() != a.ClusterID() || !b.ca.Equal(a.ca) || string(b.SealKey()) != string(a.SealKey()) {
		t.Error("the identity is another")
	}
	err = filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
		if err == nil && info.Mode().Perm()&0o077 != 0 && path != dir {
			t.Errorf("%s has the mode %s", path, info.Mode())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestIdentityThatCannotBeUsedIsNotAdopted(t *testing.T) {
	a := open(t, t.TempDir())
	good, err := a.Export()
	if err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(map[string][]byte){
		"a file is missing": func(f map[string][]byte) { delete(f, caKeyFile) },
		"a key is damaged":  func(f map[string][]byte) { f[releaseFile] = []byte("x") },
		"a path":            func(f map[string][]byte) { f["../"+caFile] = f[caFile] },
		"a hidden name":     func(f map[string][]byte) { f["."] = nil },
		"a file too long":   func(f map[string][]byte) { f["more"] = make([]byte, maxKeyFile+1) },
	} {
		files, dir := maps.Clone(good), t.TempDir()
		spoil(files)
		if err := Adopt(Options{Dir: dir, Logger: a.logger, Now: a.now}, files); err == nil {
			t.Errorf("%s: adopted", name)
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
			t.Errorf("%s: left behind %v, %v", name, left, err)
		}
	}
}

func TestIdentityOfAnotherClusterIsNotReplaced(t *testing.T) {
	a, dir := open(t, t.TempDir()), t.TempDir()
	own := open(t, dir)
	files, err := a.Export()
	if err != nil {
		t.Fatal(err)
	}
	if err := Adopt(Options{Dir: dir, Logger: a.logger, Now: a.now}, files); err == nil || !strings.Contains(err.Error(), "another cluster") {
		t.Errorf("got %v", err)
	}
	if open(t, dir).ClusterID() != own.ClusterID() {
		t.Error("it was replaced")
	}
}

// shake makes a TLS connection in memory and gives what each side says of it.
func shake(t *testing.T, server, client *tls.Config) (serverErr, clientErr error) {
	t.Helper()
	here, there := net.Pipe()
	defer here.Close()
	defer there.Close()
	done := make(chan error, 1)
	go func() {
		s := tls.Server(there, server)
		err := s.Handshake()
		if err == nil {
			_, err = s.Write([]byte("x"))
		}
		there.Close()
		done <- err
	}()
	c := tls.Client(here, client)
	clientErr = c.Handshake()
	if clientErr == nil {
		_, clientErr = c.Read(make([]byte, 1))
	}
	here.Close()
	return <-done, clientErr
}

func TestControlsOfOneClusterSpeakToEachOtherAndToNobodyElse(t *testing.T) {
	dir := t.TempDir()
	a, foreign := open(t, dir), open(t, t.TempDir())
	server, client, err := a.PeerTLS("c1")
	if err != nil {
		t.Fatal(err)
	}
	if s, c := shake(t, server, client); s != nil || c != nil {
		t.Errorf("two controls: %v, %v", s, c)
	}
	foreignServer, foreignClient, err := foreign.PeerTLS("c1")
	if err != nil {
		t.Fatal(err)
	}
	if s, _ := shake(t, server, foreignClient); s == nil {
		t.Error("a foreign control was taken")
	}
	if _, c := shake(t, foreignServer, client); c == nil {
		t.Error("a foreign control was believed")
	}
	admin, err := a.NewContext("admin", []string{"127.0.0.1:1"}, time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	person, err := admin.ClientTLS()
	if err != nil {
		t.Fatal(err)
	}
	if s, _ := shake(t, server, person); !errors.Is(s, errNotControl) {
		t.Errorf("a person: %v", s)
	}
	person.Certificates = nil
	if s, _ := shake(t, server, person); s == nil {
		t.Error("somebody without a certificate was taken")
	}
}

func TestTokenPinsTheClusterToJoin(t *testing.T) {
	a, foreign := open(t, t.TempDir()), open(t, t.TempDir())
	token, _, err := a.NewToken(TokenControl)
	if err != nil {
		t.Fatal(err)
	}
	client, err := JoinTLS(token)
	if err != nil {
		t.Fatal(err)
	}
	for want, authority := range map[error]*Authority{nil: a, ErrOtherCluster: foreign} {
		server, err := authority.ServerTLS("c1")
		if err != nil {
			t.Fatal(err)
		}
		if _, c := shake(t, server, client); !errors.Is(c, want) {
			t.Errorf("got %v, want %v", c, want)
		}
	}
	node, _, err := a.NewToken(TokenJoin)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := JoinTLS(node); !errors.Is(err, ErrTokenKind) {
		t.Errorf("a node's token: %v", err)
	}
	if _, err := JoinTLS("psc1.a"); !errors.Is(err, ErrTokenMalformed) {
		t.Errorf("half a token: %v", err)
	}
}
