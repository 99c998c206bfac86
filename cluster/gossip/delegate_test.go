package gossip

import (
	"errors"
	"net"
	"testing"

	"github.com/hashicorp/memberlist"
)

func TestNotifyAliveKeepsTheUnboundedOut(t *testing.T) {
	d := newDelegate(Options{Name: "self", Accept: func(name string) error {
		if name == "bad" {
			return errors.New("a bad name")
		}
		return nil
	}})
	good := memberlist.Node{Name: "good", Addr: net.IPv4(10, 0, 0, 1), Meta: make([]byte, MaxMetadata)}
	if err := d.NotifyAlive(&good); err != nil {
		t.Errorf("a good member: %v", err)
	}
	for what, change := range map[string]func(*memberlist.Node){
		"metadata": func(n *memberlist.Node) { n.Meta = make([]byte, MaxMetadata+1) },
		"address":  func(n *memberlist.Node) { n.Addr = make([]byte, 1000) },
		"name":     func(n *memberlist.Node) { n.Name = "bad" },
	} {
		n := good
		change(&n)
		if d.NotifyAlive(&n) == nil {
			t.Errorf("taken in spite of its %s", what)
		}
	}
}

func TestCallbacksNeverBlock(t *testing.T) {
	d := newDelegate(Options{Name: "self"})
	n := &memberlist.Node{Name: "n", Addr: net.IPv4(10, 0, 0, 1), Meta: []byte("meta")}
	for range 1000 {
		d.NotifyJoin(n)
		d.NotifyConflict(n, n)
		d.NotifyMsg([]byte("x"))
		d.MergeRemoteState([]byte("x"), true)
	}
	if got := d.dropped.Load(); got != 2000 {
		t.Errorf("%d messages are counted, want 2000", got)
	}
	n.Meta[0] = 'M'
	if got := d.records(); len(got) != 1 || string(got[0].metadata) != "meta" {
		t.Errorf("kept %+v", got)
	}
}
