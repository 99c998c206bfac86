package cluster

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/pyserve/pyserve/cluster/state"
)

var newYear = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func member(name string, liveness Liveness) Member {
	return Member{Name: name, Role: RoleNode, Address: name + ":7946", State: liveness}
}

func TestTheDeadAreRememberedAndThoseThatLeftAreNot(t *testing.T) {
	r := newRemembered()
	for _, name := range []string{"a", "b"} {
		r.observe(member(name, state.Alive), newYear)
	}
	r.observe(member("a", state.Dead), newYear)
	r.observe(member("b", state.Left), newYear)
	r.observe(member("c", state.Dead), newYear)
	if got := r.addresses(); !reflect.DeepEqual(got, []string{"a:7946"}) {
		t.Errorf("remembered: %v", got)
	}
}

func TestAPeerSeenAgainIsWrittenOnlyNowAndThen(t *testing.T) {
	r := newRemembered()
	r.observe(member("a", state.Alive), newYear)
	r.dirty = false
	if r.observe(member("a", state.Alive), newYear.Add(time.Minute)); r.dirty {
		t.Error("dirty after a minute")
	}
	if r.observe(member("a", state.Alive), newYear.Add(peerAge)); !r.dirty {
		t.Error("not dirty after its age")
	}
}

func TestRememberedPeersAreBounded(t *testing.T) {
	r := newRemembered()
	r.observe(member("old", state.Alive), newYear)
	now := newYear.Add(keepPeers)
	for i := range maxPeers + 10 {
		now = now.Add(time.Second)
		r.observe(member(fmt.Sprint("n", i), state.Alive), now)
	}
	list := r.list()
	if len(list) != maxPeers || list[0].Name != fmt.Sprint("node:n", maxPeers+9) || list[maxPeers-1].Name != "node:n10" {
		t.Errorf("%d peers, from %s to %s", len(list), list[0].Name, list[len(list)-1].Name)
	}
	data, err := encodePeers(list)
	if err != nil || len(data) > maxPeersFile/4 {
		t.Errorf("a file of %d bytes, %v", len(data), err)
	}
}

func TestRememberedPeersSurviveTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "peers")
	r := newRemembered()
	for _, name := range []string{"a", "b"} {
		r.observe(member(name, state.Alive), newYear)
	}
	for range 2 {
		if err := writePeers(path, r.list()); err != nil {
			t.Fatal(err)
		}
	}
	got, err := readPeers(path, newYear)
	if err != nil || !reflect.DeepEqual(got.peers, r.peers) {
		t.Errorf("read %v, %v, want %v", got, err, r.peers)
	}
	if entries, err := os.ReadDir(filepath.Dir(path)); err != nil || len(entries) != 1 {
		t.Errorf("left beside it: %v, %v", entries, err)
	}
}

func TestAFileThatCannotBeUsedIsToldOfAndIgnored(t *testing.T) {
	for name, content := range map[string]string{
		"binary":        "\x00\xff",
		"empty":         "",
		"other JSON":    `{"peers": 1}`,
		"bad name":      `[{"name": "x", "address": "10.0.0.1:1"}]`,
		"bad address":   `[{"name": "node:x", "address": "10.0.0.1"}]`,
		"huge":          "[" + strings.Repeat(" ", maxPeersFile) + "]",
		"half a record": `[{"name": "node:x", "addr`,
	} {
		t.Run(name, func(t *testing.T) {
			options, log := onSockets(t, "a"), &journal{}
			options.Logger = slog.New(slog.NewTextHandler(log, nil))
			options.RememberFile = filepath.Join(t.TempDir(), "peers")
			if err := os.WriteFile(options.RememberFile, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			c, err := New(options)
			if err != nil {
				t.Fatal(err)
			}
			if got := c.loadPeers(); len(got.peers) != 0 {
				t.Errorf("loaded %v", got.peers)
			}
			if log.count("level=WARN") != 1 {
				t.Errorf("logged %q", log.buf.String())
			}
		})
	}
}

func TestWithoutAFileNothingIsSaid(t *testing.T) {
	options, log := onSockets(t, "a"), &journal{}
	options.Logger = slog.New(slog.NewTextHandler(log, nil))
	options.RememberFile = filepath.Join(t.TempDir(), "peers")
	c, err := New(options)
	if err != nil {
		t.Fatal(err)
	}
	if got := c.loadPeers(); len(got.peers) != 0 || log.buf.Len() > 0 {
		t.Errorf("loaded %v, logged %q", got.peers, log.buf.String())
	}
}

func FuzzDecodePeers(f *testing.F) {
	f.Add([]byte(`[{"name": "node:x", "address": "10.0.0.1:1", "seen": "2026-01-01T00:00:00Z"}]`))
	f.Add([]byte("[]"))
	f.Add([]byte("null"))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := decodePeers(data, newYear)
		if err != nil {
			return
		}
		if len(r.peers) > maxPeers {
			t.Errorf("%d peers", len(r.peers))
		}
		again, err := encodePeers(r.list())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := decodePeers(again, newYear); err != nil {
			t.Errorf("%s does not survive: %v", again, err)
		}
	})
}
