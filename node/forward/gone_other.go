//go:build !linux

package forward

import "syscall"

// gonePoll cannot tell here; a client that has gone is noticed when it is written to.
type gonePoll struct{}

func (*gonePoll) gone(syscall.RawConn) bool { return false }
