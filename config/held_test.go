package config

import (
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
)

const heldDocument = `
ssl: {enabled: true, cert_file: ./ssl/cert.pem, key_file: ./ssl/key.pem}
server:
  reverse_proxy:
    - {path: /a, ssl: true, tls: {ca_file: ca.pem, cert_file: both.pem, key_file: both.pem}}
    - {path: /b, ssl: true, tls: {ca_file: ca.pem}}
    - {path: /c, ssl: true, tls: {ca_file: ./ssl/cert.pem}}
    - {path: /d}
`

func heldSample(t *testing.T) map[string][]byte {
	files := sslFiles(t)
	cert, key := newAuthority(t).pair(today.AddDate(1, 0, 0))
	files["both.pem"] = slices.Concat([]byte("words\n"), key, []byte("more words\n"), cert)
	ca, _ := newAuthority(t).pair(today.AddDate(1, 0, 0))
	files["ca.pem"] = append(ca, cert...)
	return files
}

// What control gives back can be applied where its keys are not: it has to mean the same.
func TestHeldFilesMakeTheSameResources(t *testing.T) {
	files := heldSample(t)
	made := mustParse(t, heldDocument, files)
	held := HeldFiles([]byte(heldDocument), made)
	if got := slices.Sorted(maps.Keys(held)); !slices.Equal(got, []string{"./ssl/cert.pem", "./ssl/key.pem", "both.pem", "ca.pem"}) {
		t.Fatalf("held are %v", got)
	}
	again := mustParse(t, heldDocument, held)
	for name, pool := range made.Pools {
		if !proto.Equal(pool, again.Pools[name]) {
			t.Errorf("pool %s differs", name)
		}
	}
	if !proto.Equal(made.Certificates[CertificateName], again.Certificates[CertificateName]) || len(Diff(made, again)) > 0 {
		t.Errorf("the difference is %v", Diff(made, again))
	}
}

func TestNothingIsHeldOfWhatDoesNotParse(t *testing.T) {
	for _, document := range []string{"", "server: [", "server: {prot: 1}", "server: {}", "ssl: {enabled: false, cert_file: a, key_file: b}\nserver: {}"} {
		if held := HeldFiles([]byte(document), &Resources{}); len(held) > 0 {
			t.Errorf("%q: %v", document, held)
		}
	}
	if held := HeldFiles([]byte(heldDocument), nil); len(held) > 0 {
		t.Errorf("of no resources: %v", held)
	}
	if held := HeldFiles([]byte(heldDocument), mustParse(t, "server: {reverse_proxy: [{}]}", nil)); len(held) > 0 {
		t.Errorf("of other resources: %v", held)
	}
}

func TestAHeldFileIsUsedWithAWarning(t *testing.T) {
	files := sslFiles(t)
	warnings := []string{
		`4: ssl.cert_file: warning: "./ssl/cert.pem" was not found: the one that control holds is used`,
		`5: ssl.key_file: warning: "./ssl/key.pem" was not found: the one that control holds is used`,
	}
	r, problems := parse([]byte(sslDocument), func(name string) ([]byte, error) { return files[name], ErrHeld }, today)
	if joined(problems) != strings.Join(warnings, "\n") || !strings.Contains(string(r.Certificates[CertificateName].KeyPem), "PRIVATE KEY") {
		t.Errorf("problems:\n%s", joined(problems))
	}
	// A new certificate beside the key that is held.
	_, problems = parse([]byte(sslDocument), func(name string) ([]byte, error) {
		if name == "./ssl/cert.pem" {
			return files[name], nil
		}
		return files[name], ErrHeld
	}, today)
	if joined(problems) != warnings[1] {
		t.Errorf("problems:\n%s", joined(problems))
	}
}

// Where the content is elsewhere, everything else is checked all the same.
func TestWithoutAHeldFilesContentTheRestIsChecked(t *testing.T) {
	elsewhere := func(string) ([]byte, error) { return nil, ErrHeld }
	if r, problems := parse([]byte(heldDocument), elsewhere, today); r == nil || problems.HasErrors() {
		t.Errorf("problems:\n%s", joined(problems))
	}
	_, problems := parse([]byte(sslDocument+"  prot: 1\n"), elsewhere, today)
	if !problems.HasErrors() || !strings.Contains(joined(problems), "prot") {
		t.Errorf("problems:\n%s", joined(problems))
	}
	_, problems = parse([]byte(sslDocument), func(name string) ([]byte, error) {
		if name == "./ssl/key.pem" {
			return nil, ErrHeld
		}
		return nil, errors.New("gone")
	}, today)
	if !strings.Contains(joined(problems), `"./ssl/cert.pem" cannot be read: gone`) {
		t.Errorf("problems:\n%s", joined(problems))
	}
}
