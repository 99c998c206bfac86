package route

// Step is one class of hosts that a lookup looks into: the rules of one host, of one "*." host, or of every host.
type Step[T any] struct {
	// Host is a name, "*." and a name, or empty for the rules of every host.
	Host string
	// Found says that a rule of this class matches the path, and that the lookup ends here.
	Found bool
	// Value is that of the rule, where Found.
	Value T
}

// Trace gives the steps of Lookup for the same host and path, for people. Classes without a rule are left out, so that no
// step at all says that no rule is for such a host.
func (t *Table[T]) Trace(host, path []byte) []Step[T] {
	var steps []Step[T]
	look := func(name string, c class, known bool) (found bool) {
		if !known || len(path) == 0 || path[0] != '/' {
			return false
		}
		step := Step[T]{Host: name}
		if rule := t.in(c, path); rule >= 0 {
			step.Found, step.Value = true, t.values[rule]
		}
		steps = append(steps, step)
		return step.Found
	}
	if c, known := t.hosts[string(host)]; look(string(host), c, known) {
		return steps
	}
	for end := t.wildEnd(host); end != nil; end = t.wildEnd(end) {
		if c, known := t.wild[string(end)]; look("*."+string(end), c, known) {
			return steps
		}
	}
	look("", t.any, !t.any.empty())
	return steps
}
