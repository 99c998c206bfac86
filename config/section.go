package config

import (
	"fmt"
	"iter"
	"slices"
	"strconv"
	"strings"
	"time"

	"gopkg.in/yaml.v3"
)

// section declares a mapping of the dialect: every key it may have, once. T is what is read into.
type section[T any] struct {
	// form is what to write where something else than a mapping stands.
	form string
	keys []key[T]
}

// key declares one key of a section: how it is read, and what the reference says of it.
type key[T any] struct {
	name string
	use  use
	// form is its type and unit, initial its default as one would write it, about its meaning: the columns of the
	// reference.
	form, initial, about string
	// note says what to do instead where use is not supported.
	note string
	// read takes the value into a T, or reports what is wrong with it. Set where use is supported.
	read func(r *reader, v value, into *T)
}

// use says what becomes of a key.
type use uint8

const (
	// supported keys are read.
	supported use = iota
	// unused keys are PyServe's own and mean nothing to the cluster: a warning.
	unused
	// misplaced keys belong to another section: an error that says which.
	misplaced
)

// reader carries what one Parse needs everywhere.
type reader struct {
	report
	files *fileCache
	now   time.Time
	// aliased says that nodes of the tree may be read more than once.
	aliased bool
	// expressions counts the instructions of all regular expressions.
	expressions int
	// drawing is set while a schema is made.
	drawing *drawing
}

// value is a node of the document, never an alias, with the way that led to it.
type value struct {
	node *yaml.Node
	step *step
}

// step is one part of a path: a place in a list, or, where index is noIndex, a key.
type step struct {
	parent *step
	key    string
	index  int
}

const noIndex = -1

func (s *step) String() string {
	var parts []string
	for ; s != nil; s = s.parent {
		switch {
		case s.index != noIndex:
			parts = append(parts, "["+strconv.Itoa(s.index)+"]")
		case s.parent == nil:
			parts = append(parts, plainKey(s.key))
		default:
			parts = append(parts, "."+plainKey(s.key))
		}
	}
	slices.Reverse(parts)
	return strings.Join(parts, "")
}

