package config

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
)

func TestWhatIsNoText(t *testing.T) {
	for name, test := range map[string]struct{ document, want string }{
		"empty":          {"", "1: the document is empty: write a server section"},
		"blank":          {"\n\n  \n", "1: the document is empty: write a server section"},
		"comments alone": {"# nothing\n", "1: the document is empty: write a server section"},
		"null":           {"~\n", "1: the document is empty: write a server section"},
		"marker alone":   {"---\n", "2: the document is empty: write a server section"},
		"zero byte":      {"server:\n  a\x00b", "2: character U+0000 cannot stand in a document: is this a text file?"},
		"program":        {"\x7fELF\x02\x01", "1: character U+007F cannot stand in a document: is this a text file?"},
		"latin 1":        {"server:\n  host: caf\xe9\n", "2: byte 0xE9 is not UTF-8: save the document as UTF-8 text"},
		"UTF-16":         {"\xff\xfes\x00", "1: the document is UTF-16: save it as UTF-8"},
		"late BOM":       {"a: \uFEFF", "1: character U+FEFF cannot stand in a document: is this a text file?"},
	} {
		t.Run(name, func(t *testing.T) { wantProblems(t, test.document, nil, test.want) })
	}
	mustParse(t, "\uFEFFserver: {}\r\n# café\r\n", nil)
}

func TestTooLarge(t *testing.T) {
	document := bytes.Repeat([]byte("#"), MaxDocumentBytes+1)
	wantProblems(t, string(document), nil, fmt.Sprintf("1: the document has %d bytes: at most 10 MiB are read", len(document)))
}

func TestWhatIsNoYAML(t *testing.T) {
	for name, test := range map[string]struct{ document, want string }{
		"tab": {"server:\n  port: 80\n\thost: a\n", "3: a tab indents this line: YAML allows only spaces there"},
		"tab in a list": {"server:\n  reverse_proxy:\n  \t- path: /\n\t  port: 1\n",
			"3: a tab indents this line: YAML allows only spaces there"},
		"wrong indentation": {"server:\n  host: a\n  reverse_proxy:\n    - path: /a\n      port: 1\n   - path: /b\n",
			"6: this line does not fit the mapping it stands in: check its indentation, and the quotes around it"},
		"wrong indentation in a list": {"server:\n  reverse_proxy:\n    - path: /a\n    port: 1\n",
			`4: this line does not fit the list it stands in: check its indentation, and begin each item with "- "`},
		"after a quote": {"server:\n  host: \"a\" b\n", "2: this line does not fit the mapping it stands in: check its indentation, and the quotes around it"},
		"two colons":    {"server:\n  host: a: b\n", `2: a second ": " on one line, or a line indented too deeply: put quotes around text that holds ": "`},
		"open bracket":  {"server:\n  trusted_proxies: [10.0.0.0/8\n  port: 80\n", `2: the "[" that opens here is not closed, or a comma is missing after it`},
		"open brace":    {"server:\n  reverse_proxy:\n    - {path: /a\n    - {path: /b}\n", `3: the "{" that opens here is not closed, or a comma is missing after it`},
		"open quote":    {"server:\n  host: \"a\n", "2: a quote opens here and is not closed"},
		"no colon":      {"server:\n  host a\n  port: 80\n", `3: a second ": " on one line, or a line indented too deeply: put quotes around text that holds ": "`},
		"at sign":       {"server:\n  host: @a\n", "2: a value begins with a character that needs quotes around it: @, ` or %"},
		"bad escape":    {"server:\n  host: \"\\q\"\n", `2: an unknown escape in double quotes: write "\\" for a backslash, or use single quotes`},
		"bare pattern":  {"server:\n  reverse_proxy:\n    - hosts: [*.example.com]\n", `3: "*" and "&" begin aliases and anchors: put quotes around text that begins with them`},
		"no anchor":     {"server:\n  host: *base\n", `2: "*base" stands for nothing: define it with "&base" above, or put quotes around it`},
		"two documents": {"server: {}\n---\nserver: {}\n", `2: a second YAML document begins here: write one document, without "---" between its parts`},
		"broken second": {"server: {}\n---\nserver: [\n", `3: a value is missing or begins with a character that needs quotes`},
	} {
		t.Run(name, func(t *testing.T) { wantProblems(t, test.document, nil, test.want) })
	}
}

