//go:build !linux

package splice

import "net"

// Mover is a transfer from one connection to another. Here there is none.
type Mover struct{}

// Start says ErrUnavailable: this system has no splice(2).
func Start(dst, src *net.TCPConn) (*Mover, error) { return nil, ErrUnavailable }

// Stop ends the transfer.
func (*Mover) Stop() {}

// Held is how many bytes were read and have not been written.
func (*Mover) Held() int64 { return 0 }

// Fill says ErrUnavailable.
func (*Mover) Fill(n int64) (int64, error) { return 0, ErrUnavailable }

// Drain says ErrUnavailable.
func (*Mover) Drain() (int64, error) { return 0, ErrUnavailable }

// CloseIdle closes the pipes that are not in use: none.
func CloseIdle() {}

// Open is how many pipes are open: none.
func Open() int { return 0 }
