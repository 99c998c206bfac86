package store

import (
	"bytes"
	"context"
	"fmt"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/pyserve/pyserve/control/keyring"
	storev1 "github.com/pyserve/pyserve/proto/pyserve/store/v1"
)

var (
	gossipStages = map[storev1.GossipStage]keyring.Stage{
		storev1.GossipStage_GOSSIP_STAGE_UNSPECIFIED: keyring.Settled,
		storev1.GossipStage_GOSSIP_STAGE_INSTALL:     keyring.Install,
		storev1.GossipStage_GOSSIP_STAGE_USE:         keyring.Use,
	}
	storedStages = map[keyring.Stage]storev1.GossipStage{
		keyring.Install: storev1.GossipStage_GOSSIP_STAGE_INSTALL,
		keyring.Use:     storev1.GossipStage_GOSSIP_STAGE_USE,
	}
)

func ringToProto(r *keyring.Ring) *storev1.GossipKeys {
	return &storev1.GossipKeys{Keys: r.Keys, Stage: storedStages[r.Stage], Since: timestamppb.New(r.Since)}
}

func ringFrom(m *storev1.GossipKeys) (r keyring.Ring, err error) {
	stage, known := gossipStages[m.GetStage()]
	if !known {
		return keyring.Ring{}, fmt.Errorf("a change of the key of gossip has no stage %d", m.GetStage())
	}
	r = keyring.Ring{Keys: m.GetKeys(), Stage: stage}
	if r.Since, err = timeFrom(m.GetSince()); err != nil {
		return keyring.Ring{}, err
	}
	return r, r.Check()
}

// setGossipKeys takes other keys in the place of those that the asker knew.
func (s *state) setGossipKeys(c *storev1.SetGossipKeys) error {
	next, err := ringFrom(c.GetKeys())
	if err != nil {
		return err
	}
	var current []byte
	if s.gossip != nil {
		current = s.gossip.Digest()
	}
	if !bytes.Equal(c.GetReplaces(), current) {
		return fmt.Errorf("%w: the keys of gossip were changed meanwhile", ErrConflict)
	}
	s.gossip = &next
	return nil
}

// GossipKeys gives the keys of gossip and how far a change of them is; nil: those that the cluster was made with. It is not
// to be changed.
func (s *Store) GossipKeys() *keyring.Ring {
	s.machine.mu.RLock()
	defer s.machine.mu.RUnlock()
	return s.machine.state.gossip
}

// SetGossipKeys takes keys to use in the place of what [Store.GossipKeys] gave. It fails with [ErrConflict] where that is no
// longer so.
func (s *Store) SetGossipKeys(ctx context.Context, next keyring.Ring, replaced *keyring.Ring) error {
	m := &storev1.SetGossipKeys{Keys: ringToProto(&next)}
	if replaced != nil {
		m.Replaces = replaced.Digest()
	}
	if err := s.write(ctx, &storev1.Command{Action: &storev1.Command_SetGossipKeys{SetGossipKeys: m}}); err != nil {
		return fmt.Errorf("change the keys of gossip: %w", err)
	}
	return nil
}
