package bundle

import "time"

const (
	// stretch is how long work goes on at most before it lets others run, and rest how long it then does, at least.
	stretch = time.Millisecond
	rest    = 50 * time.Microsecond
	// uncounted is how many steps go by without a look at the clock.
	uncounted = 16
)

// Pace slows down work that is as large as a bundle, so that it does not hold up requests: a goroutine that only computes keeps
// its processor for 10 ms, and while all processors are kept so, nobody looks for what has come from the network. Yielding does
// not help, since who yields is run again at once where nobody is known to wait. A Pace belongs to one goroutine. The zero value
// is ready.
type Pace struct {
	steps uint32
	since time.Time
}

// Step is called after each small piece of the work, and sleeps now and then.
func (p *Pace) Step() {
	if p.steps++; p.steps%uncounted != 0 {
		return
	}
	switch now := time.Now(); {
	case p.since.IsZero():
		p.since = now
	case now.Sub(p.since) > stretch:
		time.Sleep(rest)
		p.since = time.Now()
	}
}
