package agent

import (
	"math/rand/v2"
	"net"
	"slices"
)

// maxControls bounds what a node remembers of the controls.
const maxControls = 32

// controls is the order in which they are tried: all of them, at random, and then all of them again, so that the nodes
// of a control that is gone spread over the others. The zero value begins.
type controls struct {
	left []string // of this round
	last string
	// several says that there is more than one.
	several bool
}

// next gives the address to try next, of those that the node was started with and those that control told of. The one
// that was tried last is not the first of the next round, where there is another.
func (c *controls) next(given, told []string) string {
	if len(c.left) == 0 {
		c.left = slices.Compact(slices.Sorted(slices.Values(slices.Concat(given, told))))
		c.several = len(c.left) > 1
		rand.Shuffle(len(c.left), func(i, j int) { c.left[i], c.left[j] = c.left[j], c.left[i] })
		if len(c.left) > 1 && c.left[0] == c.last {
			c.left[0], c.left[1] = c.left[1], c.left[0]
		}
	}
	c.last, c.left = c.left[0], c.left[1:]
	return c.last
}

// addressesIn gives what can be dialled of what control told.
func addressesIn(endpoints []string) []string {
	var out []string
	for _, endpoint := range endpoints[:min(len(endpoints), maxControls)] {
		if _, port, err := net.SplitHostPort(endpoint); err == nil && port != "" && len(endpoint) <= 300 {
			out = append(out, endpoint)
		}
	}
	return out
}

// sameSet says whether two lists hold the same, in whatever order.
func sameSet(a, b []string) bool {
	return slices.Equal(slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b)))
}
