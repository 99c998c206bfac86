package config

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"

	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

const (
	// maxEdits is how many fields a route may set, add and remove each.
	maxEdits = 64
	// longestFieldValue is how many bytes a value may have as it is written.
	longestFieldValue = 4096
	// longestFieldName is how many a name may have.
	longestFieldName = 128
)

// fieldRules say which header fields may not be changed, by their names in lower case, each with the reason.
type fieldRules map[string]string

const (
	ofConnection = "is about the connection, which is the proxy's own"
	ofBody       = "says how long the body is, which passes as it is"
	ofHandshake  = "is part of a WebSocket's handshake, which would fail"
)

// The fields that neither a request's nor an answer's edits may name.
var fixedFields = fieldRules{
	"connection": ofConnection, "keep-alive": ofConnection, "proxy-connection": ofConnection, "te": ofConnection,
	"upgrade": ofConnection, "http2-settings": ofConnection, "proxy-authenticate": ofConnection,
	"proxy-authorization": ofConnection, "proxy-authentication-info": ofConnection,
	"content-length": ofBody, "transfer-encoding": ofBody, "trailer": "announces what follows the body, which passes as it is",
	"sec-websocket-key": ofHandshake, "sec-websocket-accept": ofHandshake, "sec-websocket-version": ofHandshake,
	"sec-websocket-extensions": ofHandshake,
}

var (
	requestFields = fieldRules{
		"expect": "is settled between the client and the proxy", "max-forwards": "is counted by each proxy",
		"via": "keeps requests from going round in circles",
	}
	responseFields = fieldRules{"date": "belongs to every answer", "sec-websocket-protocol": ofHandshake}
	// replacedFields are written by the proxy, one line of each: they can be set, but not added to.
	replacedFields = []string{"host", "x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-real-ip", "x-request-id"}
)

// fieldEdits is a request_headers or response_headers section as written.
type fieldEdits struct {
	entry *entry
	rules fieldRules
	// request says which of the two it is.
	request bool
	resourcev1.FieldEdits
}

var fieldEditsSection = section[fieldEdits]{
	form: "a mapping such as {set: {X-Frame-Options: DENY}, remove: [Server]}",
	keys: []key[fieldEdits]{
		{name: "set", form: "mapping of names to values", about: "takes the place of what there is of that name",
			read: func(r *reader, v value, e *fieldEdits) { e.Set = r.fields(v, e, false) }},
		{name: "add", form: "mapping of names to values, or to lists of them", about: "a line more, beside what there is of that name",
			read: func(r *reader, v value, e *fieldEdits) { e.Add = r.fields(v, e, true) }},
		{name: "remove", form: "list of names", about: "is taken away",
			read: func(r *reader, v value, e *fieldEdits) { e.Remove = r.removed(v, e) }},
	},
}

// fieldEdits reads one of the two sections. It reports false where nothing is to be changed, too.
func (r *reader) fieldEdits(v value, e *entry, request bool) (*resourcev1.FieldEdits, bool) {
	before := r.errorCount()
	edits := &fieldEdits{entry: e, rules: responseFields, request: request}
	if request {
		edits.rules = requestFields
	}
	if !fieldEditsSection.read(r, v, edits) || r.errorCount() > before {
		return nil, false
	}
	return &edits.FieldEdits, len(edits.Set)+len(edits.Add)+len(edits.Remove) > 0
}

// fields reads names and values, sorted: the order of different fields means nothing.
func (r *reader) fields(v value, e *fieldEdits, add bool) []*resourcev1.Field {
	if isNull(v.node) {
		return nil
	}
	if v.node.Kind != yaml.MappingNode {
		r.errorf(v, "%s stands here: write a mapping such as {X-Frame-Options: DENY}", describe(v.node))
		return nil
	}
	var out []*resourcev1.Field
	for name, node := range pairs(v.node) {
		child := v.at(name.Value, node)
		at := placeOf(name, child.step)
		if !r.fieldName(at, name.Value, e, add) {
			continue
		}
		same := func(f *resourcev1.Field) bool { return strings.EqualFold(f.Name, name.Value) }
		if slices.ContainsFunc(out, same) {
			r.errorf(at, "stands here twice, in two spellings: keep one of them")
			continue
		}
		take := func(item value) {
			if text, ok := r.fieldValue(item, name.Value, e); ok {
				out = append(out, &resourcev1.Field{Name: name.Value, Value: text})
			}
		}
		if add && child.node.Kind == yaml.SequenceNode {
			r.list(child, "", take)
		} else {
			take(child)
		}
	}
	if len(out) > maxEdits {
		r.errorf(v, "%d fields stand here: write at most %d", len(out), maxEdits)
	}
	slices.SortStableFunc(out, func(a, b *resourcev1.Field) int {
		return cmp.Compare(strings.ToLower(a.Name), strings.ToLower(b.Name))
	})
	return out
}

