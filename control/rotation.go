package control

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/pyserve/pyserve/control/audit"
	"github.com/pyserve/pyserve/control/identity"
	"github.com/pyserve/pyserve/control/store"
)

// ErrRotation says that a rotation of the authority cannot be finished as it stands.
var ErrRotation = errors.New("the rotation cannot be finished")

// AuthorityStatus says how far a rotation of the authority is.
type AuthorityStatus struct {
	// Hash names the authority that issues, and Old the one that it takes the place of; empty: there is none.
	Hash, Old string
	Expires   time.Time
	// Pending are the connected nodes whose certificate another authority issued; Away those that are registered
	// and not connected: without the rotation they would come back, after its end they have to enrol anew.
	Pending, Away []string
}

// AuthorityStatus says which authority issues and who still has a certificate by the old one.
func (c *Control) AuthorityStatus() AuthorityStatus {
	hash := c.authority.AuthorityHash()
	s := AuthorityStatus{Hash: hex.EncodeToString(hash[:]), Expires: c.authority.AuthorityExpires()}
	if stored := c.store.Authorities(); len(stored) > 1 {
		old := hashOf(stored[1])
		s.Old = hex.EncodeToString(old)
	}
	connected := map[string]bool{}
	for _, node := range c.nodes() {
		connected[node.Name] = node.Connected
		if node.Connected && !bytes.Equal(node.Authority, hash[:]) {
			s.Pending = append(s.Pending, node.Name)
		}
	}
	for _, node := range c.store.Nodes() {
		if !connected[node.Name] {
			s.Away = append(s.Away, node.Name)
		}
	}
	return s
}

func hashOf(a store.Authority) []byte {
	hash := identity.CertificateHash(a.Certificate)
	return hash[:]
}

// RotateAuthority has a new authority issue certificates. Until [Control.FinishRotation] the old one is believed as well,
// and issues control's own certificate, which everybody can verify. Where a rotation is under way, it changes nothing.
func (c *Control) RotateAuthority(ctx context.Context) (AuthorityStatus, error) {
	current := c.store.Authorities()
	if len(current) > 1 {
		audit.Conclude(ctx, "a rotation is under way already")
		return c.AuthorityStatus(), nil
	}
	own, err := c.authority.Issuers()
	if err != nil {
		return AuthorityStatus{}, err
	}
	next, err := c.authority.NewIssuer()
	if err != nil {
		return AuthorityStatus{}, err
	}
	hash := identity.CertificateHash(next.Certificate)
	audit.Describe(ctx, "new authority %s", hex.EncodeToString(hash[:]))
	if err := c.store.SetAuthorities(ctx, storeAuthorities(next, own[0]), current); err != nil {
		return AuthorityStatus{}, err
	}
	err = c.takeAuthorities()
	return c.AuthorityStatus(), err
}

// absent gives the controls that this one has no connection with. They would go on showing certificates by an authority
// that nobody believes, and so never hear of the new one.
func (c *Control) absent() (names []string) {
	for _, row := range c.Controls() {
		if !row.GetReachable() {
			names = append(names, row.GetName())
		}
	}
	return names
}

func storeAuthorities(all ...identity.Issuer) []store.Authority {
	var out []store.Authority
	for _, i := range all {
		out = append(out, store.Authority{Certificate: i.Certificate, Key: i.Key})
	}
	return out
}

// FinishRotation drops the old authority: certificates by it are not believed any more. It fails with [ErrRotation] where
// no rotation is under way, while a connected node still has a certificate by the old one, where the caller has, and while
// a control is away.
func (c *Control) FinishRotation(ctx context.Context, caller identity.Peer) (AuthorityStatus, error) {
	status, current := c.AuthorityStatus(), c.store.Authorities()
	audit.Describe(ctx, "old authority %s", status.Old)
	if len(current) < 2 {
		return status, fmt.Errorf("%w: none is under way", ErrRotation)
	}
	// Who was there before a start or an election may still need the old one.
	if err := c.awaitWord(ctx, c.patience(), func() bool { return len(c.away()) > 0 || len(c.absent()) > 0 }); err != nil {
		return status, fmt.Errorf("nothing was changed: %w", err)
	}
	if err := c.current(ctx); err != nil {
		return status, fmt.Errorf("nothing was changed: %w", err)
	}
	status = c.AuthorityStatus()
	switch {
	case len(status.Pending) > 0:
		return status, fmt.Errorf("%w: these nodes still have certificates by the old authority, and renew them by themselves: %s", ErrRotation, strings.Join(status.Pending, ", "))
	case len(c.absent()) > 0:
		return status, fmt.Errorf("%w: these controls are away and could not come back afterwards: %s; start them, or take them out with pyservectl control remove", ErrRotation, strings.Join(c.absent(), ", "))
	case caller.Authority != c.authority.AuthorityHash():
		return status, fmt.Errorf("%w: your own context was issued by the old authority and would be of no use afterwards; take %s of a control's data directory, or make one with pyservectl context create, and finish with that", ErrRotation, AdminFile)
	}
	if err := c.store.SetAuthorities(ctx, current[:1], current); err != nil {
		return status, err
	}
	err := c.takeAuthorities()
	return c.AuthorityStatus(), err
}

// takeAuthorities brings this control's identity to what the store says, and what hangs on it: the token files, which
// carry the authority's hash, the administrator's context, and what nodes are told.
func (c *Control) takeAuthorities() error {
	c.rotating.Lock()
	defer c.rotating.Unlock()
	stored := c.store.Authorities()
	own := c.authority.CACertificates()
	same := slices.EqualFunc(stored, own, func(a store.Authority, der []byte) bool { return bytes.Equal(a.Certificate, der) })
	if len(stored) > 0 && !same {
		var all []identity.Issuer
		for _, a := range stored {
			all = append(all, identity.Issuer{Certificate: a.Certificate, Key: a.Key})
		}
		if err := c.authority.Install(all); err != nil {
			return err
		}
		if err := errors.Join(c.repinTokens(), c.makeAdmin()); err != nil {
			return err
		}
	}
	hash := c.authority.AuthorityHash()
	c.fleet.SetAuthority(hash[:])
	return nil
}

// repinTokens writes the hash of the authority that issues now into the tokens of this control's files.
func (c *Control) repinTokens() error {
	for file := range tokenFiles {
		path := filepath.Join(c.options.DataDir, file)
		data, err := os.ReadFile(path)
		if err != nil {
			continue // makeTokens makes it at the next start
		}
		if pinned, changed := c.authority.Repin(strings.TrimSpace(string(data))); changed {
			if err := identity.WriteSecret(path, []byte(pinned+"\n")); err != nil {
				return err
			}
		}
	}
	return nil
}
