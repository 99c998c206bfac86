package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// job tells the load's process what to do.
type job struct {
	Scenario string
	// The proxy's address, and the root of its process tree.
	Address string
	PID     int
	Seconds float64
	// How many connections idle, where the scenario is about them.
	Idle int
}

// result is what the load saw.
type result struct {
	// Exchanges that were answered rightly.
	Requests int     `json:"requests,omitempty"`
	Seconds  float64 `json:"seconds,omitempty"`
	// CPU time of the proxy's process tree meanwhile.
	CPUSeconds float64 `json:"cpu_seconds,omitempty"`
	// Microseconds.
	P50 float64 `json:"p50_us,omitempty"`
	P99 float64 `json:"p99_us,omitempty"`
	// The proxy's proportional set size at the end, in bytes.
	Memory int64 `json:"memory_bytes"`
	// By how much each idle connection raised it.
	PerIdle float64 `json:"bytes_per_idle_connection,omitempty"`
	// How often what went wrong, warm-up included.
	Errors map[string]int `json:"errors,omitempty"`
}

const (
	warmUp = 300 * time.Millisecond
	// stalled is how long after the end an exchange may still take before it counts as an error.
	stalled = 5 * time.Second
	// settle is how long idle connections are left alone before memory is read.
	settle = 500 * time.Millisecond
)

// runLoadChild does the job that in holds and writes its result to out.
func runLoadChild(ctx context.Context, in io.Reader, out io.Writer) error {
	var j job
	if err := json.NewDecoder(in).Decode(&j); err != nil {
		return fmt.Errorf("read the job: %w", err)
	}
	r, err := runLoad(ctx, j)
	if err != nil {
		return err
	}
	return json.NewEncoder(out).Encode(r)
}

func runLoad(ctx context.Context, j job) (result, error) {
	all := scenarios()
	i := slices.IndexFunc(all, func(s scenario) bool { return s.name == j.Scenario })
	if i < 0 {
		return result{}, fmt.Errorf("there is no scenario %q", j.Scenario)
	}
	s, t := all[i], target{address: j.Address}
	if s.tls {
		t.tls = loadTLS(s.http2)
	}
	if s.open != nil {
		return idle(s, t, j)
	}
	return closedLoop(ctx, s, t, j.PID, time.Duration(j.Seconds*float64(time.Second)))
}

// target is where the load goes.
type target struct {
	address string
	tls     *tls.Config // nil: no TLS
	// deadline ends every wait of the connections.
	deadline time.Time
}

func (t target) dial() (net.Conn, error) {
	conn, err := net.DialTimeout("tcp", t.address, stalled)
	if err != nil {
		return nil, err
	}
	if err := conn.SetDeadline(t.deadline); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	if t.tls == nil {
		return conn, nil
	}
	secure := tls.Client(conn, t.tls)
	if err := secure.Handshake(); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return secure, nil
}

// loadTLS asks for the same work of every proxy: one curve, since not every TLS library has the same ones, and tickets
// that are issued but never used, so that each handshake is a full one. Whose certificate it is was checked before.
func loadTLS(http2 bool) *tls.Config {
	c := &tls.Config{
		ServerName: hostName, InsecureSkipVerify: true, MinVersion: tls.VersionTLS13,
		CurvePreferences: []tls.CurveID{tls.X25519}, ClientSessionCache: forgetful{},
	}
	if http2 {
		c.NextProtos = []string{"h2"}
	}
	return c
}

// forgetful is a cache that keeps nothing.
type forgetful struct{}

func (forgetful) Get(string) (*tls.ClientSessionState, bool) { return nil, false }
func (forgetful) Put(string, *tls.ClientSessionState)        {}

// worker makes exchanges, one after the other on each connection or stream, until r.running says no. An error ends the
// connection; the worker is then called again.
type worker func(t target, e exchange, r *recorder) error

// opener makes one exchange on a new connection and leaves it open.
type opener func(t target, e exchange) (net.Conn, error)

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

// closedLoop keeps the workers busy for a warm-up and then for length, in which it counts.
func closedLoop(ctx context.Context, s scenario, t target, pid int, length time.Duration) (result, error) {
	t.deadline = time.Now().Add(warmUp + length + stalled)
	w := &window{}
	recorders := make([]*recorder, s.workers)
	var wg sync.WaitGroup
	for i := range recorders {
		r := &recorder{window: w}
		recorders[i] = r
		wg.Go(func() { keepWorking(s, t, r) })
	}
	res, err := w.measure(ctx, pid, length)
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

// measure opens and closes the window, and reads the proxy's CPU time right before both: exchanges that are under way
// at one end are made up for by those at the other.
func (w *window) measure(ctx context.Context, pid int, length time.Duration) (result, error) {
	defer w.phase.Store(over)
	if err := wait(ctx, warmUp); err != nil {
		return result{}, err
	}
	before, errBefore := cpuOf(pid)
	began := time.Now()
	w.phase.Store(measuring)
	errWait := wait(ctx, length)
	after, errAfter := cpuOf(pid)
	memory, errMemory := memoryOf(pid)
	w.phase.Store(over)
	took := time.Since(began)
	return result{Seconds: took.Seconds(), CPUSeconds: (after - before).Seconds(), Memory: memory},
		cmp.Or(errBefore, errWait, errAfter, errMemory)
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

// idle opens connections, each used once, and weighs what they leave in the proxy.
func idle(s scenario, t target, j job) (result, error) {
	t.deadline = time.Now().Add(time.Minute)
	before, err := memoryOf(j.PID)
	if err != nil {
		return result{}, err
	}
	var failed errorCount
	opened := openAll(s, t, j.Idle, &failed)
	time.Sleep(settle)
	after, err := memoryOf(j.PID)
	for _, conn := range opened {
		conn.Close()
	}
	return result{Memory: after, PerIdle: float64(after-before) / float64(max(len(opened), 1)), Errors: failed.count}, err
}

// openAll opens n connections, as many at once as there are workers, and gives those that succeeded.
func openAll(s scenario, t target, n int, failed *errorCount) []net.Conn {
	opened := make([][]net.Conn, s.workers)
	var wg sync.WaitGroup
	for worker := range s.workers {
		wg.Go(func() {
			for range (n + worker) / s.workers {
				conn, err := s.open(t, s.exchange)
				if err != nil {
					failed.add(err)
					continue
				}
				opened[worker] = append(opened[worker], conn)
			}
		})
	}
	wg.Wait()
	return slices.Concat(opened...)
}
