package forward

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"strings"
	"testing"

	"github.com/pyserve/pyserve/node/certtest"
)

// specCases is how many the three groups of h2spec have: fewer would mean that some were not run.
const specCases = 145

// TestSpecification runs h2spec, which is a tool in a modfile of its own: as a library it would be a requirement of everybody
// who builds a node. Its first run needs a module proxy, as those of the other tools do.
func TestSpecification(t *testing.T) {
	if testing.Short() {
		t.Skip("it starts a program that has to be built first")
	}
	b := backend(t, func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		io.WriteString(w, "an answer of some length")
	})
	authority := certtest.New(t)
	secured := &tls.Config{Certificates: []tls.Certificate{authority.Issue(t, "127.0.0.1").TLS}, NextProtos: []string{"h2"}}
	for _, c := range []struct {
		name  string
		tls   *tls.Config
		flags []string
	}{
		{"TLS", secured, []string{"--tls", "--insecure"}},
		{"prior knowledge", nil, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := startWith(t, settings{tls: c.tls}, whole(portOf(b)))
			host, port, err := net.SplitHostPort(p.address)
			if err != nil {
				t.Fatal(err)
			}
			args := append([]string{"tool", "-modfile=../../tools.mod", "h2spec", "--host", host, "--port", port}, c.flags...)
			out, err := exec.CommandContext(t.Context(), "go", append(args, "generic", "http2", "hpack")...).CombinedOutput()
			passed := fmt.Sprintf("%d tests, %d passed, 0 skipped, 0 failed", specCases, specCases)
			if err != nil || !strings.Contains(string(out), passed) {
				t.Errorf("want %s: %v\n%s", passed, err, out)
			}
		})
	}
}
