package gossip

import (
	_ "unsafe" // for go:linkname

	"github.com/hashicorp/memberlist"

	"github.com/pyserve/pyserve/cluster/state"
)

// nodeState is memberlist's own accessor of the state of a member. memberlist keeps that in an unexported struct; the
// exported Node.State is never set (hashicorp/memberlist#266), no callback tells of suspicion, and NotifyLeave does not
// tell a member that left from one that died. The ways round it through the exported API are worse: a second failure
// detector that disagrees with the first, or a push/pull with ourselves. A memberlist without the method does not link,
// and TestLiveness holds its meaning.
//
//go:linkname nodeState github.com/hashicorp/memberlist.(*Memberlist).getNodeState
func nodeState(list *memberlist.Memberlist, name string) memberlist.NodeStateType

// livenessOf asks memberlist what it believes of a member; false: it knows none of that name. It takes memberlist's
// lock, so callbacks must not call it.
func livenessOf(list *memberlist.Memberlist, name string) (liveness state.Liveness, known bool) {
	// The accessor follows a nil pointer, under a deferred unlock, when memberlist has forgotten the member.
	defer func() {
		if recover() != nil {
			liveness, known = 0, false
		}
	}()
	switch nodeState(list, name) {
	case memberlist.StateAlive:
		return state.Alive, true
	case memberlist.StateSuspect:
		return state.Suspect, true
	case memberlist.StateLeft:
		return state.Left, true
	default:
		return state.Dead, true
	}
}
