package upstream

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"
)

const (
	// resolveInterval is the time between two lookups of a name, within 10 % either way. The resolver does not tell how long
	// an answer may be kept; half a minute is what the records of changing services commonly say.
	resolveInterval = 30 * time.Second
	// After the first failure the next lookup follows within resolveBackoff. It doubles with each further failure, up to
	// resolveInterval.
	resolveBackoff = time.Second
	// lookupTimeout bounds one lookup, and with it the wait for the answer of a server that lost the first question: the
	// system's resolver asks again after five seconds.
	lookupTimeout = 10 * time.Second
	// goneAfter is how long the last addresses of a name are used after the DNS first said that there is no such name, or none
	// with an address. Names have disappeared by mistake and come back; but an address that was given up is somebody else's
	// in the end, so not for ever. A lookup that merely fails says nothing of the kind, and ends nothing.
	goneAfter = 10 * time.Minute
	// maxLookups are under way at once in a registry. Each holds two sockets, and a generation may bring a thousand names.
	maxLookups = 64
)

// Resolver finds the addresses of a name, as net.Resolver does: network is "ip", which is to say IPv4 and IPv6 alike. That
// there are none is a *net.DNSError with IsNotFound, or an empty answer. It must heed ctx, and is called concurrently.
type Resolver interface {
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
}

// ResolveError says that a backend's name has no address that is known: none was found yet, or the name is gone.
type ResolveError struct {
	Host string
	Err  error
}

// Error leaves out which server said what about which question: what is left is short, and the same each time.
func (e *ResolveError) Error() string { return fmt.Sprintf("cannot resolve %s: %s", e.Host, e.cause()) }

func (e *ResolveError) cause() string {
	var dns *net.DNSError
	var timeout net.Error
	switch {
	case notFound(e.Err):
		return "no such host"
	case errors.As(e.Err, &timeout) && timeout.Timeout():
		return "lookup timed out"
	case errors.As(e.Err, &dns):
		return dns.Err
	default:
		return e.Err.Error()
	}
}

// Unwrap returns what the resolver said, or the error of the context that ended the wait for it.
func (e *ResolveError) Unwrap() error { return e.Err }

var (
	errNoAddress = errors.New("the answer holds no address")
	errReleased  = errors.New("the backend was released before its name was looked up")
)

// notFound is for answers, as opposed to failures to get one.
func notFound(err error) bool {
	var dns *net.DNSError
	return errors.Is(err, errNoAddress) || errors.As(err, &dns) && dns.IsNotFound
}

// name keeps the addresses of one backend's host name current. One goroutine looks it up, from start to stop; requests read
// what it found and wait for it only as long as nothing is known at all.
type name struct {
	host, port string
	resolver   Resolver
	slots      chan struct{} // shared by the registry's names: maxLookups
	random     func(n int64) int64
	logger     *slog.Logger
	changed    func() // called by the goroutine after addresses were replaced by others

	current atomic.Pointer[answer] // nil: no lookup has ended yet
	known   chan struct{}          // closed when current is set for the first time
	turn    atomic.Uint64          // counts dials

	cancel context.CancelFunc
	done   chan struct{} // closed when the goroutine has ended

	// The goroutine's own.
	failures  int       // lookups failed since the last that succeeded
	goneSince time.Time // of the first answer since then that there is no such name; zero: none said so
}

// answer is what a name stands for. Never changed, but replaced.
type answer struct {
	dial []string // host:port, families alternating; in an order that does not depend on the answer's
	err  error    // why there are none: a *ResolveError
}

// start begins to look the name up.
func (n *name) start() {
	n.turn.Store(uint64(n.random(1 << 30))) // many nodes must not all begin with the same address
	n.known, n.done = make(chan struct{}), make(chan struct{})
	ctx, cancel := context.WithCancel(context.Background())
	n.cancel = cancel
	go n.run(ctx)
}

// stop ends the lookups and waits for it. Addresses that are known stay in use, those who wait for the first are sent away.
func (n *name) stop() {
	n.cancel()
	<-n.done
}

// run is the goroutine of a name.
func (n *name) run(ctx context.Context) {
	defer close(n.done)
	pause := time.NewTimer(0)
	defer pause.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-pause.C:
		}
		found, err := n.look(ctx)
		if ctx.Err() != nil {
			return // what ended then was the backend, not the lookup
		}
		if n.learn(found, err, time.Now()) {
			n.changed()
		}
		pause.Reset(n.pause())
	}
}

