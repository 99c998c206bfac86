package agent

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
)

// EnrollOptions say how a node gets its first identity.
type EnrollOptions struct {
	// Controls are the addresses to try, in turn. At least one.
	Controls []string
	// Token is the join token: four fields joined by dots, the last the SHA-256 of the authority's certificate.
	Token string
	// Name is what the node wants to be called.
	Name string
	// DataDir is where the identity is kept; it exists.
	DataDir string
	// Logger is told of every attempt that failed. Required.
	Logger *slog.Logger
}

// RefusedError says that control answered and will not change its mind: trying again is of no use.
type RefusedError struct{ Reason string }

func (e *RefusedError) Error() string { return e.Reason }

// Enroll trades the join token for an identity and keeps it in DataDir. While no control can be reached it tries on,
// with growing pauses, until ctx ends. It fails with a [*RefusedError] where control says no, and where the control
// that answers is not the one the token was made by.
func Enroll(ctx context.Context, o EnrollOptions) (*Identity, error) {
	o.Token = strings.TrimSpace(o.Token)
	pin, err := pinOf(o.Token)
	if err != nil {
		return nil, &RefusedError{err.Error()}
	}
	keyPEM, request, err := newKey(o.Name)
	if err != nil {
		return nil, fmt.Errorf("make the node's key: %w", err)
	}
	var pause backoff
	for {
		for _, address := range o.Controls {
			id, err := enrollAt(ctx, address, pin, keyPEM, request, o)
			if err == nil {
				return id, nil
			}
			var refused *RefusedError
			switch {
			case errors.As(err, &refused):
				return nil, err
			case ctx.Err() != nil:
				return nil, context.Cause(ctx)
			}
			o.Logger.Warn("cannot enrol yet, trying on", "control", address, "error", err)
		}
		if err := pause.wait(ctx); err != nil {
			return nil, err
		}
	}
}

func enrollAt(ctx context.Context, address, pin, keyPEM string, request []byte, o EnrollOptions) (*Identity, error) {
	var wrongControl atomic.Pointer[error] // set in gRPC's goroutine
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{
		MinVersion: tls.VersionTLS13,
		ServerName: controlServerName,
		// The authority is not known yet, only its hash, which the token carries: the chain is verified below against
		// the certificate that has this hash.
		InsecureSkipVerify: true,
		VerifyConnection: func(state tls.ConnectionState) error {
			err := verifyPinned(state, pin)
			if err != nil {
				wrongControl.Store(&err)
			}
			return err
		},
	})))
	if err != nil {
		return nil, &RefusedError{fmt.Sprintf("--control: %q is not an address: %v", address, err)}
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	response, err := fleetv1.NewEnrollmentClient(conn).Enroll(ctx, &fleetv1.EnrollRequest{
		Token: o.Token, Name: o.Name, CertificateRequest: request,
	})
	switch status.Code(err) {
	case codes.OK:
	case codes.Unauthenticated, codes.AlreadyExists, codes.InvalidArgument, codes.PermissionDenied, codes.Unimplemented:
		return nil, &RefusedError{fmt.Sprintf("control at %s refuses to enrol node %q: %s", address, o.Name, status.Convert(err).Message())}
	default:
		if wrong := wrongControl.Load(); wrong != nil {
			return nil, &RefusedError{fmt.Sprintf("the control at %s is not the one that made this join token: %v", address, *wrong)}
		}
		return nil, plain(err)
	}
	id, err := received(o.Name, keyPEM, response.GetIdentity())
	if err != nil {
		return nil, err
	}
	return id, id.save(o.DataDir)
}

// pinOf gives the hash of the authority's certificate that a join token carries.
func pinOf(token string) (string, error) {
	fields := strings.Split(strings.TrimSpace(token), ".")
	if len(fields) != 4 {
		return "", errors.New("the join token is not one: it has four fields joined by dots; use the whole line of control's join-token file")
	}
	if fields[0] == "psc1" {
		return "", errors.New("this is a control token; a node joins with the line of control's join-token file")
	}
	raw, err := hex.DecodeString(fields[3])
	if err != nil || len(raw) != sha256.Size || fields[0] != "psj1" {
		return "", errors.New("the join token is damaged; use the whole line of control's join-token file")
	}
	return hex.EncodeToString(raw), nil // in lower case
}

// verifyPinned verifies a control's certificate against the authority whose hash is pinned, which control sends along.
func verifyPinned(state tls.ConnectionState, pin string) error {
	at := slices.IndexFunc(state.PeerCertificates, func(c *x509.Certificate) bool {
		sum := sha256.Sum256(c.Raw)
		return hex.EncodeToString(sum[:]) == pin
	})
	if at < 1 {
		return errors.New("it belongs to another cluster, or its authority was replaced since the token was made (none of its authorities has the hash that the token carries)")
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(state.PeerCertificates[at])
	for _, c := range state.PeerCertificates[1:] { // a new authority vouches for the one that it takes the place of
		between.AddCert(c)
	}
	if _, err := state.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, DNSName: controlServerName}); err != nil {
		return fmt.Errorf("its certificate is not good: %w", err)
	}
	return nil
}