func TestFirstLineOfALargeDocumentIsFound(t *testing.T) {
	document := "server:\n  reverse_proxy:\n" + strings.Repeat("    - {path: /a}\n", 5000) + "   - {path: /b}\n" + strings.Repeat("    - {path: /a}\n", 5000)
	wantProblems(t, document, nil, "5003: this line does not fit the mapping it stands in: check its indentation, and the quotes around it")
}

func TestDuplicateKeysNameBothLines(t *testing.T) {
	wantProblems(t, "server:\n  port: 80\n  host: a\n  port: 81\n", nil,
		`4: server: the key "port" stands twice in one mapping, first on line 2: keep one of them`)
	wantProblems(t, routeEntry("path: /a\nport: 1\npath: /b"), nil,
		`5: server.reverse_proxy[0]: the key "path" stands twice in one mapping, first on line 3: keep one of them`)
	var many strings.Builder
	for i := range 40 {
		fmt.Fprintf(&many, "k%d: 1\n", i)
	}
	_, problems := Parse([]byte("http:\n  "+strings.ReplaceAll(many.String(), "\n", "\n  ")+"k3: 2\n"), nil)
	if got, want := problems[1].String(), `42: http: the key "k3" stands twice in one mapping, first on line 5: keep one of them`; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestAliasesAndMergeKeys(t *testing.T) {
	r := mustParse(t, `
server:
  reverse_proxy:
    - &base
      path: /a
      host: a.internal
      preserve_host: true
      health_check: &check {type: http}
    - <<: *base
      path: /b
    - <<: [{port: 81, host: c.internal}, *base]
      path: /c
    - path: /d
      health_check: *check
`, nil)
	want := "/a -> a.internal:80 (host kept)\n/b -> a.internal:80 (host kept)\n/c -> c.internal:81 (host kept)\n/d -> localhost:80"
	if got := outline(r); got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
	if r.Pools["/d"].HealthCheck.Path != "/" {
		t.Error("the alias of a health check was lost")
	}
}

func TestTreesThatMayNotBeWalked(t *testing.T) {
	bomb := "a: &a [x,x,x,x,x,x,x,x,x,x]\n"
	for i := 'b'; i <= 'k'; i++ {
		bomb += fmt.Sprintf("%c: &%c [%s]\n", i, i, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*%c,", i-1), 10), ","))
	}
	for name, test := range map[string]struct{ document, want string }{
		"alias bomb":      {bomb, "7: g: more than 6,000,000 values up to here, aliases replaced by what they stand for: write less with them"},
		"alias of itself": {"server: &s\n  a: *s\n", "2: server.a: *s stands inside of what it stands for"},
		"merge of itself": {"server: &s\n  <<: *s\n", `2: server."<<": *s stands inside of what it stands for`},
		"merge of text":   {"server:\n  <<: x\n", `2: server: "<<" takes a mapping in: write an alias of one, such as *defaults`},
		"flow depth":      {"a: " + strings.Repeat("[", 100) + strings.Repeat("]", 100), "1: a" + strings.Repeat("[0]", 63) + ": nested too deeply"},
		"library depth":   {strings.Repeat("[", 20000), "1: nested too deeply"},
		"list as a key":   {"server: {}\n[a]: b\n", `2: a key is a word: write "key: value", with quotes around text that begins with { or [`},
		"own tag":         {"server: !!python/object {}\n", `1: server: the tag "!!python/object" is not known: leave it out`},
		"binary tag":      {"server: {host: !!binary aGVsbG8=}\n", `1: server.host: the tag "!!binary" is not known: leave it out`},
	} {
		t.Run(name, func(t *testing.T) {
			_, problems := Parse([]byte(test.document), nil)
			if !strings.Contains(joined(problems), test.want) || !problems.HasErrors() {
				t.Errorf("got:\n%s\nwant among them:\n%s", joined(problems), test.want)
			}
		})
	}
}
