package forward

import (
	"bytes"
	"errors"
	"net/http"
	"strings"

	"github.com/pyserve/pyserve/node/http1"
	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

// fieldEdits are what a route changes in a head: first what is removed, then what is set, then what is added. They work on the
// lines that were written, those of the proxy's own included, so that a route without edits does not pay for the question
// whether a field is one of them.
type fieldEdits struct {
	dropped []string // names in lower case: what is removed or set
	lengths uint64   // which lengths these have, as bits; all from 63 on are the last
	fields  []editedField
}

type editedField struct {
	name  string
	value template
}

// newFieldEdits compiles edits; nil where there are none. host is the Host that they set, which is not a line like others; nil:
// none.
func newFieldEdits(key string, m *resourcev1.FieldEdits, t *templates) (edits *fieldEdits, host template, err error) {
	e := &fieldEdits{}
	for _, name := range m.GetRemove() {
		e.drop(name)
	}
	for i, list := range [][]*resourcev1.Field{m.GetSet(), m.GetAdd()} {
		for _, f := range list {
			value, err := t.of(f.GetValue())
			switch {
			case err != nil:
				return nil, nil, templateError(key+"."+f.GetName(), err)
			case http1.CheckName(f.GetName()) != nil:
				return nil, nil, templateError(key+"."+f.GetName(), http1.BadName)
			case strings.EqualFold(f.GetName(), "host"):
				host = value
				continue
			case i == 0:
				e.drop(f.GetName())
			}
			e.fields = append(e.fields, editedField{f.GetName(), value})
		}
	}
	if len(e.dropped)+len(e.fields) == 0 {
		return nil, host, nil
	}
	return e, host, nil
}

func (e *fieldEdits) drop(name string) {
	e.dropped = append(e.dropped, strings.ToLower(name))
	e.lengths |= lengthBit(len(name))
}

func lengthBit(n int) uint64 { return 1 << min(n, 63) }

// drops says whether the field of that name goes.
func (e *fieldEdits) drops(name []byte) bool {
	if e.lengths&lengthBit(len(name)) == 0 {
		return false
	}
	for _, dropped := range e.dropped {
		if equalLower(name, dropped) {
			return true
		}
	}
	return false
}

// errEditedTooLong is what a head becomes by edits, where a template takes much from a request that is long already.
var errEditedTooLong = errors.New("the head is too long with what the route adds to it")

// edit changes the lines of out from start on, each of which is "Name: value CRLF".
func (x *exchange) edit(out []byte, start int, e *fieldEdits) ([]byte, error) {
	out = e.strike(out, start)
	for i := range e.fields {
		f := &e.fields[i]
		out = append(append(out, f.name...), ": "...)
		at := len(out)
		out = x.appendTemplate(out, f.value)
		// A variable without a value may have left a space at an end.
		out = out[:at+copy(out[at:], bytes.Trim(out[at:], " \t"))]
		if err := http1.CheckValue(out[at:]); err != nil {
			return nil, err
		}
		if out = append(out, "\r\n"...); len(out)-start > 2*http1.MaxHead {
			return nil, errEditedTooLong
		}
	}
	return out, nil
}

// strike takes the lines away that are removed or set.
func (e *fieldEdits) strike(out []byte, start int) []byte {
	if len(e.dropped) == 0 {
		return out
	}
	kept := start
	for at := start; at < len(out); {
		end := at + bytes.IndexByte(out[at:], '\n') + 1
		if colon := bytes.IndexByte(out[at:end], ':'); !e.drops(out[at : at+colon]) {
			kept += copy(out[kept:], out[at:end])
		}
		at = end
	}
	return out[:kept]
}

// headFailure is that of a head which cannot be written.
func headFailure(err error) *failure {
	if errors.Is(err, errEditedTooLong) {
		return refused(http.StatusRequestHeaderFieldsTooLarge, "The request is too long for what is made of it.", err)
	}
	return ours(err)
}
