// Package store owns control's durable memory: the numbered revisions with their bundles and documents, the enrolled
// nodes and the tokens, as the state machine of a replicated log (hashicorp/raft) on this control's disk.
//
// It does not decide what becomes a revision, signs nothing, checks no permission and knows no connection. A log with one
// voter needs no network; others may join.
//
// The order of calls: [Open] → [Store.Next] → sign a release → [Store.Commit] → [Store.Active]. What a write returned
// from is on disk. Reads are answered from memory, and what they return is never changed afterwards. [Store.Changed]
// tells when it is worth reading again. [Store.Close] waits for everything.
//
// The way of a write: write.go (into the log, here or where the leader is) → machine.go (behind the log) → state.go. What is
// written: revisions.go, nodes.go, token.go, audit.go, authorities.go, replicas.go. How it lies on disk: command.go,
// snapshot.go, seal.go, storage.go.
//
// DESIGN.md beside this file says how history is kept small and why.
package store
