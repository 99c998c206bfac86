package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/pyserve/pyserve/config/bundle"
	"github.com/pyserve/pyserve/control/audit"
	"github.com/pyserve/pyserve/control/store"
	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
	operatorv1 "github.com/pyserve/pyserve/proto/pyserve/operator/v1"
)

// MaxBackupBytes is how large a backup may be.
const MaxBackupBytes = 2 << 30

// Backup writes everything that this control stores, sealed with the cluster's key.
func (c *Control) Backup(ctx context.Context, to io.Writer) error {
	if c.store.Leads() {
		if err := c.current(ctx); err != nil {
			return err
		}
	}
	info, err := c.store.Backup(c.authority.ClusterID(), to)
	if err != nil {
		return err
	}
	audit.Describe(ctx, "revision %d, %d nodes", info.Revision, info.Nodes)
	return nil
}

// Spool gives a file to receive a backup in; it is gone when it is closed.
func (c *Control) Spool() (*os.File, error) { return store.Unnamed(c.options.DataDir) }

// ReadBackup reads a backup and says what restoring it would do. Nothing is changed.
func (c *Control) ReadBackup(ctx context.Context, from io.ReadSeeker, size int64) (*store.Restoration, *operatorv1.RestorePlan, error) {
	if _, err := from.Seek(0, io.SeekStart); err != nil {
		return nil, nil, fmt.Errorf("read the backup: %w", err)
	}
	r, err := c.store.ReadBackup(c.authority.ClusterID(), from, size)
	if err != nil {
		return nil, nil, err
	}
	audit.Describe(ctx, "the backup of %s with revision %d", r.Info.Created.UTC().Format("2006-01-02 15:04:05"), r.Info.Revision)
	plan := &operatorv1.RestorePlan{
		Created: timestamppb.New(r.Info.Created), Revision: r.Info.Revision,
		Returning: r.Returning[:min(len(r.Returning), 20)], ReturningCount: uint32(len(r.Returning)),
	}
	if r.Info.Revision > 0 {
		plan.Digest = r.Info.Digest
	}
	if active := c.store.Active(); active != nil {
		plan.ActiveRevision, plan.ActiveDigest = active.Number, active.Digest.String()
	}
	return r, plan, nil
}

// Restore puts a backup in the place of what is stored, as the history of a higher epoch: nodes follow it.
func (c *Control) Restore(ctx context.Context, r *store.Restoration) (*operatorv1.RestoreResult, error) {
	done, err := c.awaitTurn(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	c.registry.Lock()
	defer c.registry.Unlock()
	err = c.store.Restore(ctx, r, func(epoch uint64, active *store.Snapshot) *fleetv1.Release {
		return bundle.Sign(c.authority.ReleaseKey(), epoch, active.Number, active.Bundle.Digest())
	})
	if errors.Is(err, store.ErrNotLeader) {
		return nil, fmt.Errorf("nothing was changed: %w", ErrNotLeading)
	}
	if err != nil {
		return nil, err
	}
	epoch, _ := c.store.Next()
	result := &operatorv1.RestoreResult{Epoch: epoch}
	if active := c.store.Active(); active != nil {
		result.Revision, result.Digest = active.Number, active.Digest.String()
	}
	c.options.Logger.Warn("restored a backup", "created", r.Info.Created, "revision", result.Revision, "epoch", epoch)
	return result, nil
}
