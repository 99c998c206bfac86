// Package keyring decides how one key of gossip takes another's place while everybody talks: the new one is handed out,
// then used, then the old one is dropped, and each step waits until everybody who is there has taken the one before.
//
// It is a pure machine: it holds no connection, reads no clock, draws no key and keeps nothing. Its driver begins a change
// ([Ring.Begin]), tells it who is there and uses what ([Ring.Waiting]), and keeps the ring that [Ring.Next] gives.
package keyring

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"
)

// MaxKeys is how many keys gossip has at a time, and KeyBytes how long each is.
const (
	MaxKeys  = 16
	KeyBytes = 32
)

// Stage is how far a change of the key is.
type Stage uint8

// The stages, in their order.
const (
	// Settled: nothing is under way.
	Settled Stage = iota
	// Install: the last key is new, and everybody is to understand it.
	Install
	// Use: the new key is the first, and everybody is to encrypt with it; what is said with the others is understood.
	Use
)

// String gives the stage's name, as operators read it.
func (s Stage) String() string {
	switch s {
	case Install:
		return "install"
	case Use:
		return "use"
	}
	return "settled"
}

// Ring is what everybody is to have: the keys in their order, and how far the change of them is. It is replaced, never
// changed.
type Ring struct {
	// Keys are secrets of 32 bytes. The first encrypts, all decrypt.
	Keys  [][]byte
	Stage Stage
	// Since is when it came to that; zero: the cluster was made with it.
	Since time.Time
}

// Check says whether a ring is one.
func (r Ring) Check() error {
	if len(r.Keys) == 0 || len(r.Keys) > MaxKeys {
		return fmt.Errorf("gossip has 1 to %d keys, not %d", MaxKeys, len(r.Keys))
	}
	for i, key := range r.Keys {
		if len(key) != KeyBytes {
			return fmt.Errorf("key %d of gossip has %d bytes, not %d", i+1, len(key), KeyBytes)
		}
		if slices.ContainsFunc(r.Keys[:i], func(before []byte) bool { return bytes.Equal(before, key) }) {
			return fmt.Errorf("key %d of gossip is there twice", i+1)
		}
	}
	switch {
	case r.Stage > Use:
		return fmt.Errorf("a change of the key of gossip has no stage %d", r.Stage)
	case r.Stage != Settled && len(r.Keys) < 2:
		return errors.New("a change of the key of gossip has an old one and a new one")
	}
	return nil
}

// Digest names the keys and their order: the SHA-256 over them, one after the other. Who says it has taken them all.
func (r Ring) Digest() []byte {
	sum := sha256.Sum256(slices.Concat(r.Keys...))
	return sum[:]
}

// Name tells a key apart from others: the beginning of its SHA-256, hexadecimal. It tells nothing of the key.
func Name(key []byte) string {
	sum := sha256.Sum256(key)
	return hex.EncodeToString(sum[:6])
}

// ErrRunning says that a change is under way.
var ErrRunning = errors.New("a change of the key of gossip is under way")

// Begin gives the ring that hands a fresh key out. It fails with [ErrRunning].
func (r Ring) Begin(fresh []byte, now time.Time) (Ring, error) {
	if r.Stage != Settled {
		return Ring{}, ErrRunning
	}
	next := Ring{Keys: append(slices.Clone(r.Keys), fresh), Stage: Install, Since: now}
	return next, next.Check()
}

// ErrNotHandedOut says that there is no new key that could be taken back: none was made, or it is used already. There is no way
// back from there, since who has not heard of it yet must be able to hear the others.
var ErrNotHandedOut = errors.New("no new key of gossip is handed out and not used yet")

// Cancel gives the ring without the key that is handed out: nobody encrypts with that before all have it. It fails with
// [ErrNotHandedOut].
func (r Ring) Cancel(now time.Time) (Ring, error) {
	if r.Stage != Install {
		return Ring{}, ErrNotHandedOut
	}
	last := len(r.Keys) - 1
	return Ring{Keys: r.Keys[:last:last], Since: now}, nil
}

// Next gives the ring of the step after this one; false: there is none.
func (r Ring) Next(now time.Time) (Ring, bool) {
	switch r.Stage {
	case Install:
		last := len(r.Keys) - 1
		return Ring{Keys: append([][]byte{r.Keys[last]}, r.Keys[:last]...), Stage: Use, Since: now}, true
	case Use:
		return Ring{Keys: r.Keys[:1:1], Since: now}, true
	}
	return Ring{}, false
}

// Member is a process that takes part in gossip, as far as its control knows.
type Member struct {
	Name string
	// Control says that it is a control, otherwise it is a node. A control is always waited for: nodes get from it what it
	// has, so that one that was passed over would hand out keys that nobody uses.
	Control bool
	// Here says that there is a stream to it.
	Here bool
	// Awaited says of one that is not here that it was a moment ago, or may have been: it may talk to the others still, and
	// is waited for.
	Awaited bool
	// Digest is that of the keys that it said to use; nil: it said nothing.
	Digest []byte
}

// Waiting gives whom the next step waits for, and who is passed over, since a node that is away gets the keys when it comes
// back.
func (r Ring) Waiting(members []Member) (pending, away []Member) {
	want := r.Digest()
	for _, m := range members {
		switch {
		case m.Here && bytes.Equal(m.Digest, want):
		case m.Here || m.Control || m.Awaited:
			pending = append(pending, m)
		default:
			away = append(away, m)
		}
	}
	return pending, away
}
