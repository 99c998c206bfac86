package main

import (
	"net"
	"slices"
	"sync"
	"time"
)

// opener makes one exchange on a new connection and leaves it open.
type opener func(t target, e exchange) (net.Conn, error)

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
