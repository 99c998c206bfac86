//go:build linux && race

package socket

import "syscall"

// Read is as without the race detector, which has to be told of it by package syscall.
func Read(fd uintptr, b []byte) (int, syscall.Errno) { return told(syscall.Read, fd, b) }

// Write is as without the race detector.
func Write(fd uintptr, b []byte) (int, syscall.Errno) { return told(syscall.Write, fd, b) }

func told(call func(int, []byte) (int, error), fd uintptr, b []byte) (int, syscall.Errno) {
	for {
		n, err := call(int(fd), b)
		if err == nil {
			return n, 0
		}
		if errno, ok := err.(syscall.Errno); !ok || errno != syscall.EINTR {
			return 0, errno // package syscall has no other errors here
		}
	}
}
