package main

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	operatorv1 "github.com/pyserve/pyserve/proto/pyserve/operator/v1"
)

// applyView shows an apply while it happens: a line for each object, and a line for each node, which is redrawn in
// place on a terminal and printed once, when its part is over, elsewhere.
type applyView struct {
	out, errors io.Writer
	file        string
	quiet       bool // for programs: collect only
	changes     changeList
	live        bool
	paint       painter
	result      applied
	drawn       int             // node lines on the terminal
	told        map[string]bool // problems and changes, where the call is made again; nil: it is the first time
	begun       bool
}

// liveNodes is how many node lines are redrawn; more would not fit a screen.
const liveNodes = 30

func newApplyView(out, errors io.Writer, file string, quiet bool) *applyView {
	return &applyView{
		out: out, errors: errors, file: file, quiet: quiet, live: isTerminal(out), paint: newPainter(out),
		changes: changeList{out: out, paint: newPainter(out)},
		result:  applied{Problems: []problem{}, Changes: []change{}, Nodes: []nodeProgress{}},
	}
}

// newApplyView makes the view of a command.
func (s *settings) newApplyView(cmd *cobra.Command, file string) *applyView {
	v := newApplyView(cmd.OutOrStdout(), cmd.ErrOrStderr(), file, s.structured())
	v.changes.all = s.output == "wide"
	return v
}

var phases = map[operatorv1.NodePhase]string{
	operatorv1.NodePhase_NODE_PHASE_OFFERED:   "offered",
	operatorv1.NodePhase_NODE_PHASE_PREPARED:  "prepared",
	operatorv1.NodePhase_NODE_PHASE_COMMITTED: "serving",
	operatorv1.NodePhase_NODE_PHASE_REFUSED:   "refused",
	operatorv1.NodePhase_NODE_PHASE_AWAY:      "away",
	operatorv1.NodePhase_NODE_PHASE_TIMED_OUT: "timed out",
}

// again begins a call; what a first one has told already, a second one does not tell again.
func (v *applyView) again() {
	if v.begun && v.told == nil {
		v.told = map[string]bool{}
		for _, p := range v.result.Problems {
			v.told[fmt.Sprintf("%+v", p)] = true
		}
		for _, c := range v.result.Changes {
			v.told[fmt.Sprintf("%+v", c)] = true
		}
	}
	v.begun = true
}

func (v *applyView) take(event *operatorv1.ApplyEvent) {
	switch e := event.GetEvent().(type) {
	case *operatorv1.ApplyEvent_Problem:
		p := received([]*operatorv1.Problem{e.Problem})
		if v.told != nil && v.told[fmt.Sprintf("%+v", p[0])] {
			return
		}
		v.result.Problems = append(v.result.Problems, p...)
		if !v.quiet {
			printProblems(v.errors, v.file, p)
		}
	case *operatorv1.ApplyEvent_Change:
		c := changeOf(e.Change)
		if v.told != nil && v.told[fmt.Sprintf("%+v", c)] {
			return
		}
		v.result.Changes = append(v.result.Changes, c)
		if !v.quiet {
			v.changes.add(c)
		}
	case *operatorv1.ApplyEvent_Node:
		v.changes.end()
		v.node(nodeProgress{e.Node.GetName(), phases[e.Node.GetPhase()], e.Node.GetNote()})
	}
}

func (v *applyView) node(n nodeProgress) {
	at := slices.IndexFunc(v.result.Nodes, func(known nodeProgress) bool { return known.Name == n.Name })
	if at < 0 {
		v.result.Nodes = append(v.result.Nodes, n)
	} else {
		v.result.Nodes[at] = n
	}
	switch {
	case v.quiet:
	case v.live && len(v.result.Nodes) <= liveNodes:
		v.redraw()
	case n.Phase != "offered" && n.Phase != "prepared":
		fmt.Fprintln(v.out, v.line(n))
	}
}

// redraw draws all node lines over the ones that are there.
func (v *applyView) redraw() {
	if v.drawn > 0 {
		fmt.Fprintf(v.out, "\x1b[%dA", v.drawn)
	}
	for _, n := range v.result.Nodes {
		fmt.Fprintf(v.out, "\r\x1b[2K%s\n", v.line(n))
	}
	v.drawn = len(v.result.Nodes)
}

func (v *applyView) line(n nodeProgress) string {
	colour := yellow
	switch n.Phase {
	case "serving":
		colour = green
	case "refused", "timed out":
		colour = red
	}
	line := fmt.Sprintf("node %s: %s", n.Name, v.paint.paint(colour, n.Phase))
	if n.Note != "" {
		line += ": " + printable(n.Note)
	}
	return line
}

// finish prints the sentence that it all comes down to.
func (v *applyView) finish(r *operatorv1.ApplyResult) {
	v.changes.end()
	revision := fmt.Sprintf("revision %d (%s)", r.GetRevision(), short(r.GetDigest()))
	if r.GetRevision() == 0 {
		revision = "no configuration"
	}
	switch r.GetOutcome() {
	case operatorv1.ApplyOutcome_APPLY_OUTCOME_APPLIED:
		fmt.Fprintf(v.out, "applied: %s, %s\n", revision, v.served())
	case operatorv1.ApplyOutcome_APPLY_OUTCOME_UNCHANGED:
		if reason := r.GetReason(); reason != "" {
			revision = printable(reason)
			if len(v.result.Nodes) == 0 { // none was asked
				fmt.Fprintf(v.out, "unchanged: %s\n", revision)
				return
			}
		}
		fmt.Fprintf(v.out, "unchanged: %s, %s\n", revision, v.served())
	case operatorv1.ApplyOutcome_APPLY_OUTCOME_DRY_RUN:
		fmt.Fprintf(v.out, "dry run: %s could serve it; nothing was changed, %s is active\n", count(v.in("prepared"), "node"), revision)
	case operatorv1.ApplyOutcome_APPLY_OUTCOME_DETACHED:
		fmt.Fprintf(v.out, "stored: %s; nodes follow: pyservectl status -w\n", revision)
	case operatorv1.ApplyOutcome_APPLY_OUTCOME_INCOMPLETE:
		fmt.Fprintf(v.errors, "incomplete: %s is stored, but not every connected node serves it: %s\n", revision, printable(r.GetReason()))
	default:
		fmt.Fprintf(v.errors, "refused, nothing was changed: %s; %s is active\n", printable(r.GetReason()), revision)
	}
}

// served says how many nodes serve it, and names those that are away.
func (v *applyView) served() string {
	var away []string
	for _, n := range v.result.Nodes {
		if n.Phase == "away" {
			away = append(away, n.Name)
		}
	}
	serving := v.in("serving")
	switch {
	case len(away) > 0:
		return fmt.Sprintf("served by %s; away, and served by them when they return: %s", count(serving, "node"), strings.Join(away, ", "))
	case serving == 0:
		return "no node is connected; nodes serve it when they come"
	}
	return fmt.Sprintf("served by %s", count(serving, "node"))
}

func (v *applyView) in(phase string) int {
	n := 0
	for _, node := range v.result.Nodes {
		if node.Phase == phase {
			n++
		}
	}
	return n
}
