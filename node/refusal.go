package node

import (
	"fmt"
	"slices"
	"strings"
)

// Refusal is one reason why a node cannot serve a bundle.
type Refusal struct {
	// What it concerns, as in the document or as a flag: "server.port", "ssl.key_file", "--listen"; empty: nothing of these.
	Field string
	// For people.
	Reason string
}

// String is "field: reason".
func (r Refusal) String() string {
	if r.Field == "" {
		return r.Reason
	}
	return r.Field + ": " + r.Reason
}

// Refusals is everything that stood in the way of a bundle. It is never empty as an error.
type Refusals []Refusal

func (r Refusals) Error() string {
	all := make([]string, 0, len(r))
	for _, one := range r {
		all = append(all, one.String())
	}
	return strings.Join(all, "; ")
}

// maxRefusals bounds what is said of one bundle: a hundred thousand routes can be wrong for one reason.
const maxRefusals = 50

func (r *Refusals) addf(field, format string, args ...any) {
	if len(*r) > maxRefusals {
		return
	}
	one := Refusal{Field: field, Reason: fmt.Sprintf(format, args...)}
	if len(*r) == maxRefusals {
		one = Refusal{Reason: "and more"}
	}
	if !slices.Contains(*r, one) {
		*r = append(*r, one)
	}
}
