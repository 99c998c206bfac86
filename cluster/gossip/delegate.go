package gossip

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/memberlist"
)

// delegate is everything that memberlist calls. Most of it is called under memberlist's lock, so nothing here blocks,
// logs or calls memberlist; it is complete before memberlist starts.
type delegate struct {
	self      string
	accept    func(name string, address netip.AddrPort, metadata []byte) error
	metadata  atomic.Value // []byte, at most MaxMetadata, never written to
	changed   chan struct{}
	conflicts chan Conflict
	state     func() []byte
	inbox     *inbox
	outbox    *outbox

	// mu guards members and is taken after memberlist's own lock, never before.
	mu      sync.Mutex
	members map[string]*record
}

// record is a copy of what memberlist said of a member last; it is replaced, never changed.
type record struct {
	name, address string
	metadata      []byte
	gone          bool
}

var (
	_ memberlist.Delegate         = (*delegate)(nil)
	_ memberlist.EventDelegate    = (*delegate)(nil)
	_ memberlist.ConflictDelegate = (*delegate)(nil)
	_ memberlist.AliveDelegate    = (*delegate)(nil)
)

func newDelegate(o Options) *delegate {
	return &delegate{
		self:      o.Name,
		accept:    o.Accept,
		changed:   make(chan struct{}, 1),
		conflicts: make(chan Conflict, 16),
		state:     o.State,
		inbox:     newInbox(),
		outbox:    newOutbox(),
		members:   make(map[string]*record),
	}
}

func (d *delegate) records() []*record {
	d.mu.Lock()
	defer d.mu.Unlock()
	records := make([]*record, 0, len(d.members))
	for _, r := range d.members {
		records = append(records, r)
	}
	return records
}

// forget drops the record of a member that is gone, unless it came back meanwhile.
func (d *delegate) forget(r *record) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.members[r.name] == r {
		delete(d.members, r.name)
	}
}

// keep copies a node, whose fields memberlist writes to under its lock later on.
func (d *delegate) keep(n *memberlist.Node, gone bool) {
	r := &record{name: n.Name, address: n.Address(), metadata: slices.Clone(n.Meta), gone: gone}
	d.mu.Lock()
	d.members[n.Name] = r
	d.mu.Unlock()
	select {
	case d.changed <- struct{}{}:
	default:
	}
}

// NotifyJoin is memberlist's.
func (d *delegate) NotifyJoin(n *memberlist.Node) { d.keep(n, false) }

// NotifyUpdate is memberlist's.
func (d *delegate) NotifyUpdate(n *memberlist.Node) { d.keep(n, false) }

// NotifyLeave is memberlist's; the node may have left or died.
func (d *delegate) NotifyLeave(n *memberlist.Node) { d.keep(n, true) }

// NotifyConflict is memberlist's; it comes with every packet that tells of the conflict.
func (d *delegate) NotifyConflict(existing, other *memberlist.Node) {
	select {
	case d.conflicts <- Conflict{Name: existing.Name, Holder: existing.Address(), Claimant: other.Address()}:
	default:
	}
}

// NotifyAlive is memberlist's, and the place where hostile or broken members are kept out: memberlist itself takes
// names, addresses and metadata of any size.
func (d *delegate) NotifyAlive(n *memberlist.Node) error {
	if n.Name == d.self {
		return nil
	}
	if len(n.Meta) > MaxMetadata {
		return fmt.Errorf("its metadata has %d bytes, more than %d", len(n.Meta), MaxMetadata)
	}
	addr, ok := netip.AddrFromSlice(n.Addr)
	if !ok {
		return fmt.Errorf("its address has %d bytes", len(n.Addr))
	}
	if d.accept == nil {
		return nil
	}
	return d.accept(n.Name, netip.AddrPortFrom(addr.Unmap(), n.Port), slices.Clone(n.Meta))
}

// NodeMeta is memberlist's.
func (d *delegate) NodeMeta(int) []byte { return slices.Clone(d.metadata.Load().([]byte)) }

// NotifyMsg is memberlist's.
func (d *delegate) NotifyMsg(message []byte) { d.inbox.putMessage(message) }

// GetBroadcasts is memberlist's.
func (d *delegate) GetBroadcasts(overhead, limit int) [][]byte {
	return d.outbox.take(overhead, limit)
}

// present counts the members that take part.
func (d *delegate) present() (n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, r := range d.members {
		if !r.gone {
			n++
		}
	}
	return n
}

// LocalState is memberlist's, which does not hold its lock here.
func (d *delegate) LocalState(bool) []byte {
	if d.state == nil {
		return nil
	}
	state := d.state()
	if len(state) > MaxState {
		d.inbox.count(func(drops *Drops) { drops.Unsent++ })
		return nil
	}
	return state
}

// MergeRemoteState is memberlist's.
func (d *delegate) MergeRemoteState(state []byte, _ bool) { d.inbox.putState(state) }
