//go:build !linux

package forward

import "syscall"

// waitable is nothing here: a connection has to be read to be waited for.
func waitable(syscall.RawConn) syscall.RawConn { return nil }

func (c *conn) takeReady(uintptr) bool { return true }
