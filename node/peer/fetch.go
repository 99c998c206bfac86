package peer

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/pyserve/pyserve/config"
	"github.com/pyserve/pyserve/config/bundle"
	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
	operatorv1 "github.com/pyserve/pyserve/proto/pyserve/operator/v1"
	peerv1 "github.com/pyserve/pyserve/proto/pyserve/peer/v1"
)

const (
	// headTime bounds the first answer of a peer, and fetchTime everything of one.
	headTime  = 3 * time.Second
	fetchTime = 2 * time.Minute
	// maxResponse bounds a message of a peer: a part of a manifest may end with one long name.
	maxResponse = 1 << 20
	// maxManifest bounds what is read of a manifest before its digest proves it.
	maxManifest = 64 << 20
)

// ErrDamaged says that a peer sent a body that is not the one it was asked for.
var ErrDamaged = errors.New("a resource is not the one that the manifest names")

// Node is one to ask.
type Node struct {
	Name string
	// Address is host:port of its gossip.
	Address string
}

// FetchOptions say what is wanted.
type FetchOptions struct {
	Identity Identity
	// Nodes are asked in their order.
	Nodes []Node
	// Base is what the node serves, whose bodies need not be fetched; nil: nothing.
	Base *bundle.Bundle
	// Accept tells why a release, whose signature is good, is not to be had, or nil. It is called from several goroutines.
	// Required.
	Accept func(*fleetv1.Release) error
	// Failed is told of each node that could not give what it should, or that gave something wrong. Required.
	Failed func(Node, error)
	// Now is the clock for certificates. Required.
	Now func() time.Time
}

// Fetched is a bundle that control signed.
type Fetched struct {
	Release *fleetv1.Release
	Bundle  *bundle.Bundle
	// From names the node that gave the last of it.
	From string
	// Bytes is the size of the bodies that were fetched, and Bodies their number.
	Bytes, Bodies int
}

// ErrNothing says that no node had anything acceptable that could be got whole; Failed was told the reasons.
var ErrNothing = errors.New("no peer could give a newer configuration")

// Fetch gets the newest acceptable bundle that any of the nodes serves: all say which it is; then the manifest and the
// bodies that Base lacks come from the first that gives them, and from the next where one fails. Everything is proved by
// control's signature and its digests before it is returned.
func Fetch(ctx context.Context, o FetchOptions) (*Fetched, error) {
	sources := askAll(ctx, o)
	defer func() {
		for _, s := range sources {
			s.conn.Close()
		}
	}()
	if len(sources) == 0 {
		return nil, ErrNothing
	}
	newest := slices.MaxFunc(sources, func(a, b *source) int { return compare(a.release, b.release) }).release
	f := &fetch{options: o, release: newest, bodies: make(map[bundle.Sum][]byte)}
	for _, s := range sources {
		if compare(s.release, newest) != 0 || string(s.release.GetDigest()) != string(newest.GetDigest()) {
			continue
		}
		b, err := f.from(ctx, s)
		if err == nil {
			return &Fetched{Release: newest, Bundle: b, From: s.node.Name, Bytes: f.size, Bodies: len(f.bodies)}, nil
		}
		o.Failed(s.node, err)
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
	}
	return nil, ErrNothing
}

// compare orders releases by epoch and revision.
func compare(a, b *fleetv1.Release) int {
	return cmp.Or(cmp.Compare(a.GetEpoch(), b.GetEpoch()), cmp.Compare(a.GetRevision(), b.GetRevision()))
}

// source is a node that serves something acceptable.
type source struct {
	node    Node
	conn    *grpc.ClientConn
	client  peerv1.PeerClient
	release *fleetv1.Release
}

// askAll asks the nodes at once, since those that do not answer take their time, and gives those that have something.
func askAll(ctx context.Context, o FetchOptions) (sources []*source) {
	asked, failures := make([]*source, len(o.Nodes)), make([]error, len(o.Nodes))
	var asking sync.WaitGroup
	for i, node := range o.Nodes {
		asking.Go(func() { asked[i], failures[i] = ask(ctx, o, node) })
	}
	asking.Wait()
	for i, node := range o.Nodes {
		if failures[i] != nil {
			o.Failed(node, failures[i])
			continue
		}
		sources = append(sources, asked[i])
	}
	return sources
}

// ask finds out what a node serves, and that control signed it.
func ask(ctx context.Context, o FetchOptions, node Node) (*source, error) {
	conn, err := dial(o.Identity, node, o.Now)
	if err != nil {
		return nil, err
	}
	s := &source{node: node, conn: conn, client: peerv1.NewPeerClient(conn)}
	ctx, cancel := context.WithTimeout(ctx, headTime)
	defer cancel()
	head, err := s.client.Head(ctx, &peerv1.HeadRequest{})
	if err == nil {
		s.release = head.GetRelease()
		_, err = bundle.VerifyRelease(o.Identity.ReleaseKey, s.release)
	}
	if err == nil {
		err = o.Accept(s.release)
	}
	if err != nil {
		conn.Close()
		return nil, plain(err)
	}
	return s, nil
}

