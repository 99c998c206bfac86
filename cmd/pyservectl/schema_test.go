package main

import (
	"os"
	"testing"
)

func TestSchemaPrintsTheOneOfTheReference(t *testing.T) {
	want, err := os.ReadFile("../../docs/config.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	if out, _, err := run(t, "", "schema"); err != nil || out != string(want) {
		t.Errorf("%v, printed:\n%s", err, out)
	}
}
