// Package config owns the dialect: it reads a document, the YAML that a user writes, and makes resources of it. It says
// everything that is wrong with a document at once, each with its line, the path of its field and what to write
// instead, and it says by meaning what changes between two sets of resources.
//
// It does not read files by itself, does not resolve names and does not connect anywhere: the same document and the
// same files give the same resources on every machine.
//
// Order of calls: [NamedFiles] tells which files a document names, so that they can be sent along with it; [Parse]
// makes the resources; [Diff] compares them with those that run; [TimeoutsOf] tells who serves them how long each route
// lets a request wait.
//
// Inside, a document goes through three steps. The text is checked and made a tree (text.go, tree.go). Every section of
// the dialect is a table that declares each of its keys once, and one small walker reads them all (section.go). What
// the walker read is put together and checked as a whole (pool.go).
package config
