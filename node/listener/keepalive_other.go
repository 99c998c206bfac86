//go:build !linux

package listener

import "net"

// inheritsKeepAlive: elsewhere Go sets it on each connection.
const inheritsKeepAlive = false

func setKeepAlive(*net.TCPListener) error { return nil }
