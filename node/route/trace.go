package route

// Step is one class of hosts that a lookup looks into: the rules of one host, of one "*." host, or of every host.
type Step[T any] struct {
	// Host is a name, "*." and a name, or empty for the rules of every host.
	Host string
	// Found says that a rule of this class matches the path, and that the lookup ends here.
	Found bool
	// Value is that of the rule, where Found.
	Value T
	// Missed are the rules that match host and path and would have come first, but for a condition.
	Missed []Miss[T]
}

// Miss is a rule that does not take a request because of a condition.
type Miss[T any] struct {
	Value T
	// Reason says what does not hold: "the method is not GET or POST".
	Reason string
}

// maxMissed is how many misses a step tells of.
const maxMissed = 10

// Trace gives the steps of Lookup for the same arguments, for people. Classes without a rule are left out, so that no
// step at all says that no rule is for such a host.
func (t *Table[T]) Trace(host, path []byte, r Request) []Step[T] {
	var steps []Step[T]
	l := look{request: r, left: t.work}
	into := func(name string, c class, known bool) (found bool) {
		if !known || len(path) == 0 || path[0] != '/' {
			return false
		}
		step := Step[T]{Host: name}
		l.missed = func(rule int32, asks *conditions, miss int) {
			if len(step.Missed) < maxMissed {
				step.Missed = append(step.Missed, Miss[T]{Value: t.values[rule], Reason: asks.reason(miss)})
			}
		}
		if rule := t.in(c, path, &l); rule >= 0 && l.left >= 0 {
			step.Found, step.Value = true, t.values[rule]
		}
		steps = append(steps, step)
		return step.Found
	}
	if c, known := t.hosts[string(host)]; into(string(host), c, known) {
		return steps
	}
	for end := t.wildEnd(host); end != nil; end = t.wildEnd(end) {
		if c, known := t.wild[string(end)]; into("*."+string(end), c, known) {
			return steps
		}
	}
	into("", t.any, !t.any.empty())
	return steps
}
