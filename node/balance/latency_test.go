package balance

import (
	"math"
	"sync"
	"testing"
	"time"
)

func wantMean(t *testing.T, l *Latency, now, want time.Duration) {
	t.Helper()
	if got := l.Mean(now); math.Abs(float64(got-want)) > float64(want)/1000+float64(time.Microsecond) {
		t.Errorf("at %v: %v, want %v", now, got, want)
	}
}

func TestAPeakCountsAtOnce(t *testing.T) {
	var l Latency
	l.Observe(0, 10*time.Millisecond)
	l.Observe(0, 500*time.Millisecond)
	wantMean(t, &l, 0, 500*time.Millisecond)
	l.Observe(0, 10*time.Millisecond)
	wantMean(t, &l, 0, 500*time.Millisecond)
}

func TestAPeakIsForgottenByTime(t *testing.T) {
	var l Latency
	l.Observe(0, time.Second)
	keep := 1 / math.E
	wantMean(t, &l, forgetting, time.Duration(float64(time.Second)*keep))
	l.Observe(forgetting, 100*time.Millisecond)
	wantMean(t, &l, forgetting, time.Duration(float64(time.Second)*keep+float64(100*time.Millisecond)*(1-keep)))
}

func TestSteadyAnswersAreTheirMean(t *testing.T) {
	var l Latency
	now := time.Duration(0)
	for range 1000 {
		l.Observe(now, 50*time.Millisecond)
		now += 100 * time.Millisecond
	}
	l.Observe(now, 50*time.Millisecond)
	wantMean(t, &l, now, 50*time.Millisecond)
}

func TestCostGrowsWithWhatIsUnderWay(t *testing.T) {
	var l Latency
	if got := l.Cost(0, 0); got != 0 {
		t.Errorf("nobody has asked: %v", got)
	}
	if got := l.Cost(0, 1); got < 0.5 {
		t.Errorf("one asks for the first time: %v, want a time that lets others go elsewhere", got)
	}
	l.Observe(0, 100*time.Millisecond)
	one, three := l.Cost(0, 0), l.Cost(0, 2)
	if math.Abs(three/one-3) > 1e-6 {
		t.Errorf("%v for one, %v for the third", one, three)
	}
}

// The clock of a reader may be behind, and 32 bits of milliseconds wrap around.
func TestClocksThatDifferDoNoHarm(t *testing.T) {
	var l Latency
	l.Observe(time.Minute, 100*time.Millisecond)
	wantMean(t, &l, time.Minute-time.Second, 100*time.Millisecond)
	var late Latency
	wrap := time.Duration(math.MaxUint32) * time.Millisecond
	late.Observe(wrap, 100*time.Millisecond)
	wantMean(t, &late, wrap+2*time.Millisecond, time.Duration(float64(100*time.Millisecond)*math.Exp(-0.0002)))
}

func TestConcurrentAnswersAreTakenIn(t *testing.T) {
	var l Latency
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for range 1000 {
				l.Observe(0, time.Duration(i+1)*time.Millisecond)
			}
		})
	}
	wg.Wait()
	wantMean(t, &l, 0, 8*time.Millisecond)
}
