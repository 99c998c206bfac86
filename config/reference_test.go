package config

import (
	"flag"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
)

const reference = "../docs/config.md"

var update = flag.Bool("update", false, "write the tables of "+reference+" anew from the sections")

// table writes what a section declares as the reference shows it.
func table[T any](s section[T]) string {
	var b strings.Builder
	b.WriteString("| key | type | default | meaning |\n|---|---|---|---|\n")
	for _, k := range s.keys {
		if k.use != supported {
			continue
		}
		initial := ""
		if k.initial != "" {
			initial = "`" + k.initial + "`"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", k.name, k.form, initial, k.about)
	}
	return b.String()
}

// keysThat lists the keys of a section with some use.
func keysThat[T any](s section[T], use use) string {
	var words []string
	for _, k := range s.keys {
		if k.use == use {
			words = append(words, "`"+k.name+"`")
		}
	}
	return strings.Join(words, ", ") + "\n"
}

// TestReferenceIsWhatTheSectionsDeclare compares the generated parts of the reference, which stand between comments.
func TestReferenceIsWhatTheSectionsDeclare(t *testing.T) {
	parts := map[string]string{
		"document":        table(documentSection),
		"server":          table(serverSection),
		"ssl":             table(sslSection),
		"extension":       table(extensionSection),
		"location":        table(locationSection),
		"unused-files":    keysThat(locationSection, unused),
		"route":           table(entrySection),
		"condition":       table(conditionSection),
		"split":           table(splitSection),
		"backend":         table(backendSection),
		"load_balancing":  table(balancingSection),
		"hash":            table(hashSection),
		"sticky":          table(stickySection),
		"health_check":    table(healthCheckSection),
		"timeouts":        table(timeoutsSection),
		"tls":             table(tlsSection),
		"outliers":        table(outlierSection),
		"circuit_breaker": table(circuitBreakerSection),
		"rate_limit":      table(rateLimitSection),
		"field_edits":     table(fieldEditsSection),
		"redirect":        table(redirectSection),
		"respond":         table(respondSection),
		"retries":         table(retriesSection),
		"unused":          keysThat(documentSection, unused),
		"unused-server":   keysThat(serverSection, unused),
	}
	data, err := os.ReadFile(reference)
	if err != nil {
		t.Fatal(err)
	}
	text := string(data)
	for name, want := range parts {
		part := regexp.MustCompile(`(?s)(<!-- ` + name + ` -->\n)(.*?)(<!-- end -->)`)
		m := part.FindStringSubmatch(text)
		if m == nil {
			t.Errorf("%s has no part %q", reference, name)
			continue
		}
		if m[2] != want && !*update {
			t.Errorf("%s: the part %q is\n%s\nbut the section declares\n%s\n(go test ./config -run Reference -update writes it)", reference, name, m[2], want)
		}
		text = strings.Replace(text, m[0], m[1]+want+m[3], 1)
	}
	if *update {
		if err := os.WriteFile(reference, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func TestExamplesOfTheReferenceAreAccepted(t *testing.T) {
	files := sslFiles(t)
	files["./client.pem"], files["./client-key.pem"] = files["./ssl/cert.pem"], files["./ssl/key.pem"]
	for _, example := range examples(t) {
		wantProblems(t, example, files)
	}
}
