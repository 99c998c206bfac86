package api

import (
	"context"
	"fmt"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/pyserve/pyserve/control"
	"github.com/pyserve/pyserve/control/identity"
	"github.com/pyserve/pyserve/control/store"
	operatorv1 "github.com/pyserve/pyserve/proto/pyserve/operator/v1"
)

// access says who may do what.
type access struct {
	operatorv1.UnimplementedAccessServer
	control *control.Control
}

var tokenKinds = map[operatorv1.TokenKind]identity.TokenKind{
	operatorv1.TokenKind_TOKEN_KIND_JOIN:    identity.TokenJoin,
	operatorv1.TokenKind_TOKEN_KIND_CONTROL: identity.TokenControl,
}

func (a *access) CreateToken(ctx context.Context, m *operatorv1.CreateTokenRequest) (*operatorv1.CreateTokenResponse, error) {
	token, made, err := a.control.CreateToken(ctx, control.TokenRequest{
		Kind: tokenKinds[m.GetKind()], TTL: m.GetTtl().AsDuration(), Uses: m.GetUses(), Pattern: m.GetNodePattern(),
		Author: caller(ctx).Name,
	})
	if err != nil {
		return nil, err
	}
	return &operatorv1.CreateTokenResponse{Token: token, Summary: a.summary(made)}, nil
}

func (a *access) ListTokens(context.Context, *operatorv1.ListTokensRequest) (*operatorv1.ListTokensResponse, error) {
	m := &operatorv1.ListTokensResponse{}
	for _, t := range a.control.Tokens() {
		m.Tokens = append(m.Tokens, a.summary(t))
	}
	return m, nil
}

func (a *access) RevokeToken(ctx context.Context, m *operatorv1.RevokeTokenRequest) (*operatorv1.RevokeTokenResponse, error) {
	revoked, file, err := a.control.RevokeToken(ctx, m.GetId())
	if err != nil {
		return nil, err
	}
	return &operatorv1.RevokeTokenResponse{Summary: a.summary(revoked), File: file}, nil
}

func (a *access) summary(t store.Token) *operatorv1.TokenSummary {
	m := &operatorv1.TokenSummary{
		Id: t.ID, Created: timestamppb.New(t.Created), Uses: t.Uses, MaxUses: t.MaxUses, NodePattern: t.Pattern, Author: t.Author,
		Valid: a.control.TokenIsValid(t),
	}
	for wire, kind := range tokenKinds {
		if kind.String() == t.Kind {
			m.Kind = wire
		}
	}
	if !t.Expires.IsZero() {
		m.Expires = timestamppb.New(t.Expires)
	}
	return m
}

func (a *access) RevokeNode(ctx context.Context, m *operatorv1.RevokeNodeRequest) (*operatorv1.RevokeNodeResponse, error) {
	connected, err := a.control.RevokeNode(ctx, m.GetName())
	if err != nil {
		return nil, err
	}
	return &operatorv1.RevokeNodeResponse{Connected: connected}, nil
}

func (a *access) CreateContext(ctx context.Context, m *operatorv1.CreateContextRequest) (*operatorv1.CreateContextResponse, error) {
	role, err := identity.ParsePersonRole(m.GetRole())
	if err != nil {
		return nil, fmt.Errorf("%w: %w", control.ErrInvalid, err)
	}
	issued, err := a.control.CreateContext(ctx, caller(ctx).Name, m.GetName(), role, m.GetCertificateRequest(), m.GetTtl().AsDuration())
	if err != nil {
		return nil, err
	}
	return &operatorv1.CreateContextResponse{
		Cluster: issued.Cluster, Endpoints: issued.Endpoints, Certificate: issued.Certificate,
		CaCertificates: issued.Authorities, Expires: timestamppb.New(issued.Expires),
	}, nil
}

func (a *access) ListContexts(context.Context, *operatorv1.ListContextsRequest) (*operatorv1.ListContextsResponse, error) {
	return &operatorv1.ListContextsResponse{Contexts: contextSummaries(a.control.Contexts())}, nil
}

func (a *access) RevokeContext(ctx context.Context, m *operatorv1.RevokeContextRequest) (*operatorv1.RevokeContextResponse, error) {
	revoked, err := a.control.RevokeContext(ctx, m.GetName())
	if err != nil {
		return nil, err
	}
	return &operatorv1.RevokeContextResponse{Revoked: contextSummaries(revoked)}, nil
}

func contextSummaries(all []control.ContextState) []*operatorv1.ContextSummary {
	var out []*operatorv1.ContextSummary
	for _, c := range all {
		out = append(out, &operatorv1.ContextSummary{
			Name: c.Name, Role: c.Role, Issued: timestamppb.New(c.Issued), Expires: timestamppb.New(c.Expires), Author: c.Author, Revoked: c.Revoked,
		})
	}
	return out
}