// removed reads names, in lower case and sorted.
func (r *reader) removed(v value, e *fieldEdits) []string {
	var out []string
	r.list(v, "a list of names such as [Server]", func(item value) {
		name, ok := r.text(item, "a header's name such as Server")
		if !ok || !r.fieldName(item, name, e, false) {
			return
		}
		switch name = strings.ToLower(name); {
		case e.request && name == "host":
			r.errorf(item, "Host cannot be removed: every request names one")
		case slices.Contains(out, name):
			r.warnf(item, "%s stands here twice", quote(name))
		default:
			out = append(out, name)
		}
	})
	if len(out) > maxEdits {
		r.errorf(v, "%d fields stand here: write at most %d", len(out), maxEdits)
	}
	slices.Sort(out)
	return out
}

// fieldName checks a name, and whether the field may be changed. Underscores count as hyphens: many servers cannot tell the
// two apart.
func (r *reader) fieldName(at located, name string, e *fieldEdits, add bool) bool {
	folded := strings.ReplaceAll(strings.ToLower(name), "_", "-")
	reason, fixed := fixedFields[folded]
	if !fixed {
		reason, fixed = e.rules[folded]
	}
	switch {
	case !isFieldName(name):
		r.errorf(at, "%s is not a header's name: write letters, digits and hyphens", quote(name))
	case len(name) > longestFieldName:
		r.errorf(at, "the name has %d bytes: write at most %d", len(name), longestFieldName)
	case fixed:
		r.errorf(at, "%s %s: leave it out", name, reason)
	case add && e.request && slices.Contains(replacedFields, folded):
		r.errorf(at, "%s is there once, written by the proxy: write it below set", name)
	default:
		return true
	}
	return false
}

// fieldValue reads a value. That its template is one, and what may stand in a Host, is checked when the path is known.
func (r *reader) fieldValue(v value, name string, e *fieldEdits) (string, bool) {
	text, ok := r.text(v, `a value such as "nosniff"`)
	switch {
	case !ok:
		return "", false
	case len(text) > longestFieldValue:
		r.errorf(v, "the value has %d bytes: write at most %d", len(text), longestFieldValue)
		return "", false
	case strings.ContainsFunc(text, isControl):
		r.errorf(v, "%s has a control character, such as an end of line: leave it out", quote(text))
		return "", false
	case strings.Trim(text, " \t") != text:
		r.errorf(v, "%s has spaces at its beginning or end, which do not pass: leave them out", quote(text))
		return "", false
	}
	var check func(Template) error
	if e.request && strings.EqualFold(name, "Host") {
		check = checkHostTemplate
	}
	e.entry.useTemplate(v.where(), text, check)
	return text, true
}

// checkHostTemplate keeps what a client wrote in its path or query out of the Host.
func checkHostTemplate(t Template) error {
	if len(t) == 0 {
		return errors.New("nothing stands here: write the host that the backend is to see")
	}
	for _, part := range t {
		switch part.Variable {
		case NoVariable:
			if c := strings.IndexFunc(part.Literal, notInHost); c >= 0 {
				return fmt.Errorf("%s cannot stand in a host: write a host, with a port if need be", quote(part.Literal[c:c+1]))
			}
		case VariableHost:
		default:
			return errors.New("only {host} can stand in a host: the client could name any otherwise")
		}
	}
	return nil
}

// notInHost: what a host with a port may hold, IPv6 in brackets.
func notInHost(c rune) bool {
	return c > 0x7F || !isUnreserved(byte(c)) && !strings.ContainsRune(":[]", c)
}

func isControl(c rune) bool { return c < ' ' && c != '\t' || c == 0x7F }

// isFieldName: RFC 9110 section 5.1.
func isFieldName(name string) bool {
	for _, c := range []byte(name) {
		if (c < '0' || c > '9') && (c|0x20 < 'a' || c|0x20 > 'z') && strings.IndexByte("!#$%&'*+-.^_`|~", c) < 0 {
			return false
		}
	}
	return name != ""
}

// checkHostEdit refuses two words on one thing.
func (r *reader) checkHostEdit(e *entry) {
	sets := func(f *resourcev1.Field) bool { return strings.EqualFold(f.Name, "host") }
	if e.preserveHost.value && slices.ContainsFunc(e.requestHeaders.value.GetSet(), sets) {
		r.errorf(e.preserveHost.at, "request_headers sets Host, which takes its place: leave one of them out")
	}
}
