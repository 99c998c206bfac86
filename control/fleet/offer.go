package fleet

import (
	"context"
	"slices"
	"sync"

	"github.com/pyserve/pyserve/config/bundle"
	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
)

// partBytes is how much one OfferPart carries, well under gRPC's 4 MiB, so that a stream is never blocked for long by
// one message.
const partBytes = 512 << 10

// sendOffer sends a bundle, as a delta where base is known. A newer wish ends it between two parts.
func (f *Fleet) sendOffer(s *session, o *offer, base *bundle.Bundle) error {
	if base == nil {
		select {
		case f.whole <- struct{}{}:
			defer func() { <-f.whole }()
		case <-s.ctx.Done():
			return context.Cause(s.ctx)
		}
	}
	if f.outdated(s, o) {
		return nil
	}
	p := f.pack(base, o.target)
	defer f.unpack(p)
	head := &fleetv1.Offer{Nonce: o.nonce, Release: o.target.Release}
	if base != nil {
		digest := base.Digest()
		head.BaseDigest = digest[:]
	}
	if err := f.transmit(s, &fleetv1.ToNode{Message: &fleetv1.ToNode_Offer{Offer: head}}); err != nil {
		return err
	}
	for _, cut := range p.cut() {
		if f.outdated(s, o) {
			return nil
		}
		// A message of its own around what is shared: the nonce is this node's.
		part := &fleetv1.OfferPart{Nonce: o.nonce, Removed: cut.Removed, Upserted: cut.Upserted, Last: cut.Last}
		if err := f.transmit(s, &fleetv1.ToNode{Message: &fleetv1.ToNode_OfferPart{OfferPart: part}}); err != nil {
			return err
		}
	}
	return nil
}

func (f *Fleet) outdated(s *session, o *offer) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return s.offer != o || f.wanted(s) != o.target
}

// packing is a bundle as it goes to every node that serves the same base, compared and cut once for all of them: for
// 1,000 nodes and 10,000 routes comparing alone would be most of what an apply costs.
type packing struct {
	base   *bundle.Bundle // nil: the bundle is sent whole
	target *Target
	users  int // senders that have it; guarded by the fleet's mu

	once  sync.Once
	parts []*fleetv1.OfferPart // without a nonce; not changed once made
}

func (p *packing) cut() []*fleetv1.OfferPart {
	p.once.Do(func() { p.parts = slices.Collect(parts(bundle.Between(p.base, p.target.Bundle))) })
	return p.parts
}

// pack gives the packing of a target for a base. unpack must be called.
func (f *Fleet) pack(base *bundle.Bundle, t *Target) *packing {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, p := range f.packed {
		if p.base == base && p.target == t {
			p.users++
			return p
		}
	}
	p := &packing{base: base, target: t, users: 1}
	f.packed = append(f.packed, p)
	return p
}

// unpack says that a sender is done with a packing.
func (f *Fleet) unpack(p *packing) {
	f.mu.Lock()
	defer f.mu.Unlock()
	p.users--
	f.tidy()
}

// tidy drops packings that nobody sends. One of a delta stays for the nodes to come, as long as its target is wanted; one
// of a whole bundle is as large as the bundle, and does not. The caller holds mu.
func (f *Fleet) tidy() {
	f.packed = slices.DeleteFunc(f.packed, func(p *packing) bool {
		return p.users == 0 && (p.base == nil || p.target != f.target && p.target != f.proposed)
	})
}

// parts cuts a delta into messages; there is always a last one. A resource larger than a part has one to itself: it
// cannot be cut, and the largest that a document can make is far above gRPC's 4 MiB, so nodes take more.
func parts(d bundle.Delta) func(yield func(*fleetv1.OfferPart) bool) {
	return func(yield func(*fleetv1.OfferPart) bool) {
		part, size := &fleetv1.OfferPart{}, 0
		room := func(n int) bool {
			if size > 0 && size+n > partBytes {
				if !yield(part) {
					return false
				}
				part, size = &fleetv1.OfferPart{}, 0
			}
			size += n
			return true
		}
		for _, key := range d.Removed {
			if !room(len(key.Name) + 16) {
				return
			}
			part.Removed = append(part.Removed, &fleetv1.ResourceKey{Kind: string(key.Kind), Name: key.Name})
		}
		for _, r := range d.Upserted {
			if !room(len(r.Name) + len(r.Body) + 24) {
				return
			}
			part.Upserted = append(part.Upserted, &fleetv1.Resource{Kind: string(r.Kind), Name: r.Name, Body: r.Body})
		}
		part.Last = true
		yield(part)
	}
}
