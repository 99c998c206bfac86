package main

import (
	"fmt"
	"io"
	"strings"

	operatorv1 "github.com/pyserve/pyserve/proto/pyserve/operator/v1"
)

// change is one object that an apply creates, changes or removes.
type change struct {
	Action  string   `json:"action"`
	Kind    string   `json:"kind"`
	Name    string   `json:"name"`
	Details []string `json:"details"`
}

var changeActions = map[operatorv1.ChangeAction]string{
	operatorv1.ChangeAction_CHANGE_ACTION_CREATED: "created",
	operatorv1.ChangeAction_CHANGE_ACTION_CHANGED: "changed",
	operatorv1.ChangeAction_CHANGE_ACTION_REMOVED: "removed",
}

func changeOf(m *operatorv1.Change) change {
	details := m.GetDetails()
	if details == nil {
		details = []string{}
	}
	return change{changeActions[m.GetAction()], m.GetKind(), m.GetName(), details}
}

func (c change) print(to io.Writer, p painter) {
	sign, colour := map[string]string{"created": "+", "changed": "~", "removed": "-"}[c.Action],
		map[string]string{"created": green, "changed": yellow, "removed": red}[c.Action]
	fmt.Fprintf(to, "%s %s %s %s\n", p.paint(colour, sign), c.Kind, c.Name, c.Action)
	for _, detail := range c.Details {
		fmt.Fprintf(to, "    %s\n", detail)
	}
}

const (
	// listedChanges is how many objects are told one by one where people read.
	listedChanges = 1000
	// shownChanges is how many are where there are more: of those created, changed and removed each, lest the few that are
	// removed drown in what is created. Of the rest there is a summary.
	shownChanges = 100
)

// changeList prints changes, all of them or some and how many more there are.
type changeList struct {
	out   io.Writer
	paint painter
	all   bool              // no summary
	held  []change          // not printed: they may all be
	shown map[string]int    // by action; nil: nothing is summed up yet
	rest  map[[2]string]int // by kind and action: those that are not shown
}

func (l *changeList) add(c change) {
	switch {
	case l.all:
		c.print(l.out, l.paint)
	case l.shown != nil:
		l.show(c)
	case len(l.held) < listedChanges:
		l.held = append(l.held, c)
	default:
		l.shown, l.rest = map[string]int{}, map[[2]string]int{}
		for _, held := range append(l.held, c) {
			l.show(held)
		}
		l.held = nil
	}
}

// show prints a change of which there are few so far, and counts others.
func (l *changeList) show(c change) {
	if l.shown[c.Action] < shownChanges {
		l.shown[c.Action]++
		c.print(l.out, l.paint)
		return
	}
	l.rest[[2]string{c.Kind, c.Action}]++
}

// end prints what is left to say. It may be called again.
func (l *changeList) end() {
	for _, c := range l.held {
		c.print(l.out, l.paint)
	}
	l.held = nil
	var parts []string
	for _, kind := range []string{"listener", "certificate", "route"} {
		for _, action := range []string{"created", "changed", "removed"} {
			if n := l.rest[[2]string{kind, action}]; n > 0 {
				parts = append(parts, count(n, kind)+" "+action)
			}
		}
	}
	if len(parts) > 0 {
		fmt.Fprintf(l.out, "and more: %s; -o wide shows all\n", strings.Join(parts, ", "))
	}
	clear(l.rest)
}
