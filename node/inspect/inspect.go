// Package inspect answers operators at a node, when control is away: what the node itself does, and what it hears of the
// others. It only reads.
//
// It owns the service, of the same form as control's, so that pyservectl needs no other way. It does not own a listener or
// who is let in (package peer does), and knows the other members by what it is given.
//
// Order of calls: [New], then the service's methods, concurrently.
package inspect

import (
	"context"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/pyserve/pyserve/config"
	"github.com/pyserve/pyserve/config/bundle"
	"github.com/pyserve/pyserve/node"
	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
	operatorv1 "github.com/pyserve/pyserve/proto/pyserve/operator/v1"
)

// Member is another node or a control as gossip tells of it.
type Member struct {
	Name string
	// Node: it forwards; otherwise it is a control.
	Node bool
	// Address is the host:port of its gossip, where it answers as this node does.
	Address string
	// Gossip is alive, dead or left.
	Gossip   string
	Draining bool
	// Epoch and Revision are what it serves, and DigestPrefix the beginning of that bundle's digest; 0: nothing.
	Epoch, Revision uint64
	DigestPrefix    []byte
	// Since is when it was seen to come into Gossip's state.
	Since time.Time
}

// Options say what there is to tell.
type Options struct {
	// Name and Version are the node's own.
	Name, Version string
	// Node is asked for everything of its own. Required.
	Node *node.Node
	// Serving gives what the node serves; a nil release: nothing. Required.
	Serving func() (*fleetv1.Release, *bundle.Bundle)
	// Gossip is the node's own gossip address; empty: it takes part in none.
	Gossip func() string
	// Members gives the others. Required.
	Members func() []Member
	// Controls are the addresses that the node would connect to, and Connected says to which it is; empty: to none.
	Controls  func() []string
	Connected func() string
	// Sample asks another node what it has counted. Required.
	Sample func(ctx context.Context, m Member, routes uint32) (*fleetv1.Sample, error)
}

// Service implements the operator's service as far as it reads; the rest is Unimplemented.
type Service struct {
	operatorv1.UnimplementedOperatorServer
	options Options
}

// New makes the service.
func New(o Options) *Service { return &Service{options: o} }

// GetStatus tells of this node, and of the others as gossip does.
func (s *Service) GetStatus(context.Context, *operatorv1.GetStatusRequest) (*operatorv1.GetStatusResponse, error) {
	return s.status(), nil
}

// watchEvery is how often who watches is told of changes.
const watchEvery = time.Second

// WatchStatus tells at once, and again when it changed.
func (s *Service) WatchStatus(_ *operatorv1.GetStatusRequest, stream grpc.ServerStreamingServer[operatorv1.GetStatusResponse]) error {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	var told *operatorv1.GetStatusResponse
	for {
		if now := s.status(); !proto.Equal(told, now) {
			if err := stream.Send(now); err != nil {
				return err
			}
			told = now
		}
		select {
		case <-tick.C:
		case <-stream.Context().Done():
			return status.FromContextError(stream.Context().Err()).Err()
		}
	}
}

// status counts the fleet as converged when every node that takes part serves what this one does. What control wants, a
// node does not know: one that came later than the last control is on nobody's list.
func (s *Service) status() *operatorv1.GetStatusResponse {
	release := s.options.Node.Applied()
	m := &operatorv1.GetStatusResponse{Revision: release.GetRevision(), Digest: hex.EncodeToString(release.GetDigest())}
	m.Nodes = append(m.Nodes, s.self(release))
	m.Converged = release != nil
	for _, member := range s.options.Members() {
		if !member.Node || member.Name == s.options.Name {
			continue
		}
		row := rowOf(member, release)
		m.Nodes = append(m.Nodes, row)
		if row.State != "left" && (row.State == "disconnected" || row.Digest == "" || row.Digest != m.Digest || row.Revision != m.Revision) {
			m.Converged = false
		}
	}
	slices.SortFunc(m.Nodes, func(a, b *operatorv1.NodeStatus) int { return strings.Compare(a.Name, b.Name) })
	return m
}

func (s *Service) self(release *fleetv1.Release) *operatorv1.NodeStatus {
	row := &operatorv1.NodeStatus{
		Name: s.options.Name, State: "ready", Revision: release.GetRevision(), Digest: hex.EncodeToString(release.GetDigest()),
		Listen: s.options.Node.ListenAddress(), Gossip: "dead", Version: s.options.Version,
	}
	if s.options.Gossip() != "" {
		row.Gossip = "alive"
	}
	switch {
	case s.options.Node.Draining():
		row.State = "draining"
	case release == nil:
		row.State, row.Note = "joining", "has nothing to serve yet"
	}
	if s.options.Connected() == "" {
		row.Note = strings.TrimPrefix(row.Note+"; has no control", "; ")
	}
	return row
}

// rowOf is what gossip tells of a member. Its digest is known by its beginning; where that is ours, it is ours.
func rowOf(m Member, ours *fleetv1.Release) *operatorv1.NodeStatus {
	row := &operatorv1.NodeStatus{
		Name: m.Name, State: "ready", Revision: m.Revision, Digest: hex.EncodeToString(m.DigestPrefix), Gossip: m.Gossip,
		Since: timestamppb.New(m.Since),
	}
	if m.Revision == 0 {
		row.Digest = ""
	}
	if ours != nil && m.Epoch == ours.GetEpoch() && m.Revision == ours.GetRevision() && len(m.DigestPrefix) > 0 &&
		strings.HasPrefix(string(ours.GetDigest()), string(m.DigestPrefix)) {
		row.Digest = hex.EncodeToString(ours.GetDigest())
	}
	switch {
	case m.Gossip == "left":
		row.State = "left"
	case m.Gossip == "dead":
		row.State, row.Note = "disconnected", "gossip has lost it; what it served last is shown"
	case m.Draining:
		row.State = "draining"
	case m.Revision == 0:
		row.State = "joining"
	}
	return row
}

