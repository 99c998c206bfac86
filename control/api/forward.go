package api

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/pyserve/pyserve/control/identity"
	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
	operatorv1 "github.com/pyserve/pyserve/proto/pyserve/operator/v1"
	replicav1 "github.com/pyserve/pyserve/proto/pyserve/replica/v1"
)

// place says which control answers a call.
type place uint8

const (
	// here: the control that is asked. The zero value is no place, so that a method that nobody thought about is found.
	here place = iota + 1
	// leaderOrHere: the one that leads, since it knows more; without one, the one that is asked.
	leaderOrHere
	// leader: the one that leads, and nobody without one.
	leader
)

// places says where each method is answered. A test holds it against the services.
var places = map[string]place{
	fleetv1.Enrollment_Enroll_FullMethodName: leader,
	fleetv1.Enrollment_Join_FullMethodName:   leader,

	fleetv1.Fleet_Connect_FullMethodName: here,
	// Every control can renew, and a certificate must not end for want of a leader.
	fleetv1.Fleet_Renew_FullMethodName: leaderOrHere,

	replicav1.Replica_Attend_FullMethodName:       here,
	replicav1.Replica_Write_FullMethodName:        here,
	replicav1.Replica_ListVerdicts_FullMethodName: here,
	replicav1.Replica_Announce_FullMethodName:     here, // its write finds the leader

	operatorv1.Operator_GetStatus_FullMethodName:      leaderOrHere,
	operatorv1.Operator_WatchStatus_FullMethodName:    leaderOrHere,
	operatorv1.Operator_GetConfig_FullMethodName:      leaderOrHere,
	operatorv1.Operator_ListRoutes_FullMethodName:     leaderOrHere,
	operatorv1.Operator_ListBackends_FullMethodName:   leaderOrHere,
	operatorv1.Operator_ListRevisions_FullMethodName:  leaderOrHere,
	operatorv1.Operator_Explain_FullMethodName:        leaderOrHere,
	operatorv1.Operator_ExplainBackend_FullMethodName: leaderOrHere,
	operatorv1.Operator_Diff_FullMethodName:           leaderOrHere,
	operatorv1.Operator_FindFiles_FullMethodName:      leaderOrHere,
	operatorv1.Operator_ListControls_FullMethodName:   leaderOrHere,
	operatorv1.Operator_WatchEvents_FullMethodName:    leaderOrHere,
	operatorv1.Operator_ListSamples_FullMethodName:    leaderOrHere,
	operatorv1.Operator_Apply_FullMethodName:          leader,
	operatorv1.Operator_Rollback_FullMethodName:       leader,
	operatorv1.Operator_RemoveControl_FullMethodName:  leader,
	operatorv1.Operator_Drain_FullMethodName:          leader, // who drains at a time is decided in one place
	operatorv1.Operator_Undrain_FullMethodName:        leader,

	operatorv1.Access_CreateToken_FullMethodName:     leader,
	operatorv1.Access_ListTokens_FullMethodName:      leaderOrHere,
	operatorv1.Access_ListAudit_FullMethodName:       leaderOrHere,
	operatorv1.Access_GetAuthority_FullMethodName:    leaderOrHere,
	operatorv1.Access_RotateAuthority_FullMethodName: leader,
	operatorv1.Access_FinishRotation_FullMethodName:  leader,
	operatorv1.Access_RotateGossipKey_FullMethodName: leader,
	operatorv1.Access_CancelGossipKey_FullMethodName: leader,
	operatorv1.Access_GetGossipKey_FullMethodName:    leaderOrHere,
	operatorv1.Access_RevokeToken_FullMethodName:     leader,
	operatorv1.Access_RevokeNode_FullMethodName:      leader,
	operatorv1.Access_CreateContext_FullMethodName:   leader,
	operatorv1.Access_ListContexts_FullMethodName:    leaderOrHere,
	operatorv1.Access_RevokeContext_FullMethodName:   leader,
	operatorv1.Access_Backup_FullMethodName:          leaderOrHere,
	operatorv1.Access_Restore_FullMethodName:         leader,
}

