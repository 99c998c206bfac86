package main

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"
)

func sampleHistory() []revisionOutput {
	digest := strings.Repeat("ab", 32)
	return []revisionOutput{
		{300, digest, 299, "admin", "rollback to\nrevision 2", "2026-01-02T03:04:05Z", true, true},
		{299, digest, 298, "admin", "", "2026-01-02T03:04:04Z", false, true},
		{1, digest, 0, "eve", "the first", "2025-12-31T03:04:05Z", false, false},
	}
}

func TestHistoryForPeople(t *testing.T) {
	for output, want := range map[string]string{
		"table": "REVISION       DIGEST        AUTHOR  CREATED               MESSAGE\n" +
			"300 (active)   abababababab  admin   2026-01-02T03:04:05Z  rollback to revision 2\n" +
			"299            abababababab  admin   2026-01-02T03:04:04Z\n" +
			"1 (line only)  abababababab  eve     2025-12-31T03:04:05Z  the first\n",
		"name": "300\n299\n1\n",
	} {
		var out bytes.Buffer
		if err := (&settings{output: output}).printHistory(&out, sampleHistory()); err != nil || out.String() != want {
			t.Errorf("%s: %v\n%s\nwant\n%s", output, err, out.String(), want)
		}
	}
	var out bytes.Buffer
	if err := (&settings{output: "wide"}).printHistory(&out, sampleHistory()); err != nil || !strings.Contains(out.String(), strings.Repeat("ab", 32)) {
		t.Errorf("wide: %v\n%s", err, out.String())
	}
	out.Reset()
	if err := (&settings{output: "table"}).printHistory(&out, nil); err != nil || out.String() != "nothing was applied yet: pyservectl apply FILE\n" {
		t.Errorf("of nothing: %q, %v", out.String(), err)
	}
}

// Programs read these keys; the contract has the first seven.
func TestHistoryForPrograms(t *testing.T) {
	var out bytes.Buffer
	if err := (&settings{output: "json"}).printHistory(&out, sampleHistory()[:1]); err != nil {
		t.Fatal(err)
	}
	want := []string{"revisions", "revision", "digest", "parent", "author", "message", "created", "active", "whole"}
	if keys := keysOf(t, out.Bytes()); !slices.Equal(keys, want) {
		t.Errorf("the keys are %v", keys)
	}
	out.Reset()
	if err := (&settings{output: "json"}).printHistory(&out, []revisionOutput{}); err != nil || !strings.Contains(out.String(), `"revisions": []`) {
		t.Errorf("of nothing: %q, %v", out.String(), err)
	}
}

func TestRollbackNamesWhatIsNoRevision(t *testing.T) {
	t.Setenv("PYSERVE_CONTEXT", "/nowhere")
	for _, arg := range []string{"0", "abc", "1.5", "99999999999999999999", "v3"} {
		if _, _, err := run(t, "", "rollback", arg); err == nil || errors.Is(err, errNo) || !strings.Contains(err.Error(), "is not a revision") {
			t.Errorf("%s: the error is %v", arg, err)
		}
	}
	for _, args := range [][]string{{"rollback", "1", "2"}, {"rollback", "--strategy", "x"}, {"rollback", "-1"}, {"history", "x"}, {"history", "--limit", "-1"}} {
		if _, _, err := run(t, "", args...); err == nil || errors.Is(err, errNo) {
			t.Errorf("%v: the error is %v, want one of usage", args, err)
		}
	}
}
