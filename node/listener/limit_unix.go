//go:build unix

package listener

import (
	"math"

	"golang.org/x/sys/unix"
)

// descriptors is how many file descriptors the process may have open.
func descriptors() int {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return math.MaxInt32 // as where there is none; accept will say when there are no more
	}
	return int(min(uint64(limit.Cur), math.MaxInt32))
}
