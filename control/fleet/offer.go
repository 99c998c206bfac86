package fleet

import (
	"context"

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
	delta := bundle.Between(base, o.target.Bundle)
	head := &fleetv1.Offer{Nonce: o.nonce, Release: o.target.Release}
	if base != nil {
		head.BaseDigest = delta.Base[:]
	}
	if err := f.transmit(s, &fleetv1.ToNode{Message: &fleetv1.ToNode_Offer{Offer: head}}); err != nil {
		return err
	}
	for part := range parts(delta) {
		if f.outdated(s, o) {
			return nil
		}
		part.Nonce = o.nonce
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
