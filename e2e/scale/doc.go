// Command scale measures the control plane under a large fleet: built pyserve processes as any user starts them, and up to a
// thousand light nodes in this process, each with an identity and an mTLS stream of its own. `make bench-control` runs it;
// docs/scale.md tells how to read what it prints.
//
// It owns the light nodes, the documents, the load and the sums. A light node speaks the whole protocol of a node's stream
// and proves every bundle by its digest and signature, but compiles nothing and listens nowhere. What equals what another
// has made already is shared, so that a thousand nodes hold one bundle. Whatever it starts, it ends; it sends nothing off
// 127.0.0.1.
//
// The way of a run: main reads the flags, each of the scenarios (applies, reconnect, swap, failover, outage, leave) starts its own cluster and
// measures in rounds, and report turns what they found into tables.
package main
