package config

import (
	"cmp"
	"errors"
	"fmt"
	"regexp/syntax"
	"slices"
	"strings"
)

// Variable is what of a request a template puts in.
type Variable uint8

// The variables there are.
const (
	// NoVariable: the part is literal.
	NoVariable Variable = iota
	// VariablePath is the path in normal form, percent-encoded, before anything is stripped.
	VariablePath
	// VariableHost is the host that the client named, without a port.
	VariableHost
	// VariableQuery is what stands behind "?", without it, byte for byte.
	VariableQuery
	// VariableClientIP is the client's address.
	VariableClientIP
	// VariableGroup is what a named group of the route's expression found, as it stands in the path.
	VariableGroup
)

var variableNames = map[string]Variable{
	"path": VariablePath, "host": VariableHost, "query": VariableQuery, "client_ip": VariableClientIP,
}

// TemplatePart is literal text or a variable.
type TemplatePart struct {
	// Literal is the text; empty with a variable.
	Literal  string
	Variable Variable
	// Group is the group's name, with VariableGroup.
	Group string
}

// Template is a text with places for what a request says. No parts are the empty text.
type Template []TemplatePart

// maxVariables bounds how long a template's text can get: each variable may be a whole request target.
const maxVariables = 16

// ParseTemplate reads a template: "{name}" is a variable or one of groups, "{{" a brace. A "}" elsewhere stands for itself. The
// error says what to write.
func ParseTemplate(text string, groups []string) (Template, error) {
	var parts Template
	var literal strings.Builder
	end := func() {
		if literal.Len() > 0 {
			parts = append(parts, TemplatePart{Literal: literal.String()})
			literal.Reset()
		}
	}
	variables := 0
	for rest := text; rest != ""; {
		before, after, found := strings.Cut(rest, "{")
		literal.WriteString(before)
		if rest = after; !found {
			break
		}
		if after, doubled := strings.CutPrefix(rest, "{"); doubled {
			literal.WriteByte('{')
			rest = after
			continue
		}
		name, after, closed := strings.Cut(rest, "}")
		part, err := variablePart(name, groups)
		switch {
		case !closed:
			return nil, errors.New(`a "{" has no "}" after it: write "{{" for a brace`)
		case err != nil:
			return nil, err
		}
		if variables++; variables > maxVariables {
			return nil, fmt.Errorf("more than %d names stand in braces: write fewer", maxVariables)
		}
		end()
		parts, rest = append(parts, part), after
	}
	end()
	return parts, nil
}

func variablePart(name string, groups []string) (TemplatePart, error) {
	variable, known := variableNames[name]
	switch group := slices.Contains(groups, name); {
	case known && group:
		return TemplatePart{}, fmt.Errorf("{%s} is of the request, and the expression has a group of that name: give the group another", name)
	case known:
		return TemplatePart{Variable: variable}, nil
	case group:
		return TemplatePart{Variable: VariableGroup, Group: name}, nil
	}
	names := append([]string{"path", "host", "query", "client_ip"}, groups...)
	if guess := nearest(name, names); guess != "" {
		return TemplatePart{}, fmt.Errorf(`{%s} is not known here: did you mean {%s}? "{{" is a brace`, short(name), guess)
	}
	return TemplatePart{}, fmt.Errorf(`{%s} is not known here: write {%s}, or "{{" for a brace`, short(name), strings.Join(names, "}, {"))
}

// expressionGroups are the names of an expression's groups; of one that is none, nothing.
func expressionGroups(text string) []string {
	parsed, err := syntax.Parse(text, syntax.Perl)
	if err != nil {
		return nil // that is told elsewhere
	}
	return slices.DeleteFunc(parsed.CapNames(), func(name string) bool { return name == "" })
}

// groups are the names that the route's templates may use beside those of the request.
func (e *entry) groups() []string {
	if e.match.value != "regex" {
		return nil
	}
	return expressionGroups(e.path.value)
}

// templateUse is a template of an entry, which can be read only when the entry's path is known.
type templateUse struct {
	at    place
	text  string
	check func(Template) error // nil: a template is all that it has to be
}

func (e *entry) useTemplate(at place, text string, check func(Template) error) {
	e.templates = append(e.templates, templateUse{at, text, check})
}

func (r *reader) checkTemplates(e *entry) {
	if len(e.templates) == 0 {
		return
	}
	groups := e.groups()
	slices.SortStableFunc(e.templates, func(a, b templateUse) int { return cmp.Compare(a.at.line, b.at.line) })
	for _, use := range e.templates {
		t, err := ParseTemplate(use.text, groups)
		if err == nil && use.check != nil {
			err = use.check(t)
		}
		if err != nil {
			r.errorf(use.at, "%s: %s", quote(use.text), err)
		}
	}
}
