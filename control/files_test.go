package control

import (
	"slices"
	"strings"
	"testing"

	"github.com/pyserve/pyserve/node/certtest"
	operatorv1 "github.com/pyserve/pyserve/proto/pyserve/operator/v1"
)

const secured = "# kept\nserver:\n  reverse_proxy:\n    - {path: /, port: 443, ssl: true, tls: {ca_file: ca.pem}}\nssl:\n  enabled: true\n  cert_file: ./cert.pem\n  key_file: ./key.pem\n"

func TestADocumentThatWasGivenBackIsUnchangedWithoutItsFiles(t *testing.T) {
	c := start(t, optionsFor(t.TempDir()))
	pair := certtest.New(t).Issue(t, "a.example.com")
	d := Document{Data: []byte(secured), Files: map[string][]byte{"./cert.pem": pair.ChainPEM, "./key.pem": pair.KeyPEM, "ca.pem": pair.ChainPEM}}
	if held := c.HeldFiles([]string{"./cert.pem"}); len(held) > 0 {
		t.Errorf("before the first apply %v are held", held)
	}
	result, s := apply(t, c, Document{Data: d.Data}, nil)
	checkOutcome(t, result, operatorv1.ApplyOutcome_APPLY_OUTCOME_REFUSED, 0, "the document has errors")
	if got := s.of("problem"); !slices.Equal(got, []string{"4 server.reverse_proxy[0].tls.ca_file", "7 ssl.cert_file", "8 ssl.key_file"}) {
		t.Errorf("the problems are %v", got)
	}
	first := applied(t, c, d)

	back, _, _, err := c.Document(0)
	if err != nil {
		t.Fatal(err)
	}
	var warnings []string
	result, err = c.Apply(t.Context(), "admin", Document{Data: back}, nil, func(e *operatorv1.ApplyEvent) {
		if p := e.GetProblem(); p.GetWarning() {
			warnings = append(warnings, p.GetPath()+": "+p.GetMessage())
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	checkOutcome(t, result, operatorv1.ApplyOutcome_APPLY_OUTCOME_UNCHANGED, 1, "")
	if result.GetDigest() != first.GetDigest() || !slices.Contains(warnings, `ssl.key_file: "./key.pem" was not found: the one that control holds is used`) {
		t.Errorf("the digest is %s, the warnings are %v", result.GetDigest(), warnings)
	}
	diff, err := c.Diff(Document{Data: back}, 0)
	if err != nil || len(diff.GetChanges()) > 0 || len(diff.GetProblems()) != 3 {
		t.Errorf("the difference is %v, %v", diff, err)
	}
	if held := c.HeldFiles([]string{"./key.pem", "other.pem", "ca.pem"}); !slices.Equal(held, []string{"./key.pem", "ca.pem"}) {
		t.Errorf("held are %v", held)
	}

	// What is sent along counts, and a name that control does not know is an error.
	renewed := certtest.New(t).Issue(t, "a.example.com")
	result, _ = apply(t, c, Document{Data: back, Files: map[string][]byte{"./cert.pem": renewed.ChainPEM, "./key.pem": renewed.KeyPEM}}, nil)
	checkOutcome(t, result, operatorv1.ApplyOutcome_APPLY_OUTCOME_APPLIED, 2, "")
	result, _ = apply(t, c, Document{Data: back, Files: map[string][]byte{"./cert.pem": pair.ChainPEM}}, nil)
	checkOutcome(t, result, operatorv1.ApplyOutcome_APPLY_OUTCOME_REFUSED, 2, "the document has errors")
	result, _ = apply(t, c, Document{Data: []byte(strings.Replace(secured, "./key.pem", "./elsewhere.pem", 1))}, nil)
	checkOutcome(t, result, operatorv1.ApplyOutcome_APPLY_OUTCOME_REFUSED, 2, "the document has errors")
	untouched(t, c, 2)
}
