package control

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"github.com/pyserve/pyserve/control/audit"
	"github.com/pyserve/pyserve/control/identity"
	"github.com/pyserve/pyserve/control/store"
)

var (
	// ErrContextRevoked says that a person's certificate is this cluster's, and was revoked.
	ErrContextRevoked = errors.New("the context was revoked; an admin can make another one (pyservectl context create)")
	// ErrNoContext says that no context of a name is known.
	ErrNoContext = errors.New("no context of that name is known; pyservectl context list shows them")
)

// defaultContextLifetime is how long an operator's certificate is good where nobody asks for another time.
const defaultContextLifetime = 90 * 24 * time.Hour

// IssuedContext is a context but for the key, which is with who asked.
type IssuedContext struct {
	Cluster     string
	Endpoints   []string
	Certificate []byte   // DER
	Authorities [][]byte // DER
	Expires     time.Time
}

// CreateContext issues a person's certificate for the key in a certificate request; lifetime 0: 90 days. author is who asks.
func (c *Control) CreateContext(ctx context.Context, author, name string, role identity.Role, request []byte, lifetime time.Duration) (*IssuedContext, error) {
	if lifetime == 0 {
		lifetime = defaultContextLifetime
	}
	if lifetime < time.Minute || lifetime > identity.MaxContextLifetime {
		return nil, fmt.Errorf("%w: a context is good for 1m to %dh, not for %s", ErrInvalid, int(identity.MaxContextLifetime.Hours()), lifetime)
	}
	certificate, err := c.authority.IssuePerson(name, role, request, lifetime, c.revokedUntil(name))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	leaf, err := x509.ParseCertificate(certificate)
	if err != nil {
		return nil, fmt.Errorf("parse the certificate that was issued: %w", err)
	}
	hash, err := identity.KeyHash(certificate)
	if err != nil {
		return nil, err
	}
	// A certificate that the trail does not know is not handed out, nor one that is in no list.
	audit.Describe(ctx, "context %s, role %s, until %s", name, role, leaf.NotAfter.UTC().Format(time.RFC3339))
	err = c.store.PutContext(ctx, store.Context{
		KeyHash: hash, Name: name, Role: role.String(), Issued: identity.IssuedAt(leaf), Expires: leaf.NotAfter, Author: author,
	})
	if err != nil {
		return nil, err
	}
	c.options.Logger.Info("issued a context", "name", name, "role", role, "until", leaf.NotAfter)
	return &IssuedContext{
		Cluster: c.authority.ClusterID(), Endpoints: c.endpoints(),
		Certificate: certificate, Authorities: c.authority.CACertificates(), Expires: leaf.NotAfter,
	}, nil
}

// ContextState is a context that was issued.
type ContextState struct {
	store.Context
	Revoked bool
}

// Contexts gives the contexts that were issued and have not ended, by name, the newest of a name last.
func (c *Control) Contexts() []ContextState {
	var out []ContextState
	now := c.options.Now()
	for _, issued := range c.store.Contexts() {
		if now.Before(issued.Expires) {
			out = append(out, ContextState{issued, c.revoked(issued.Name, issued.Issued)})
		}
	}
	slices.SortStableFunc(out, func(a, b ContextState) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), a.Issued.Compare(b.Issued))
	})
	return out
}

// revocationSkew is by how much a control's clock that issued a certificate may have been ahead of the one that revokes it.
const revocationSkew = time.Minute

// RevokeContext has no context of a name believed any more that was issued until now, by this control and by every other,
// and ends what its holders are doing. It gives those that this is news for, and fails with [ErrNoContext].
//
// Where the name is that of the contexts that controls make for themselves, each control makes another one at once: whoever
// reads its data directory is the cluster anyway, and an operator who locks everybody out would have no way in.
func (c *Control) RevokeContext(ctx context.Context, name string) ([]ContextState, error) {
	audit.Describe(ctx, "context %.80q", name)
	now := c.options.Now()
	until := now.Add(revocationSkew)
	var revoked []ContextState
	known := false
	for _, issued := range c.Contexts() {
		if issued.Name != name {
			continue
		}
		known = true
		if issued.Issued.After(until) {
			until = issued.Issued
		}
		if !issued.Revoked {
			issued.Revoked = true
			revoked = append(revoked, issued)
		}
	}
	if !known {
		return nil, fmt.Errorf("%.80q: %w", name, ErrNoContext)
	}
	r := store.Revocation{Name: name, Until: until, Ends: until.Add(identity.MaxContextLifetime)}
	if err := c.store.RevokeContext(ctx, r, now); err != nil {
		return nil, err
	}
	c.cutRefused()
	c.options.Logger.Info("revoked a context", "name", name)
	return revoked, nil
}

// revokedUntil gives until when contexts of a name that were issued are believed no more; zero: all are.
func (c *Control) revokedUntil(name string) time.Time {
	r, _ := c.store.Revocation(name)
	return r.Until
}

// revoked says whether a certificate of a name that was issued at a moment is believed no more. Of one that another control
// speaks for and does not know when it was issued, everything that was revoked under the name counts.
func (c *Control) revoked(name string, issued time.Time) bool {
	r, known := c.store.Revocation(name)
	return known && !issued.After(r.Until)
}

// Believes refuses a person whose certificate was revoked, with [ErrContextRevoked].
func (c *Control) Believes(peer identity.Peer) error {
	if peer.Role.IsPerson() && c.revoked(peer.Name, peer.Issued) {
		return fmt.Errorf("%s: %w", peer.Name, ErrContextRevoked)
	}
	return nil
}

// While gives a context for a person's call, which ends when the person's certificate is revoked. Call end when the call is
// over.
func (c *Control) While(ctx context.Context, peer identity.Peer) (_ context.Context, end func()) {
	ctx, end = c.streams.open(ctx, peer)
	if c.Believes(peer) != nil { // since it was let in
		c.cutRefused()
	}
	return ctx, end
}

// recordAdmin remembers the context in this control's data directory, so that it is listed, and can be revoked.
func (c *Control) recordAdmin(ctx context.Context) {
	admin, err := identity.LoadContext(filepath.Join(c.options.DataDir, AdminFile))
	if err != nil {
		return // it is made anew at the next start
	}
	expires, err := admin.ExpiresAt()
	issued, hash, errIssued := admin.Issued()
	if err != nil || errIssued != nil {
		return
	}
	if slices.ContainsFunc(c.store.Contexts(), func(known store.Context) bool { return known.KeyHash == hash }) {
		c.unlisted.Store(false)
		return
	}
	record := store.Context{
		KeyHash: hash, Name: adminName, Role: identity.RoleAdmin.String(), Issued: issued, Expires: expires, Author: "control " + c.options.Name,
	}
	ctx, cancel := context.WithTimeout(ctx, settleInterval)
	defer cancel()
	if err := c.store.PutContext(ctx, record); err != nil {
		c.options.Logger.Debug("the context of this control's data directory is not listed yet; trying again", "error", err)
		return
	}
	c.unlisted.Store(false)
}
