package listener

import (
	"net"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/pyserve/pyserve/node/socket"
)

// sleepers are the connections that wait for something to read without a goroutine. One goroutine waits for all of them, from the
// first on.
type sleepers struct {
	wake func(accepted) // has a goroutine go on with one

	// mu guards what follows, and that poll has those that are in all, and no others.
	mu   sync.Mutex
	poll *socket.Poll  // nil: none has slept yet
	over bool          // none may sleep any more
	done chan struct{} // closed when the goroutine has ended
	all  []accepted    // by descriptor, which is nobody else's meanwhile: nobody closes one that sleeps

	// The goroutine's.
	events [64]unix.EpollEvent
	woken  []accepted
}

// add lets a connection sleep, and reports whether it does: then it is not the caller's any more. It does not where the system
// has no memory or descriptor for that.
func (s *sleepers) add(a accepted) bool {
	fd, ok := descriptor(a.tcp)
	if !ok {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.begun() {
		return false
	}
	for fd >= len(s.all) {
		s.all = append(s.all, accepted{})
	}
	s.all[fd] = a
	if s.poll.Add(fd, unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLRDHUP, Fd: int32(fd)}) != nil {
		s.all[fd] = accepted{}
		return false
	}
	return true
}

// begun starts the goroutine with the first one. It is called with mu held.
func (s *sleepers) begun() bool {
	if s.over || s.poll != nil {
		return !s.over
	}
	poll, err := socket.NewPoll("idle connections")
	if err != nil {
		return false
	}
	s.poll, s.done = poll, make(chan struct{})
	go s.run()
	return true
}

// run ends when poll is closed.
func (s *sleepers) run() {
	defer close(s.done)
	turn := s.turn
	for s.poll.Wait(turn) == nil {
		runtime.Gosched()
	}
}

// turn wakes those that have something to read, their end included. It reports true to be called again at once, false to be when
// something has come.
func (s *sleepers) turn(uintptr) bool {
	more := s.take()
	for i, a := range s.woken {
		s.wake(a)
		s.woken[i] = accepted{}
	}
	s.woken = s.woken[:0]
	return more
}

// take moves them to woken, and says whether there may be more.
func (s *sleepers) take() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.poll.Take(s.events[:])
	for _, e := range s.events[:n] {
		s.woken = append(s.woken, s.all[e.Fd])
		s.all[e.Fd] = accepted{}
		s.poll.Remove(int(e.Fd)) // cannot fail for one that is in it
	}
	return n == len(s.events)
}

// stop ends the goroutine and waits for it. There must be no connections any more.
func (s *sleepers) stop() {
	s.mu.Lock()
	s.over = true
	poll := s.poll
	s.mu.Unlock()
	if poll != nil {
		poll.Close() // fails for a closed one alone
		<-s.done
	}
}

// descriptor is the kernel's name of a connection. False: it is closed.
func descriptor(tcp *net.TCPConn) (fd int, ok bool) {
	raw, err := tcp.SyscallConn()
	if err != nil {
		return 0, false
	}
	return fd, raw.Control(func(of uintptr) { fd = int(of) }) == nil
}
