package main

import (
	"bytes"
	"fmt"
)

// document writes routes that all lead to one host and port, but for the one in the middle, which leads to a port of its
// own: what is changed.
func document(routes, middle int, host string, port int) []byte {
	var b bytes.Buffer
	b.WriteString("server:\n  reverse_proxy:\n")
	for i := range routes {
		to := port
		if i == routes/2 {
			to = middle
		}
		fmt.Fprintf(&b, "    - {path: /service/%06d, host: %s, port: %d}\n", i, host, to)
	}
	return b.Bytes()
}
