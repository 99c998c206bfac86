package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"

	"gopkg.in/yaml.v3"
)

// MaxDocumentBytes is how large a document may be.
const MaxDocumentBytes = 10 << 20

// parseText makes a tree of a document's text. Where that is impossible it gives nil and the one problem that stands in
// the way: past a broken line, nothing that could be said of the rest would be sure.
func parseText(document []byte) (*yaml.Node, *Problem) {
	if p := checkText(document); p != nil {
		return nil, p
	}
	decoder := yaml.NewDecoder(bytes.NewReader(document))
	root, err := decodeYAML(decoder)
	if errors.Is(err, io.EOF) {
		return nil, &Problem{Line: 1, Message: "the document is empty: write a server section"}
	}
	if err != nil {
		return nil, syntaxProblem(document, err)
	}
	second, err := decodeYAML(decoder)
	switch {
	case errors.Is(err, io.EOF):
		return root.Content[0], nil
	case err != nil:
		return nil, syntaxProblem(document, err)
	}
	return nil, &Problem{Line: second.Line, Column: second.Column,
		Message: `a second YAML document begins here: write one document, without "---" between its parts`}
}

// decodeYAML gives the next YAML document of a stream, or io.EOF. The library panics at some malformed inputs where it
// thinks that it found a fault of its own: for us that is one more malformed input.
func decodeYAML(decoder *yaml.Decoder) (root *yaml.Node, err error) {
	defer func() {
		if fault := recover(); fault != nil {
			root, err = nil, fmt.Errorf("yaml: %v", fault)
		}
	}()
	root = new(yaml.Node)
	if err := decoder.Decode(root); err != nil {
		return nil, err
	}
	if len(root.Content) == 0 {
		return nil, io.EOF
	}
	return root, nil
}

// checkText refuses what is no text before YAML's own words for it could confuse.
func checkText(document []byte) *Problem {
	switch {
	case len(document) > MaxDocumentBytes:
		return &Problem{Line: 1, Message: fmt.Sprintf("the document has %d bytes: at most %d MiB are read", len(document), MaxDocumentBytes>>20)}
	case bytes.HasPrefix(document, []byte{0xFF, 0xFE}), bytes.HasPrefix(document, []byte{0xFE, 0xFF}):
		return &Problem{Line: 1, Column: 1, Message: "the document is UTF-16: save it as UTF-8"}
	}
	rest := bytes.TrimPrefix(document, []byte("\uFEFF"))
	for at := len(document) - len(rest); at < len(document); {
		if c := document[at]; c >= ' ' && c < 0x7F || c == '\n' {
			at++
			continue
		}
		c, size := utf8.DecodeRune(document[at:])
		if c == utf8.RuneError && size == 1 {
			return textProblem(document, at, "byte 0x%02X is not UTF-8: save the document as UTF-8 text", document[at])
		}
		if !isText(c) {
			return textProblem(document, at, "character U+%04X cannot stand in a document: is this a text file?", c)
		}
		at += size
	}
	return nil
}

// isText reports whether YAML lets a character stand as it is (YAML 1.2.2 section 5.1).
func isText(c rune) bool {
	switch {
	case c < ' ':
		return c == '\t' || c == '\n' || c == '\r'
	case c < 0xA0:
		return c < 0x7F || c == 0x85
	}
	return c != 0xFEFF && c != 0xFFFE && c != 0xFFFF
}

func textProblem(document []byte, at int, format string, args ...any) *Problem {
	before := document[:at]
	return &Problem{
		Line:    bytes.Count(before, []byte("\n")) + 1,
		Column:  utf8.RuneCount(before[bytes.LastIndexByte(before, '\n')+1:]) + 1,
		Message: fmt.Sprintf(format, args...),
	}
}

// syntaxForm is one way in which the YAML library complains, and what a user wants to hear instead.
type syntaxForm struct {
	says string
	// inParser complaints name the line before the one that they mean: the library counts lines from 0 and only its
	// scanner corrects that.
	inParser bool
	// atStart complaints name the line where the surrounding block began, which may be far above the mistake.
	atStart bool
	message string
}

