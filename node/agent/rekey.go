package agent

import (
	"crypto/sha256"
	"fmt"
	"slices"
)

// What control may name as the keys of gossip.
const (
	maxGossipKeys  = 16
	gossipKeyBytes = 32
)

// checkGossipKeys says whether they are keys: what is kept on the disk must not keep a later start from gossip.
func checkGossipKeys(keys [][]byte) error {
	if len(keys) == 0 || len(keys) > maxGossipKeys {
		return fmt.Errorf("there are 1 to %d, not %d", maxGossipKeys, len(keys))
	}
	for i, key := range keys {
		if len(key) != gossipKeyBytes {
			return fmt.Errorf("key %d has %d bytes, not %d", i+1, len(key), gossipKeyBytes)
		}
	}
	return nil
}

// takeKeys puts the keys that control named into id, and says whether they are others than before. What are no keys leaves
// those that there are.
func (c *conversation) takeKeys(id *Identity, keys [][]byte) bool {
	if err := checkGossipKeys(keys); err != nil {
		c.agent.options.Logger.Error("what control named as the keys of gossip are none; those of before stay", "error", err)
		return false
	}
	if slices.EqualFunc(id.GossipKeys, keys, slices.Equal) {
		return false
	}
	id.GossipKeys = keys
	return true
}

// use puts an identity to use.
func (c *conversation) use(id *Identity) {
	a := c.agent
	a.identity.Store(id)
	if a.options.Welcomed != nil {
		if err := a.options.Welcomed(id); err != nil {
			a.options.Logger.Error("the keys of gossip that control named are not used", "error", err)
			a.keys = nil
			return
		}
	}
	a.keys = nil
	if len(id.GossipKeys) > 0 {
		sum := sha256.Sum256(slices.Concat(id.GossipKeys...))
		a.keys = sum[:]
	}
}

// rekey takes other keys of gossip within a stream, and says so at once: the next step of a change waits for it.
func (c *conversation) rekey(keys [][]byte) error {
	id := *c.agent.identity.Load()
	if c.takeKeys(&id, keys) {
		c.keep(&id)
		c.use(&id)
	}
	return c.sendStatus(false)
}
