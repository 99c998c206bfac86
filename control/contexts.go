package control

import (
	"context"
	"crypto/x509"
	"fmt"
	"time"

	"github.com/pyserve/pyserve/control/audit"
	"github.com/pyserve/pyserve/control/identity"
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

// CreateContext issues a person's certificate for the key in a certificate request; lifetime 0: 90 days.
func (c *Control) CreateContext(ctx context.Context, name string, role identity.Role, request []byte, lifetime time.Duration) (*IssuedContext, error) {
	if lifetime == 0 {
		lifetime = defaultContextLifetime
	}
	if lifetime < time.Minute || lifetime > identity.MaxContextLifetime {
		return nil, fmt.Errorf("%w: a context is good for 1m to %dh, not for %s", ErrInvalid, int(identity.MaxContextLifetime.Hours()), lifetime)
	}
	certificate, err := c.authority.IssuePerson(name, role, request, lifetime)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	leaf, err := x509.ParseCertificate(certificate)
	if err != nil {
		return nil, fmt.Errorf("parse the certificate that was issued: %w", err)
	}
	// Nothing else is written, so the entry is: a certificate that the trail does not know is not handed out.
	audit.Describe(ctx, "context %s, role %s, until %s", name, role, leaf.NotAfter.UTC().Format(time.RFC3339))
	if note := audit.From(ctx); note != nil {
		entry, _ := note.Entry(c.options.Now())
		if err := c.store.AppendAudit(ctx, entry); err != nil {
			return nil, err
		}
		note.Keep()
	}
	c.options.Logger.Info("issued a context", "name", name, "role", role, "until", leaf.NotAfter)
	return &IssuedContext{
		Cluster: c.authority.ClusterID(), Endpoints: c.endpoints(),
		Certificate: certificate, Authorities: c.authority.CACertificates(), Expires: leaf.NotAfter,
	}, nil
}
