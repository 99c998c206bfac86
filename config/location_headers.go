package config

import (
	"cmp"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"

	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

// headerLine is one of a location's headers.
type headerLine struct {
	at          value
	name, value string
}

// headerLines reads "Name: value" items.
func (r *reader) headerLines(v value) []headerLine {
	var out []headerLine
	const form = `a line such as "X-Frame-Options: DENY"`
	r.list(v, "a list such as [\"X-Frame-Options: DENY\"]", func(item value) {
		text, ok := r.text(item, form)
		if !ok {
			return
		}
		name, rest, colon := strings.Cut(text, ":")
		if !colon {
			r.errorf(item, "%s has no colon: write %s", quote(text), form)
			return
		}
		out = append(out, headerLine{item, name, strings.TrimSpace(rest)})
	})
	return out
}

// edits translates headers and cache_control.
func (l *location) edits(r *reader, e *entry) {
	answers := e.answersItself()
	request := &fieldEdits{entry: e, rules: requestFields, request: true}
	response := &fieldEdits{entry: e, rules: responseFields}
	into := request
	if answers {
		into = response
	}
	for _, line := range l.headers {
		if !answers && line.isForwarding() {
			continue
		}
		l.edit(r, e, into, line.at, line.name, l.template(line.value, e))
	}
	if l.cacheControl.isSet() {
		at := value{node: &yaml.Node{Line: int(l.cacheControl.at.line), Column: int(l.cacheControl.at.column)}, step: l.cacheControl.at.step}
		l.edit(r, e, response, at, "Cache-Control", l.template(l.cacheControl.value, e))
	}
	if len(request.Set) > 0 {
		e.requestHeaders = option[*resourcev1.FieldEdits]{&request.FieldEdits, l.at}
	}
	if len(response.Set) > 0 {
		e.responseHeaders = option[*resourcev1.FieldEdits]{&response.FieldEdits, l.at}
	}
}

// isForwarding says that a line asks for what every backend is sent anyway.
func (h *headerLine) isForwarding() bool {
	name := strings.ToLower(h.name)
	return h.value == "$remote_addr" && (name == "x-forwarded-for" || name == "x-real-ip")
}

// edit sets one field; of several with one name the last counts.
func (l *location) edit(r *reader, e *entry, into *fieldEdits, at value, name, text string) {
	if !r.fieldName(at, name, into, false) {
		return
	}
	written := value{&yaml.Node{Kind: yaml.ScalarNode, Tag: stringTag, Value: text, Line: at.node.Line, Column: at.node.Column}, at.step}
	text, ok := r.fieldValue(written, name, into)
	if !ok {
		return
	}
	into.Set = slices.DeleteFunc(into.Set, func(f *resourcev1.Field) bool { return strings.EqualFold(f.Name, name) })
	into.Set = append(into.Set, &resourcev1.Field{Name: name, Value: text})
	if len(into.Set) == maxEdits+1 {
		r.errorf(at, "a location sets at most %d fields: leave this one out", maxEdits)
	}
	slices.SortFunc(into.Set, func(a, b *resourcev1.Field) int {
		return cmp.Compare(strings.ToLower(a.Name), strings.ToLower(b.Name))
	})
}
