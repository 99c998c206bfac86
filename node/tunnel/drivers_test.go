package tunnel

import (
	"context"
	"testing"
)

// eachDriver runs a test of TCP with each of the ways in which its bytes may be moved.
func eachDriver(t *testing.T, test func(t *testing.T, newSet func(Options) *Set)) {
	for name, newSet := range drivers(t) {
		t.Run(name, func(t *testing.T) {
			test(t, func(o Options) *Set {
				s := newSet(o)
				t.Cleanup(func() { closeAtOnce(s) })
				return s
			})
		})
	}
}

// closeAtOnce ends what is left.
func closeAtOnce(s *Set) int {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return s.Close(ctx)
}

// newGoroutineSet is a set in which every tunnel has goroutines.
func newGoroutineSet(o Options) *Set {
	s := NewSet(o)
	s.reactors.stop()
	return s
}
