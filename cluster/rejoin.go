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
	// settleWait is how long after a round that found someone the lists are exchanged once more. Members that join
	// within the same moment get lists that lack each other, and the news of them may get lost.
	settleWait = 2 * time.Second
)

// rejoinLoop joins members that should be there and are not, for as long as we run. memberlist joins once; two halves
// of a cluster that were apart for longer than it remembers the dead would never look for each other again.
func (c *Cluster) rejoinLoop(ctx context.Context, g *gossip.Gossip, rng *rand.Rand) {
	c.awaitSeeds(ctx)
	failures := joinFailures{logger: c.options.Logger, last: make(map[string]joinFailure)}
	retry := firstRetry
	var found []string // in the round before this one
	for ctx.Err() == nil {
		wait := c.options.RejoinInterval
		if len(found) > 0 {
			c.join(g, pick(rng, joinsAtOnce, []string{g.Address()}, found, c.alive()), &failures)
			found = nil
		} else if found = c.join(g, c.missing(ctx, g, rng), &failures); len(found) > 0 {
			wait = min(wait, settleWait)
			c.forgetWake()
		}
		if g.Alone() {
			wait = min(wait, retry)
			retry *= 2
		} else {
			retry = firstRetry
		}
		timer := time.NewTimer(jitter(rng, wait))
		select {
		case <-ctx.Done():
		case <-c.rejoinNow:
			retry = firstRetry
		case <-timer.C:
		}
		timer.Stop()
		// A wait that doubles for days would overflow.
		retry = min(retry, c.options.RejoinInterval)
	}
}

// awaitSeeds waits for SetSeeds, for as long as Options.JoinDelay.
func (c *Cluster) awaitSeeds(ctx context.Context) {
	if c.options.JoinDelay <= 0 {
		return
	}
	timer := time.NewTimer(c.options.JoinDelay)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-c.rejoinNow:
	case <-ctx.Done():
	}
}

// forgetWake takes back a wake from before we found someone, which would bring the second exchange at once.
func (c *Cluster) forgetWake() {
	select {
	case <-c.rejoinNow:
	default:
	}
}

// jitter spreads a wait over three to five quarters of it.
func jitter(rng *rand.Rand, wait time.Duration) time.Duration {
	return wait*3/4 + time.Duration(rng.Int64N(int64(wait/2)+1))
}

// missing picks addresses where members may be that are not seen alive.
func (c *Cluster) missing(ctx context.Context, g *gossip.Gossip, rng *rand.Rand) []string {
	c.mu.Lock()
	control, remembered := slices.Clone(c.seeds), c.peers.addresses()
	c.mu.Unlock()
	present := append(c.alive(), g.Address())
	return pick(rng, joinsAtOnce, present, resolve(ctx, c.options.Seeds), resolve(ctx, control), remembered)
}

// join exchanges lists with all targets at once and gives those that answered.
func (c *Cluster) join(g *gossip.Gossip, targets []string, failures *joinFailures) (answered []string) {
	results := make([]error, len(targets))
	var joins sync.WaitGroup
	for i, target := range targets {
		joins.Go(func() { results[i] = g.Join(target) })
	}
	joins.Wait()
	alone := g.Alone()
	for i, target := range targets {
		failures.note(target, results[i], alone)
		if results[i] == nil {
			answered = append(answered, target)
		}
	}
	return answered
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
	ctx, cancel := context.WithTimeout(ctx, lookupWait)
	defer cancel()
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
		addrs, err := lookup(ctx, host)
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
		f.logger.Debug("exchanged the lists of members", "address", address)
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
