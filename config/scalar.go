package config

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"gopkg.in/yaml.v3"
)

// The tags that yaml.v3 gives to what it read, explicit or found out from the form.
const (
	nullTag      = "!!null"
	boolTag      = "!!bool"
	stringTag    = "!!str"
	integerTag   = "!!int"
	floatTag     = "!!float"
	timestampTag = "!!timestamp"
	sequenceTag  = "!!seq"
	mappingTag   = "!!map"
	mergeTag     = "!!merge"
)

func isNull(node *yaml.Node) bool { return node.Kind == yaml.ScalarNode && node.Tag == nullTag }

// isPlain reports whether a scalar stands without quotes.
func isPlain(node *yaml.Node) bool {
	return node.Style&(yaml.DoubleQuotedStyle|yaml.SingleQuotedStyle|yaml.LiteralStyle|yaml.FoldedStyle) == 0
}

// describe names what stands at a node, to begin a sentence with.
func describe(node *yaml.Node) string {
	switch {
	case node.Kind == yaml.MappingNode:
		return "a mapping"
	case node.Kind == yaml.SequenceNode:
		return "a list"
	case isNull(node):
		return "nothing"
	default:
		return quote(node.Value)
	}
}

// quote gives text in quotes, cut where it is long, without anything that a terminal could take for a command.
func quote(text string) string {
	const longest = 80
	if len(text) <= longest {
		return strconv.Quote(text)
	}
	cut := longest
	for cut > 0 && !utf8.RuneStart(text[cut]) {
		cut--
	}
	return strconv.Quote(text[:cut]) + "…"
}

// text reads a string. Numbers are taken as they are written, since `server_name: 10` leaves no doubt; true and false
// are not, since nobody means a host by them. form is what to write.
func (r *reader) text(v value, form string) (string, bool) {
	if r.told(v, func() shape { return textShape }) {
		return "", false
	}
	if v.node.Kind == yaml.ScalarNode {
		switch v.node.Tag {
		case stringTag, integerTag, floatTag, timestampTag:
			return v.node.Value, true
		}
	}
	if isNull(v.node) {
		r.errorf(v, "nothing stands here: write %s, or leave the key out", form)
	} else {
		r.errorf(v, "%s stands here: write %s", describe(v.node), form)
	}
	return "", false
}

// boolean reads true or false. The plain words yes, no, on and off are taken too: PyServe reads YAML 1.1, where they
// mean that.
func (r *reader) boolean(v value) (bool, bool) {
	if r.told(v, func() shape { return booleanShape }) {
		return false, false
	}
	if v.node.Kind == yaml.ScalarNode && (v.node.Tag == boolTag || v.node.Tag == stringTag) {
		plain := isPlain(v.node)
		switch strings.ToLower(v.node.Value) {
		case "true", "yes", "on":
			if plain {
				return true, true
			}
			r.errorf(v, "%s is text: write true, without quotes", quote(v.node.Value))
			return false, false
		case "false", "no", "off":
			if plain {
				return false, true
			}
			r.errorf(v, "%s is text: write false, without quotes", quote(v.node.Value))
			return false, false
		}
	}
	r.errorf(v, "%s stands here: write true or false", describe(v.node))
	return false, false
}

// integer reads a whole number within bounds, in plain decimal. YAML 1.1 reads 010 as eight, 1.2 as ten: refused.
func (r *reader) integer(v value, least, most uint32) (uint32, bool) {
	n, ok := r.whole(v, uint64(least), uint64(most))
	return uint32(n), ok
}

// whole is integer for what may be larger.
func (r *reader) whole(v value, least, most uint64) (uint64, bool) {
	if r.told(v, func() shape { return numberShape(least, most) }) {
		return 0, false
	}
	written := v.node.Value
	form := fmt.Sprintf("write a whole number from %d to %d", least, most)
	n, err := strconv.ParseUint(written, 10, 64)
	decimal := err == nil && strconv.FormatUint(n, 10) == written
	isNumber := v.node.Tag == integerTag || v.node.Tag == floatTag
	switch {
	case v.node.Kind != yaml.ScalarNode:
		r.errorf(v, "%s stands here: %s", describe(v.node), form)
	case decimal && v.node.Tag == stringTag:
		r.errorf(v, "%s is text: write %s, without quotes", quote(written), written)
	case decimal && n >= least && n <= most:
		return n, true
	case isNumber && (decimal || strings.HasPrefix(written, "-") || isRangeError(err)):
		r.errorf(v, "%s is out of range: %s", short(written), form)
	case isNumber:
		r.errorf(v, "%s is not a plain whole number: %s", short(written), form)
	default:
		r.errorf(v, "%s stands here: %s", describe(v.node), form)
	}
	return 0, false
}

func isRangeError(err error) bool { return errors.Is(err, strconv.ErrRange) }

// port reads a TCP port.
func (r *reader) port(v value) (uint32, bool) { return r.integer(v, 1, 65535) }

// short cuts a number that is absurdly long.
func short(text string) string {
	if len(text) > 24 {
		return text[:24] + "…"
	}
	return text
}

// duration reads a length of time with its unit, within bounds.
func (r *reader) duration(v value, least, most time.Duration) (time.Duration, bool) {
	if r.told(v, func() shape { return durationShape(least) }) {
		return 0, false
	}
	written := v.node.Value
	if v.node.Kind != yaml.ScalarNode || isNull(v.node) {
		r.errorf(v, `%s stands here: write a time with its unit, such as "5s"`, describe(v.node))
		return 0, false
	}
	d, err := time.ParseDuration(written)
	switch bare := strings.Trim(written, "0123456789.") == ""; {
	case bare && written != "0" && written != "":
		r.errorf(v, `%s has no unit: write "%ss" for seconds (ms, s, m and h are known)`, short(written), short(written))
	case err != nil:
		r.errorf(v, `%s is not a time: write a number and its unit (ms, s, m or h), such as "5s"`, quote(written))
	case d < least || d > most:
		r.errorf(v, "%s is out of range: write a time from %s to %s", quote(written), span(least), span(most))
	default:
		return d, true
	}
	return 0, false
}

// span writes a duration without the zero units that time.Duration adds: "1h", not "1h0m0s".
func span(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// choice reads one of some words.
func (r *reader) choice(v value, words []string) (string, bool) {
	if r.told(v, func() shape { return shape{"enum": words} }) {
		return "", false
	}
	form := oneOf(words)
	word, ok := r.text(v, form)
	if !ok {
		return "", false
	}
	for _, known := range words {
		if word == known {
			return word, true
		}
	}
	if guess := nearest(word, words); guess != "" {
		r.errorf(v, "%s is not known here: did you mean %s?", quote(word), guess)
	} else {
		r.errorf(v, "%s is not known here: write %s", quote(word), form)
	}
	return "", false
}
