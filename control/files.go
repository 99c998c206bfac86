package control

import (
	"errors"
	"sync"

	"github.com/pyserve/pyserve/config"
)

// filesOf gives the files that a document names: those that came with it, and in the place of others those that control
// holds under the same names. So a document that control gave back can be applied where its keys are not, as they are
// shown to nobody.
func (c *Control) filesOf(d Document) config.Files {
	held := sync.OnceValue(c.heldFiles)
	return func(name string) ([]byte, error) {
		if data, ok := d.Files[name]; ok {
			return data, nil
		}
		if data, ok := held()[name]; ok {
			return data, config.ErrHeld
		}
		return nil, errors.New("it was not sent along, and control holds no file of that name")
	}
}

// heldFiles are those that the active document names.
func (c *Control) heldFiles() map[string][]byte {
	active := c.store.Active()
	made, err := c.meaning(active)
	if active == nil || err != nil {
		return nil // what is active cannot be read, of which others tell
	}
	return config.HeldFiles(active.Document, made)
}

// HeldFiles gives those of the names that control holds the files of, never what is in them.
func (c *Control) HeldFiles(names []string) []string {
	var known []string
	held := c.heldFiles()
	for _, name := range names {
		if _, ok := held[name]; ok {
			known = append(known, name)
		}
	}
	return known
}
