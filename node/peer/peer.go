// Package peer is a node's door for others than clients. While control is away nodes give one another the bundle that they serve, and
// operators are shown what there is to see; at all times nodes ask one another for requests of the rate limits that all share.
//
// It owns who may call what, the service for nodes ([Server]) and its clients ([Fetch], [Borrower]), the mutual TLS of all, and what is bounded of them. It does not
// know who the other members are or when to ask whom (package agent decides that), does not listen (connections are
// handed to it, off the port of gossip), and applies nothing. What it gets is proved by control's signature before
// anybody sees it; who gave it counts for nothing.
//
// Order of calls: [NewServer] → [Server.Take] for each connection → [Server.Stop]; [Fetch] whenever there is something newer to be
// had; [NewBorrower] → [Borrower.SetNodes] and [Borrower.Ask] → [Borrower.Stop].
package peer

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// serverName is the DNS name in every node's certificate, whatever address it is dialled at.
const serverName = "node.pyserve.internal"

// Identity is who a node is, and whom it believes.
type Identity struct {
	ClusterID string
	// Certificate has the node's key.
	Certificate tls.Certificate
	// Authorities issue the certificates of the cluster.
	Authorities *x509.CertPool
	// ReleaseKey is what control signs releases with.
	ReleaseKey []byte
}

// serverTLS takes members and operators of the cluster whose certificates are good today; which of them may call what, admit
// says.
func serverTLS(identity func() Identity, now func() time.Time) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			id := identity() // which may have been renewed since
			return &tls.Config{
				MinVersion:             tls.VersionTLS13,
				Time:                   now,
				NextProtos:             []string{"h2"},
				Certificates:           []tls.Certificate{id.Certificate},
				ClientAuth:             tls.RequireAndVerifyClientCert,
				ClientCAs:              id.Authorities,
				SessionTicketsDisabled: true,
				VerifyConnection: func(state tls.ConnectionState) error {
					_, _, err := whoIs(state, id.ClusterID)
					return err
				},
			}, nil
		},
	}
}

// clientTLS believes one node alone: a member that answers at another's address is not asked.
func clientTLS(id Identity, node string, now func() time.Time) *tls.Config {
	return &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Time:         now,
		ServerName:   serverName,
		RootCAs:      id.Authorities,
		Certificates: []tls.Certificate{id.Certificate},
		VerifyConnection: func(state tls.ConnectionState) error {
			role, name, err := whoIs(state, id.ClusterID)
			if err == nil && (role != roleNode || name != node) {
				err = fmt.Errorf("%s %s answers in place of node %s", role, name, node)
			}
			return err
		},
	}
}

// Roles in certificates.
const (
	roleNode    = "node"
	roleControl = "control"
)

// people are the roles of operators, each of which may read.
var people = []string{"viewer", "editor", "operator", "admin"}

// whoIs gives role and name in a verified certificate, which has to be of the cluster.
func whoIs(state tls.ConnectionState, cluster string) (role, name string, err error) {
	if len(state.PeerCertificates) == 0 || len(state.PeerCertificates[0].URIs) != 1 {
		return "", "", errors.New("the certificate names no identity")
	}
	uri := state.PeerCertificates[0].URIs[0].String()
	rest, ok := strings.CutPrefix(uri, "pyserve://"+cluster+"/")
	role, name, whole := strings.Cut(rest, "/")
	known := role == roleNode || role == roleControl || slices.Contains(people, role)
	if !ok || !whole || !known || name == "" || strings.Contains(name, "/") {
		return "", "", fmt.Errorf("the certificate's identity %.200q may not ask or answer here", uri)
	}
	return role, name, nil
}
