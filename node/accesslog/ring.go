package accesslog

import "sync/atomic"

const (
	blockSize = 64 // bytes: a cache line
	// closedBit in ring.head lets nothing more be reserved. At a hundred million entries per second, positions get there
	// in centuries.
	closedBit = 1 << 63
	// skipFlag in a state marks blocks at the end of the ring that were too few for a record.
	skipFlag = 1 << 31
)

// ring is a queue of records of many producers and one consumer, without a lock. A record takes whole blocks, one after the
// other. A producer reserves them, fills them and commits them; the consumer takes records in the order of their
// reservations. A producer that is interrupted in between holds up the consumer, and nobody else until the ring is full.
//
// Positions count blocks since the beginning.
type ring struct {
	head atomic.Uint64 // where the next record is reserved; moved by producers
	_    [blockSize - 8]byte
	tail atomic.Uint64 // where the consumer is; moved by it alone
	_    [blockSize - 8]byte

	// By block: how many blocks the record that begins there has, once it is committed; 0 before, after, and amid records.
	states []atomic.Uint32
	data   []byte
	mask   uint64
}

// init makes a ring of that many blocks, a power of two.
func (r *ring) init(blocks int) {
	r.states, r.data, r.mask = make([]atomic.Uint32, blocks), make([]byte, blocks*blockSize), uint64(blocks-1)
}

func blocksFor(bytes int) uint64 { return uint64(bytes+blockSize-1) / blockSize }

// reserve takes blocks from the ring, and says whether it is more than half full with them. Not ok: there are not enough, or
// the ring is closed.
func (r *ring) reserve(blocks uint64) (at uint64, pressed, ok bool) {
	size := uint64(len(r.states))
	for {
		head := r.head.Load()
		if head&closedBit != 0 {
			return 0, false, false
		}
		skip := uint64(0)
		if left := size - head&r.mask; left < blocks {
			skip = left
		}
		end := head + skip + blocks
		// The tail is loaded after the head: if others have moved the head since, the tail may be past end, and used below 0.
		// The swap fails then.
		used := int64(end - r.tail.Load())
		if used > int64(size) {
			return 0, false, false
		}
		if r.head.CompareAndSwap(head, end) {
			if skip > 0 {
				r.states[head&r.mask].Store(uint32(skip) | skipFlag)
			}
			return head + skip, used > int64(size/2), true
		}
	}
}

// bytes are those of blocks that were reserved at that place.
func (r *ring) bytes(at, blocks uint64) []byte {
	begin, end := (at&r.mask)*blockSize, (at&r.mask+blocks)*blockSize
	return r.data[begin:end:end]
}

// commit hands the record to the consumer.
func (r *ring) commit(at, blocks uint64) { r.states[at&r.mask].Store(uint32(blocks)) }

// close lets nothing more be reserved. What was reserved before can be committed still.
func (r *ring) close() { r.head.Or(closedBit) }

// reserved is the position up to which there are records, or will be soon.
func (r *ring) reserved() uint64 { return r.head.Load() &^ closedBit }

// next is the record at the tail; not ok: there is none, or it is not committed yet. It is the consumer's until release.
func (r *ring) next() (record []byte, ok bool) {
	tail := r.tail.Load()
	state := r.states[tail&r.mask].Load()
	if state&skipFlag != 0 {
		r.release()
		tail = r.tail.Load()
		state = r.states[tail&r.mask].Load()
	}
	if state == 0 {
		return nil, false
	}
	return r.bytes(tail, uint64(state)), true
}

// release gives the blocks at the tail back to the producers.
func (r *ring) release() {
	tail := r.tail.Load()
	state := &r.states[tail&r.mask]
	blocks := state.Load() &^ skipFlag
	state.Store(0) // first: a producer may write it as soon as the tail has moved
	r.tail.Store(tail + uint64(blocks))
}
