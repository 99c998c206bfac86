package gossiptest

import (
	"runtime"
	"testing"
	"testing/synctest"
	"time"
)

// linger is how long the goroutines of a memberlist that was shut down may take to end, in fake time: it waits for
// none of them, and a bubble has to be empty at its end.
const linger = time.Minute

// Run is synctest.Test for members of a Network: with time for what memberlist leaves behind, and on one processor.
// With more, timers of a bubble that fire at the same moment are run by several threads at once, which share what the
// race detector keeps for the bubble's timers and crash it (seen with Go 1.26). It must not be called from a parallel
// test.
func Run(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	synctest.Test(t, func(t *testing.T) {
		t.Cleanup(func() { time.Sleep(linger) })
		f(t)
	})
}
