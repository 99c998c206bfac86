package cluster

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/pyserve/pyserve/cluster/state"
	"github.com/pyserve/pyserve/proto/voucher"
)

// Why something of another member is not believed, as Dropped names it.
const (
	unvouched = "unvouched"
	forged    = "forged"
	malformed = "malformed"
	replayed  = "replayed"
)

// disbelief is the reason with what is to be read in the log.
type disbelief struct {
	reason string
	err    error
}

func (d *disbelief) Error() string { return d.err.Error() }

func disbelieve(reason, text string) error { return &disbelief{reason, errors.New(text)} }

// vouched are the members that control vouched for, and what each proved to have said. Whoever holds the gossip key can
// say anything in any name; what is not here is not believed. Names that control never vouched for take no room.
type vouched struct {
	issuer  []byte
	cluster string

	// mu guards holders. It is taken under memberlist's lock, so nothing is called under it that might take that.
	mu      sync.Mutex
	holders map[Origin]*holder
}

// holder is a member whose voucher was found good. It is replaced, never changed.
type holder struct {
	raw     []byte // of the voucher
	voucher voucher.Voucher
	// metadata and address are what it signed last.
	metadata []byte
	address  netip.AddrPort
}

func newVouched(issuer []byte, cluster string) *vouched {
	return &vouched{issuer: issuer, cluster: cluster, holders: make(map[Origin]*holder)}
}

// admit proves that the member of that name says this of itself at this address. It takes 100 µs for what is new, and
// nothing for what was said before, as at full exchanges.
func (v *vouched) admit(o Origin, address netip.AddrPort, metadata []byte, now time.Time) error {
	v.mu.Lock()
	known := v.holders[o]
	v.mu.Unlock()
	if known != nil && known.address == address && bytes.Equal(known.metadata, metadata) && !known.voucher.Ended(now) {
		return nil
	}
	next, err := v.prove(known, o, address, metadata, now)
	if err != nil {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.holders[o] = next
	return nil
}

func (v *vouched) prove(known *holder, o Origin, address netip.AddrPort, metadata []byte, now time.Time) (*holder, error) {
	m, unsigned, err := state.DecodeMetadata(metadata)
	if err != nil {
		return nil, &disbelief{malformed, err}
	}
	if len(m.Voucher) == 0 {
		return nil, disbelieve(unvouched, "it has no voucher of control, as a member of an older version or a stranger with the gossip key")
	}
	next := &holder{raw: m.Voucher, metadata: metadata, address: address}
	if known != nil && bytes.Equal(known.raw, m.Voucher) {
		next.voucher = known.voucher
	} else if next.voucher, err = voucher.Open(v.issuer, v.cluster, state.WireName(o.Role, o.Name), m.Voucher); err != nil {
		return nil, &disbelief{unvouched, err}
	}
	switch {
	case next.voucher.Ended(now):
		return nil, disbelieve(unvouched, "its voucher has ended")
	case known != nil && next.voucher.Ends.Before(known.voucher.Ends):
		// A name that was given to another key, say, since the first was stolen.
		return nil, disbelieve(unvouched, "control gave a later voucher for its name")
	case !next.voucher.Signed(state.SignedMetadata(v.cluster, o, address, unsigned), m.Signature):
		return nil, disbelieve(forged, "its metadata is not signed by the holder of its voucher for its address")
	}
	return next, nil
}

// check proves that the holder of a name signed something.
func (v *vouched) check(o Origin, message, signature []byte, now time.Time) error {
	v.mu.Lock()
	known := v.holders[o]
	v.mu.Unlock()
	if known == nil || known.voucher.Ended(now) {
		return disbelieve(unvouched, "no voucher is known for the name")
	}
	if !known.voucher.Signed(message, signature) {
		return disbelieve(forged, "it is not signed by the holder of the name")
	}
	return nil
}

// good tells whether a voucher is known for the name that has not ended.
func (v *vouched) good(o Origin, now time.Time) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	known := v.holders[o]
	return known != nil && !known.voucher.Ended(now)
}

// forget makes room.
func (v *vouched) forget(o Origin) {
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.holders, o)
}

// accept is asked under memberlist's lock about everybody who is said to be there.
func (c *Cluster) accept(wire string, address netip.AddrPort, metadata []byte) error {
	role, name, err := state.ParseWireName(wire)
	if err != nil {
		c.messages.drop(malformed)
		return err
	}
	if err := c.vouched.admit(Origin{Role: role, Name: name}, address, metadata, time.Now()); err != nil {
		c.messages.drop(reasonOf(err))
		return err
	}
	return nil
}

func reasonOf(err error) string {
	var d *disbelief
	if errors.As(err, &d) {
		return d.reason
	}
	return malformed
}

// metadata is what is told of us at an address.
func (c *Cluster) metadata(facts Facts, address netip.AddrPort) ([]byte, error) {
	c.mu.Lock()
	raw := c.voucher
	c.sequence = max(c.sequence+1, uint64(max(time.Now().UnixMilli(), 0)))
	m := state.Metadata{Facts: facts, KeyMark: keyMark(c.keys[0]), Sequence: c.sequence, Voucher: raw}
	c.mu.Unlock()
	unsigned := m.EncodeUnsigned()
	if len(raw) == 0 {
		return unsigned, nil
	}
	signature, err := voucher.Sign(c.options.Key, state.SignedMetadata(c.options.ClusterID, c.self(), address, unsigned))
	if err != nil {
		return nil, err
	}
	return append(unsigned, signature...), nil
}

// SetVoucher takes the place of Options.Voucher, as control gives a new one with a new certificate of the same key. One
// that is not control's word for our name and key is an error, and the one before stays. It does not block.
func (c *Cluster) SetVoucher(raw []byte) error {
	if err := c.options.checkVoucher(raw); err != nil {
		return fmt.Errorf("cluster: %w", err)
	}
	c.mu.Lock()
	same := bytes.Equal(c.voucher, raw)
	c.voucher = bytes.Clone(raw)
	c.mu.Unlock()
	if !same {
		wake(c.announceNow)
	}
	return nil
}

func (o Options) checkVoucher(raw []byte) error {
	v, err := voucher.Open(o.Issuer, o.ClusterID, state.WireName(o.Role, o.Name), raw)
	if err != nil {
		return err
	}
	key, err := voucher.KeyOf(o.Key.Public())
	if err != nil {
		return fmt.Errorf("option Key: %w", err)
	}
	if key != v.Key {
		return errors.New("the voucher is for another key than Options.Key")
	}
	return nil
}
