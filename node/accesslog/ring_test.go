package accesslog

import (
	"encoding/binary"
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"
)

func newRing(blocks int) *ring {
	r := new(ring)
	r.init(blocks)
	return r
}

func TestRingIsFullWhenItIsFull(t *testing.T) {
	r := newRing(8)
	for i := range 4 {
		at, pressed, ok := r.reserve(2)
		if !ok || pressed != (i > 1) {
			t.Fatalf("record %d: ok %t, pressed %t", i, ok, pressed)
		}
		r.commit(at, 2)
	}
	if _, _, ok := r.reserve(1); ok {
		t.Fatal("there is room for more than there is")
	}
	if _, ok := r.next(); !ok {
		t.Fatal("no record")
	}
	r.release()
	if _, _, ok := r.reserve(2); !ok {
		t.Error("what was released is not used again")
	}
}

func TestRecordThatIsNotCommittedHoldsUpThoseBehindIt(t *testing.T) {
	r := newRing(8)
	first, _, _ := r.reserve(1)
	second, _, _ := r.reserve(1)
	r.commit(second, 1)
	if _, ok := r.next(); ok {
		t.Fatal("the second came first")
	}
	r.commit(first, 1)
	for range 2 {
		if _, ok := r.next(); !ok {
			t.Fatal("no record")
		}
		r.release()
	}
	if r.tail.Load() != r.reserved() {
		t.Error("there is more")
	}
}

func TestRecordsAreNotSplitAtTheEnd(t *testing.T) {
	r := newRing(8)
	for range 3 {
		at, _, _ := r.reserve(2)
		r.commit(at, 2)
		r.next()
		r.release()
	}
	at, _, ok := r.reserve(3) // two are left before the end
	if !ok || at != 8 {
		t.Fatalf("at %d, %t, want 8", at, ok)
	}
	copy(r.bytes(at, 3), "begin")
	if _, ok := r.next(); ok {
		t.Fatal("not committed yet")
	}
	r.commit(at, 3)
	if b, ok := r.next(); !ok || string(b[:5]) != "begin" || len(b) != 3*blockSize {
		t.Fatalf("%q, %t", b, ok)
	}
	r.release()
	if r.tail.Load() != r.reserved() {
		t.Error("there is more")
	}
}

func TestClosedRingTakesNothing(t *testing.T) {
	r := newRing(8)
	at, _, _ := r.reserve(1)
	r.close()
	r.close()
	if _, _, ok := r.reserve(1); ok {
		t.Error("reserved after the end")
	}
	r.commit(at, 1)
	if _, ok := r.next(); !ok || r.reserved() != 1 {
		t.Error("what was reserved before is lost")
	}
}

// Producers of records of any length and a consumer that is slower: nothing is lost, doubled, torn, or out of a producer's
// order.
func TestRingUnderLoad(t *testing.T) {
	const producers, records = 4, 20_000
	r := newRing(64)
	var producing sync.WaitGroup
	for p := range uint64(producers) {
		producing.Go(func() {
			random := rand.New(rand.NewPCG(p, 1))
			for i := uint64(0); i < records; {
				blocks := 1 + random.Uint64N(16)
				at, _, ok := r.reserve(blocks)
				if !ok {
					runtime.Gosched() // there may be one processor
					continue
				}
				b := r.bytes(at, blocks)
				for j := 0; j < len(b); j += 16 {
					binary.LittleEndian.PutUint64(b[j:], p)
					binary.LittleEndian.PutUint64(b[j+8:], i)
				}
				r.commit(at, blocks)
				i++
			}
		})
	}
	go func() { producing.Wait(); r.close() }()
	var next [producers]uint64
	for r.head.Load()&closedBit == 0 || r.tail.Load() != r.reserved() {
		b, ok := r.next()
		if !ok {
			runtime.Gosched()
			continue
		}
		p := binary.LittleEndian.Uint64(b)
		for j := 0; j < len(b); j += 16 {
			if binary.LittleEndian.Uint64(b[j:]) != p || binary.LittleEndian.Uint64(b[j+8:]) != next[p] {
				t.Fatalf("record %d of producer %d is torn or not the next", next[p], p)
			}
		}
		next[p]++
		r.release()
	}
	if next != [producers]uint64{records, records, records, records} {
		t.Errorf("%v records, want %d each", next, records)
	}
}
