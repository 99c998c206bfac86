package forward

import (
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestABudgetIsAShareOfTheRequests(t *testing.T) {
	for _, c := range []struct{ requests, percent, want int }{
		{0, 20, 10}, {1, 20, 10}, {100, 20, 30}, {1000, 20, 210}, {1000, 0, 10}, {50, 100, 60}, {3, 1000, 40},
	} {
		start := time.Now()
		b := newBudget(start)
		for i := range c.requests {
			b.earn(uint32(i), start)
		}
		got := 0
		for b.spend(uint32(c.percent), start) {
			got++
		}
		if got != c.want {
			t.Errorf("%d requests, %d %%: %d retries, want %d", c.requests, c.percent, got, c.want)
		}
	}
}

func TestABudgetForgetsWhatIsLongPast(t *testing.T) {
	start := time.Now()
	b := newBudget(start)
	at := func(d time.Duration) time.Time { return start.Add(d) }
	for range 100 {
		b.earn(0, at(0))
	}
	for range 30 {
		if !b.spend(20, at(budgetWindow/2)) {
			t.Fatal("the budget of the half before does not count")
		}
	}
	if b.spend(20, at(budgetWindow-1)) {
		t.Error("the budget was spent twice")
	}
	if b.spend(20, at(budgetWindow)) {
		t.Error("retries were forgotten before their window was over")
	}
	for range freeRetries {
		if !b.spend(20, at(2*budgetWindow)) {
			t.Fatal("a quiet route has no retries")
		}
	}
	if b.spend(20, at(2*budgetWindow)) {
		t.Error("requests that are long past are still worth something")
	}
}

// However requests and retries come: with each retry, those of its half and the one before keep to what the requests of the two allow,
// and none is refused that keeps to it.
func TestABudgetIsUsedUpAndNeverExceeded(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		start := time.Now()
		b := newBudget(start)
		percent := uint32(rapid.IntRange(0, 300).Draw(t, "percent"))
		requests, retries := map[uint32]uint64{}, map[uint32]uint64{}
		now := start
		for range rapid.IntRange(1, 30).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.IntRange(0, int(budgetWindow)).Draw(t, "pause")))
			n := uint32(now.Sub(start)/(budgetWindow/2)) + 1
			for i := range rapid.IntRange(0, 40).Draw(t, "requests") {
				b.earn(uint32(i), now)
				requests[n]++
			}
			for range rapid.IntRange(0, 60).Draw(t, "retries") {
				fits := 100*(retries[n]+retries[n-1]+1) <= 100*freeRetries+(requests[n]+requests[n-1])*uint64(percent)
				if b.spend(percent, now) != fits {
					t.Fatalf("half %d, %v requests, %v retries: allowed is %v", n, requests, retries, !fits)
				}
				if fits {
					retries[n]++
				}
			}
		}
	})
}

func TestABudgetCountsEveryRequestOfConcurrentOnes(t *testing.T) {
	start := time.Now()
	b := newBudget(start)
	var all sync.WaitGroup
	for cell := range uint32(8) {
		all.Go(func() {
			for range 1000 {
				b.earn(cell/2, start) // two to a cell
			}
		})
	}
	all.Wait()
	if n := b.requests(b.number(start)); n != 8000 {
		t.Errorf("%d requests, want 8000", n)
	}
}
