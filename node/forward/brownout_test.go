package forward

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pyserve/pyserve/node/nodetest"
	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

// weak is a backend that answers 503 to one request in so many, the first among them; 0: to none. It counts in asked.
func weak(t *testing.T, oneIn int, asked *atomic.Int64) uint32 {
	var own atomic.Int64
	return nodetest.NewRawBackend(t, func(c net.Conn) {
		for r := bufio.NewReader(c); ; {
			if _, err := nodetest.ReadHead(r); err != nil {
				return
			}
			asked.Add(1)
			status := "200 OK"
			if n := own.Add(1) - 1; oneIn > 0 && n%int64(oneIn) == 0 {
				status = "503 Service Unavailable"
			}
			if _, err := io.WriteString(c, "HTTP/1.1 "+status+"\r\nContent-Length: 0\r\n\r\n"); err != nil {
				return
			}
		}
	}).Port()
}

// brownOut asks so many times in turn, and gives how many requests failed and how many more the backends got than that. Whatever
// time it takes is one window of the budget.
func brownOut(t *testing.T, r *resourcev1.Retries, requests int, oneIn ...int) (failed, extra int) {
	t.Helper()
	var asked atomic.Int64
	var ports []uint32
	for _, n := range oneIn {
		ports = append(ports, weak(t, n, &asked))
	}
	s := whole(ports...)
	if r != nil {
		s = again(r, s)
	}
	p := start(t, s)
	if route, _, _ := p.table.Routes.Lookup(nil, []byte("/"), nil); r != nil {
		route.retries.budget.half = 1000 * time.Hour
	}
	w := connect(t, p)
	for range requests {
		w.say("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		res, err := http.ReadResponse(w.in, nil)
		if err != nil {
			t.Fatal(err)
		}
		if res.StatusCode != 200 {
			failed++
		}
	}
	return failed, int(asked.Load()) - requests
}

func budgeted(percent uint32) *resourcev1.Retries {
	return &resourcev1.Retries{Attempts: 2, BudgetPercent: percent}
}

// outages are what retries are for, and what they must not make worse.
var outages = []struct {
	name   string
	oneIn  []int // of each backend: see weak
	plain  int   // how many of 1000 requests fail without retries
	saved  bool  // an unlimited number of retries saves them all
	beyond bool  // more fail than the budget allows to be tried again
}{
	{"a brown-out: two of four backends answer 503 half of the time", []int{2, 2, 0, 0}, 250, true, true},
	{"one of four backends answers 503 half of the time", []int{2, 0, 0, 0}, 125, true, false},
	{"an outage: all four backends answer 503", []int{1, 1, 1, 1}, 1000, false, true},
}

func TestABrownOutIsNotMultiplied(t *testing.T) {
	const requests = 1000
	for _, o := range outages {
		t.Run(o.name, func(t *testing.T) {
			report := func(how string, failed, extra int) {
				t.Logf("%-18s %5.1f %% of the requests fail, %5.1f %% more come to the backends", how, float64(failed)*100/requests, float64(extra)*100/requests)
			}
			failed, extra := brownOut(t, nil, requests, o.oneIn...)
			report("no retries:", failed, extra)
			if failed != o.plain || extra != 0 {
				t.Errorf("without retries %d fail and %d are sent again, want %d and 0", failed, extra, o.plain)
			}
			failed, extra = brownOut(t, budgeted(1000), requests, o.oneIn...)
			report("without a budget:", failed, extra)
			if o.saved && failed != 0 || !o.saved && (failed != requests || extra != 2*requests) {
				t.Errorf("without a budget %d fail and %d are sent again", failed, extra)
			}
			const allowed = requests*20/100 + freeRetries
			failed, extra = brownOut(t, budgeted(20), requests, o.oneIn...)
			report("a budget of 20 %:", failed, extra)
			if extra > allowed || o.beyond && extra < allowed-1 {
				t.Errorf("with a budget %d are sent again, and %d are allowed", extra, allowed)
			}
			if failed < o.plain-extra || o.saved && failed >= o.plain || !o.beyond && failed != 0 {
				t.Errorf("with a budget %d of %d still fail", failed, o.plain)
			}
		})
	}
}
