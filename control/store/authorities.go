package store

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"

	storev1 "github.com/pyserve/pyserve/proto/pyserve/store/v1"
)

// Authority is a certificate authority with its key, as the store keeps it: it knows neither.
type Authority struct {
	// Certificate is DER, and Key PKCS #8, DER.
	Certificate, Key []byte
}

const (
	maxAuthorities    = 2
	maxAuthorityBytes = 16 << 10
)

func authoritiesFrom(all []*storev1.Authority) ([]Authority, error) {
	if len(all) == 0 || len(all) > maxAuthorities {
		return nil, fmt.Errorf("a cluster has 1 to %d authorities, not %d", maxAuthorities, len(all))
	}
	var out []Authority
	for _, m := range all {
		a := Authority{m.GetCertificate(), m.GetKey()}
		if err := a.check(); err != nil {
			return nil, err
		}
		out = append(out, a)
	}
	return out, nil
}

func (a *Authority) check() error {
	if len(a.Certificate) == 0 || len(a.Key) == 0 || len(a.Certificate)+len(a.Key) > maxAuthorityBytes {
		return errors.New("an authority has a certificate and a key, of 16 KiB together at most")
	}
	return nil
}

func (a *Authority) toProto() *storev1.Authority {
	return &storev1.Authority{Certificate: a.Certificate, Key: a.Key}
}

// setAuthorities takes other authorities in the place of those that the asker knew.
func (s *state) setAuthorities(c *storev1.SetAuthorities) error {
	next, err := authoritiesFrom(c.GetAuthorities())
	if err != nil {
		return err
	}
	var current []byte
	if len(s.authorities) > 0 {
		h := sha256.Sum256(s.authorities[0].Certificate)
		current = h[:]
	}
	if !bytes.Equal(c.GetReplaces(), current) {
		return fmt.Errorf("%w: the cluster's authorities were changed meanwhile", ErrConflict)
	}
	s.authorities = next
	return nil
}

// Authorities gives the authorities that the cluster believes, the newest first; none: those that it was made with. They
// are not to be changed.
func (s *Store) Authorities() []Authority {
	s.machine.mu.RLock()
	defer s.machine.mu.RUnlock()
	return slices.Clone(s.machine.state.authorities)
}

// SetAuthorities takes authorities to use, the newest first, in the place of what [Store.Authorities] gave. It fails with
// [ErrConflict] where that is no longer so.
func (s *Store) SetAuthorities(ctx context.Context, next, replaced []Authority) error {
	m := &storev1.SetAuthorities{}
	for _, a := range next {
		m.Authorities = append(m.Authorities, a.toProto())
	}
	if len(replaced) > 0 {
		h := sha256.Sum256(replaced[0].Certificate)
		m.Replaces = h[:]
	}
	if err := s.write(ctx, &storev1.Command{Action: &storev1.Command_SetAuthorities{SetAuthorities: m}}); err != nil {
		return fmt.Errorf("change the cluster's authorities: %w", err)
	}
	return nil
}