// watches are the methods whose answers do not end.
var watches = map[string]bool{
	operatorv1.Operator_WatchStatus_FullMethodName: true,
	operatorv1.Operator_WatchEvents_FullMethodName: true,
}

// Metadata of a call that a control passes on. It is believed only from the certificate of a control.
const (
	callerHeader  = "pyserve-caller"
	addressHeader = "pyserve-caller-address"
)

// electionTime is how long a call that needs the leader waits for one: an election takes less. One that can be answered
// without waits readTime, since what is known here alone is less than what people expect.
const (
	electionTime = 5 * time.Second
	readTime     = time.Second
)

// errNoLeader says why a call that changes something is not made.
var errNoLeader = errors.New("no control leads, since too few of them can be reached: nothing can be changed until most of them are back (pyservectl get controls)")

// passedOn says whether another control has passed the call on already.
func passedOn(ctx context.Context) bool {
	return len(metadata.ValueFromIncomingContext(ctx, addressHeader)) > 0
}

// onBehalf gives the caller that a control speaks for, or the control itself where it speaks for nobody.
func onBehalf(ctx context.Context, self identity.Peer) (who identity.Peer, err error) {
	values := metadata.ValueFromIncomingContext(ctx, callerHeader)
	switch {
	case len(values) == 0 && passedOn(ctx):
		return identity.Peer{}, identity.ErrAnonymous
	case len(values) == 0:
		return self, nil
	}
	raw, err := base64.StdEncoding.DecodeString(values[0])
	if err == nil {
		err = json.Unmarshal(raw, &who)
	}
	if err != nil || len(values) != 1 || who.Role == identity.RoleControl {
		return identity.Peer{}, errors.New("the caller that a control speaks for cannot be read")
	}
	return who, nil
}

// originKey carries where a call that another control passed on came from.
type originKey struct{}

// originOf gives the context of a call that a control passed on, which says where it came from.
func originOf(ctx context.Context) context.Context {
	if values := metadata.ValueFromIncomingContext(ctx, addressHeader); len(values) == 1 {
		return context.WithValue(ctx, originKey{}, values[0])
	}
	return ctx
}

// passing gives the context of a call that is passed on, with who made it and from where.
func passing(ctx context.Context) (context.Context, error) {
	ctx = metadata.AppendToOutgoingContext(ctx, addressHeader, addressOf(ctx))
	who := caller(ctx)
	if who == (identity.Peer{}) {
		return ctx, nil
	}
	raw, err := json.Marshal(who)
	if err != nil {
		return nil, fmt.Errorf("encode the caller: %w", err)
	}
	return metadata.AppendToOutgoingContext(ctx, callerHeader, base64.StdEncoding.EncodeToString(raw)), nil
}

// elsewhere gives the connection to the control that is to answer; nil: this one is.
func (g gate) elsewhere(ctx context.Context, method string, request any) (*grpc.ClientConn, error) {
	at := places[method]
	if g.peers == nil || at == here || g.control.Leads() {
		return nil, nil
	}
	if local, ok := request.(interface{ GetLocal() bool }); ok && local.GetLocal() {
		return nil, nil
	}
	if passedOn(ctx) {
		if at == leader {
			return nil, status.Error(codes.Unavailable, "the control that led a moment ago no longer does")
		}
		return nil, nil
	}
	return g.leader(ctx, at)
}

// leader gives the connection to the control that leads, and waits for one that can be reached; nil: answer here, since
// this one leads by now, or can answer without a leader and there is none.
func (g gate) leader(ctx context.Context, at place) (*grpc.ClientConn, error) {
	limit := electionTime
	trouble := ""
	if !g.control.Replicated() { // nobody else will lead
		trouble = g.control.Trouble()
	}
	if at == leaderOrHere || trouble != "" {
		limit = readTime
	}
	waiting, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		changed := g.control.Changed()
		if g.control.Leads() {
			return nil, nil
		}
		if endpoint := g.control.Leader(); endpoint != "" {
			conn, err := g.peers.conn(endpoint)
			if err != nil {
				return nil, err
			}
			if g.connected(waiting, conn, endpoint) {
				return conn, nil
			}
		}
		look := time.NewTimer(50 * time.Millisecond)
		select {
		case <-changed:
		case <-look.C:
		case <-waiting.Done():
		}
		look.Stop()
		switch {
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case waiting.Err() == nil:
		case at == leaderOrHere:
			return nil, nil
		case trouble != "":
			return nil, status.Error(codes.FailedPrecondition, "nothing was changed: "+trouble)
		default:
			return nil, status.Error(codes.FailedPrecondition, errNoLeader.Error())
		}
	}
}

