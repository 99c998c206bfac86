package e2e

import (
	"crypto/tls"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/pyserve/pyserve/node/certtest"
)

// TestWhatGetConfigGivesCanBeApplied has the document come back where its certificates and keys are not.
func TestWhatGetConfigGivesCanBeApplied(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "n1")
	authority := certtest.New(t)
	front, backPair := authority.Issue(t, "127.0.0.1"), authority.Issue(t, "127.0.0.1")
	b := newBackend(t, "b")
	c.write("cert.pem", string(front.ChainPEM))
	c.write("key.pem", string(front.KeyPEM))
	c.write("both.pem", string(backPair.KeyPEM)+string(backPair.ChainPEM))
	document := fmt.Sprintf(`# what the shop needs
server:
  host: 127.0.0.1
  reverse_proxy:
    - {path: /, host: 127.0.0.1, port: %d}   # the only one
    - path: /secured
      backends: [{host: 127.0.0.1, port: 1, ssl: true}]
      tls: {ca_file: cert.pem, cert_file: both.pem, key_file: both.pem}
ssl:
  enabled: true
  cert_file: ./cert.pem
  key_file: ./key.pem
`, b.port)
	c.mustApply(document)
	before := c.status()
	got := c.ctl("get", "config").wants(t, 0).stdout
	if got != document {
		t.Errorf("get config gives\n%s", got)
	}
	elsewhere := t.TempDir()
	file := elsewhere + "/running.yaml"
	if err := os.WriteFile(file, []byte(got), 0o600); err != nil {
		t.Fatal(err)
	}
	// Without the files it is what runs, and says whose files are used.
	c.ctl("diff", file).wants(t, 0, "no difference from revision 1")
	r := c.ctl("apply", file).wants(t, 0, "unchanged: revision 1", file+":12: ssl.key_file: warning: \"./key.pem\" was not found: the one that control holds is used")
	if strings.Contains(r.stdout+r.stderr, "PRIVATE KEY") {
		t.Error("apply shows a key")
	}
	c.ctlReading(got, "apply", "-", "--dry-run").wants(t, 0, "unchanged: revision 1 is active already\n")
	c.ctl("validate", file).wants(t, 1, "ssl.key_file", "cannot be read")

	// A change of it is applied, and TLS goes on with the certificate that control has.
	changed := strings.Replace(got, "/secured", "/else", 1)
	if err := os.WriteFile(file, []byte(changed), 0o600); err != nil {
		t.Fatal(err)
	}
	c.ctl("apply", file).must(t, 0, "+ route /else created", "- route /secured removed", "applied: revision 2")
	get(t, newClient(t, &tls.Config{RootCAs: authority.Pool()}, true), "https://"+c.nodes[0].listen+"/x").seen(t)

	// A name that control does not know, and a mistake besides: every problem, as ever.
	wrong := strings.Replace(strings.Replace(changed, "./key.pem", "./other.pem", 1), "host: 127.0.0.1\n", "hots: 127.0.0.1\n", 1)
	if err := os.WriteFile(file, []byte(wrong), 0o600); err != nil {
		t.Fatal(err)
	}
	r = c.ctl("apply", file).wants(t, 1, "server.hots", "ssl.key_file", "other.pem")
	if strings.Contains(r.stderr, "ssl.cert_file") {
		t.Errorf("a file that control holds is told as missing:\n%s", r.stderr)
	}
	c.ctl("rollback").must(t, 0, "applied: revision 3")
	if s := c.status(); s.Digest != before.Digest {
		t.Errorf("the digest is %s, it was %s", s.Digest, before.Digest)
	}
}
