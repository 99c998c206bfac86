package store

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	storev1 "github.com/pyserve/pyserve/proto/pyserve/store/v1"
)

// maxServers bounds the records of controls; more than a few voters make every write slower.
const maxServers = 32

// Server is a control that keeps a replica of the store.
type Server struct {
	// ID names its disk in the log's configuration: a control that comes back with an empty disk has another.
	ID string
	// Name is the control's, unique among the servers.
	Name string
	// RaftAddress is the host:port of its replication.
	RaftAddress string
	// Endpoint is the host:port that nodes, operators and other controls dial.
	Endpoint string
	// GossipAddress is the host:port that others join gossip through; may be empty.
	GossipAddress string
	// Version is the program's.
	Version string
	Joined  time.Time
}

// NewServerID makes the id of a control whose disk is empty. It is made once: raft counts votes by id, and a disk that
// forgot how it voted must not vote again under the same.
func NewServerID(name string) string {
	random := make([]byte, 4)
	rand.Read(random) // never fails: crypto/rand ends the process instead
	return name + "/" + hex.EncodeToString(random)
}

func (s *Server) toProto() *storev1.Server {
	return &storev1.Server{
		Id: s.ID, Name: s.Name, RaftAddress: s.RaftAddress, Endpoint: s.Endpoint, GossipAddress: s.GossipAddress,
		Version: s.Version, Joined: timestamppb.New(s.Joined),
	}
}

func serverFrom(m *storev1.Server) (Server, error) {
	joined, err := timeFrom(m.GetJoined())
	if err != nil {
		return Server{}, err
	}
	s := Server{m.GetId(), m.GetName(), m.GetRaftAddress(), m.GetEndpoint(), m.GetGossipAddress(), m.GetVersion(), joined}
	return s, s.check()
}

func (s *Server) check() error {
	for _, address := range []string{s.RaftAddress, s.Endpoint, s.GossipAddress} {
		if address == "" && address == s.GossipAddress {
			continue
		}
		if _, port, err := net.SplitHostPort(address); err != nil || port == "" || len(address) > maxNameBytes {
			return fmt.Errorf("the address %.80q is not host:port", address)
		}
	}
	if len(s.Version) > maxNameBytes {
		return errors.New("the control's version is too long")
	}
	return errors.Join(checkName("the control's id", s.ID), checkName("the control's name", s.Name))
}

// putServer refuses a second server of a name: who replaces one removes it first.
func (s *state) putServer(m *storev1.Server) error {
	server, err := serverFrom(m)
	if err != nil {
		return err
	}
	for id, other := range s.servers {
		if id != server.ID && other.Name == server.Name {
			return fmt.Errorf("there is a control named %q already", server.Name)
		}
	}
	if _, known := s.servers[server.ID]; !known && len(s.servers) >= maxServers {
		return fmt.Errorf("no more than %d controls are kept", maxServers)
	}
	s.servers[server.ID] = server
	return nil
}