// plainKey gives a key as it stands in a path: quoted if it could be misread there.
func plainKey(key string) string {
	odd := func(c rune) bool {
		return c != '_' && c != '-' && (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z')
	}
	if key == "" || len(key) > 64 || strings.ContainsFunc(key, odd) {
		return quote(key)
	}
	return key
}

// at is the value of a key below v.
func (v value) at(name string, node *yaml.Node) value {
	return value{target(node), &step{v.step, name, noIndex}}
}

// items gives the values of a list.
func (v value) items() iter.Seq2[int, value] {
	return func(yield func(int, value) bool) {
		for i, node := range v.node.Content {
			if !yield(i, value{target(node), &step{v.step, "", i}}) {
				return
			}
		}
	}
}

// target gives what an alias stands for, and any other node itself.
func target(node *yaml.Node) *yaml.Node {
	if node.Kind == yaml.AliasNode {
		return node.Alias
	}
	return node
}

// place is where something stands in the document. It holds no node: what is read outlives the tree.
type place struct {
	line, column int32
	step         *step
}

// located is a value, or the place of one that was read.
type located interface{ where() place }

func (v value) where() place { return placeOf(v.node, v.step) }

func (p place) where() place { return p }

func placeOf(node *yaml.Node, way *step) place {
	return place{int32(node.Line), int32(node.Column), way}
}

func (p place) isSet() bool { return p.line != 0 }

func (r *reader) errorf(l located, format string, args ...any) { r.tell(false, l, format, args...) }

func (r *reader) warnf(l located, format string, args ...any) { r.tell(true, l, format, args...) }

func (r *reader) tell(warning bool, l located, format string, args ...any) {
	at := l.where()
	r.add(warning, int(at.line), int(at.column), func() (string, string) {
		return at.step.String(), fmt.Sprintf(format, args...)
	})
}

// read takes a mapping into a T. Nothing at all stands for an empty mapping: that is what is left of a section whose
// keys were all commented out. It reports false, with a problem, where something else stands.
func (s *section[T]) read(r *reader, v value, into *T) bool {
	if r.told(v, func() shape { return s.shape(r) }) {
		return false
	}
	if isNull(v.node) {
		return true
	}
	if v.node.Kind != yaml.MappingNode {
		r.errorf(v, "%s stands here: write %s", describe(v.node), s.form)
		return false
	}
	for name, node := range pairs(v.node) {
		child := v.at(name.Value, node)
		i := slices.IndexFunc(s.keys, func(k key[T]) bool { return k.name == name.Value })
		if i < 0 {
			r.add(false, name.Line, name.Column, func() (string, string) { return child.step.String(), s.unknown(name.Value) })
			continue
		}
		switch k := &s.keys[i]; k.use {
		case supported:
			k.read(r, child, into)
		case unused:
			r.warnf(placeOf(name, child.step), "%s", k.note)
		case misplaced:
			r.errorf(placeOf(name, child.step), "does not belong here: %s", k.note)
		}
	}
	return true
}

// unknown says what to do about a key that the section does not have.
func (s *section[T]) unknown(name string) string {
	var near, here []string
	for _, k := range s.keys {
		if k.use != misplaced {
			near = append(near, k.name)
		}
		if k.use == supported {
			here = append(here, k.name)
		}
	}
	if guess := nearest(name, near); guess != "" {
		return fmt.Sprintf("unknown key: did you mean %s?", guess)
	}
	return fmt.Sprintf("unknown key: write %s", oneOf(here))
}

// list reads each item of a list. Nothing at all stands for an empty list. form is what to write instead of something
// that is no list.
func (r *reader) list(v value, form string, item func(value)) bool {
	if isNull(v.node) {
		return true
	}
	if v.node.Kind != yaml.SequenceNode {
		r.errorf(v, "%s stands here: write %s", describe(v.node), form)
		return false
	}
	for _, child := range v.items() {
		item(child)
	}
	return true
}

// pairs gives the keys and values of a mapping, those of its merge keys ("<<") included: its own come first and win,
// earlier merges win over later ones (https://yaml.org/type/merge.html).
func pairs(mapping *yaml.Node) iter.Seq2[*yaml.Node, *yaml.Node] {
	return func(yield func(*yaml.Node, *yaml.Node) bool) {
		var merges []*yaml.Node
		for i := 0; i+1 < len(mapping.Content); i += 2 {
			name, node := target(mapping.Content[i]), mapping.Content[i+1]
			if name.Tag == mergeTag {
				merges = append(merges, target(node))
			} else if name.Kind == yaml.ScalarNode && !yield(name, node) {
				return
			}
		}
		if merges != nil {
			yieldMerged(mapping, merges, yield)
		}
	}
}

func yieldMerged(mapping *yaml.Node, merges []*yaml.Node, yield func(*yaml.Node, *yaml.Node) bool) {
	seen := make(map[string]bool)
	for i := 0; i+1 < len(mapping.Content); i += 2 {
		seen[target(mapping.Content[i]).Value] = true
	}
	for _, merge := range merges {
		sources := []*yaml.Node{merge}
		if merge.Kind == yaml.SequenceNode {
			sources = merge.Content
		}
		for _, source := range sources {
			for name, node := range pairs(target(source)) {
				if seen[name.Value] {
					continue
				}
				seen[name.Value] = true
				if !yield(name, node) {
					return
				}
			}
		}
	}
}

// option is a value that may be left out, with where it was set.
type option[V any] struct {
	value V
	at    place
}

func (o *option[V]) isSet() bool { return o.at.isSet() }

// or gives the value, or what to use where it was left out.
func (o *option[V]) or(initial V) V {
	if o.isSet() {
		return o.value
	}
	return initial
}

// take reads into an option: parse reports whether there is anything to take.
func take[V any](o *option[V], v value, parse func(value) (V, bool)) {
	if x, ok := parse(v); ok {
		*o = option[V]{x, v.where()}
	}
}
