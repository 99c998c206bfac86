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
