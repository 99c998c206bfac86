package node

import fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"

// Answer answers a question of control's.
func (n *Node) Answer(q *fleetv1.Question) *fleetv1.Answer {
	switch {
	case q.GetDrain() != nil:
		return n.answerDrain(q)
	case q.GetTake() != nil:
		return &fleetv1.Answer{Id: q.GetId(), Sample: n.Sample(int(q.GetTake().GetRoutes()))}
	case q.GetBackend() != "":
		return &fleetv1.Answer{Id: q.GetId(), Verdicts: n.Why(q.GetBackend()), Revision: n.Applied().GetRevision()}
	}
	return n.Explain(q)
}

func (n *Node) answerDrain(q *fleetv1.Question) *fleetv1.Answer {
	var err error
	switch q.GetDrain().GetWhat() {
	case fleetv1.Drain_WHAT_BEGIN:
		err = n.Drain(q.GetDrain().GetOver().AsDuration())
	case fleetv1.Drain_WHAT_END:
		err = n.Undrain()
	}
	if err != nil {
		return &fleetv1.Answer{Id: q.GetId(), Reason: err.Error()}
	}
	return &fleetv1.Answer{Id: q.GetId(), Load: n.Load()}
}
