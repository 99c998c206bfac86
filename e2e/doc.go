// Package e2e drives the built binaries from outside, as users and machines do: processes with flags, files, signals and
// sockets, pyservectl with its output and exit codes, and kill -9. It imports no package of a lane, but for
// the maker of test certificates: what it knows is what is written in the interface.
//
// All of it is tests. TestMain builds pyserve and pyservectl once, with the race detector where PYSERVE_E2E_RACE=1; each
// test starts the processes that it needs on 127.0.0.1 and ends them, whatever happens.
//
// TestSoak is all of it at once, for eight seconds, or for as long as SOAK says: `make soak`. Its parts: soak_test.go the
// story, soak_backend_test.go backends that die and come back, soak_traffic_test.go and soak_http2_test.go what clients do,
// soak_level_test.go what processes use before and after.
package e2e
