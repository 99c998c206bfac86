// Command peers measures proxies side by side: nginx, HAProxy, Caddy, Go's httputil.ReverseProxy and a PyServe node, in front of
// the same backend and under the same load. `make bench-peers` runs it; docs/speed.md tells how to read what it prints.
//
// It owns the backend, the load, the proxies' configurations and the sums. It does not own a proxy's speed: it knows
// PyServe as any user does, as a binary with a configuration file. Whatever it starts, it ends; it sends nothing off
// 127.0.0.1.
//
// The way of a run: main reads the flags, findPeers says who takes part, then for each round, scenario and peer measure
// starts the proxy afresh, check asks for right answers, a child process makes the load (runLoad) and reads the proxy's
// CPU time and memory; report turns the measurements into tables. Backend, load and ReverseProxy are this program again,
// as processes of their own, so that nobody's CPU time is taken for a proxy's.
package main
