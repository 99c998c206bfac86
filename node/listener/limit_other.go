//go:build !unix

package listener

import "math"

// descriptors is how many sockets the process may have open: no limit that it could ask for.
func descriptors() int { return math.MaxInt32 }
