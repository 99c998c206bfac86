package forward

import (
	"time"

	"github.com/pyserve/pyserve/node/accesslog"
	"github.com/pyserve/pyserve/node/http1"
)

// protocols are the access log's names of the versions that peers speak.
var protocols = map[string]string{"1.0": "HTTP/1.0", "1.1": "HTTP/1.1", "2.0": "HTTP/2.0"}

// logAccess writes the request's line of the access log.
func (x *exchange) logAccess(took time.Duration) {
	r := &x.request
	x.entry = accesslog.Entry{
		Time: x.begun, Client: x.origin.real, Method: r.MethodName(), Host: r.Authority(), Target: r.RawTarget(),
		Proto: protocols[x.peer.version()], Status: x.status, Received: x.received, Sent: x.sent,
		Took: took, UpstreamTook: x.upstreamTook, Route: x.routeName(), RequestID: x.origin.id,
		UserAgent: r.Get(http1.UserAgent), Referer: r.Get(http1.Referer), Class: string(x.class), Retries: max(x.tries-1, 0), Part: x.partNumber(),
	}
	if x.asked != nil {
		x.entry.Backend = x.asked.Address()
	}
	x.accessLog.Log(&x.entry)
	x.entry = accesslog.Entry{} // it refers to buffers
}
