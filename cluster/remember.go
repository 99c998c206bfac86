package cluster

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/pyserve/pyserve/cluster/state"
)

const (
	// maxPeers is how many peers are remembered, those seen last, and keepPeers for how long after that.
	maxPeers  = 256
	keepPeers = 7 * 24 * time.Hour
	// peerAge is how old the time that a peer was seen may get in the file before it is written again for that alone.
	peerAge = time.Hour
	// maxPeersFile is the most that is read; 256 peers need a tenth of it.
	maxPeersFile = 1 << 20
)

// peer is one that took part once and did not leave. The JSON is the line of the file.
type peer struct {
	Name    string    `json:"name"`
	Address string    `json:"address"`
	Seen    time.Time `json:"seen"`
}

// remembered are the peers to look for when nobody else tells of any, by wire name.
type remembered struct {
	peers map[string]peer
	// dirty: differs from the file.
	dirty bool
}

func newRemembered() *remembered { return &remembered{peers: make(map[string]peer)} }

// observe takes one member as it is now. Those that left do not want to be looked for; the dead may only be out of
// reach.
func (r *remembered) observe(m Member, now time.Time) {
	name := state.WireName(m.Role, m.Name)
	old, known := r.peers[name]
	switch {
	case m.State == state.Left && known:
		delete(r.peers, name)
		r.dirty = true
	case !m.State.Gone() && (!known || old.Address != m.Address || now.Sub(old.Seen) >= peerAge):
		r.peers[name] = peer{Name: name, Address: m.Address, Seen: now}
		r.dirty = true
		r.trim(now)
	}
}

// trim keeps the peers seen last, and those not too long ago.
func (r *remembered) trim(now time.Time) {
	for i, p := range r.list() {
		if i >= maxPeers || now.Sub(p.Seen) > keepPeers {
			delete(r.peers, p.Name)
		}
	}
}

// list gives the peers, the one seen last first.
func (r *remembered) list() []peer {
	peers := make([]peer, 0, len(r.peers))
	for _, p := range r.peers {
		peers = append(peers, p)
	}
	slices.SortFunc(peers, func(a, b peer) int {
		return cmp.Or(b.Seen.Compare(a.Seen), cmp.Compare(a.Name, b.Name))
	})
	return peers
}

func (r *remembered) addresses() []string {
	addresses := make([]string, 0, len(r.peers))
	for _, p := range r.peers {
		addresses = append(addresses, p.Address)
	}
	return addresses
}

// decodePeers reads what encodePeers wrote. Lines that are no peers make all of it an error: the file is replaced as a
// whole, so it is either ours or not.
func decodePeers(data []byte, now time.Time) (*remembered, error) {
	var peers []peer
	if err := json.Unmarshal(data, &peers); err != nil {
		return nil, err
	}
	r := newRemembered()
	for _, p := range peers {
		if _, _, err := state.ParseWireName(p.Name); err != nil {
			return nil, err
		}
		if err := checkHostPort(p.Address); err != nil {
			return nil, err
		}
		p.Seen = minTime(p.Seen, now)
		r.peers[p.Name] = p
	}
	r.trim(now)
	return r, nil
}

// minTime keeps a clock that was ahead from making a peer unforgettable.
func minTime(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

func encodePeers(peers []peer) ([]byte, error) {
	data, err := json.MarshalIndent(peers, "", " ")
	if err != nil {
		return nil, err
	}
	return append(data, '\n'), nil
}

// loadPeers reads the file. Without a file, or with one that cannot be used, it starts with none.
func (c *Cluster) loadPeers() *remembered {
	path := c.options.RememberFile
	if path == "" {
		return newRemembered()
	}
	peers, err := readPeers(path, time.Now())
	if err == nil {
		return peers
	}
	if !errors.Is(err, fs.ErrNotExist) {
		c.options.Logger.Warn("the remembered peers cannot be used; starting without them", "error", err)
	}
	return newRemembered()
}

func readPeers(path string, now time.Time) (*remembered, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, maxPeersFile+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxPeersFile {
		return nil, fmt.Errorf("%s has more than %d bytes", path, maxPeersFile)
	}
	peers, err := decodePeers(data, now)
	if err != nil {
		return nil, fmt.Errorf("cannot read %s: %w", path, err)
	}
	return peers, nil
}

// saveInterval is how soon after a change the file is written.
const saveInterval = time.Second

// remember keeps the file up to date, apart from everything that must not wait for a disk.
func (c *Cluster) remember(ctx context.Context) {
	ticker := time.NewTicker(saveInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			c.savePeers()
		}
	}
}

// savePeers writes the file if it is out of date. A failure is logged once for each change: what is lost is a start
// without control.
func (c *Cluster) savePeers() {
	c.mu.Lock()
	dirty := c.peers.dirty
	c.peers.dirty = false
	peers := c.peers.list()
	c.mu.Unlock()
	if !dirty || c.options.RememberFile == "" {
		return
	}
	if err := writePeers(c.options.RememberFile, peers); err != nil {
		c.options.Logger.Warn("the remembered peers cannot be written", "error", err)
	}
}

// writePeers replaces the file as a whole; CreateTemp's mode is 0600.
func writePeers(path string, peers []peer) (err error) {
	data, err := encodePeers(peers)
	if err != nil {
		return err
	}
	file, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(file.Name()))
		}
	}()
	_, err = file.Write(data)
	// Without the sync a crash of the machine may leave the new name on an empty file.
	err = errors.Join(err, file.Sync(), file.Close())
	if err != nil {
		return err
	}
	return os.Rename(file.Name(), path)
}
