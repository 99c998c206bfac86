//go:build !linux

package listener

// sleepers are none here: every connection keeps its goroutine.
type sleepers struct{ wake func(accepted) }

func (*sleepers) add(accepted) bool { return false }
func (*sleepers) stop()             {}
