//go:build !linux

package tunnel

import "testing"

func drivers(testing.TB) map[string]func(Options) *Set {
	return map[string]func(Options) *Set{"goroutines": newGoroutineSet}
}

func isLeaving(l live) bool { return l.(*link).leaving.Load() != nil }

// clientHasClosed says that the client's own Close frame was passed on.
func clientHasClosed(l live) bool { return l.(*link).toBackend.closeSent.Load() }

// clientIsHalted says that the backend will not be sent a Close.
func clientIsHalted(l live) bool { return l.(*link).toBackend.halted.Load() }
