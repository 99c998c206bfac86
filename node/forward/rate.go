package forward

import (
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
	*ratelimit.Limiter
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

func newRate(r *resourcev1.RateLimit) (*rate, error) {
	per := r.GetPer().AsDuration()
	switch {
	case r.GetScope() > resourcev1.RateScope_RATE_SCOPE_NODE:
		return nil, fmt.Errorf("rate_limit: the scope %v is not known here: bring this node to the version of control", r.GetScope())
	case r.GetRequests() == 0 || r.GetBurst() == 0 || per < time.Duration(r.GetRequests()):
		return nil, fmt.Errorf("rate_limit: %d requests in %s, %d at once, is no rate", r.GetRequests(), per, r.GetBurst())
	}
	window := wholeSeconds(per) // the field has whole seconds alone
	quota := uint64(r.GetRequests()) * uint64(time.Duration(window)*time.Second) / uint64(per)
	return &rate{
		Limiter:  ratelimit.New(ratelimit.Rate{Requests: r.GetRequests(), Per: per, Burst: r.GetBurst()}),
		resource: proto.CloneOf(r),
		policy:   fmt.Sprintf("RateLimit-Policy: \"default\";q=%d;w=%d\r\n", quota, window),
	}, nil
}

// Limiter is the route's; nil: it has no rate.
func (r *Route) Limiter() *ratelimit.Limiter {
	if r.rate == nil {
		return nil
	}
	return r.rate.Limiter
}

// limit refuses a request that is over the route's rate.
func (x *exchange) limit() *failure {
	r := x.route.rate
	var passes bool
	if x.standing, passes = r.Allow(x.rateKey(r.resource), Clock(x.begun)); passes {
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
	address := x.origin.real.Unmap()
	if address.Is4() {
		a := address.As4()
		return maphash.Bytes(keySeed, a[:])
	}
	// Whoever has one address of IPv6 mostly has 2^64 of them (RFC 6177).
	a := address.As16()
	return maphash.Bytes(keySeed, a[:8])
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
