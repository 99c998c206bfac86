package config

import (
	"encoding/json"
	"reflect"
	"slices"
	"time"

	"gopkg.in/yaml.v3"
)

// Schema gives the JSON Schema (draft 7, which every editor knows) of a document. It says what [Parse] refuses for its
// structure: unknown keys, wrong types, numbers out of range, unknown words. Everything else is left to Parse, so a
// document that it lets through may still be refused.
//
// It is not written down anywhere: each section is read in a mode in which readers, instead of taking a value, say what
// they would take. So a key cannot be read without being in the schema.
func Schema() []byte {
	r := &reader{files: newFileCache(nil), now: time.Unix(0, 0), aliased: true} // probes are read more than once
	r.drawing = &drawing{sections: make(map[any]shape)}
	document := sketchOf(r, func(v value) { documentSection.read(r, v, new(documentSettings)) })
	document["$schema"] = "http://json-schema.org/draft-07/schema#"
	document["title"] = "The config file of a PyServe cluster"
	out, err := json.MarshalIndent(document, "", "  ")
	if err != nil {
		panic(err) // shapes are made of what JSON has
	}
	return append(out, '\n')
}

// shape is a part of a schema.
type shape map[string]any

var (
	textShape    = shape{"type": []string{"string", "number"}}
	booleanShape = shape{"type": "boolean"}
)

func numberShape(least, most uint64) shape {
	return shape{"type": "integer", "minimum": least, "maximum": most}
}

// durationShape is a time with its unit. 0 needs none.
func durationShape(least time.Duration) shape {
	s := shape{"type": "string", "pattern": `^(0|\+?([0-9]+(\.[0-9]*)?|\.[0-9]+)(ns|us|µs|ms|s|m|h))+$`}
	if least == 0 {
		s["type"], s["minimum"], s["maximum"] = []string{"string", "integer"}, 0, 0
	}
	return s
}

// drawing is where readers tell what they would take, instead of taking anything.
type drawing struct {
	sketches map[*yaml.Node]*sketch // of the probe that is read
	sections map[any]shape          // those that are done
}

// sketch gathers what a reader would take in the place of a value.
type sketch struct {
	shapes []shape
	// values and items are what it would take below, where it goes through a mapping or list by itself.
	values, items *sketch
}

// sketchOf shows values of every kind to a reader, and gives a shape for all that it would take.
func sketchOf(r *reader, read func(v value)) shape {
	outer := r.drawing.sketches
	defer func() { r.drawing.sketches = outer }()
	s := new(sketch)
	for _, node := range probes(2) {
		r.drawing.sketches = make(map[*yaml.Node]*sketch)
		s.watch(r, node)
		read(value{node: node, step: &step{index: noIndex}})
	}
	return s.shape()
}

// probes are values of each kind, mappings and lists of such down to some depth.
func probes(depth int) []*yaml.Node {
	scalar := func(tag, text string) *yaml.Node {
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: tag, Value: text, Line: 1}
	}
	all := []*yaml.Node{scalar(stringTag, "x"), scalar(integerTag, "1"), scalar(boolTag, "true")}
	if depth == 0 {
		return all
	}
	for _, inner := range probes(depth - 1) {
		all = append(all,
			&yaml.Node{Kind: yaml.SequenceNode, Tag: sequenceTag, Content: []*yaml.Node{inner}, Line: 1},
			&yaml.Node{Kind: yaml.MappingNode, Tag: mappingTag, Content: []*yaml.Node{scalar(stringTag, "x"), inner}, Line: 1})
	}
	return all
}

// watch lets what is told of a node, and of those below it, come to the sketch.
func (s *sketch) watch(r *reader, node *yaml.Node) {
	r.drawing.sketches[node] = s
	switch node.Kind {
	case yaml.SequenceNode:
		if s.items == nil {
			s.items = new(sketch)
		}
		s.items.watch(r, node.Content[0])
	case yaml.MappingNode:
		if s.values == nil {
			s.values = new(sketch)
		}
		s.values.watch(r, node.Content[1])
	}
}

// told reports whether the reader is one that only says what it would take; then what that is has been noted.
func (r *reader) told(v value, would func() shape) bool {
	if r.drawing == nil {
		return false
	}
	if s := r.drawing.sketches[v.node]; s != nil {
		s.add(would())
	}
	return true
}

func (s *sketch) add(one shape) {
	same := func(other shape) bool { return reflect.DeepEqual(one, other) }
	if !slices.ContainsFunc(s.shapes, same) {
		s.shapes = append(s.shapes, one)
	}
}

func (s *sketch) empty() bool {
	return s == nil || len(s.shapes) == 0 && s.values.empty() && s.items.empty()
}

// shape gives one shape for all that was told. Nothing at all may stand for an empty mapping or list.
func (s *sketch) shape() shape {
	all := slices.Clone(s.shapes)
	if !s.items.empty() {
		all = append(all, shape{"type": []string{"array", "null"}, "items": s.items.shape()})
	}
	if !s.values.empty() {
		all = append(all, shape{"type": []string{"object", "null"}, "additionalProperties": s.values.shape()})
	}
	switch len(all) {
	case 0:
		return shape{}
	case 1:
		return all[0]
	}
	return shape{"anyOf": all}
}

// shape gives the shape of a section, each key with what the reference says of it.
func (s *section[T]) shape(r *reader) shape {
	if done, ok := r.drawing.sections[s]; ok {
		return done
	}
	properties := make(map[string]shape)
	for i := range s.keys {
		switch k := &s.keys[i]; k.use {
		case supported:
			properties[k.name] = k.shape(r)
		case unused:
			properties[k.name] = shape{"deprecationMessage": k.note}
		}
	}
	done := shape{"type": []string{"object", "null"}, "additionalProperties": false, "properties": properties}
	r.drawing.sections[s] = done
	return done
}

func (k *key[T]) shape(r *reader) shape {
	out := sketchOf(r, func(v value) { k.read(r, v, new(T)) })
	described := shape{"description": k.about + " (" + k.form + ")"}
	switch {
	case k.about == "":
		described["description"] = k.form
	case k.form == "section":
		described["description"] = k.about
	}
	if initial := any(nil); k.initial != "" && yaml.Unmarshal([]byte(k.initial), &initial) == nil {
		_, isText := initial.(string) // the name of a key, where a number is wanted
		if !isText || out["type"] != "integer" {
			described["default"] = initial
		}
	}
	for word, says := range out {
		described[word] = says
	}
	return described
}
