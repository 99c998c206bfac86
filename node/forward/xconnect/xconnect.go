// Package xconnect turns on extended CONNECT (RFC 8441) in golang.org/x/net/http2, without which there is no WebSocket over
// HTTP/2. It owns nothing else, and has no calls: whoever serves HTTP/2 imports it.
//
// That library has no option for it (golang.org/issue/53208 and 71128). It looks for http2xconnect=1 in the environment's
// GODEBUG when it is initialised, where lines of go.mod and //go:debug do not appear. Packages whose imports are initialised
// are initialised in the order of their paths (the Go specification, "Program initialization"): this one needs os alone, which
// the library needs as well, and its path is the lower one, so its init comes first. A test in package forward would notice
// if it did not.
package xconnect

import (
	"os"
	"strings"
)

const variable, setting = "GODEBUG", "http2xconnect="

// Whoever starts the program with http2xconnect=0 wants it off.
func init() {
	said := os.Getenv(variable)
	if strings.Contains(said, setting) {
		return
	}
	if said != "" {
		said += ","
	}
	os.Setenv(variable, said+setting+"1") // fails for bad names only
}