// ListRoutes gives the routes that this node serves.
func (s *Service) ListRoutes(_ *operatorv1.ListRoutesRequest, stream grpc.ServerStreamingServer[operatorv1.ListRoutesResponse]) error {
	r, err := s.meaning()
	if err != nil {
		return err
	}
	for part := range slices.Chunk(r.RouteSummaries(), rowsAtOnce) {
		if err := stream.Send(&operatorv1.ListRoutesResponse{Routes: part}); err != nil {
			return err
		}
	}
	return nil
}

// meaning is what the node serves; of nothing, nothing.
func (s *Service) meaning() (*config.Resources, error) {
	_, b := s.options.Serving()
	if b == nil {
		return &config.Resources{}, nil
	}
	r, err := b.Decode()
	if err != nil {
		return nil, fmt.Errorf("read what is served: %w", err)
	}
	return r, nil
}

// rowsAtOnce is how many rows a message has; pyservectl takes messages far larger than that makes.
const rowsAtOnce = 500

// ListBackends gives this node's verdicts.
func (s *Service) ListBackends(_ *operatorv1.ListBackendsRequest, stream grpc.ServerStreamingServer[operatorv1.ListBackendsResponse]) error {
	r, err := s.meaning()
	if err != nil {
		return err
	}
	for part := range slices.Chunk(s.options.Node.Backends(), rowsAtOnce) {
		m := &operatorv1.ListBackendsResponse{}
		for _, b := range part {
			weight, of := r.BackendOf(r.Routes[b.GetRoute()], b.GetAddress())
			m.Backends = append(m.Backends, &operatorv1.BackendSummary{
				Route: b.GetRoute(), Address: b.GetAddress(), Weight: weight, Part: of, State: stateName(b.GetState()),
				Reason: b.GetReason(), Since: b.GetSince(), FailOpen: b.GetFailOpen(),
			})
		}
		if err := stream.Send(m); err != nil {
			return err
		}
	}
	return nil
}

func stateName(s fleetv1.BackendState) string {
	if s == fleetv1.BackendState_BACKEND_STATE_UNSPECIFIED {
		return "unknown"
	}
	return strings.ToLower(strings.TrimPrefix(s.String(), "BACKEND_STATE_"))
}

// ExplainBackend tells why this node thinks of a backend as it does. Another node is asked at its own address.
func (s *Service) ExplainBackend(_ context.Context, request *operatorv1.ExplainBackendRequest) (*operatorv1.ExplainBackendResponse, error) {
	if wanted := request.GetNode(); wanted != "" && wanted != s.options.Name {
		return nil, s.askThere(wanted)
	}
	return &operatorv1.ExplainBackendResponse{
		Node: s.options.Name, Revision: s.options.Node.Applied().GetRevision(),
		Backends: s.options.Node.Why(request.GetAddress()).GetEvidence(),
	}, nil
}

// askThere says where another node is asked itself.
func (s *Service) askThere(name string) error {
	for _, member := range s.options.Members() {
		if member.Node && member.Name == name {
			return status.Errorf(codes.FailedPrecondition, "this is node %s, and a node tells its own reasons alone: ask %s with --control %s", s.options.Name, name, member.Address)
		}
	}
	return status.Errorf(codes.NotFound, "this is node %s, which knows of no node %s", s.options.Name, name)
}

// ListControls gives the controls that this node knows, by address. It is also how a caller finds out whether anybody
// answers.
func (s *Service) ListControls(context.Context, *operatorv1.ListControlsRequest) (*operatorv1.ListControlsResponse, error) {
	m := &operatorv1.ListControlsResponse{}
	for _, address := range s.options.Controls() {
		m.Controls = append(m.Controls, &operatorv1.ControlSummary{Address: address, Reachable: address == s.options.Connected()})
	}
	return m, nil
}

// sampleTime is how long another node may take to say what it has counted.
const sampleTime = 3 * time.Second

// ListSamples asks the other nodes too, but where another node asks. One that is dead is named, lest it pass for one that never was.
func (s *Service) ListSamples(ctx context.Context, request *operatorv1.ListSamplesRequest) (*operatorv1.ListSamplesResponse, error) {
	m := &operatorv1.ListSamplesResponse{}
	m.Nodes = append(m.Nodes, &operatorv1.NodeSample{Node: s.options.Name, Sample: s.options.Node.Sample(int(request.GetRoutes()))})
	if request.GetLocal() {
		return m, nil
	}
	ctx, cancel := context.WithTimeout(ctx, sampleTime)
	defer cancel()
	var mu sync.Mutex
	var asking sync.WaitGroup
	for _, member := range s.options.Members() {
		if !member.Node || member.Name == s.options.Name || member.Gossip == "left" {
			continue
		}
		if member.Gossip != "alive" {
			mu.Lock()
			m.Nodes = append(m.Nodes, &operatorv1.NodeSample{Node: member.Name, Failure: "gossip has lost it"})
			mu.Unlock()
			continue
		}
		asking.Go(func() {
			row := &operatorv1.NodeSample{Node: member.Name}
			sample, err := s.options.Sample(ctx, member, request.GetRoutes())
			if row.Sample = sample; err != nil {
				row.Failure = fmt.Sprintf("cannot be asked at %s: %s", member.Address, status.Convert(err).Message())
			}
			mu.Lock()
			defer mu.Unlock()
			m.Nodes = append(m.Nodes, row)
		})
	}
	asking.Wait()
	slices.SortFunc(m.Nodes, func(a, b *operatorv1.NodeSample) int { return strings.Compare(a.Node, b.Node) })
	return m, nil
}
