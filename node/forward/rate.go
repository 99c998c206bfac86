package forward

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash/maphash"
	"net/http"
	"strconv"
	"time"

	"google.golang.org/protobuf/proto"

	ratelimit "github.com/pyserve/pyserve/node/limit"
	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

// rate is how many requests of a route pass.
type rate struct {
	// One of the two: what this node lets through, or what all nodes do together.
	own    *ratelimit.Limiter
	shared *ratelimit.Shared

	resource *resourcev1.RateLimit
	// policy is the RateLimit-Policy field.
	policy string
}

var (
	// keySeed makes hashes of keys that nobody outside can foresee.
	keySeed = maphash.MakeSeed()
	// clockStart is when the clock of all limiters began.
	clockStart = time.Now()
)

// Clock is the time that limiters go by.
func Clock(now time.Time) time.Duration { return now.Sub(clockStart) }

func newRate(route string, r *resourcev1.RateLimit) (*rate, error) {
	per := r.GetPer().AsDuration()
	if r.GetRequests() == 0 || r.GetBurst() == 0 || per < time.Duration(r.GetRequests()) {
		return nil, fmt.Errorf("rate_limit: %d requests in %s, %d at once, is no rate", r.GetRequests(), per, r.GetBurst())
	}
	window := wholeSeconds(per) // the field has whole seconds alone
	quota := uint64(r.GetRequests()) * uint64(time.Duration(window)*time.Second) / uint64(per)
	made := &rate{resource: proto.CloneOf(r), policy: fmt.Sprintf("RateLimit-Policy: \"default\";q=%d;w=%d\r\n", quota, window)}
	allowed := ratelimit.Rate{Requests: r.GetRequests(), Per: per, Burst: r.GetBurst()}
	switch r.GetScope() {
	case resourcev1.RateScope_RATE_SCOPE_UNSPECIFIED, resourcev1.RateScope_RATE_SCOPE_NODE:
		made.own = ratelimit.New(allowed)
	case resourcev1.RateScope_RATE_SCOPE_CLUSTER:
		made.shared = ratelimit.NewShared(sharedID(route, r), allowed)
	default:
		return nil, fmt.Errorf("rate_limit: the scope %v is not known here: bring this node to the version of control", r.GetScope())
	}
	return made, nil
}

// IsLimited says whether the route has a rate limit; then it has TidyLimit and LimitUsage.
func (r *Route) IsLimited() bool { return r.rate != nil }

// Shared is what the route's rate limit has in common with that of other nodes; nil: nothing.
func (r *Route) Shared() *ratelimit.Shared {
	if r.rate == nil {
		return nil
	}
	return r.rate.shared
}

// TidyLimit gives back the memory of idle keys.
func (r *Route) TidyLimit(now time.Duration) {
	if r.rate.shared != nil {
		r.rate.shared.Tidy(now)
		return
	}
	r.rate.own.Tidy(now)
}

// LimitUsage is what the rate limit holds and has done.
func (r *Route) LimitUsage(now time.Duration) ratelimit.Usage {
	if r.rate.shared != nil {
		u, _ := r.rate.shared.Usage(now)
		return u
	}
	return r.rate.own.Usage(now)
}

// limit refuses a request that is over the route's rate.
func (x *exchange) limit() *failure {
	r := x.route.rate
	var passes bool
	if r.shared != nil {
		x.standing, passes = r.shared.Allow(x.sharedKey(r.shared.ID(), r.resource), Clock(x.begun))
	} else {
		x.standing, passes = r.own.Allow(x.rateKey(r.resource), Clock(x.begun))
	}
	if passes {
		return nil
	}
	return refused(http.StatusTooManyRequests, "There were too many requests.", nil)
}

// rateKey is what the request is counted by.
func (x *exchange) rateKey(r *resourcev1.RateLimit) uint64 {
	switch r.GetKey() {
	case resourcev1.RateKey_RATE_KEY_ROUTE:
		return 1
	case resourcev1.RateKey_RATE_KEY_HEADER:
		return maphash.Bytes(keySeed, x.field(r.GetHeader()))
	}
	var space [16]byte
	return maphash.Bytes(keySeed, x.clientKey(&space))
}

// clientKey is the part of the client's address that is counted.
func (x *exchange) clientKey(space *[16]byte) []byte {
	if address := x.origin.real.Unmap(); address.Is4() {
		a := address.As4()
		return space[:copy(space[:], a[:])]
	}
	*space = x.origin.real.As16()
	return space[:8] // whoever has one address of IPv6 mostly has 2^64 of them (RFC 6177)
}

// sharedKey is rateKey, alike on every node.
func (x *exchange) sharedKey(limit uint64, r *resourcev1.RateLimit) uint64 {
	switch r.GetKey() {
	case resourcev1.RateKey_RATE_KEY_ROUTE:
		return limit
	case resourcev1.RateKey_RATE_KEY_HEADER:
		return everywhere(limit, x.field(r.GetHeader()))
	}
	var space [16]byte
	return everywhere(limit, x.clientKey(&space))
}

// sharedID is alike wherever a route has the same limit.
func sharedID(route string, r *resourcev1.RateLimit) uint64 {
	return everywhere(0, fmt.Appendf(nil, "%q %d %d %d %d %q", route, r.GetRequests(), r.GetPer().AsDuration(), r.GetBurst(), r.GetKey(), r.GetHeader()))
}

// everywhere hashes alike on every node. No client can aim at the key of another: SHA-256 keeps that from him, without a secret that
// nodes would have to agree on.
func everywhere(limit uint64, key []byte) uint64 {
	sum := sha256.Sum256(key)
	return binary.LittleEndian.Uint64(sum[:]) ^ limit
}

// appendStanding says where the client stands, as draft-ietf-httpapi-ratelimit-headers has it; nothing where nobody asked. Where no
// more requests pass, the time is that of Retry-After.
func (x *exchange) appendStanding(out []byte) []byte {
	if x.standing.Full == 0 {
		return out
	}
	out = append(out, x.route.rate.policy...)
	out = strconv.AppendUint(append(out, "RateLimit: \"default\";r="...), uint64(x.standing.Remaining), 10)
	until := x.standing.Full
	if x.standing.Remaining == 0 {
		until = x.standing.Retry
	}
	out = strconv.AppendInt(append(out, ";t="...), wholeSeconds(until), 10)
	return append(out, "\r\n"...)
}

// wholeSeconds rounds up.
func wholeSeconds(d time.Duration) int64 { return int64((d + time.Second - 1) / time.Second) }
