package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/pyserve/pyserve/control/identity"
	operatorv1 "github.com/pyserve/pyserve/proto/pyserve/operator/v1"
)

// contextFile gives the file that holds the operator's context: the one that was named, or the first that exists.
func (s *settings) contextFile() (string, error) {
	if s.context != "" {
		return s.context, nil
	}
	if named := os.Getenv("PYSERVE_CONTEXT"); named != "" {
		return named, nil
	}
	var places []string
	if home, err := os.UserHomeDir(); err == nil {
		places = append(places, filepath.Join(home, ".pyserve", "admin.yaml"))
	}
	places = append(places, filepath.Join("data", "control", "admin.yaml"))
	for _, place := range places {
		if _, err := os.Stat(place); !errors.Is(err, fs.ErrNotExist) {
			return place, nil
		}
	}
	return "", fmt.Errorf("no context: control makes admin.yaml in its --data-dir; name it with --context FILE or PYSERVE_CONTEXT, or put it at %s", places[0])
}

// maxAnswer is how large one message of a control may be, in bytes: a diff is one message, of up to 100,000 routes.
const maxAnswer = 256 << 20

// otherTime is how long a control may take to answer where there is another.
const otherTime = 3 * time.Second

// client is a connection to a control or, of a command that only reads, to a node.
type client struct {
	operatorv1.OperatorClient
	conn    *grpc.ClientConn
	address string
}

// connect loads the context and gives a client of the first control that answers. Nothing is sent to a control that
// does not prove that it is the context's cluster. A node, which answers at its gossip address, is as good where the
// command only reads.
func (s *settings) connect(ctx context.Context, warnings io.Writer) (*client, error) {
	file, err := s.contextFile()
	if err != nil {
		return nil, err
	}
	operator, err := identity.LoadContext(file)
	if err != nil {
		return nil, err
	}
	for _, warning := range operator.Warnings {
		fmt.Fprintln(warnings, "warning:", warning)
	}
	tlsConfig, err := operator.ReaderTLS() // the first call carries nothing that a node must not see
	if err != nil {
		return nil, err
	}
	var problems []error
	addresses := s.addresses(operator.Endpoints)
	patience := s.timeout
	if len(addresses) > 1 {
		patience = min(patience, otherTime) // a machine that is gone must not hold up the way to the next
	}
	for _, address := range addresses {
		conn, err := grpc.NewClient("passthrough:///"+address,
			grpc.WithTransportCredentials(credentials.NewTLS(tlsConfig)), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswer)))
		if err != nil {
			problems = append(problems, fmt.Errorf("%q is not the address of a control: %w", address, err))
			continue
		}
		c := &client{operatorv1.NewOperatorClient(conn), conn, address}
		// A first small call finds out whether this control answers, before a large one is begun, and which others there
		// are.
		asking, cancel := context.WithTimeout(ctx, patience)
		var server peer.Peer
		known, err := c.ListControls(asking, &operatorv1.ListControlsRequest{Local: true}, grpc.Peer(&server))
		cancel()
		if err == nil {
			err = s.admit(address, server, warnings)
		}
		if err == nil {
			s.learn(known.GetControls())
			return c, nil
		}
		conn.Close()
		problems = append(problems, unreachable(address, file, err))
	}
	if s.reads {
		problems = append(problems, errors.New("any node shows what it knows: --control with the address of its --gossip, port 7946 unless it says otherwise"))
	}
	return nil, errors.Join(problems...)
}

// nodeError says that a command wants a control.
type nodeError struct{ address string }

func (e nodeError) Error() string {
	return fmt.Sprintf("%s is a node's address, and this takes a control: name one with --control. "+
		"A node answers status, get routes, get backends, get nodes, get controls, why and top", e.address)
}

// admit says whether whoever answers at an address will do for the command.
func (s *settings) admit(address string, server peer.Peer, warnings io.Writer) error {
	secured, ok := server.AuthInfo.(credentials.TLSInfo)
	if !ok || !identity.IsNode(secured.State) {
		return nil
	}
	if !s.reads {
		return nodeError{address}
	}
	if !s.byNode {
		s.byNode = true
		fmt.Fprintf(warnings, "answered by the node at %s: what it does itself, and what it hears of the others by gossip\n", address)
	}
	return nil
}

func (c *client) close() { c.conn.Close() }

// addresses are the controls to try: those that were given, and those that a control has told of since, but the one that
// went away first last. Only this run remembers what was told: control keeps the contexts in its data directories true,
// and nobody changes a file that somebody has copied.
func (s *settings) addresses(endpoints []string) []string {
	if len(s.controls) > 0 {
		endpoints = s.controls
	}
	all := slices.Clone(endpoints)
	for _, address := range s.learnt {
		if !slices.Contains(all, address) {
			all = append(all, address)
		}
	}
	if at := slices.Index(all, s.gone); at >= 0 {
		all = append(slices.Delete(all, at, at+1), s.gone)
	}
	return all
}

func (s *settings) learn(controls []*operatorv1.ControlSummary) {
	s.learnt = nil
	for _, c := range controls {
		s.learnt = append(s.learnt, c.GetAddress())
	}
}

// brokenError says that the connection broke before the answer, or that the control that led no longer does: a call that
// is safe to make twice may be made again.
type brokenError struct{ reason string }

func (e brokenError) Error() string { return "the connection to control broke: " + e.reason }

// againPause is between two attempts of a call that is made again.
const againPause = 100 * time.Millisecond

// insist makes a call that is safe to make twice, and makes it again, by another control, while the connection breaks
// and there are others.
func (s *settings) insist(ctx context.Context, warnings io.Writer, call func(*client) error) error {
	for again := false; ; again = true {
		c, err := s.connect(ctx, warnings)
		if err != nil && !again {
			return err
		}
		if err == nil {
			err = call(c)
			c.close()
			if !errors.As(err, new(brokenError)) || len(s.learnt) < 2 {
				return err
			}
			s.gone = c.address
			fmt.Fprintf(warnings, "%v; asking again, by another control\n", err)
		}
		timer := time.NewTimer(againPause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return err
		}
	}
}

// unreachable says in one sentence why a control cannot be used.
func unreachable(address, file string, err error) error {
	s := status.Convert(err)
	message := s.Message()
	switch {
	case errors.As(err, new(nodeError)):
		return err
	case strings.Contains(message, "signed by unknown authority"), strings.Contains(message, "bad certificate"), strings.Contains(message, "unknown certificate"):
		return fmt.Errorf("the control at %s is not of the cluster that %s is for, or the authority of the cluster was replaced since", address, file)
	case strings.Contains(message, "expired"):
		return fmt.Errorf("the certificate in %s, or that of the control at %s, has expired: %s", file, address, message)
	case strings.Contains(message, "connection refused"):
		return fmt.Errorf("no control answers at %s: connection refused; is it running?", address)
	case s.Code() == codes.DeadlineExceeded:
		return fmt.Errorf("no control answers at %s in time", address)
	case s.Code() == codes.Unavailable:
		return fmt.Errorf("no control answers at %s: %s", address, strings.TrimPrefix(message, "connection error: "))
	}
	return fmt.Errorf("the control at %s says: %s", address, message)
}

// plain takes gRPC's dress off an error.
func plain(err error) error {
	if s, ok := status.FromError(err); ok && err != nil {
		if s.Code() == codes.Unavailable {
			return brokenError{s.Message()}
		}
		return errors.New(s.Message())
	}
	return err
}
