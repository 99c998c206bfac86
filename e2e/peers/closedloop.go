package main

import (
	"cmp"
	"context"
	"errors"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// worker makes exchanges, one after the other on each connection or stream, until r.running says no. An error ends the
// connection; the worker is then called again.
type worker func(t target, e exchange, r *recorder) error

// The phases of a load.
const (
	warming = iota
	measuring
	over
)

// window is what the workers of one load share.
type window struct {
	phase  atomic.Int32
	errors errorCount
}

// recorder is one worker's.
type recorder struct {
	*window
	taken []time.Duration // of each exchange that ended in the window
}

func (r *recorder) running() bool { return r.phase.Load() != over }

// done records an exchange that ended now.
func (r *recorder) done(began time.Time) {
	if r.phase.Load() == measuring {
		r.taken = append(r.taken, time.Since(began))
	}
}

// errorCount counts errors by what they say.
type errorCount struct {
	mu    sync.Mutex // guards count
	count map[string]int
}

func (c *errorCount) add(err error) {
	text := err.Error()
	if op := (*net.OpError)(nil); errors.As(err, &op) { // the addresses in it would make each one new
		text = op.Op + ": " + op.Err.Error()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.count == nil {
		c.count = map[string]int{}
	}
	c.count[text]++
}

// closedLoop keeps the workers busy for a warm-up and then for the job's time, in which it counts.
func closedLoop(ctx context.Context, s scenario, t target, j job) (result, error) {
	length := time.Duration(j.Seconds * float64(time.Second))
	t.deadline = time.Now().Add(warmUp + length + stalled)
	w := &window{}
	recorders := make([]*recorder, s.workers)
	var wg sync.WaitGroup
	for i := range recorders {
		r := &recorder{window: w}
		recorders[i] = r
		wg.Go(func() { keepWorking(s, t, r) })
	}
	res, err := w.measure(ctx, j, length)
	wg.Wait()
	for _, r := range recorders {
		res.Requests += len(r.taken)
	}
	res.P50, res.P99 = percentiles(recorders)
	res.Errors = w.errors.count
	return res, err
}

// keepWorking calls a worker until the load is over.
func keepWorking(s scenario, t target, r *recorder) {
	for r.running() {
		if err := s.work(t, s.exchange, r); err != nil {
			r.errors.add(err)
			time.Sleep(time.Millisecond) // a proxy that refuses every connection must not be counted by the million
		}
	}
}

// measure opens and closes the window, and reads CPU times right before both: exchanges that are under way at one end
// are made up for by those at the other.
func (w *window) measure(ctx context.Context, j job, length time.Duration) (result, error) {
	defer w.phase.Store(over)
	if err := wait(ctx, warmUp); err != nil {
		return result{}, err
	}
	before, errBefore := readUsage(j)
	began := time.Now()
	w.phase.Store(measuring)
	errWait := wait(ctx, length)
	after, errAfter := readUsage(j)
	w.phase.Store(over)
	r := result{Seconds: time.Since(began).Seconds(), CPUSeconds: (after.proxy - before.proxy).Seconds()}
	r.OthersSeconds = max(0, (after.others - before.others).Seconds())
	memory, errMemory := memoryOf(j.PID)
	r.Memory = memory
	return r, cmp.Or(errBefore, errWait, errAfter, errMemory)
}

// usage is CPU time, of the proxy and of what does not belong to the measurement.
type usage struct{ proxy, others time.Duration }

func readUsage(j job) (usage, error) {
	proxy, errProxy := cpuOf(j.PID)
	all, errAll := machineCPU()
	ours, errOurs := cpuOf(j.Root)
	return usage{proxy, all - ours}, cmp.Or(errProxy, errAll, errOurs)
}

func wait(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// percentiles gives the median and the 99th percentile in microseconds.
func percentiles(recorders []*recorder) (p50, p99 float64) {
	var all []time.Duration
	for _, r := range recorders {
		all = append(all, r.taken...)
	}
	slices.Sort(all)
	return microseconds(percentile(all, 50)), microseconds(percentile(all, 99))
}

// percentile takes the nearest rank of sorted values; 0 of none.
func percentile(sorted []time.Duration, p int) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	rank := (len(sorted)*p + 99) / 100
	return sorted[max(rank, 1)-1]
}

func microseconds(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }
