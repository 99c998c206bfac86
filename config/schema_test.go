package config

import (
	"bytes"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"gopkg.in/yaml.v3"
)

const schemaFile = "../docs/config.schema.json"

func TestSchemaFileIsWhatTheSectionsDeclare(t *testing.T) {
	if *update {
		if err := os.WriteFile(schemaFile, Schema(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	committed, err := os.ReadFile(schemaFile)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(committed, Schema()) {
		t.Errorf("%s is not what the sections declare (go test ./config -run 'Reference|Schema' -update writes it)", schemaFile)
	}
}

func compiledSchema(t *testing.T) *jsonschema.Schema {
	t.Helper()
	document, err := jsonschema.UnmarshalJSON(bytes.NewReader(Schema()))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	if err := c.AddResource("config.schema.json", document); err != nil {
		t.Fatal(err)
	}
	compiled, err := c.Compile("config.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	return compiled
}

// plain reads a document as an editor does.
func plain(t *testing.T, document string) any {
	t.Helper()
	var out any
	if err := yaml.Unmarshal([]byte(document), &out); err != nil {
		t.Fatal(err)
	}
	return out
}

// examples are the documents of the reference.
func examples(t *testing.T) []string {
	t.Helper()
	data, err := os.ReadFile(reference)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, m := range regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllStringSubmatch(string(data), -1) {
		out = append(out, m[1])
	}
	if len(out) == 0 {
		t.Fatal("no examples")
	}
	return out
}

func TestSchemaTakesWhatIsAccepted(t *testing.T) {
	schema := compiledSchema(t)
	documents := examples(t)
	files, err := filepath.Glob("testdata/*/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no documents (%v)", err)
	}
	for _, name := range append(files, "testdata/unused.yaml") {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		documents = append(documents, string(data))
	}
	documents = append(documents,
		"server:\n",
		"server: {reverse_proxy: }",
		routeEntry("timeouts: {request: 0, idle: 1h30m, connect: 1.5s}\nhealth_check: {type: http, expected_status: 200}"),
		"server: {reverse_proxy: [&d {path: /a}, {<<: *d, path: /b}]}",
	)
	for _, document := range documents {
		if _, problems := parse([]byte(document), memory(nil), today); structural(problems) != "" {
			t.Errorf("refused by Parse: %s\n%s", structural(problems), document)
		}
		if err := schema.Validate(plain(t, document)); err != nil {
			t.Errorf("%s\n%s", err, document)
		}
	}
}

// structural gives the first error that is not about a file: there are none here.
func structural(problems Problems) string {
	for _, p := range problems {
		if !p.Warning && !strings.Contains(p.Message, "cannot be read") {
			return p.String()
		}
	}
	return ""
}

func TestSchemaRefusesWhatIsRefusedForItsStructure(t *testing.T) {
	schema := compiledSchema(t)
	for name, document := range map[string]string{
		"list at the top":        "- server\n",
		"unknown section":        "servers: {port: 80}",
		"misplaced section":      "reverse_proxy: [{path: /}]",
		"unknown key":            routeEntry("pathh: /a"),
		"section that is text":   "server: yes please",
		"list that is a mapping": "server: {reverse_proxy: {path: /}}",
		"route that is text":     "server: {reverse_proxy: [/api]}",
		"text that is a boolean": routeEntry("host: true"),
		"text that is a list":    routeEntry("path: [/a]"),
		"number that is text":    routeEntry("port: '80'"),
		"number too large":       routeEntry("port: 65536"),
		"number too small":       routeEntry("port: 0"),
		"number with a fraction": routeEntry("port: 80.5"),
		"boolean that is text":   routeEntry("ssl: 'true'"),
		"unknown word":           routeEntry("match: suffix"),
		"status of no redirect":  routeEntry("redirect: {to: /a, status: 304}"),
		"time without unit":      routeEntry("timeouts: {idle: 5}"),
		"time that is none":      routeEntry("timeouts: {idle: soon}"),
		"key of a backend":       routeEntry("backends: [{host: a, prot: 1}]"),
		"key of a check":         routeEntry("health_check: {type: http, url: /}"),
	} {
		if _, problems := parse([]byte(document), memory(nil), today); !problems.HasErrors() {
			t.Errorf("%s: Parse accepts\n%s", name, document)
		}
		if schema.Validate(plain(t, document)) == nil {
			t.Errorf("%s: the schema accepts\n%s", name, document)
		}
	}
}

// TestEverySupportedKeyHasAnExample looks for each key of the schema in the examples of the reference.
func TestEverySupportedKeyHasAnExample(t *testing.T) {
	var schema map[string]any
	if err := yaml.Unmarshal(Schema(), &schema); err != nil {
		t.Fatal(err)
	}
	missing := make(map[string]bool)
	properties(schema, "", func(path string) { missing[path] = true })
	for _, example := range examples(t) {
		used(schema, plain(t, example), "", func(path string) { delete(missing, path) })
	}
	for _, path := range slices.Sorted(maps.Keys(missing)) {
		t.Errorf("no example in %s has %s", reference, path)
	}
}

// alternatives are a shape, or those of its anyOf.
func alternatives(of any) []map[string]any {
	one, ok := of.(map[string]any)
	if !ok {
		return nil
	}
	all := []map[string]any{one}
	if any, ok := one["anyOf"].([]any); ok {
		for _, inner := range any {
			all = append(all, alternatives(inner)...)
		}
	}
	return all
}

// properties tells the path of every key that a shape has, those without a use excepted.
func properties(of any, path string, tell func(path string)) {
	for _, s := range alternatives(of) {
		keys, _ := s["properties"].(map[string]any)
		for name, inner := range keys {
			if _, unused := inner.(map[string]any)["deprecationMessage"]; !unused {
				tell(path + "." + name)
				properties(inner, path+"."+name, tell)
			}
		}
		properties(s["items"], path, tell)
		properties(s["additionalProperties"], path, tell)
	}
}

// used tells the path of every key that a value has.
func used(of, v any, path string, tell func(path string)) {
	for _, s := range alternatives(of) {
		switch v := v.(type) {
		case []any:
			for _, item := range v {
				used(s["items"], item, path, tell)
			}
		case map[string]any:
			keys, _ := s["properties"].(map[string]any)
			for name, inner := range v {
				if _, ok := keys[name]; ok {
					tell(path + "." + name)
					used(keys[name], inner, path+"."+name, tell)
				} else {
					used(s["additionalProperties"], inner, path, tell)
				}
			}
		}
	}
}
