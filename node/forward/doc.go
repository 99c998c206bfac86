// Package forward owns one request's life: from the head that a client sent to the last byte of the answer, over the choice
// of a route and a backend, retries, and the upgrade into a tunnel. What goes over the wire is decided here: the path
// that is forwarded, the headers that are added and dropped, the proxy's own answers.
//
// It does not own sockets that listen (listener does), backends and their connections (upstream), the HTTP/1.1 wire (http1)
// or the bytes after an upgrade (tunnel). It does not swap generations: each request pins one through Source and ends on it.
//
// A [Front] carries the connections of one listener, one goroutine each, which does all of a request's work but for two
// things: a request's body that has not come with its head goes to the backend in a goroutine of its own, since answers may
// begin before it ends; and the front's sweeper, one goroutine for all, watches deadlines and clients that go away. One more
// for all sums up in the log what was too much to be told there one by one. An exchange, with its buffers, is taken from a
// pool when a client has sent something and given back when it is answered, so that a connection that waits holds none.
//
// Order of calls: New once; for each generation NewRoute for every route, and a Table of them; for each listener NewFront,
// Serve for every connection, and Drain.
package forward
