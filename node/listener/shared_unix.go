//go:build unix

package listener

import (
	"context"
	"fmt"
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// bindShared listens on address although old holds the same port. The kernel allows that between sockets that both say
// SO_REUSEPORT; they say it only while the second is being bound, since with it another process of the same user could take
// the port unnoticed.
func bindShared(ctx context.Context, address string, old *net.TCPListener) (*net.TCPListener, error) {
	if err := reusePort(old, true); err != nil {
		return nil, err
	}
	defer reusePort(old, false) // it is about to be closed: nothing is lost if this fails
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error { return setReusePort(c, true) }}
	socket, err := listen(ctx, lc, address)
	if err != nil {
		return nil, err
	}
	if err := reusePort(socket, false); err != nil {
		socket.Close()
		return nil, err
	}
	return socket, nil
}

func reusePort(l *net.TCPListener, on bool) error {
	raw, err := l.SyscallConn()
	if err != nil {
		return fmt.Errorf("share port: %w", err)
	}
	return setReusePort(raw, on)
}

func setReusePort(c syscall.RawConn, on bool) error {
	value := 0
	if on {
		value = 1
	}
	var set error
	err := c.Control(func(fd uintptr) { set = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, value) })
	if err == nil {
		err = set
	}
	if err != nil {
		return fmt.Errorf("share port: %w", err)
	}
	return nil
}
