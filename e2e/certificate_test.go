package e2e

import (
	"testing"

	"github.com/pyserve/pyserve/node/certtest"
)

// certificate makes a certificate for this machine's loopback, by an authority of its own.
func certificate(t *testing.T) certtest.Pair {
	t.Helper()
	return certtest.New(t).Issue(t, "127.0.0.1", "localhost")
}