func dial(id Identity, node Node, now func() time.Time) (*grpc.ClientConn, error) {
	conn, err := grpc.NewClient("passthrough:///"+node.Address,
		grpc.WithTransportCredentials(credentials.NewTLS(clientTLS(id, node.Name, now))),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxResponse)),
	)
	if err != nil {
		return nil, fmt.Errorf("%q is not an address: %w", node.Address, err)
	}
	return conn, nil
}

// Sample asks a node what it has counted, with up to so many routes.
func Sample(ctx context.Context, id Identity, node Node, routes uint32) (*fleetv1.Sample, error) {
	conn, err := dial(id, node, time.Now)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	m, err := operatorv1.NewOperatorClient(conn).ListSamples(ctx, &operatorv1.ListSamplesRequest{Routes: routes, Local: true})
	if err != nil {
		return nil, plain(err)
	}
	if len(m.GetNodes()) != 1 {
		return nil, fmt.Errorf("it tells of %d nodes, not of itself alone", len(m.GetNodes()))
	}
	return m.GetNodes()[0].GetSample(), nil
}

// plain takes gRPC's dress off an error of the other side.
func plain(err error) error {
	if s, ok := status.FromError(err); ok && err != nil {
		return errors.New(s.Message())
	}
	return err
}

// fetch is what came so far of one release.
type fetch struct {
	options  FetchOptions
	release  *fleetv1.Release
	manifest *bundle.Manifest
	bodies   map[bundle.Sum][]byte
	size     int
}

// from gets what is still missing from one node.
func (f *fetch) from(ctx context.Context, s *source) (*bundle.Bundle, error) {
	ctx, cancel := context.WithTimeout(ctx, fetchTime)
	defer cancel()
	if f.manifest == nil {
		m, err := f.readManifest(ctx, s)
		if err != nil {
			return nil, plain(err)
		}
		f.manifest = m
	}
	missing := slices.DeleteFunc(f.manifest.Missing(f.options.Base), func(sum bundle.Sum) bool {
		_, here := f.bodies[sum]
		return here
	})
	for some := range slices.Chunk(missing, maxWanted) {
		if err := f.readBodies(ctx, s, some); err != nil {
			return nil, plain(err)
		}
	}
	b, err := f.manifest.Assemble(f.options.Base, f.bodies)
	if err != nil {
		return nil, err
	}
	return b, bundle.Verify(f.options.Identity.ReleaseKey, f.release, b)
}

func (f *fetch) readManifest(ctx context.Context, s *source) (*bundle.Manifest, error) {
	stream, err := s.client.Manifest(ctx, &peerv1.ManifestRequest{Digest: f.release.GetDigest()})
	if err != nil {
		return nil, err
	}
	var entries []bundle.Entry
	for size := 0; ; {
		part, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return bundle.NewManifest(bundle.Digest(f.release.GetDigest()), entries)
		}
		if err != nil {
			return nil, err
		}
		size++ // parts may be empty
		for _, e := range part.GetEntries() {
			sum, err := bundle.ParseDigest(e.GetSha256())
			if err != nil {
				return nil, err
			}
			if size += len(e.GetName()) + len(e.GetKind()) + len(sum); size > maxManifest || len(entries) >= bundle.MaxResources {
				return nil, errors.New("the manifest is larger than a bundle's may be")
			}
			entries = append(entries, bundle.Entry{Key: bundle.Key{Kind: config.Kind(e.GetKind()), Name: e.GetName()}, Sum: bundle.Sum(sum)})
		}
	}
}

// readBodies keeps each body that is the one it was asked for; what came before a failure stays.
func (f *fetch) readBodies(ctx context.Context, s *source, wanted []bundle.Sum) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // of what is not read to its end
	request := &peerv1.ResourcesRequest{Digest: f.release.GetDigest()}
	for _, sum := range wanted {
		request.Sha256 = append(request.Sha256, sum[:])
	}
	stream, err := s.client.Resources(ctx, request)
	if err != nil {
		return err
	}
	for _, sum := range wanted {
		body, err := f.readBody(stream)
		if err != nil {
			return err
		}
		if sha256.Sum256(body) != sum {
			return ErrDamaged
		}
		f.bodies[sum], f.size = body, f.size+len(body)
	}
	return nil
}

func (f *fetch) readBody(stream grpc.ServerStreamingClient[peerv1.ResourcesResponse]) ([]byte, error) {
	var body []byte
	for {
		part, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil, errors.New("the answer ends before all is there")
		}
		if err != nil {
			return nil, err
		}
		if len(part.GetData()) == 0 && !part.GetLast() {
			return nil, errors.New("a part of a resource is empty")
		}
		if f.size+len(body)+len(part.GetData()) > bundle.MaxBytes {
			return nil, fmt.Errorf("the resources are larger than the %d MiB that a bundle may have", bundle.MaxBytes>>20)
		}
		body = append(body, part.GetData()...)
		if part.GetLast() {
			return body, nil
		}
	}
}
