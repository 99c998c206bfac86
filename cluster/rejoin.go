package cluster

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/pyserve/pyserve/cluster/gossip"
)

const (
	// joinsAtOnce is how many members a round tries. Joining through one leaves a big cluster unconverged for minutes,
	// through three for seconds.
	joinsAtOnce = 3
	// firstRetry is the wait after the first round that left us alone; it doubles up to the rejoin interval.
	firstRetry = 250 * time.Millisecond
)

// rejoinLoop joins members that should be there and are not, for as long as we run. memberlist joins once; two halves
// of a cluster that were apart for longer than it remembers the dead would never look for each other again.
func (c *Cluster) rejoinLoop(ctx context.Context, g *gossip.Gossip, rng *rand.Rand) {
	failures := joinFailures{logger: c.options.Logger, last: make(map[string]joinFailure)}
	retry := firstRetry
	for {
		c.rejoin(ctx, g, rng, &failures)
		wait := c.options.RejoinInterval
		if g.Alone() {
			wait = min(retry, wait)
			retry *= 2
		} else {
			retry = firstRetry
		}
		timer := time.NewTimer(jitter(rng, wait))
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-c.rejoinNow:
			timer.Stop()
			retry = firstRetry
		case <-timer.C:
		}
		// A wait that doubles for days would overflow.
		retry = min(retry, c.options.RejoinInterval)
	}
}

// jitter spreads a wait over three to five quarters of it.
func jitter(rng *rand.Rand, wait time.Duration) time.Duration {
	return wait*3/4 + time.Duration(rng.Int64N(int64(wait/2)+1))
}

// rejoin is one round.
func (c *Cluster) rejoin(ctx context.Context, g *gossip.Gossip, rng *rand.Rand, failures *joinFailures) {
	c.mu.Lock()
	control, remembered := slices.Clone(c.seeds), c.peers.addresses()
	c.mu.Unlock()
	present := append(c.alive(), g.Address())
	targets := pick(rng, joinsAtOnce, present,
		resolve(ctx, c.options.Seeds), resolve(ctx, control), remembered)

	results := make([]error, len(targets))
	var joins sync.WaitGroup
	for i, target := range targets {
		joins.Go(func() { results[i] = g.Join(target) })
	}
	joins.Wait()
	if ctx.Err() != nil {
		return
	}
	alone := g.Alone()
	for i, target := range targets {
		failures.note(target, results[i], alone)
	}
}

// pick chooses up to n different addresses that are not present, by turns from the sources and at random within each:
// a source full of dead addresses does not keep the others from their turn.
func pick(rng *rand.Rand, n int, present []string, sources ...[]string) []string {
	taken := make(map[string]bool)
	for _, address := range present {
		taken[address] = true
	}
	for i := range sources {
		sources[i] = slices.Clone(sources[i])
		rng.Shuffle(len(sources[i]), func(a, b int) { sources[i][a], sources[i][b] = sources[i][b], sources[i][a] })
	}
	var picked []string
	for more := true; more; {
		more = false
		for i := range sources {
			for len(sources[i]) > 0 && len(picked) < n {
				address := sources[i][0]
				sources[i] = sources[i][1:]
				if !taken[address] {
					taken[address], more = true, true
					picked = append(picked, address)
					break
				}
			}
		}
	}
	return picked
}

// resolve turns host:port into IP:port, so that they can be told from members that are there; a name may stand for
// several. What cannot be looked up now is left out and looked up again in the next round.
func resolve(ctx context.Context, addresses []string) []string {
	var resolved []string
	for _, address := range addresses {
		host, port, err := net.SplitHostPort(address)
		if err != nil {
			continue
		}
		number, err := strconv.ParseUint(port, 10, 16)
		if err != nil {
			continue
		}
		bounded, cancel := context.WithTimeout(ctx, lookupWait)
		addrs, err := lookup(bounded, host)
		cancel()
		if err != nil {
			continue
		}
		for _, addr := range addrs {
			resolved = append(resolved, netip.AddrPortFrom(addr, uint16(number)).String())
		}
	}
	return resolved
}

// joinFailures logs attempts to join so that each news is told once. It belongs to the rejoin loop.
type joinFailures struct {
	logger *slog.Logger
	last   map[string]joinFailure
}

// joinFailure is the kind of a failure. Texts would not do: they may have port numbers that differ every time.
type joinFailure uint8

const (
	unreachable joinFailure = iota + 1
	foreignKey
	foreignCluster
)

// maxFailures bounds the addresses that are remembered to have failed.
const maxFailures = 1024

func (f *joinFailures) note(address string, err error, alone bool) {
	before := f.last[address]
	if err == nil {
		delete(f.last, address)
		f.logger.Info("joined the members known at an address", "address", address)
		return
	}
	kind := unreachable
	switch {
	case errors.Is(err, gossip.ErrForeignKey):
		kind = foreignKey
	case errors.Is(err, gossip.ErrForeignCluster):
		kind = foreignCluster
	}
	if len(f.last) >= maxFailures {
		clear(f.last)
	}
	f.last[address] = kind
	level := slog.LevelDebug
	if kind != before && (alone || kind != unreachable) {
		level = slog.LevelWarn
	}
	f.logger.Log(context.Background(), level, "a member cannot be joined; trying again from time to time", "error", err)
}
