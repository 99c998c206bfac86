// Package pyserve_test holds the rules of the house that no single package can test: who may import whom, and that
// every package says what it owns.
package pyserve_test

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/pyserve/pyserve/"

// floors are the packages by floor; a package imports lower floors only, or, within a floor, nothing but what
// "beside" allows. A package that is not listed is one that nobody has thought about: a failure.
var floors = map[string]int{
	"proto/pyserve/resource/v1": 0, "proto/pyserve/fleet/v1": 0, "proto/pyserve/operator/v1": 0, "proto/pyserve/store/v1": 0, "proto/pyserve/replica/v1": 0, "proto/pyserve/peer/v1": 0,
	"config": 0, "config/bundle": 0, "proto/voucher": 0,

	"node/http1": 1, "node/upstream": 1, "node/balance": 1, "node/route": 1, "node/splice": 1, "node/socket": 1, "node/vote": 1, "node/outlier": 1, "node/limit": 1, "node/proxyproto": 1,
	// Where requests leave their facts. accesslog owns a goroutine, as the engines of floor 2 do, but stands below them: it
	// imports nothing of the house, and they write to it.
	"node/meter": 1, "node/accesslog": 1,
	// A switch of a library's, thrown before that is initialised.
	"node/forward/xconnect": 1,
	"cluster/state":         1, "control/rollout": 1, "control/keyring": 1, "control/audit": 1, "control/journal": 1,

	"node/peer": 2, "node/health": 2, "node/tunnel": 2, "node/listener": 2, "node/forward": 2,
	"cluster/gossip": 2,
	"control/store":  2, "control/fleet": 2, "control/identity": 2,

	"node": 3, "cluster": 3, "control": 3,
	"node/agent": 4, "node/inspect": 4, "control/api": 4, "control/web": 4,
	"cmd/pyserve": 5, "cmd/pyservectl": 5,
	"e2e": 6, "e2e/peers": 6, "e2e/scale": 6,

	// Fakes, imported by tests alone.
	"node/nodetest": 3, "node/certtest": 0, "cluster/gossiptest": 3, "control/fleettest": 1,
}

// beside allows imports within a floor, each with its reason.
var beside = map[[2]string]string{
	{"config", "proto/pyserve/resource/v1"}:                 "resources are these messages",
	{"config", "proto/pyserve/operator/v1"}:                 "routes are shown to operators as these messages",
	{"config/bundle", "config"}:                             "a bundle is made of resources",
	{"config/bundle", "proto/pyserve/resource/v1"}:          "bodies are these messages",
	{"config/bundle", "proto/pyserve/fleet/v1"}:             "a release travels as this message",
	{"proto/pyserve/store/v1", "proto/pyserve/fleet/v1"}:    "a stored revision holds its release",
	{"proto/pyserve/replica/v1", "proto/pyserve/fleet/v1"}:  "a follower's nodes are offered what a leader's are",
	{"proto/pyserve/operator/v1", "proto/pyserve/fleet/v1"}: "what a node has counted is passed on as it is",
	{"proto/pyserve/peer/v1", "proto/pyserve/fleet/v1"}:     "a peer tells which release it serves",
	{"node/upstream", "node/balance"}:                       "a pool picks by a schedule",
	{"node/upstream", "node/outlier"}:                       "a pool passes over what its detector ejects",
	{"node/upstream", "node/socket"}:                        "its connections are read and written by it",
	{"node/forward", "node/tunnel"}:                         "an upgraded request ends in a tunnel",
}

// lanes do not import each other: a node must work without control, control without gossip.
var lanes = []string{"node", "control", "cluster"}

// onlyImporter says which third-party packages have one room of their own, and which.
var onlyImporter = map[string][]string{
	"github.com/hashicorp/memberlist": {"cluster/gossip", "cluster/gossiptest"},
	"github.com/hashicorp/raft":       {"control/store"},
	"gopkg.in/yaml.v3":                {"config", "control/identity", "cmd/pyservectl"},
	"github.com/spf13/cobra":          {"cmd/pyserve", "cmd/pyservectl"},
}

func TestFloors(t *testing.T) {
	for pkg, imports := range importsOf(t) {
		floor, known := floors[pkg]
		if !known {
			t.Errorf("package %s stands on no floor: say in floors_test.go where it belongs", pkg)
			continue
		}
		for _, path := range imports {
			checkThirdParty(t, pkg, path)
			imported, ours := strings.CutPrefix(path, module)
			if !ours {
				continue
			}
			if a, b := laneOf(pkg), laneOf(imported); a != "" && b != "" && a != b {
				t.Errorf("%s imports %s: the lanes %s and %s do not know each other; cmd joins them", pkg, imported, a, b)
			}
			below, known := floors[imported]
			if known && (below > floor || below == floor && beside[[2]string{pkg, imported}] == "") {
				t.Errorf("%s (floor %d) imports %s (floor %d): imports go to lower floors only", pkg, floor, imported, below)
			}
		}
	}
}

func checkThirdParty(t *testing.T, pkg, path string) {
	for library, rooms := range onlyImporter {
		if path != library && !strings.HasPrefix(path, library+"/") {
			continue
		}
		for _, room := range rooms {
			if pkg == room {
				return
			}
		}
		t.Errorf("%s imports %s, which only %s may", pkg, path, strings.Join(rooms, ", "))
	}
}

func laneOf(pkg string) string {
	first, _, _ := strings.Cut(pkg, "/")
	for _, lane := range lanes {
		if first == lane {
			return lane
		}
	}
	return ""
}

// importsOf gives the imports of every package of the module, those of tests left out.
func importsOf(t *testing.T) map[string][]string {
	imports := map[string][]string{}
	eachGoFile(t, func(path string) {
		if strings.HasSuffix(path, "_test.go") {
			return
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			t.Fatal(err)
		}
		pkg := filepath.ToSlash(filepath.Dir(path))
		imports[pkg] = append(imports[pkg], []string{}...)
		for _, spec := range f.Imports {
			name, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				t.Fatal(err)
			}
			imports[pkg] = append(imports[pkg], name)
		}
	})
	return imports
}

func TestEveryPackageSaysWhatItOwns(t *testing.T) {
	comments := map[string]int{}
	eachGoFile(t, func(path string) {
		if strings.HasSuffix(path, "_test.go") || strings.HasSuffix(path, ".pb.go") {
			return
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ParseComments|parser.PackageClauseOnly)
		if err != nil {
			t.Fatal(err)
		}
		pkg := filepath.Dir(path)
		comments[pkg] += 0
		if f.Doc != nil {
			comments[pkg]++
		}
	})
	for pkg, n := range comments {
		if n != 1 {
			t.Errorf("package %s has %d package comments, want exactly one", pkg, n)
		}
	}
}

func eachGoFile(t *testing.T, do func(path string)) {
	err := fs.WalkDir(os.DirFS("."), ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && path != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || d.Name() == "bin" || d.Name() == "data") {
			return fs.SkipDir
		}
		if strings.HasSuffix(path, ".go") {
			do(path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
