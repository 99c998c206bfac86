// Package socket reads and writes TCP connections by system calls that the scheduler is not told of.
//
// Go tells its scheduler of every system call, since one that blocks would hold up a processor. Those of a socket that does
// not block are over in microseconds, so the telling is waste, and more than that: a thread that wakes every 20 µs sees them
// in passing, takes the processor away and hands it to another thread, for nothing. Under load that was a tenth of a node's
// CPU time; node/DESIGN.md has the figures.
//
// It owns neither connections nor buffers, and leaves deadlines, waiting and closing to package net. Where the system is not
// Linux, a [Conn] is what net gives.
package socket
