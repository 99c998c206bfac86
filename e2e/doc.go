// Package e2e drives the built binaries from outside, as users and machines do: processes with flags, files, signals and
// sockets, pyservectl with its output and exit codes, and kill -9. It imports no package of a lane, but for
// the maker of test certificates: what it knows is what is written in the interface.
//
// All of it is tests. TestMain builds pyserve and pyservectl once, with the race detector where PYSERVE_E2E_RACE=1; each
// test starts the processes that it needs on 127.0.0.1 and ends them, whatever happens.
package e2e
