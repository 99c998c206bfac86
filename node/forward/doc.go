// Package forward owns one request's life: from the head that a client sent to the last byte of the answer, over the choice
// of a route and a backend, one retry, and the upgrade into a tunnel. What goes over the wire is decided here: the path
// that is forwarded, the headers that are added and dropped, the proxy's own answers.
//
// It does not own sockets (listener does), backends and their connections (upstream), or the bytes after an upgrade
// (tunnel). It does not swap generations: each request pins one through Source and ends on it.
//
// For now it stands on net/http: an http.Handler on one side, http.Transport on the other. DESIGN.md of package node
// says what that makes impossible.
//
// Order of calls: NewMetrics and NewHandler once; for each generation NewRoute for every route, and a Table of them.
package forward
