package identity

import (
	"bytes"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

func savedContext(t testing.TB, a *Authority) (string, *Context) {
	t.Helper()
	c, err := a.NewContext("admin", []string{"127.0.0.1:7400", "[::1]:7400"}, time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "admin.yaml")
	if err := c.Save(path); err != nil {
		t.Fatal(err)
	}
	return path, c
}

func TestContextIsReadAsItWasSaved(t *testing.T) {
	path, saved := savedContext(t, open(t, t.TempDir()))
	loaded, err := LoadContext(path)
	if err != nil || !reflect.DeepEqual(saved, loaded) {
		t.Fatalf("got %+v, %v", loaded, err)
	}
	if info, _ := os.Stat(path); info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", info.Mode())
	}
	expires, err := loaded.ExpiresAt()
	if left := time.Until(expires); err != nil || left < operatorLifetime-time.Hour || left > operatorLifetime {
		t.Errorf("expires %v, %v", expires, err)
	}
}

func TestContextThatOthersMayReadIsWarnedOf(t *testing.T) {
	path, _ := savedContext(t, open(t, t.TempDir()))
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	c, err := LoadContext(path)
	if err != nil || len(c.Warnings) != 1 || !strings.Contains(c.Warnings[0], path) {
		t.Fatalf("got %v, %v", c, err)
	}
}

func TestMissingContextSaysWhatToDo(t *testing.T) {
	path := filepath.Join(t.TempDir(), "admin.yaml")
	_, err := LoadContext(path)
	if err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "--context") {
		t.Fatalf("got %v", err)
	}
}

func TestDamagedContextIsRefusedAndItsKeyNotShown(t *testing.T) {
	a := open(t, t.TempDir())
	path, c := savedContext(t, a)
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := open(t, t.TempDir()).NewContext("admin", c.Endpoints, time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	swap := func(change func(*Context)) []byte {
		bad := *c
		change(&bad)
		p := filepath.Join(t.TempDir(), "bad.yaml")
		if err := bad.Save(p); err != nil {
			t.Fatal(err)
		}
		data, _ := os.ReadFile(p)
		return data
	}
	for name, data := range map[string][]byte{
		"empty":              nil,
		"not YAML":           []byte("\x00\x01{"),
		"a list":             []byte("- a\n"),
		"unknown key":        append([]byte("endpoint: x\n"), good...),
		"duplicate key":      append(bytes.Clone(good), []byte("cluster: x\n")...),
		"two documents":      append(bytes.Clone(good), []byte("---\ncluster: x\n")...),
		"too long":           append(bytes.Clone(good), bytes.Repeat([]byte("# padding\n"), maxContext/10)...),
		"no cluster":         swap(func(c *Context) { c.Cluster = "" }),
		"no endpoints":       swap(func(c *Context) { c.Endpoints = nil }),
		"endpoint":           swap(func(c *Context) { c.Endpoints = []string{"control"} }),
		"no CA":              swap(func(c *Context) { c.CA = "" }),
		"CA of garbage":      swap(func(c *Context) { c.CA = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n" }),
		"no key":             swap(func(c *Context) { c.Key = "" }),
		"key of another":     swap(func(c *Context) { c.Key = foreign.Key }),
		"certificate is key": swap(func(c *Context) { c.Certificate = c.Key }),
	} {
		t.Run(name, func(t *testing.T) {
			p := filepath.Join(t.TempDir(), "admin.yaml")
			if err := os.WriteFile(p, data, 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := LoadContext(p)
			if err == nil || !strings.Contains(err.Error(), p) {
				t.Fatalf("got %v", err)
			}
			for line := range strings.Lines(c.Key) {
				if line = strings.TrimSpace(line); len(line) > 30 && strings.Contains(err.Error(), line) {
					t.Fatalf("the error shows the key: %v", err)
				}
			}
		})
	}
	if _, err := LoadContext(t.TempDir()); err == nil {
		t.Error("a directory was read")
	}
}

func TestContextOfABadNameOrEndpointIsNotMade(t *testing.T) {
	a := open(t, t.TempDir())
	if _, err := a.NewContext("a/b", []string{"127.0.0.1:1"}, time.Time{}); err == nil {
		t.Error("the name was accepted")
	}
	if _, err := a.NewContext("admin", nil, time.Time{}); err == nil {
		t.Error("no endpoints were accepted")
	}
}

func TestOperatorOfAnotherClusterIsRefused(t *testing.T) {
	a, other := open(t, t.TempDir()), open(t, t.TempDir())
	c, err := other.NewContext("admin", []string{"127.0.0.1:1"}, time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	client, err := c.ClientTLS()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := handshake(t, serverTLS(t, a), client); err == nil {
		t.Fatal("want an error")
	}
}

func TestWriteSecretReplacesOrLeaves(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "join-token")
	for _, content := range []string{"one\n", "two\n"} {
		if err := WriteSecret(path, []byte(content)); err != nil {
			t.Fatal(err)
		}
		if data, _ := os.ReadFile(path); string(data) != content {
			t.Fatalf("got %q", data)
		}
	}
	// A directory cannot be replaced by a file, for root as well.
	taken := filepath.Join(dir, "taken")
	if err := os.Mkdir(taken, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := WriteSecret(taken, nil); err == nil {
		t.Error("want an error")
	}
	if err := WriteSecret(filepath.Join(dir, "missing", "x"), nil); err == nil {
		t.Error("want an error")
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 2 {
		t.Errorf("left over: %v", entries)
	}
}

func FuzzParseContext(f *testing.F) {
	path, _ := savedContext(f, open(f, f.TempDir()))
	data, _ := os.ReadFile(path)
	f.Add(data)
	f.Add([]byte("cluster: a\nendpoints: [a:1]\nca: x\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := parseContext(data)
		if err != nil {
			return
		}
		if _, err := c.ClientTLS(); err != nil {
			t.Fatal(err)
		}
	})
}
