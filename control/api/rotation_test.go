package api

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/pyserve/pyserve/control/identity"
	operatorv1 "github.com/pyserve/pyserve/proto/pyserve/operator/v1"
)

func TestTheKeyOfGossipIsChangedByAnAdminAndNamedInTheTrail(t *testing.T) {
	s := newSite(t)
	_, err := operatorv1.NewAccessClient(s.person(t, identity.RoleOperator)).RotateGossipKey(deadline(t), &operatorv1.RotateGossipKeyRequest{})
	checkCode(t, err, codes.PermissionDenied, "admin")
	admin := operatorv1.NewAccessClient(s.operator(t))
	begun, err := admin.RotateGossipKey(deadline(t), &operatorv1.RotateGossipKeyRequest{})
	if err != nil || begun.GetRunning() {
		t.Fatalf("%v, %v", begun, err)
	}
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	var now *operatorv1.GossipKeySummary
	for ctx := deadline(t); now.GetStage() != "settled"; <-ticker.C {
		m, err := admin.GetGossipKey(ctx, &operatorv1.GetGossipKeyRequest{})
		if err != nil {
			t.Fatal(err)
		}
		now = m.GetKey()
	}
	if now.GetKey() == "" || now.GetSince() == nil || now.GetOldKey()+now.GetNewKey() != "" {
		t.Errorf("in the end: %v", now)
	}
	_, err = operatorv1.NewAccessClient(s.person(t, identity.RoleOperator)).CancelGossipKey(deadline(t), &operatorv1.CancelGossipKeyRequest{})
	checkCode(t, err, codes.PermissionDenied, "admin")
	_, err = admin.CancelGossipKey(deadline(t), &operatorv1.CancelGossipKeyRequest{})
	checkCode(t, err, codes.FailedPrecondition, "not used yet")
	var lines []string
	_, entries := s.control.Audit()
	for _, e := range entries {
		if strings.HasPrefix(e.Method, "RotateGossipKey") {
			lines = append(lines, e.Actor+" "+e.Outcome)
		}
	}
	if len(lines) != 4 || !strings.HasPrefix(lines[0], "a-operator ") || lines[1] != "admin done" || lines[2] != "c1 done" || lines[3] != "c1 done" {
		t.Errorf("the trail says %q", lines)
	}
}
