package config

import (
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

// policies are what an entry, or a route of several entries, says beyond where its requests go.
type policies struct {
	balancing       option[*resourcev1.LoadBalancing]
	slowStart       option[*durationpb.Duration]
	outliers        option[*resourcev1.OutlierDetection]
	breaker         option[*resourcev1.CircuitBreaker]
	sticky          option[*resourcev1.Sticky]
	retries         option[*resourcev1.Retries]
	rateLimit       option[*resourcev1.RateLimit]
	maxBody         option[uint64]
	requestHeaders  option[*resourcev1.FieldEdits]
	responseHeaders option[*resourcev1.FieldEdits]
	redirect        option[*resourcev1.Redirect]
	respond         option[*resourcev1.Respond]
}

// join takes over what another entry of the same route says, and reports what differs.
func (p *policies) join(r *reader, other *policies) {
	agreeMessage(r, &p.balancing, other.balancing)
	agreeMessage(r, &p.slowStart, other.slowStart)
	agreeMessage(r, &p.outliers, other.outliers)
	agreeMessage(r, &p.breaker, other.breaker)
	agreeMessage(r, &p.sticky, other.sticky)
	agreeMessage(r, &p.retries, other.retries)
	agreeMessage(r, &p.rateLimit, other.rateLimit)
	agree(r, &p.maxBody, other.maxBody, func(a, b uint64) bool { return a == b })
	agreeMessage(r, &p.requestHeaders, other.requestHeaders)
	agreeMessage(r, &p.responseHeaders, other.responseHeaders)
	agreeMessage(r, &p.redirect, other.redirect)
	agreeMessage(r, &p.respond, other.respond)
}

func agreeMessage[M proto.Message](r *reader, have *option[M], other option[M]) {
	agree(r, have, other, func(a, b M) bool { return proto.Equal(a, b) })
}

// intoRoute and intoPool put the policies where the node reads them.
func (p *policies) intoRoute(route *resourcev1.Route) {
	route.Sticky = p.sticky.value
	route.Retries = p.retries.value
	route.RateLimit = p.rateLimit.value
	route.MaxBodyBytes = p.maxBody.value
	route.RequestHeaders = p.requestHeaders.value
	route.ResponseHeaders = p.responseHeaders.value
	route.Redirect = p.redirect.value
	route.Respond = p.respond.value
}

func (p *policies) intoPool(pool *resourcev1.Pool) {
	pool.LoadBalancing = p.balancing.value
	pool.SlowStart = p.slowStart.value
	pool.OutlierDetection = p.outliers.value
	pool.CircuitBreaker = p.breaker.value
}
