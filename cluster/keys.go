package cluster

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// SetKeys replaces Options.Keys, as control gave them, while everything goes on: the first encrypts, all decrypt. To change
// the key of a cluster, give all members the new one behind the old, then before it, then alone; [Member].KeyMark tells who
// has followed. Until a member has heard of a key that others use, it neither hears them nor is thought to be there. A list
// that Options would not take is an error, and the keys before stay. It does not block.
func (c *Cluster) SetKeys(keys [][]byte) error {
	if err := checkKeys(keys); err != nil {
		return fmt.Errorf("cluster: %w", err)
	}
	c.mu.Lock()
	same := slices.EqualFunc(c.keys, keys, slices.Equal)
	c.keys = slices.Clone(keys)
	g := c.gossip
	c.mu.Unlock()
	if same || g == nil {
		return nil
	}
	if err := g.SetKeys(keys); err != nil {
		return fmt.Errorf("cluster: %w", err)
	}
	c.options.Logger.Info("the keys of gossip are others now", "keys", len(keys))
	wake(c.announceNow)
	return nil
}

func checkKeys(keys [][]byte) error {
	if len(keys) == 0 {
		return errors.New("option Keys: none, and members talk encrypted only")
	}
	for i, key := range keys {
		if len(key) != 32 {
			return fmt.Errorf("option Keys[%d]: has %d bytes, not 32", i, len(key))
		}
	}
	return nil
}

// keyMark tells keys apart; it tells nothing of them that a member does not know.
func keyMark(key []byte) uint16 {
	sum := sha256.Sum256(key)
	return binary.BigEndian.Uint16(sum[:])
}
