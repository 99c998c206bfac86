// Package peer lets nodes give one another the bundle that they serve, for when control is away.
//
// It owns the service ([Server]) and its client ([Fetch]), the mutual TLS of both, and what is bounded of them. It does not
// know who the other members are or when to ask whom (package agent decides that), does not listen (connections are
// handed to it, off the port of gossip), and applies nothing. What it gets is proved by control's signature before
// anybody sees it; who gave it counts for nothing.
//
// Order of calls: [NewServer] → [Server.Take] for each connection → [Server.Stop]; and [Fetch] whenever there is
// something newer to be had.
package peer

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
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

// serverTLS takes nodes and controls of the cluster whose certificates are good today: what a bundle holds, private keys
// among it, is given to nobody who could not get it from control.
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
					_, err := nameIn(state, id.ClusterID, "node", "control")
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
			name, err := nameIn(state, id.ClusterID, "node")
			if err == nil && name != node {
				err = fmt.Errorf("node %s answers in place of %s", name, node)
			}
			return err
		},
	}
}

// nameIn gives the name in a verified certificate, which has to be of the cluster and of one of the roles.
func nameIn(state tls.ConnectionState, cluster string, roles ...string) (string, error) {
	if len(state.PeerCertificates) == 0 || len(state.PeerCertificates[0].URIs) != 1 {
		return "", errors.New("the certificate names no identity")
	}
	uri := state.PeerCertificates[0].URIs[0].String()
	for _, role := range roles {
		name, ok := strings.CutPrefix(uri, "pyserve://"+cluster+"/"+role+"/")
		if ok && name != "" && !strings.Contains(name, "/") {
			return name, nil
		}
	}
	return "", fmt.Errorf("the certificate's identity %.200q may not ask or answer here", uri)
}
