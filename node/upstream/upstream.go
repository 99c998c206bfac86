// Package upstream owns the backends: what each is, the newest verdict on its health, its connections and its counters, and
// the pools that pick among them. The registry outlives generations, so a backend that stays in the configuration keeps its
// verdict and its open connections over an apply.
//
// A backend given by name is looked up in the background, all its addresses, IPv4 and IPv6, about every 30 seconds, from its
// first Acquire to its last Release. Requests, upgrades and probes use the answer that is there; they wait for one only as
// long as there has never been any. A lookup that fails leaves the last addresses in use; an answer that there is no such name
// does so for ten minutes. When the addresses change, no connection opened before is used for a request after.
//
// Connections are kept between requests, and the one that was kept last is used first, so that no more of them stay busy
// than are needed and the rest can be closed.
//
// It does not probe (package health does, hung onto the registry's hooks), match requests, decide on retries or write
// headers. Its goroutines are the lookups, one for each name in use, which Release waits for, those of an attempt to
// connect, which Dial waits for, and one that closes what has been idle for too long, which Registry.Close waits for.
//
// Order of calls: NewRegistry once. For each generation: Acquire every backend, NewPool over them. For each request: Pick,
// then Take or else Open, and with the connection Keep or Close. When the generation's last request has ended, Close its pools
// and Release each backend as often as it was acquired. At the very end Registry.Close.
package upstream

import (
	"fmt"
	"time"

	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

// Spec says what a backend is. All of it together is the backend's identity: one address with two health checks is two
// backends, since a verdict is only worth as much as the check that it came from.
type Spec struct {
	// An IP address (IPv6 without brackets) or a host name, which stands for all its addresses. The name is what identifies
	// the backend and what TLS verifies, whatever its addresses are.
	Host string
	// 1 to 65535.
	Port uint32
	// How the backend is spoken to and verified over TLS: an empty message is TLS that believes the system's authorities.
	// Nil: without TLS.
	TLS *resourcev1.BackendTls
	// How the backend is probed. Nil: not at all. This package only compares it.
	Check *resourcev1.HealthCheck
}

// SpecError says which part of a Spec cannot be used, and why.
type SpecError struct {
	// In the document's words: "host", "port", "tls.ca_file", "tls.cert_file" or "tls.key_file".
	Field  string
	Reason string
}

func (e *SpecError) Error() string { return e.Field + ": " + e.Reason }

// DialError says that no connection to a backend could be opened: the name lookup, the connect or the TLS handshake failed.
// Nothing of a request was sent, so any request may be tried elsewhere.
type DialError struct {
	// Of the backend, not of the client's connection: never to be shown to clients.
	Address string
	Err     error
}

func (e *DialError) Error() string { return fmt.Sprintf("connecting to %s: %v", e.Address, e.Err) }

// Unwrap returns what net or crypto/tls said.
func (e *DialError) Unwrap() error { return e.Err }

// State is what is known of a backend's health.
type State uint8

const (
	// Unknown is a backend nothing has been heard of yet. It takes traffic: a new configuration must work before its first
	// probes have come back.
	Unknown State = iota
	// Healthy takes traffic.
	Healthy
	// Unhealthy takes none.
	Unhealthy
)

// String is the word that people and programs are shown.
func (s State) String() string {
	switch s {
	case Unknown:
		return "unknown"
	case Healthy:
		return "healthy"
	case Unhealthy:
		return "unhealthy"
	default:
		return fmt.Sprintf("state %d", s)
	}
}

// Verdict is a backend's state and how it came by it.
type Verdict struct {
	State State
	// For people, in a few words: "connection refused". Empty where there is nothing to explain.
	Reason string
	// When State last changed.
	Since time.Time
}

// Counters are totals since the backend was first acquired, but for Open and Idle. Connections are those of Backend.Open.
type Counters struct {
	// Requests counted by CountRequest.
	Requests uint64
	// Those of them counted by CountFailure.
	Failures uint64
	// Connections opened.
	Opened uint64
	// How often a kept one was taken for another request, whether or not it turned out to be closed.
	Reused uint64
	// Connections that could not be opened, those that the client did not wait for not counted.
	ConnectFailures uint64
	// Connections open at this moment, whether in use or idle.
	Open int
	// Those of them that are idle.
	Idle int
}
