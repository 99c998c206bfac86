package listener

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/pyserve/pyserve/node/nodetest"
)

func TestAGoroutineServesOneConnectionAfterAnother(t *testing.T) {
	began, end := make(chan struct{}), make(chan struct{})
	l := started(t, Options{Front: &front{http1: func(net.Conn, *net.TCPConn, func() bool) bool {
		began <- struct{}{}
		<-end
		return false
	}}})
	for round := range 3 {
		nodetest.Dial(t, l.Address())
		<-began
		if n := l.resting.Load(); n != 0 {
			t.Errorf("round %d: %d rest while one connection is served", round, n)
		}
		end <- struct{}{}
		nodetest.Eventually(t, "it rests", func() bool { return l.resting.Load() == 1 })
	}
}

func TestAGoroutineDoesNotRestForEver(t *testing.T) {
	began := make(chan struct{})
	l := bound(t, Options{Front: &front{http1: func(net.Conn, *net.TCPConn, func() bool) bool {
		began <- struct{}{}
		return false
	}}})
	l.restTime = time.Millisecond
	l.Start()
	defer l.Drain(context.Background())
	nodetest.Dial(t, l.Address())
	<-began
	ended := make(chan struct{})
	go func() { l.conns.Wait(); l.workers.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(time.Minute):
		t.Error("it rests on")
	}
}

func TestOnlySoManyGoroutinesRest(t *testing.T) {
	began, end := make(chan struct{}), make(chan struct{})
	l := started(t, Options{Front: &front{http1: func(net.Conn, *net.TCPConn, func() bool) bool {
		began <- struct{}{}
		<-end
		return false
	}}})
	const extra = 8
	for range maxResting + extra {
		nodetest.Dial(t, l.Address())
		<-began
	}
	close(end)
	nodetest.Eventually(t, "as many rest as may", func() bool { return l.resting.Load() == maxResting })
	if err := l.Drain(context.Background()); err != nil { // goleak sees whether one is left
		t.Error(err)
	}
	if n := l.resting.Load(); n != 0 {
		t.Errorf("%d rest after the drain", n)
	}
}