var syntaxForms = []syntaxForm{
	{"did not find expected key", true, true, "this line does not fit the mapping it stands in: check its indentation, and the quotes around it"},
	{"did not find expected '-' indicator", true, true, `this line does not fit the list it stands in: check its indentation, and begin each item with "- "`},
	{"did not find expected ',' or ']'", true, false, `the "[" that opens here is not closed, or a comma is missing after it`},
	{"did not find expected ',' or '}'", true, false, `the "{" that opens here is not closed, or a comma is missing after it`},
	{"did not find expected node content", true, false, "a value is missing or begins with a character that needs quotes"},
	{"did not find expected <document start>", true, true, "this line does not fit what stands before it: check its indentation"},
	{"mapping values are not allowed in this context", false, false, `a second ": " on one line, or a line indented too deeply: put quotes around text that holds ": "`},
	{"block sequence entries are not allowed in this context", false, false, `"- " cannot stand here: begin a list on a line of its own`},
	{"could not find expected ':'", false, false, `a key without ":" begins here: write "key: value"`},
	{"found character that cannot start any token", false, false, "a value begins with a character that needs quotes around it: @, ` or %"},
	{"found unexpected end of stream", false, false, "a quote opens here and is not closed"},
	{"found unknown escape character", false, false, `an unknown escape in double quotes: write "\\" for a backslash, or use single quotes`},
	{"did not find expected alphabetic or numeric character", false, false, `"*" and "&" begin aliases and anchors: put quotes around text that begins with them`},
	{"exceeded max depth", false, false, "nested too deeply"},
}

// syntaxProblem translates an error of the YAML library.
func syntaxProblem(document []byte, err error) *Problem {
	says := strings.TrimPrefix(err.Error(), "yaml: ")
	line := 1
	if m := regexp.MustCompile(`^line (\d+): `).FindStringSubmatch(says); m != nil {
		line, _ = strconv.Atoi(m[1])
		says = says[len(m[0]):]
	}
	message := "not YAML: " + says
	for _, form := range syntaxForms {
		if !strings.Contains(says, form.says) {
			continue
		}
		message = form.message
		if form.inParser {
			line++
		}
		if form.atStart {
			line = max(line, firstLineThat(document, form.says))
		}
		break
	}
	if name, found := strings.CutPrefix(says, "unknown anchor "); found {
		name, _, _ = strings.Cut(strings.Trim(name, "'"), "'")
		message = fmt.Sprintf(`"*%s" stands for nothing: define it with "&%s" above, or put quotes around it`, name, name)
		line = max(line, lineWith(document, "*"+name))
	}
	if tab := tabIndented(document); tab > 0 && tab <= line+1 {
		return &Problem{Line: tab, Column: 1, Message: "a tab indents this line: YAML allows only spaces there"}
	}
	// What is missing at the end is missed on the line behind it.
	last := bytes.Count(bytes.TrimRight(document, "\n"), []byte("\n")) + 1
	return &Problem{Line: min(line, last), Message: message}
}

// firstLineThat finds the line that makes the library say something that it says of what stands in a block, not of what
// is missing at its end. So the lines up to the guilty one are the shortest beginning of the document that gives the
// same complaint, and a binary search finds it. 0: the document is too large to be read that often.
func firstLineThat(document []byte, says string) int {
	const largest = 256 << 10
	if len(document) > largest {
		return 0
	}
	ends := []int{0}
	for i, c := range document {
		if c == '\n' || i == len(document)-1 {
			ends = append(ends, i+1)
		}
	}
	low, high := 0, len(ends)-1 // low lines are fine, high lines are not
	for low+1 < high {
		middle := (low + high) / 2
		_, err := decodeYAML(yaml.NewDecoder(bytes.NewReader(document[:ends[middle]])))
		if err != nil && strings.Contains(err.Error(), says) {
			high = middle
		} else {
			low = middle
		}
	}
	return high
}

// lineWith gives the first line that holds some text, 0 where none does.
func lineWith(document []byte, text string) int {
	at := bytes.Index(document, []byte(text))
	if at < 0 {
		return 0
	}
	return bytes.Count(document[:at], []byte("\n")) + 1
}

// tabIndented gives the first line that has content and a tab in its indentation, 0 where none has.
func tabIndented(document []byte) int {
	number := 0
	for line := range bytes.Lines(document) {
		number++
		content := bytes.TrimLeft(line, " \t")
		if bytes.IndexByte(line[:len(line)-len(content)], '\t') >= 0 && len(bytes.TrimSpace(content)) > 0 && content[0] != '#' {
			return number
		}
	}
	return 0
}
