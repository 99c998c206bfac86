// Package splice moves bytes from one TCP connection to another without taking them through the process: by splice(2), from
// the source's socket into a pipe in the kernel and from there into the destination's. It owns these pipes.
//
// It does not decide what is moved or when that is worth it, and it keeps no time: every call of Fill and Drain waits for one
// thing at most, so that who calls can give each its own time by deadlines of the connections.
//
// The pipes are the process's, not a part's of it: what bounds them (descriptors for a process, pages in pipes for a user) is
// shared by everything in it, whatever the number of nodes. There are at most 128; a transfer that finds none is told that
// splice is not available, and goes on by copying.
//
// Order of calls: [Start]; Fill, and Drain until nothing is Held, as often as there is something to move; Stop, in any case.
// [CloseIdle] when nothing more is to come. Only Linux has splice(2); elsewhere Start says that it is not available.
package splice

import "errors"

// ErrUnavailable says that bytes have to be copied: the system has no splice(2) for these sockets, or all pipes are in use.
// Nothing was read that did not arrive.
var ErrUnavailable = errors.New("splice is not available")
