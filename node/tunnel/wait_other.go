//go:build !linux

package tunnel

import (
	"net"
	"syscall"
)

// rawOf is nil: sockets are read by net alone.
func rawOf(net.Conn) syscall.RawConn { return nil }

func (f *flow) wait() (int, error) { return f.src.Read(f.own) }

func (f *flow) take(uintptr) bool { return true }

func (f *flow) passRaw() error { return f.failed }

func (f *flow) passReady(uintptr) bool { return true }