// look asks once. Without an error there is at least one address.
func (n *name) look(ctx context.Context) ([]netip.Addr, error) {
	select {
	case n.slots <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { <-n.slots }()
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	found, err := n.resolver.LookupNetIP(ctx, "ip", n.host)
	if err == nil && len(found) == 0 {
		err = errNoAddress
	}
	return found, err
}

// learn takes up what a lookup gave, and says whether addresses that were in use were replaced. The first lookup that fails
// is told in the log, and the first that succeeds again; those between are not.
func (n *name) learn(found []netip.Addr, err error, now time.Time) (replaced bool) {
	before := n.current.Load()
	had := before != nil && before.err == nil
	if err != nil {
		return n.fail(&ResolveError{Host: n.host, Err: err}, had, now)
	}
	dial := dialable(found, n.port)
	if n.failures > 0 {
		n.logger.Info("backend's name can be resolved again", "addresses", dial)
	}
	n.failures, n.goneSince = 0, time.Time{}
	if had && slices.Equal(before.dial, dial) {
		return false
	}
	n.set(&answer{dial: dial})
	if had {
		n.logger.Info("backend's addresses have changed", "before", before.dial, "addresses", dial)
	}
	return had
}

// fail keeps the addresses if there are any, unless the name has been gone for long.
func (n *name) fail(err *ResolveError, had bool, now time.Time) (replaced bool) {
	n.failures++
	if notFound(err) && n.goneSince.IsZero() {
		n.goneSince = now
	}
	gone := had && notFound(err) && now.Sub(n.goneSince) >= goneAfter
	switch {
	case gone:
		n.logger.Warn("backend's name is gone, its last addresses are given up", "error", err, "since", n.goneSince)
	case n.failures > 1:
	case had:
		n.logger.Warn("backend's name cannot be resolved, its last addresses stay in use", "error", err, "addresses", n.current.Load().dial)
	default:
		n.logger.Warn("backend's name cannot be resolved", "error", err)
	}
	if !had || gone {
		n.set(&answer{err: err})
	}
	return gone
}

func (n *name) set(a *answer) {
	if n.current.Swap(a) == nil {
		close(n.known)
	}
}

// pause is the time to the next lookup.
func (n *name) pause() time.Duration {
	random := func(below time.Duration) time.Duration { return time.Duration(n.random(int64(below))) }
	if n.failures == 0 {
		return resolveInterval - resolveInterval/10 + random(resolveInterval/5+1)
	}
	// Doubled at most as often as it takes to get there: more would overflow.
	most := min(resolveBackoff<<min(n.failures-1, 5), resolveInterval)
	return most/2 + random(most/2+1)
}

// addresses returns what to dial: at least one address, or a *ResolveError. It waits, until ctx ends, only if no lookup has
// ended yet.
func (n *name) addresses(ctx context.Context) ([]string, error) {
	a := n.current.Load()
	if a == nil {
		select {
		case <-n.known:
			a = n.current.Load()
		case <-n.done:
			return nil, &ResolveError{Host: n.host, Err: errReleased}
		case <-ctx.Done():
			return nil, &ResolveError{Host: n.host, Err: ctx.Err()}
		}
	}
	return a.dial, a.err
}

// dialable brings addresses into an order of their own, because servers shuffle them in each answer: sorted, then the
// families alternating (RFC 8305 section 4), so that one that leads nowhere delays an attempt and not a row of them.
func dialable(found []netip.Addr, port string) []string {
	var v4, v6 []netip.Addr
	for _, a := range found {
		if a = a.Unmap(); a.Is4() { // net.Resolver gives IPv4 addresses as IPv6 ones
			v4 = append(v4, a)
		} else {
			v6 = append(v6, a)
		}
	}
	families := [2][]netip.Addr{v6, v4}
	for i, f := range families {
		slices.SortFunc(f, netip.Addr.Compare)
		families[i] = slices.Compact(f)
	}
	var dial []string
	for i := range max(len(families[0]), len(families[1])) {
		for _, f := range families {
			if i < len(f) {
				dial = append(dial, net.JoinHostPort(f[i].String(), port))
			}
		}
	}
	return dial
}
