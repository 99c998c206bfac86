package store

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/raft"
)

// machine puts the state behind the log: raft calls Apply, Snapshot and Restore from one goroutine, readers come from
// anywhere.
type machine struct {
	seal *sealer

	mu      sync.RWMutex // guards what follows
	state   *state
	applied uint64 // the last entry that state holds
	seen    uint64 // the last entry that raft brought since it was started; below applied while it repeats itself
	// sighted are the controls that the log speaks of after the snapshot that state was made of. Without them the
	// controls could not find each other to agree on what the log says.
	sighted []sighting
	broken  error         // why the log cannot be followed any further; nil: it can
	changed chan struct{} // closed at the next change

	// active is what state.active says, for readers that must not wait for a write.
	active atomic.Pointer[Snapshot]
}

func newMachine(seal *sealer) *machine {
	return &machine{seal: seal, state: newState(), changed: make(chan struct{})}
}

// Apply implements raft.FSM. It returns an error where the command was refused, otherwise nil.
func (m *machine) Apply(entry *raft.Log) any {
	c, err := m.seal.decodeCommand(entry.Data)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.broken != nil {
		return m.broken
	}
	m.seen = entry.Index
	if entry.Index <= m.applied {
		return nil // raft was started anew over this state and brings what it brought before
	}
	m.applied = entry.Index
	if err != nil {
		m.broken = fmt.Errorf("entry %d of the log cannot be read: %w", entry.Index, err)
		return m.broken
	}
	if err := m.state.apply(c); err != nil {
		return refused{err}
	}
	m.publish()
	return nil
}

// refused is why the state did not take a command that it could read.
type refused struct{ error }

func (r refused) Unwrap() error { return r.error }

// Refused makes the error of a command that another control's state refused, of what that said.
func Refused(reason string) error { return refused{errors.New(reason)} }

// IsRefused says whether a write was decided, and the decision was no: asking again does not help.
func IsRefused(err error) bool {
	var r refused
	return errors.As(err, &r)
}

// publish tells readers. The caller holds mu.
func (m *machine) publish() {
	v := m.state.active
	if current := m.active.Load(); v != nil && (current == nil || current.Bundle != v.bundle || current.Release != v.Release) {
		next := &Snapshot{Revision: v.Revision, Bundle: v.bundle, Document: v.document}
		next.Active = true
		m.active.Store(next)
	}
	close(m.changed)
	m.changed = make(chan struct{})
}

// Snapshot implements raft.FSM. It copies little: what hangs in the state is replaced, never changed.
func (m *machine) Snapshot() (raft.FSMSnapshot, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if m.broken != nil {
		return nil, m.broken
	}
	if m.seen != 0 && m.seen < m.applied {
		return nil, errors.New("raft is still repeating what this state holds") // its snapshot would bear the wrong index
	}
	c := m.state.capture()
	c.seal = m.seal
	return c, nil
}

// Restore implements raft.FSM. After an error the state is what it was.
func (m *machine) Restore(from io.ReadCloser) error {
	plain, err := m.seal.newReader(from)
	if err != nil {
		return err
	}
	s, err := readSnapshot(plain)
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.state, m.broken = s, nil
	if s.active == nil {
		m.active.Store(nil)
	}
	m.publish()
	return nil
}

// sighting is a control as an entry of the log tells of it, which may not be committed.
type sighting struct {
	index  uint64
	server Server
}

// servers gives what is known of the controls, by id. The caller holds mu.
func (m *machine) servers() map[string]Server {
	if len(m.sighted) == 0 || m.applied >= m.sighted[len(m.sighted)-1].index {
		return m.state.servers
	}
	known := maps.Clone(m.state.servers)
	for _, seen := range m.sighted {
		if seen.index > m.applied {
			known[seen.server.ID] = seen.server
		}
	}
	return known
}

func (m *machine) server(id string) (Server, bool) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	server, ok := m.servers()[id]
	return server, ok
}

// restarted says that raft begins anew over the state that there is.
func (m *machine) restarted() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.seen = 0
}

// touch lets readers look again where nothing of the state has changed.
func (m *machine) touch() {
	m.mu.Lock()
	defer m.mu.Unlock()
	close(m.changed)
	m.changed = make(chan struct{})
}

// holds says whether the state holds a body. What it says is good as long as no other revision becomes active.
func (m *machine) holds(h sum) bool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.state.bodies[h] != nil
}

func (m *machine) err() error {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.broken
}

// holdsUpTo gives the last entry that the state holds.
func (m *machine) holdsUpTo() uint64 {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.applied
}
