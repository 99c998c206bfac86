package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"time"
)

// job tells the load's process what to do.
type job struct {
	Scenario string
	// The proxy's address, and the root of its process tree.
	Address string
	PID     int
	// The root of the tree of everything that belongs to the measurement.
	Root    int
	Seconds float64
	// How many connections idle, where the scenario is about them.
	Idle int
}

// result is what the load saw.
type result struct {
	// Exchanges that were answered rightly.
	Requests int     `json:"requests,omitempty"`
	Seconds  float64 `json:"seconds,omitempty"`
	// CPU time of the proxy's process tree meanwhile.
	CPUSeconds float64 `json:"cpu_seconds,omitempty"`
	// CPU time of what has nothing to do with the measurement: how far the machine was anyone else's meanwhile.
	OthersSeconds float64 `json:"others_cpu_seconds"`
	// Microseconds.
	P50 float64 `json:"p50_us,omitempty"`
	P99 float64 `json:"p99_us,omitempty"`
	// The proxy's proportional set size at the end, in bytes.
	Memory int64 `json:"memory_bytes"`
	// By how much each idle connection raised it.
	PerIdle float64 `json:"bytes_per_idle_connection,omitempty"`
	// How often what went wrong, warm-up included.
	Errors map[string]int `json:"errors,omitempty"`
}

const (
	warmUp = 300 * time.Millisecond
	// stalled is how long after the end an exchange may still take before it counts as an error.
	stalled = 5 * time.Second
	// settle is how long idle connections are left alone before memory is read.
	settle = 500 * time.Millisecond
)

// runLoadChild does the job that in holds and writes its result to out.
func runLoadChild(ctx context.Context, in io.Reader, out io.Writer) error {
	var j job
	if err := json.NewDecoder(in).Decode(&j); err != nil {
		return fmt.Errorf("read the job: %w", err)
	}
	r, err := runLoad(ctx, j)
	if err != nil {
		return err
	}
	return json.NewEncoder(out).Encode(r)
}

func runLoad(ctx context.Context, j job) (result, error) {
	all := scenarios()
	i := slices.IndexFunc(all, func(s scenario) bool { return s.name == j.Scenario })
	if i < 0 {
		return result{}, fmt.Errorf("there is no scenario %q", j.Scenario)
	}
	s, t := all[i], target{address: j.Address}
	if s.tls {
		t.tls = loadTLS(s.http2)
	}
	if s.open != nil {
		return idle(s, t, j)
	}
	return closedLoop(ctx, s, t, j)
}

// target is where the load goes.
type target struct {
	address string
	tls     *tls.Config // nil: no TLS
	// deadline ends every wait of the connections.
	deadline time.Time
}

func (t target) dial() (net.Conn, error) {
	conn, err := net.DialTimeout("tcp", t.address, stalled)
	if err != nil {
		return nil, err
	}
	if err := conn.SetDeadline(t.deadline); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	if t.tls == nil {
		return conn, nil
	}
	secure := tls.Client(conn, t.tls)
	if err := secure.Handshake(); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return secure, nil
}

// loadTLS asks for the same work of every proxy: one curve, since not every TLS library has the same ones, and tickets
// that are issued but never used, so that each handshake is a full one. Whose certificate it is was checked before.
func loadTLS(http2 bool) *tls.Config {
	c := &tls.Config{
		ServerName: hostName, InsecureSkipVerify: true, MinVersion: tls.VersionTLS13,
		CurvePreferences: []tls.CurveID{tls.X25519}, ClientSessionCache: forgetful{},
	}
	if http2 {
		c.NextProtos = []string{"h2"}
	}
	return c
}

// forgetful is a cache that keeps nothing.
type forgetful struct{}

func (forgetful) Get(string) (*tls.ClientSessionState, bool) { return nil, false }
func (forgetful) Put(string, *tls.ClientSessionState)        {}
