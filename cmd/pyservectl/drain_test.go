package main

import (
	"testing"

	operatorv1 "github.com/pyserve/pyserve/proto/pyserve/operator/v1"
)

func TestHowFarADrainIs(t *testing.T) {
	for want, event := range map[string]*operatorv1.DrainEvent{
		"n1: waiting for n2, which drains already":      {WaitingFor: []string{"n2"}},
		"n1: waiting for n2, n3, which drain already":   {WaitingFor: []string{"n2", "n3"}},
		"n1: draining, 1 request and 2 WebSockets left": {Requests: 1, Tunnels: 2},
		"n1: draining, 0 requests and 2 WebSockets left; the other nodes have no room for more, so that they stay until there is some, or until the deadline is near": {Tunnels: 2, NoRoom: true},
	} {
		if got := drainLine("n1", event); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
