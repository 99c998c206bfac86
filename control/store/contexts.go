package store

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	storev1 "github.com/pyserve/pyserve/proto/pyserve/store/v1"
)

// Context is a person's certificate that was issued.
type Context struct {
	// KeyHash is the SHA-256 of its public key (SPKI, DER).
	KeyHash         [32]byte
	Name, Role      string
	Issued, Expires time.Time
	// Author is who had it made.
	Author string
}

// Revocation says that no certificate of a name is believed that was issued until a moment.
type Revocation struct {
	Name  string
	Until time.Time
	// Ends is when no certificate that was issued until then can be good any more.
	Ends time.Time
}

func (c *Context) toProto() *storev1.Context {
	return &storev1.Context{
		KeyHash: c.KeyHash[:], Name: c.Name, Role: c.Role, Issued: timestamppb.New(c.Issued), Expires: timestamppb.New(c.Expires), Author: c.Author,
	}
}

func contextFrom(m *storev1.Context) (c Context, err error) {
	c = Context{Name: m.GetName(), Role: m.GetRole(), Author: m.GetAuthor()}
	var errIssued, errExpires error
	if c.KeyHash, err = hashFrom(m.GetKeyHash()); err != nil {
		return Context{}, fmt.Errorf("the context's key hash: %w", err)
	}
	c.Issued, errIssued = timeFrom(m.GetIssued())
	c.Expires, errExpires = timeFrom(m.GetExpires())
	if len(c.Author) > maxNameBytes {
		return Context{}, fmt.Errorf("the name of the context's author is longer than %d bytes", maxNameBytes)
	}
	return c, errors.Join(errIssued, errExpires, checkName("the context's name", c.Name), checkName("the context's role", c.Role))
}

func (r *Revocation) toProto() *storev1.Revocation {
	return &storev1.Revocation{Name: r.Name, Until: timestamppb.New(r.Until), Ends: timestamppb.New(r.Ends)}
}

func revocationFrom(m *storev1.Revocation) (r Revocation, err error) {
	r.Name = m.GetName()
	var errUntil, errEnds error
	r.Until, errUntil = timeFrom(m.GetUntil())
	r.Ends, errEnds = timeFrom(m.GetEnds())
	return r, errors.Join(errUntil, errEnds, checkName("the context's name", r.Name))
}

func (s *state) putContext(m *storev1.PutContext) error {
	c, err := contextFrom(m.GetContext())
	if err != nil {
		return err
	}
	if err := put(s.contexts, string(c.KeyHash[:]), c); err != nil {
		return err
	}
	s.forgetContexts(c.Issued)
	return nil
}

// revokeContext keeps the later moment of two.
func (s *state) revokeContext(m *storev1.RevokeContext) error {
	r, err := revocationFrom(&storev1.Revocation{Name: m.GetName(), Until: m.GetUntil(), Ends: m.GetEnds()})
	if err != nil {
		return err
	}
	at, err := timeFrom(m.GetAt())
	if err != nil {
		return err
	}
	if old, known := s.revocations[r.Name]; known && old.Until.After(r.Until) {
		r.Until = old.Until
		r.Ends = later(r.Ends, old.Ends)
	}
	if err := put(s.revocations, r.Name, r); err != nil {
		return err
	}
	s.forgetContexts(at)
	return nil
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// forgetContexts drops what had ended at a moment of the command's.
func (s *state) forgetContexts(at time.Time) {
	maps.DeleteFunc(s.contexts, func(_ string, c Context) bool { return c.Expires.Before(at) })
	maps.DeleteFunc(s.revocations, func(_ string, r Revocation) bool { return r.Ends.Before(at) })
}

// PutContext remembers a person's certificate.
func (s *Store) PutContext(ctx context.Context, c Context) error {
	m := &storev1.Command{Action: &storev1.Command_PutContext{PutContext: &storev1.PutContext{Context: c.toProto()}}}
	if err := s.write(ctx, m); err != nil {
		return fmt.Errorf("remember the context of %.80q: %w", c.Name, err)
	}
	return nil
}

// RevokeContext has no certificate believed that was issued to a name until a moment, as r says; what has ended at at is
// forgotten.
func (s *Store) RevokeContext(ctx context.Context, r Revocation, at time.Time) error {
	m := &storev1.Command{Action: &storev1.Command_RevokeContext{RevokeContext: &storev1.RevokeContext{
		Name: r.Name, Until: timestamppb.New(r.Until), Ends: timestamppb.New(r.Ends), At: timestamppb.New(at),
	}}}
	if err := s.write(ctx, m); err != nil {
		return fmt.Errorf("revoke the contexts of %.80q: %w", r.Name, err)
	}
	return nil
}

// Contexts gives every certificate of a person that is remembered, in no order that means something.
func (s *Store) Contexts() []Context {
	s.machine.mu.RLock()
	defer s.machine.mu.RUnlock()
	return sorted(s.machine.state.contexts)
}

// Revocation gives what is said of a name.
func (s *Store) Revocation(name string) (Revocation, bool) {
	s.machine.mu.RLock()
	defer s.machine.mu.RUnlock()
	r, ok := s.machine.state.revocations[name]
	return r, ok
}