// connected waits until a connection stands. It gives up when another control leads. A call that went out over a broken
// one would end with its outcome unknown.
func (g gate) connected(ctx context.Context, conn *grpc.ClientConn, endpoint string) bool {
	for g.control.Leader() == endpoint {
		state := conn.GetState()
		if state == connectivity.Ready {
			return true
		}
		conn.Connect()
		moment, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
		conn.WaitForStateChange(moment, state)
		cancel()
		if ctx.Err() != nil {
			return false
		}
	}
	return false
}

// lost says whether a call that was passed on did not reach the leader, so that it may be answered here.
func lost(err error) bool { return status.Code(err) == codes.Unavailable }

// passUnary has another control answer.
func (g gate) passUnary(ctx context.Context, conn *grpc.ClientConn, method string, request any) (any, error) {
	_, output, err := messagesOf(method)
	if err != nil {
		return nil, err
	}
	ctx, err = passing(ctx)
	if err != nil {
		return nil, err
	}
	answer := output.New().Interface()
	return answer, conn.Invoke(ctx, method, request, answer)
}

// passStream has another control serve a stream. told says whether anything of its answer has reached the caller.
func (g gate) passStream(stream grpc.ServerStream, conn *grpc.ClientConn, method string, info *grpc.StreamServerInfo) (told bool, err error) {
	input, output, err := messagesOf(method)
	if err != nil {
		return false, err
	}
	ctx, err := passing(stream.Context())
	if err != nil {
		return false, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if watches[method] {
		go func() { // one that never ends by itself would hold up this control's stop
			select {
			case <-g.control.StreamsEnded():
				cancel()
			case <-ctx.Done():
			}
		}()
	}
	desc := &grpc.StreamDesc{ClientStreams: info.IsClientStream, ServerStreams: info.IsServerStream}
	onward, err := conn.NewStream(ctx, desc, method)
	if err != nil {
		return false, err
	}
	up := make(chan error, 1)
	go func() { up <- pump(stream, onward, input) }() // ends with the stream, which ends when this call returns
	for {
		m := output.New().Interface()
		err := onward.RecvMsg(m)
		if errors.Is(err, io.EOF) {
			return told, nil
		}
		if err != nil {
			return told, err
		}
		told = true
		if err := stream.SendMsg(m); err != nil {
			return true, err
		}
		if !info.IsServerStream {
			return true, nil
		}
		select {
		case err := <-up:
			if err != nil {
				return true, err
			}
			up = nil
		default:
		}
	}
}

// pump passes on what the caller sends.
func pump(from grpc.ServerStream, to grpc.ClientStream, input protoreflect.MessageType) error {
	for {
		m := input.New().Interface()
		err := from.RecvMsg(m)
		if errors.Is(err, io.EOF) {
			return to.CloseSend()
		}
		if err != nil {
			return err
		}
		if err := to.SendMsg(m); err != nil {
			return nil // the other side has ended the call, and says why itself
		}
	}
}

// messagesOf gives what a method takes and gives.
func messagesOf(method string) (input, output protoreflect.MessageType, err error) {
	name := protoreflect.FullName(strings.ReplaceAll(strings.TrimPrefix(method, "/"), "/", "."))
	found, err := protoregistry.GlobalFiles.FindDescriptorByName(name)
	if err != nil {
		return nil, nil, fmt.Errorf("look for %s: %w", method, err)
	}
	described, ok := found.(protoreflect.MethodDescriptor)
	if !ok {
		return nil, nil, fmt.Errorf("%s is no method", method)
	}
	if input, err = protoregistry.GlobalTypes.FindMessageByName(described.Input().FullName()); err != nil {
		return nil, nil, err
	}
	output, err = protoregistry.GlobalTypes.FindMessageByName(described.Output().FullName())
	return input, output, err
}
