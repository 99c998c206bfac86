package config

import (
	"fmt"

	"gopkg.in/yaml.v3"
)

const (
	// maxNodes is how many nodes a document may have once every alias is replaced by what it stands for. The largest
	// document of the dialect has half as many.
	maxNodes = 6_000_000
	// maxDepth is how deep mappings and lists may nest; the dialect needs nine.
	maxDepth = 64
)

// extent is how much a node stands for, aliases replaced.
type extent struct {
	nodes, depth int
}

// treeCheck looks at a whole tree once, whatever its sections mean: after it, walking the tree with aliases followed
// ends, and costs at most maxNodes.
type treeCheck struct {
	r *reader
	// anchored holds the extents of finished anchors. An alias to an anchor that is not in it stands inside of what it
	// refers to.
	anchored map[*yaml.Node]extent
	// way leads to the node that is looked at.
	way []step
	// refused is set where the tree may not be walked at all.
	refused bool
}

// checkTree reports duplicate keys, tags, and keys that are no text; and whether the tree may be walked.
func checkTree(r *reader, root *yaml.Node) bool {
	c := treeCheck{r: r, anchored: make(map[*yaml.Node]extent)}
	c.node(root, 1)
	r.aliased = len(c.anchored) > 0
	return !c.refused
}

func (c *treeCheck) refuse(node *yaml.Node, message string) {
	if !c.refused {
		c.refused = true
		c.errorf(node, "%s", message)
	}
}

func (c *treeCheck) errorf(node *yaml.Node, format string, args ...any) {
	c.r.add(false, node.Line, node.Column, func() (string, string) {
		var last *step
		for _, s := range c.way {
			last = &step{last, s.key, s.index}
		}
		return last.String(), fmt.Sprintf(format, args...)
	})
}

// stepTo gives the way to a node's child. A key is no step of its own.
func stepTo(node *yaml.Node, child int) (step, bool) {
	switch {
	case node.Kind == yaml.SequenceNode:
		return step{index: child}, true
	case child%2 == 1 && target(node.Content[child-1]).Kind == yaml.ScalarNode:
		return step{key: target(node.Content[child-1]).Value, index: noIndex}, true
	}
	return step{}, false
}

// node looks at one node, depth levels below the top.
func (c *treeCheck) node(node *yaml.Node, depth int) extent {
	if node.Kind == yaml.AliasNode {
		return c.alias(node, depth)
	}
	if depth > maxDepth {
		c.refuse(node, "nested too deeply")
		return extent{1, 1}
	}
	c.tag(node)
	total := extent{nodes: 1}
	for i, child := range node.Content {
		way := c.way
		if s, ok := stepTo(node, i); ok {
			c.way = append(c.way, s)
		}
		inner := c.node(child, depth+1)
		c.way = way
		if total.nodes += inner.nodes; total.nodes > maxNodes {
			c.refuse(child, "more than 6,000,000 values up to here, aliases replaced by what they stand for: write less with them")
			total.nodes = maxNodes // no sum of two overflows
		}
		total.depth = max(total.depth, inner.depth)
	}
	total.depth++
	if node.Kind == yaml.MappingNode {
		c.keys(node)
	}
	if node.Anchor != "" {
		c.anchored[node] = total
	}
	return total
}

func (c *treeCheck) alias(node *yaml.Node, depth int) extent {
	inner, finished := c.anchored[node.Alias]
	switch {
	case !finished:
		c.refuse(node, "*"+node.Value+" stands inside of what it stands for")
		return extent{1, 1}
	case depth+inner.depth > maxDepth+1:
		c.refuse(node, "nested too deeply")
	}
	return inner
}

// tag refuses explicit tags but those of plain YAML: the dialect has no types of its own.
func (c *treeCheck) tag(node *yaml.Node) {
	if node.Style&yaml.TaggedStyle == 0 {
		return
	}
	switch node.Tag {
	case nullTag, boolTag, stringTag, integerTag, floatTag, timestampTag, sequenceTag, mappingTag:
	default:
		c.errorf(node, "the tag %s is not known: leave it out", quote(node.Tag))
	}
}

// keys refuses keys that stand twice in one mapping, that are no text, and merges of what is no mapping.
func (c *treeCheck) keys(mapping *yaml.Node) {
	const few = 16 // up to so many, comparing each with each is cheaper than a map
	var seen map[string]*yaml.Node
	if len(mapping.Content) > 2*few {
		seen = make(map[string]*yaml.Node, len(mapping.Content)/2)
	}
	for i := 0; i+1 < len(mapping.Content); i += 2 {
		written := mapping.Content[i]
		name := target(written)
		if name == nil || name.Kind != yaml.ScalarNode {
			c.errorf(written, "a key is a word: write \"key: value\", with quotes around text that begins with { or [")
			continue
		}
		if name.Tag == mergeTag {
			c.merge(mapping.Content[i+1])
		}
		var first *yaml.Node
		if seen != nil {
			if first = seen[name.Value]; first == nil {
				seen[name.Value] = written
			}
		} else {
			first = sameKey(mapping.Content[:i], name.Value)
		}
		if first != nil {
			c.errorf(written, "the key %s stands twice in one mapping, first on line %d: keep one of them",
				quote(name.Value), first.Line)
		}
	}
}

// sameKey finds a key among keys and values.
func sameKey(content []*yaml.Node, name string) *yaml.Node {
	for i := 0; i < len(content); i += 2 {
		if target(content[i]).Value == name {
			return content[i]
		}
	}
	return nil
}

// merge refuses "<<" with anything but a mapping or a list of mappings. That would make walking impossible.
func (c *treeCheck) merge(node *yaml.Node) {
	sources := []*yaml.Node{node}
	if target(node).Kind == yaml.SequenceNode {
		sources = target(node).Content
	}
	for _, source := range sources {
		if target(source).Kind != yaml.MappingNode {
			c.refuse(source, `"<<" takes a mapping in: write an alias of one, such as *defaults`)
		}
	}
}
