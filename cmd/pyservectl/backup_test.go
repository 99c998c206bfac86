package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/status"

	operatorv1 "github.com/pyserve/pyserve/proto/pyserve/operator/v1"
)

// restorer is a control, and one call of Restore to it: it takes some time for the plan, and for the restore.
type restorer struct {
	operatorv1.AccessClient
	grpc.ClientStream
	planning, restoring time.Duration

	ctx       context.Context
	confirmed bool
}

func (r *restorer) Restore(ctx context.Context, _ ...grpc.CallOption) (grpc.BidiStreamingClient[operatorv1.RestoreRequest, operatorv1.RestoreResponse], error) {
	r.ctx = ctx
	return r, nil
}

func (r *restorer) Send(m *operatorv1.RestoreRequest) error {
	r.confirmed = r.confirmed || m.GetConfirmation() != nil
	return r.ended()
}

// ended is what gRPC says of a context that is over.
func (r *restorer) ended() error {
	if r.ctx.Err() != nil {
		return status.FromContextError(r.ctx.Err()).Err()
	}
	return nil
}

func (r *restorer) CloseSend() error { return nil }

func (r *restorer) Recv() (*operatorv1.RestoreResponse, error) {
	wait := r.planning
	if r.confirmed {
		wait = r.restoring
	}
	select {
	case <-time.After(wait):
	case <-r.ctx.Done():
		return nil, r.ended()
	}
	if r.confirmed {
		return &operatorv1.RestoreResponse{Message: &operatorv1.RestoreResponse_Result{Result: &operatorv1.RestoreResult{Revision: 1, Digest: "abcdef0123456789", Epoch: 2}}}, nil
	}
	return &operatorv1.RestoreResponse{Message: &operatorv1.RestoreResponse_Plan{Plan: &operatorv1.RestorePlan{Revision: 1, Digest: "abcdef0123456789"}}}, nil
}

// restoreBy runs a restore with a --timeout of a minute, and gives what people are told.
func restoreBy(t *testing.T, control *restorer, ask func() (bool, error)) (told string, err error) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "a.backup")
	if err := os.WriteFile(file, []byte("a backup"), 0o600); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		s := &settings{timeout: time.Minute, output: "table"}
		ctx, clock := s.stopwatch(t.Context())
		defer clock.end()
		var out bytes.Buffer
		r := restoring{settings: s, clock: clock, ask: ask, result: io.Discard, tell: &out}
		err = r.restore(ctx, control, file)
		told = out.String()
	})
	return told, err
}

func TestWhoIsAskedBeforeARestoreMayTakeTheirTime(t *testing.T) {
	asked := func() (bool, error) {
		time.Sleep(8 * time.Hour)
		return true, nil
	}
	told, err := restoreBy(t, &restorer{planning: 59 * time.Second, restoring: 59 * time.Second}, asked)
	if err != nil || !strings.Contains(told, "restored: revision 1") {
		t.Errorf("%v, told:\n%s", err, told)
	}
}

func TestARestoreDoesNotWaitForControlForEver(t *testing.T) {
	yes := func() (bool, error) { return true, nil }
	for name, control := range map[string]*restorer{
		"for the plan":    {planning: time.Hour},
		"for the restore": {restoring: time.Hour},
	} {
		_, err := restoreBy(t, control, yes)
		if err == nil || !strings.Contains(err.Error(), "control did not answer within 1m0s (--timeout)") {
			t.Errorf("%s: %v", name, err)
		}
		if strings.Contains(err.Error(), "may be restored all the same") != control.confirmed {
			t.Errorf("%s: %v; confirmed: %t", name, err, control.confirmed)
		}
	}
}

func TestWithoutAYesNothingIsRestored(t *testing.T) {
	for _, ask := range []func() (bool, error){
		func() (bool, error) { return false, nil },
		func() (bool, error) { return true, io.ErrUnexpectedEOF },
	} {
		control := &restorer{}
		if _, err := restoreBy(t, control, ask); !errors.Is(err, errNotConfirmed) || control.confirmed {
			t.Errorf("%v; confirmed: %t", err, control.confirmed)
		}
	}
}
