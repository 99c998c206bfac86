// Package identity owns who is who in a cluster: control's certificate authority and signing keys on disk, the
// certificates it issues, the roles in them, the tokens that let a newcomer ask for one, the operator's context file, and
// the key that the store is sealed with.
//
// It does not speak gRPC, does not remember which nodes or tokens exist (package store does), and does not decide what
// a role may do: it says only who shows a certificate.
//
// The order of calls: [Open] → [Authority.ServerTLS] for the listener → [CheckToken] and [Authority.IssueNode] when a
// node enrols → [Authority.PeerOf] on every later connection. An operator's side: [LoadContext] → [Context.ClientTLS].
//
// Every identity of a cluster is one URI in a certificate, pyserve://CLUSTER/ROLE/NAME; the common name and the DNS
// names say nothing about who somebody is.
package identity
