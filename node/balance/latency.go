package balance

import (
	"math"
	"sync/atomic"
	"time"
)

const (
	// forgetting is after how long a latency counts for a third of what it did.
	forgetting = 10 * time.Second
	// unheardOf is what a request costs where none has ended yet: it may be any time. One is tried, the others wait for it.
	unheardOf = time.Second
)

// Latency is what one backend's answers have taken of late. A peak counts at once and is forgotten slowly, so that a backend that
// stalls is left alone before many requests wait for it. The zero value has heard nothing. It may be used concurrently.
type Latency struct {
	state atomic.Uint64 // the mean as a float32 of seconds, above the time of the last change in milliseconds
}

// Observe takes in what an answer has taken. now is the time since whatever moment, as with Cost; it wraps around after 49 days,
// which costs nothing but what was known.
func (l *Latency) Observe(now, took time.Duration) {
	for {
		old := l.state.Load()
		mean := float64(took) / float64(time.Second)
		if known := decayed(old, now); known > mean {
			// What is left of the peak, and for the time that has passed, what is new.
			_, keep := age(old, now)
			mean = known + mean*(1-keep)
		}
		if l.state.CompareAndSwap(old, pack(mean, now)) {
			return
		}
	}
}

// Cost is what one more request is expected to wait, in seconds, where inFlight are under way.
func (l *Latency) Cost(now time.Duration, inFlight int) float64 {
	state := l.state.Load()
	if state == 0 {
		return float64(max(inFlight, 0)) * unheardOf.Seconds()
	}
	return decayed(state, now) * float64(max(inFlight, 0)+1)
}

// Mean is the latency as it counts now; 0: none is known.
func (l *Latency) Mean(now time.Duration) time.Duration {
	return time.Duration(decayed(l.state.Load(), now) * float64(time.Second))
}

func pack(mean float64, now time.Duration) uint64 {
	return uint64(math.Float32bits(float32(max(mean, 1e-9))))<<32 | uint64(uint32(now.Milliseconds()))
}

// age is how long ago a state was made, and how much of it counts still.
func age(state uint64, now time.Duration) (passed time.Duration, keep float64) {
	// Clocks that are read by different processors may be a little apart: what lies ahead has just been.
	passed = max(0, time.Duration(int32(uint32(now.Milliseconds())-uint32(state)))*time.Millisecond)
	return passed, math.Exp(-passed.Seconds() / forgetting.Seconds())
}

func decayed(state uint64, now time.Duration) float64 {
	if state == 0 {
		return 0
	}
	_, keep := age(state, now)
	return float64(math.Float32frombits(uint32(state>>32))) * keep
}
