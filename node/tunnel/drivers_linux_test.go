package tunnel

import "testing"

func drivers(testing.TB) map[string]func(Options) *Set {
	return map[string]func(Options) *Set{"goroutines": newGoroutineSet, "reactor": NewSet}
}

func isLeaving(l live) bool {
	if l, ok := l.(*link); ok {
		return l.leaving.Load() != nil
	}
	p := l.(*pair)
	p.reactor.mu.Lock()
	defer p.reactor.mu.Unlock()
	return p.leaving
}

// clientHasClosed says that the client's own Close frame was passed on.
func clientHasClosed(l live) bool {
	if l, ok := l.(*link); ok {
		return l.toBackend.closeSent.Load()
	}
	p := l.(*pair)
	p.reactor.mu.Lock()
	defer p.reactor.mu.Unlock()
	return p.halves[toBackend].closeSent
}

// clientIsHalted says that the backend will not be sent a Close.
func clientIsHalted(l live) bool {
	if l, ok := l.(*link); ok {
		return l.toBackend.halted.Load()
	}
	p := l.(*pair)
	p.reactor.mu.Lock()
	defer p.reactor.mu.Unlock()
	return p.halves[toBackend].halted
}
