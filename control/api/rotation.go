package api

import (
	"context"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/pyserve/pyserve/control"
	operatorv1 "github.com/pyserve/pyserve/proto/pyserve/operator/v1"
)

func (a *access) RotateAuthority(ctx context.Context, _ *operatorv1.RotateAuthorityRequest) (*operatorv1.RotateAuthorityResponse, error) {
	status, err := a.control.RotateAuthority(ctx)
	if err != nil {
		return nil, err
	}
	return &operatorv1.RotateAuthorityResponse{Authority: authoritySummary(status)}, nil
}

func (a *access) FinishRotation(ctx context.Context, _ *operatorv1.FinishRotationRequest) (*operatorv1.FinishRotationResponse, error) {
	status, err := a.control.FinishRotation(ctx, caller(ctx))
	if err != nil {
		return nil, err
	}
	return &operatorv1.FinishRotationResponse{Authority: authoritySummary(status)}, nil
}

func (a *access) GetAuthority(context.Context, *operatorv1.GetAuthorityRequest) (*operatorv1.GetAuthorityResponse, error) {
	return &operatorv1.GetAuthorityResponse{Authority: authoritySummary(a.control.AuthorityStatus())}, nil
}

func authoritySummary(s control.AuthorityStatus) *operatorv1.AuthoritySummary {
	return &operatorv1.AuthoritySummary{
		Sha256: s.Hash, Expires: timestamppb.New(s.Expires), OldSha256: s.Old, PendingNodes: s.Pending, AwayNodes: s.Away,
	}
}

func (a *access) RotateGossipKey(ctx context.Context, _ *operatorv1.RotateGossipKeyRequest) (*operatorv1.RotateGossipKeyResponse, error) {
	status, running, err := a.control.RotateGossipKey(ctx)
	if err != nil {
		return nil, err
	}
	return &operatorv1.RotateGossipKeyResponse{Key: gossipKeySummary(status), Running: running}, nil
}

func (a *access) CancelGossipKey(ctx context.Context, _ *operatorv1.CancelGossipKeyRequest) (*operatorv1.CancelGossipKeyResponse, error) {
	status, err := a.control.CancelGossipKey(ctx)
	if err != nil {
		return nil, err
	}
	return &operatorv1.CancelGossipKeyResponse{Key: gossipKeySummary(status)}, nil
}

func (a *access) GetGossipKey(context.Context, *operatorv1.GetGossipKeyRequest) (*operatorv1.GetGossipKeyResponse, error) {
	return &operatorv1.GetGossipKeyResponse{Key: gossipKeySummary(a.control.GossipKeyStatus())}, nil
}

func gossipKeySummary(s control.GossipKeyStatus) *operatorv1.GossipKeySummary {
	m := &operatorv1.GossipKeySummary{
		Key: s.Key, OldKey: s.Old, NewKey: s.New, Stage: s.Stage.String(),
		PendingNodes: s.PendingNodes, PendingControls: s.PendingControls, AwayNodes: s.AwayNodes,
	}
	if !s.Since.IsZero() {
		m.Since = timestamppb.New(s.Since)
	}
	return m
}
