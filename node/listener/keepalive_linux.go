package listener

import (
	"errors"
	"fmt"
	"net"

	"golang.org/x/sys/unix"
)

// Go's own defaults, in seconds.
const keepAliveIdle, keepAliveInterval, keepAliveProbes = 15, 15, 9

// inheritsKeepAlive says that what is accepted has the listening socket's keepalive, so that it need not be set again with
// four system calls for each connection.
const inheritsKeepAlive = true

// setKeepAlive sets it on a socket that listens.
func setKeepAlive(l *net.TCPListener) error {
	raw, err := l.SyscallConn()
	if err != nil {
		return fmt.Errorf("set keepalive: %w", err)
	}
	var set error
	err = raw.Control(func(fd uintptr) {
		set = errors.Join(
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1),
			unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, keepAliveIdle),
			unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, keepAliveInterval),
			unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_KEEPCNT, keepAliveProbes))
	})
	if err = errors.Join(err, set); err != nil {
		return fmt.Errorf("set keepalive: %w", err)
	}
	return nil
}
