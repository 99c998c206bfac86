package config

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// MaxProblems is how many problems of a document are told one by one. The rest is counted.
const MaxProblems = 100

// Problem is something in a document that is wrong, or, as a warning, not used.
type Problem struct {
	// Line and Column are where it stands, both from 1. Column may be 0: not known.
	Line, Column int
	// Path is the field: "server.reverse_proxy[2].port". Empty: it concerns the document.
	Path string
	// Message says what is wrong and what to write. It never holds what a key file holds.
	Message string
	// Warning problems do not stand in the way.
	Warning bool
}

// String gives "LINE: path.to.field: message", with "warning: " before the message of a warning.
func (p Problem) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d: ", p.Line)
	if p.Path != "" {
		b.WriteString(p.Path)
		b.WriteString(": ")
	}
	if p.Warning {
		b.WriteString("warning: ")
	}
	b.WriteString(p.Message)
	return b.String()
}

// Problems are the problems of one document, sorted by line.
type Problems []Problem

// HasErrors reports whether any of them is more than a warning.
func (p Problems) HasErrors() bool {
	return slices.ContainsFunc(p, func(p Problem) bool { return !p.Warning })
}

// report gathers problems. It keeps the first MaxProblems errors and as many warnings, so that a document with a million
// faults costs no more than one with a hundred.
type report struct {
	errors, warnings         []Problem
	errorsMore, warningsMore int
}

// add takes a problem whose path and message are made only if it is kept.
func (r *report) add(warning bool, line, column int, text func() (path, message string)) {
	kept, more := &r.errors, &r.errorsMore
	if warning {
		kept, more = &r.warnings, &r.warningsMore
	}
	if len(*kept) == MaxProblems {
		*more++
		return
	}
	path, message := text()
	*kept = append(*kept, Problem{Line: max(line, 1), Column: column, Path: path, Message: message, Warning: warning})
}

// errorCount is how many errors there were so far.
func (r *report) errorCount() int { return len(r.errors) + r.errorsMore }

// problems gives what was kept, errors first where there is not room for all, and a last one that counts the rest.
func (r *report) problems() Problems {
	room := min(len(r.warnings), MaxProblems-len(r.errors))
	all := slices.Concat(Problems(r.errors), r.warnings[:room])
	slices.SortStableFunc(all, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	warningsMore := r.warningsMore + len(r.warnings) - room
	var more []string
	if r.errorsMore > 0 {
		more = append(more, count(r.errorsMore, "more error"))
	}
	if warningsMore > 0 {
		more = append(more, count(warningsMore, "more warning"))
	}
	if more != nil {
		all = append(all, Problem{
			Line:    all[len(all)-1].Line,
			Message: "and " + strings.Join(more, " and ") + " not shown here",
			Warning: r.errorsMore == 0,
		})
	}
	return all
}

// count gives "1 route", "2 routes".
func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
