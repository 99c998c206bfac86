package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"
)

// backend answers a few bytes.
type backend struct {
	server *http.Server
	port   int
	done   chan struct{}
}

func (b *bench) startBackend() (*backend, error) {
	return b.startServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, answer) }))
}

func (b *bench) startServer(handler http.Handler) (*backend, error) {
	address, err := b.ports.take()
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, err
	}
	out := &backend{port: l.Addr().(*net.TCPAddr).Port, done: make(chan struct{})}
	out.server = &http.Server{Handler: handler}
	go func() {
		defer close(out.done)
		out.server.Serve(l) // until close
	}()
	return out, nil
}

const answer = "measured\n"

func (b *backend) close() {
	b.server.Close()
	<-b.done
}

// How requests come: so many each second, whatever becomes of those before, over so many connections.
const (
	loadRate    = 250
	loadWorkers = 4
)

// sample is one request.
type sample struct{ from, until time.Time }

// load asks for one thing again and again.
type load struct {
	url    string
	client *http.Client
	cancel context.CancelFunc
	group  sync.WaitGroup

	mu      sync.Mutex // guards what follows
	samples []sample
	failed  error
	count   int
}

func startLoad(url string) *load {
	ctx, cancel := context.WithCancel(context.Background())
	l := &load{url: url, cancel: cancel, client: &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: loadWorkers}}}
	began := time.Now()
	for i := range loadWorkers {
		l.group.Go(func() { l.work(ctx, began.Add(time.Duration(i)*time.Second/loadRate)) })
	}
	return l
}

// work sends a request at each of its times. One that is late since the answer before it was late counts from when it
// should have been sent; this program's own lateness in waking up does not count.
func (l *load) work(ctx context.Context, next time.Time) {
	const every = loadWorkers * time.Second / loadRate
	for ; ctx.Err() == nil; next = next.Add(every) {
		from := next
		if wait := time.Until(next); wait > 0 {
			if pause(ctx, wait) != nil {
				return
			}
			from = time.Now()
		}
		err := l.ask()
		l.keep(sample{from, time.Now()}, err)
	}
}

func (l *load) ask() error {
	response, err := l.client.Get(l.url)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err == nil && (response.StatusCode != http.StatusOK || string(body) != answer) {
		err = fmt.Errorf("the answer is %s %.100q", response.Status, body)
	}
	return err
}

func (l *load) keep(s sample, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.samples = append(l.samples, s)
	if err != nil {
		l.count++
		l.failed = errors.Join(err)
	}
}

// stop ends the load. A request that was not answered rightly is an error.
func (l *load) stop() ([]sample, error) {
	l.cancel()
	l.group.Wait()
	l.client.CloseIdleConnections()
	if l.count > 0 {
		return nil, fmt.Errorf("%d of %d requests failed, the last: %w", l.count, len(l.samples), l.failed)
	}
	return l.samples, nil
}

// latencies are how long requests took.
type latencies struct {
	Count int           `json:"count"`
	P50   time.Duration `json:"p50"`
	P99   time.Duration `json:"p99"`
	Max   time.Duration `json:"max"`
	// Those over slowRequest.
	Slow int `json:"slow"`

	all []time.Duration
}

// slowRequest is what no request should take because of a swap.
const slowRequest = 10 * time.Millisecond

// add takes in the requests that were under way between two moments.
func (l *latencies) add(samples []sample, from, until time.Time) {
	for _, s := range samples {
		if s.from.Before(until) && s.until.After(from) {
			l.all = append(l.all, s.until.Sub(s.from))
		}
	}
	slices.Sort(l.all)
	l.Count, l.P50, l.P99, l.Max = len(l.all), quantile(l.all, 0.5), quantile(l.all, 0.99), quantile(l.all, 1)
	l.Slow = len(l.all) - firstOver(l.all, slowRequest)
}

// firstOver is where, in a sorted list, those begin that are longer.
func firstOver(sorted []time.Duration, limit time.Duration) int {
	at, _ := slices.BinarySearch(sorted, limit+1)
	return at
}

func (l latencies) String() string {
	if l.Count == 0 {
		return "none"
	}
	return fmt.Sprintf("p50 %s, p99 %s, longest %s ms; %s over %v",
		ms(l.P50), ms(l.P99), ms(l.Max), strconv.Itoa(l.Slow), slowRequest)
}
