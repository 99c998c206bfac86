package e2e

import (
	"bytes"
	"encoding/pem"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestServedKeysAreSealedOnControl looks for the private key of a served certificate, PEM and DER, in every file of
// control, in what it says, and in its log; through applies and a restart.
func TestServedKeysAreSealedOnControl(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "n1")
	pair := certificate(t)
	c.write("cert.pem", string(pair.ChainPEM))
	c.write("key.pem", string(pair.KeyPEM))
	tls := "ssl: {enabled: true, cert_file: cert.pem, key_file: key.pem}\n"
	port := newBackend(t, "b").port
	c.mustApply(route("/", port) + tls)
	c.mustApply(route("/next", port) + tls)
	c.mustApply(route("/next", port))
	c.mustApply(route("/", port) + tls)
	c.control.stop(t)
	c.restartControl()
	c.connected("n1")
	c.converged()

	block, _ := pem.Decode(pair.KeyPEM)
	secrets := map[string][]byte{"DER": block.Bytes}
	for i, line := range strings.Split(strings.TrimSpace(string(pair.KeyPEM)), "\n") {
		if !strings.HasPrefix(line, "-----") {
			secrets[fmt.Sprint("PEM, line ", i)] = []byte(line)
		}
	}
	search := func(where string, data []byte) {
		for form, secret := range secrets {
			if bytes.Contains(data, secret) {
				t.Errorf("%s holds the served key (%s)", where, form)
			}
		}
	}
	files := 0
	err := filepath.WalkDir(c.control.dataDir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		if os.IsNotExist(err) {
			return nil // a temporary file
		}
		files++
		search(path, data)
		return err
	})
	if err != nil || files < 8 {
		t.Fatalf("%d files, %v", files, err)
	}
	search("control's log", []byte(c.control.stderr.String()))
	search("n1's log", []byte(c.node("n1").stderr.String()))
	for _, args := range [][]string{{"get", "config"}, {"get", "config", "-o", "json"}, {"get", "routes", "-o", "json"}, {"status", "-o", "json"}} {
		r := c.ctl(args...)
		search(strings.Join(args, " "), []byte(r.stdout+r.stderr))
	}
	// A document that is refused with the key beside it does not quote it either.
	c.write("cert.pem", "nonsense")
	r := c.apply(route("/", port) + tls)
	search("a refused apply", []byte(r.wants(t, 1).stdout+r.stderr))

	c.control.stop(t)
	if err := os.Remove(filepath.Join(c.control.dataDir, "identity", "seal.key")); err != nil {
		t.Fatal(err)
	}
	c.start(c.control)
	if code := c.control.wait(t); code != 2 {
		t.Errorf("without its key control ended with %d", code)
	}
	c.control.logs(t, "seal.key is missing; restore it from a backup")
}
