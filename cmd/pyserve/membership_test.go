package main

import (
	"fmt"
	"math"
	"testing"

	"github.com/pyserve/pyserve/cluster"
	"github.com/pyserve/pyserve/cluster/state"
)

func TestRoomIsThatOfTheNodesThatGoOn(t *testing.T) {
	member := func(name string, room int, change ...func(*cluster.Member)) cluster.Member {
		m := cluster.Member{Name: name, Role: cluster.RoleNode, State: state.Alive}
		if room >= 0 {
			m.Facts.Room = m.Facts.Room.Next(room)
		}
		for _, f := range change {
			f(&m)
		}
		return m
	}
	self, drains := member("n1", 64), func(m *cluster.Member) { m.Facts.Draining = true }
	dead, control := func(m *cluster.Member) { m.State = state.Dead }, func(m *cluster.Member) { m.Role = cluster.RoleControl }
	for i, c := range []struct {
		members []cluster.Member
		want    int
	}{
		{[]cluster.Member{self, member("n2", 64), member("n3", 32)}, 96},
		{[]cluster.Member{self, member("n2", 64), member("n3", 0)}, 64},
		{[]cluster.Member{self, member("n2", 0)}, 0},
		{[]cluster.Member{self, member("n2", 64), member("n3", 32, drains)}, 32},
		{[]cluster.Member{self, member("n2", 64), member("n3", 32, dead), member("n1", 16, control)}, 64},
		{[]cluster.Member{self, member("n2", 64), member("n3", -1)}, math.MaxInt}, // of an older version
		{[]cluster.Member{self, member("n3", 64, drains)}, math.MaxInt},
		{[]cluster.Member{self}, math.MaxInt},
	} {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			if got := roomAmong(c.members, "n1"); got != c.want {
				t.Errorf("%d, want %d", got, c.want)
			}
		})
	}
}
