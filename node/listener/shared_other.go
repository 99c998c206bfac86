//go:build !unix

package listener

import (
	"context"
	"errors"
	"net"
)

// bindShared has no counterpart here: the caller reports the conflict.
func bindShared(context.Context, string, *net.TCPListener) (*net.TCPListener, error) {
	return nil, errors.New("share port: not possible on this system")
}
