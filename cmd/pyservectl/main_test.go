package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"
	"gopkg.in/yaml.v3"

	"github.com/spf13/cobra"

	operatorv1 "github.com/pyserve/pyserve/proto/pyserve/operator/v1"
)

// run runs the tool with arguments and gives what it printed.
func run(t *testing.T, stdin string, args ...string) (out, errs string, err error) {
	t.Helper()
	var o, e bytes.Buffer
	root := newRoot()
	root.SetIn(strings.NewReader(stdin))
	root.SetOut(&o)
	root.SetErr(&e)
	root.SetArgs(args)
	err = root.Execute()
	return o.String(), e.String(), err
}

func sample() statusOutput {
	since := timestamppb.New(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC))
	return statusOf(&operatorv1.GetStatusResponse{
		Revision: 3, Digest: strings.Repeat("ab", 32), Converged: true,
		Nodes: []*operatorv1.NodeStatus{{
			Name: "n1", State: "ready", Revision: 3, Digest: strings.Repeat("ab", 32), Listen: "127.0.0.1:8081", Gossip: "alive", Since: since, Version: "v1",
		}},
	})
}

// TestStatusOfANodeThatControlHasNotHeardOf says that, and nothing that is not known.
func TestStatusOfANodeThatControlHasNotHeardOf(t *testing.T) {
	status := statusOf(&operatorv1.GetStatusResponse{Revision: 3, Nodes: []*operatorv1.NodeStatus{
		{Name: "n1", State: "disconnected", Gossip: "dead", Note: "it had no stream since this control started"},
		{Name: "n2", State: "left", Gossip: "left"},
	}})
	var out bytes.Buffer
	if err := (&settings{output: "table"}).printStatus(&out, status); err != nil {
		t.Fatal(err)
	}
	for _, row := range []string{
		"n1    disconnected  -         -       dead    -    it had no stream since this control started\n",
		"n2    left          -         -       left    -\n",
	} {
		if !strings.Contains(out.String(), row) {
			t.Errorf("no row %qin\n%s", row, out.String())
		}
	}
	if status.Nodes[0].Since != "" {
		t.Errorf("for programs it is away since %s", status.Nodes[0].Since)
	}
}

func TestStatusTellsOfTroubleOfControl(t *testing.T) {
	status := statusOf(&operatorv1.GetStatusResponse{Revision: 3, Digest: strings.Repeat("ab", 32), Notes: []string{"control c1: its disk is full"}})
	var out bytes.Buffer
	if err := (&settings{output: "table"}).printStatus(&out, status); err != nil || !strings.HasPrefix(out.String(), "control c1: its disk is full\n") {
		t.Errorf("%v, printed\n%s", err, out.String())
	}
	out.Reset()
	if err := (&settings{output: "json"}).printStatus(&out, status); err != nil || !strings.Contains(out.String(), `"notes"`) {
		t.Errorf("%v, printed\n%s", err, out.String())
	}
}

// Programs read these keys; the contract has them in this order.
func TestStatusForPrograms(t *testing.T) {
	var out bytes.Buffer
	s := &settings{output: "json"}
	if err := s.printStatus(&out, sample()); err != nil {
		t.Fatal(err)
	}
	if keys := keysOf(t, out.Bytes()); !slices.Equal(keys, []string{"revision", "digest", "converged", "nodes", "name", "state", "revision", "digest", "listen", "gossip", "note", "since", "version"}) {
		t.Errorf("the keys are %v", keys)
	}
	var asJSON, asYAML any
	if err := json.Unmarshal(out.Bytes(), &asJSON); err != nil {
		t.Fatal(err)
	}
	out.Reset()
	s.output = "yaml"
	if err := s.printStatus(&out, sample()); err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(out.Bytes(), &asYAML); err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(out.String(), "revision: 3\ndigest: abab") || strings.ContainsAny(out.String(), "{") {
		t.Errorf("the YAML is\n%s", out.String())
	}
	if a, b := normal(t, asJSON), normal(t, asYAML); a != b {
		t.Errorf("YAML says %s, JSON %s", b, a)
	}
	out.Reset()
	if err := s.printStatus(&out, statusOf(&operatorv1.GetStatusResponse{})); err != nil || !strings.Contains(out.String(), "nodes: []") {
		t.Errorf("of nothing: %q, %v", out.String(), err)
	}
}

func normal(t *testing.T, v any) string {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// keysOf gives all keys of a JSON text in its order.
func keysOf(t *testing.T, data []byte) (keys []string) {
	t.Helper()
	var n yaml.Node
	if err := yaml.Unmarshal(data, &n); err != nil {
		t.Fatal(err)
	}
	var walk func(*yaml.Node)
	walk = func(n *yaml.Node) {
		for i, child := range n.Content {
			if n.Kind == yaml.MappingNode && i%2 == 0 {
				keys = append(keys, child.Value)
			}
			walk(child)
		}
	}
	walk(&n)
	return keys
}

func TestYAMLKeepsTextsTexts(t *testing.T) {
	texts := []string{"true", "3", "null", "~", "", "a: b", "# c", "é\tx", "two\nlines\n", "yes", "1e3", "- x", "'", `"`}
	var out bytes.Buffer
	if err := (&settings{output: "yaml"}).print(&out, map[string]any{"texts": texts, "number": 3, "none": nil, "flag": true}); err != nil {
		t.Fatal(err)
	}
	var got struct {
		Texts  []any
		Number int
		None   any
		Flag   bool
	}
	if err := yaml.Unmarshal(out.Bytes(), &got); err != nil {
		t.Fatalf("%v in\n%s", err, out.String())
	}
	for i, text := range texts {
		if got.Texts[i] != text {
			t.Errorf("%q became %#v", text, got.Texts[i])
		}
	}
	if got.Number != 3 || !got.Flag || got.None != nil {
		t.Errorf("got %+v", got)
	}
}

func TestStatusForPeople(t *testing.T) {
	status := sample()
	status.Nodes[0].since = time.Time{}
	status.Nodes = append(status.Nodes, nodeOutput{Name: "n2", State: "rejected", Note: "server.port: in use\n\x1b[31mred"})
	for output, want := range map[string]string{
		"table": "NAME  STATE     REVISION  LISTEN          GOSSIP  AGE  NOTE\nn1    ready     3         127.0.0.1:8081  alive   -\nn2    rejected  0         -               -       -    server.port: in use  [31mred\n\nrevision 3 (abababababab): converged, every node serves it\n",
		"wide":  "NAME  STATE     REVISION  DIGEST        LISTEN          GOSSIP  AGE  VERSION  NOTE\nn1    ready     3         abababababab  127.0.0.1:8081  alive   -    v1\nn2    rejected  0         -             -               -       -    -        server.port: in use  [31mred\n\nrevision 3 (abababababab): converged, every node serves it\n",
		"name":  "n1\nn2\n",
	} {
		var out bytes.Buffer
		if err := (&settings{output: output}).printStatus(&out, status); err != nil {
			t.Fatal(err)
		}
		if out.String() != want {
			t.Errorf("%s:\n%s\nwant\n%s", output, out.String(), want)
		}
	}
}

func TestSentenceOfAStatus(t *testing.T) {
	for _, tt := range []struct {
		status statusOutput
		want   string
	}{
		{statusOutput{}, "nothing was applied yet: pyservectl apply FILE"},
		{statusOutput{Revision: 2, Digest: "abc"}, "revision 2 (abc): no node is there to serve it"},
		{statusOutput{Revision: 2, Digest: "abc", Nodes: []nodeOutput{{State: "left"}}}, "revision 2 (abc): no node is there to serve it"},
		{statusOutput{Revision: 2, Digest: "abc", Nodes: []nodeOutput{{}}}, "revision 2 (abc): not converged, not every node serves it"},
		{statusOutput{Revision: 2, Digest: "abc", Nodes: []nodeOutput{{}}, Converged: true}, "revision 2 (abc): converged, every node serves it"},
	} {
		if got := sentence(tt.status, false); got != tt.want {
			t.Errorf("got %q, want %q", got, tt.want)
		}
	}
	if got := sentence(statusOutput{Revision: 1, Converged: true}, true); !strings.Contains(got, green) {
		t.Errorf("no colour in %q", got)
	}
}

func TestAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		if got := age(time.Time{}); got != "" {
			t.Errorf("of nothing: %q", got)
		}
		for d, want := range map[time.Duration]string{
			-time.Minute: "0s", 0: "0s", 59 * time.Second: "59s", 60 * time.Second: "1m0s", 61*time.Minute + time.Second: "1h1m",
			47*time.Hour + 59*time.Minute: "47h59m", 48 * time.Hour: "2d0h", 75 * time.Hour: "3d3h",
		} {
			if got := age(time.Now().Add(-d)); got != want {
				t.Errorf("%s ago is %q, want %q", d, got, want)
			}
		}
	})
}

func TestListed(t *testing.T) {
	list := []string{"a", "b", "c", "d", "e"}
	for _, tt := range []struct {
		n    int
		all  bool
		want string
	}{{0, false, ""}, {3, false, "a,b,c"}, {5, false, "a,b,c and 2 more"}, {5, true, "a,b,c,d,e"}} {
		if got := listed(list[:tt.n], tt.all); got != tt.want {
			t.Errorf("%d: %q, want %q", tt.n, got, tt.want)
		}
	}
}

func node(name string, phase operatorv1.NodePhase, note string) *operatorv1.ApplyEvent {
	return &operatorv1.ApplyEvent{Event: &operatorv1.ApplyEvent_Node{Node: &operatorv1.NodeProgress{Name: name, Phase: phase, Note: note}}}
}

const (
	offered   = operatorv1.NodePhase_NODE_PHASE_OFFERED
	prepared  = operatorv1.NodePhase_NODE_PHASE_PREPARED
	committed = operatorv1.NodePhase_NODE_PHASE_COMMITTED
	refused   = operatorv1.NodePhase_NODE_PHASE_REFUSED
	away      = operatorv1.NodePhase_NODE_PHASE_AWAY
	timedOut  = operatorv1.NodePhase_NODE_PHASE_TIMED_OUT
)

func TestApplyIsTold(t *testing.T) {
	change := func(action operatorv1.ChangeAction, name string, details ...string) *operatorv1.ApplyEvent {
		return &operatorv1.ApplyEvent{Event: &operatorv1.ApplyEvent_Change{Change: &operatorv1.Change{Action: action, Kind: "route", Name: name, Details: details}}}
	}
	digest := strings.Repeat("ab", 32)
	for name, tt := range map[string]struct {
		events   []*operatorv1.ApplyEvent
		outcome  operatorv1.ApplyOutcome
		reason   string
		out, err string
		no       bool
	}{
		"applied": {
			[]*operatorv1.ApplyEvent{
				change(1, "/a"), change(2, "/b", "backends: + x:1"), change(3, "/c"),
				node("n1", offered, ""), node("n2", offered, ""), node("n1", prepared, ""), node("n2", prepared, ""), node("n1", committed, ""), node("n2", committed, ""),
			}, 1, "",
			"+ route /a created\n~ route /b changed\n    backends: + x:1\n- route /c removed\nnode n1: serving\nnode n2: serving\napplied: revision 4 (abababababab), served by 2 nodes\n", "", false,
		},
		"one away": {
			[]*operatorv1.ApplyEvent{node("n1", committed, ""), node("n2", away, "its stream is gone")}, 1, "",
			"node n1: serving\nnode n2: away: its stream is gone\napplied: revision 4 (abababababab), served by 1 node; away, and served by them when they return: n2\n", "", false,
		},
		"no node":                     {nil, 1, "", "applied: revision 4 (abababababab), no node is connected; nodes serve it when they come\n", "", false},
		"unchanged, and nobody asked": {nil, 2, "revision 4 is active already", "unchanged: revision 4 is active already\n", "", false},
		"where it was gone back to":   {[]*operatorv1.ApplyEvent{node("n1", committed, "")}, 2, "revision 4 is active already", "node n1: serving\nunchanged: revision 4 is active already, served by 1 node\n", "", false},
		"unchanged":                   {[]*operatorv1.ApplyEvent{node("n1", committed, "")}, 2, "", "node n1: serving\nunchanged: revision 4 (abababababab), served by 1 node\n", "", false},
		"refused": {
			[]*operatorv1.ApplyEvent{node("n1", refused, "server.port: in\nuse")}, 3, "node n1 refuses it: server.port: in use",
			"node n1: refused: server.port: in use\n", "refused, nothing was changed: node n1 refuses it: server.port: in use; revision 4 (abababababab) is active\n", true,
		},
		"incomplete": {
			[]*operatorv1.ApplyEvent{node("n1", timedOut, "late")}, 4, "node n1 late",
			"node n1: timed out: late\n", "incomplete: revision 4 (abababababab) is stored, but not every connected node serves it: node n1 late\n", true,
		},
		"dry run":  {[]*operatorv1.ApplyEvent{node("n1", prepared, "")}, 5, "", "dry run: 1 node could serve it; nothing was changed, revision 4 (abababababab) is active\n", "", false},
		"detached": {nil, 6, "", "stored: revision 4 (abababababab); nodes follow: pyservectl status -w\n", "", false},
		"warning": {
			[]*operatorv1.ApplyEvent{{Event: &operatorv1.ApplyEvent_Problem{Problem: &operatorv1.Problem{Line: 3, Path: "http", Message: "is not used", Warning: true}}}}, 6, "",
			"stored: revision 4 (abababababab); nodes follow: pyservectl status -w\n", "config.yaml:3: ", false,
		},
	} {
		t.Run(name, func(t *testing.T) {
			var out, errs bytes.Buffer
			v := newApplyView(&out, &errs, "config.yaml", false)
			for _, e := range tt.events {
				v.take(e)
			}
			s := &settings{output: "table"}
			err := s.applyResult(v, &operatorv1.ApplyResult{Outcome: tt.outcome, Revision: 4, Digest: digest, Reason: tt.reason})
			if out.String() != tt.out || !strings.HasPrefix(errs.String(), tt.err) || tt.err == "" && errs.Len() > 0 || errors.Is(err, errNo) != tt.no {
				t.Errorf("printed\n%s\nand\n%s\nwith %v", out.String(), errs.String(), err)
			}
		})
	}
}

// showChanges is what an apply prints that creates so many routes and removes one.
func showChanges(created int, all bool) string {
	var out bytes.Buffer
	v := newApplyView(&out, io.Discard, "f", false)
	v.changes.all = all
	for i := range created + 1 {
		action := operatorv1.ChangeAction_CHANGE_ACTION_CREATED
		if i == created {
			action = operatorv1.ChangeAction_CHANGE_ACTION_REMOVED
		}
		v.take(&operatorv1.ApplyEvent{Event: &operatorv1.ApplyEvent_Change{Change: &operatorv1.Change{Action: action, Kind: "route", Name: "/x"}}})
	}
	v.take(node("n1", committed, ""))
	v.finish(&operatorv1.ApplyResult{Outcome: 1, Revision: 1, Digest: "d"})
	return out.String()
}

// A document of 50,000 routes must not scroll what matters away.
func TestVeryManyChangesAreSummedUp(t *testing.T) {
	out := showChanges(listedChanges, false)
	want := fmt.Sprintf("- route /x removed\nand more: %d routes created; -o wide shows all\nnode n1: serving\n", listedChanges-shownChanges)
	if strings.Count(out, "route /x created") != shownChanges || strings.Count(out, want) != 1 {
		t.Errorf("printed\n%s", out)
	}
	if out := showChanges(listedChanges, true); strings.Count(out, "route /x") != listedChanges+1 || strings.Contains(out, "and more") {
		t.Errorf("printed\n%s", out)
	}
}

func TestEveryChangeHasALineAsLongAsTheyCanBeRead(t *testing.T) {
	out := showChanges(listedChanges-1, false)
	if strings.Count(out, "route /x created\n") != listedChanges-1 || !strings.Contains(out, "- route /x removed\nnode n1: serving\n") || strings.Contains(out, "and more") {
		t.Errorf("printed\n%s", out)
	}
}

// broken is a call that ends after one change.
type broken struct{ told bool }

func (b *broken) Recv() (*operatorv1.ApplyEvent, error) {
	if b.told {
		return nil, io.ErrUnexpectedEOF
	}
	b.told = true
	return &operatorv1.ApplyEvent{Event: &operatorv1.ApplyEvent_Change{Change: &operatorv1.Change{
		Action: operatorv1.ChangeAction_CHANGE_ACTION_CREATED, Kind: "route", Name: "/x",
	}}}, nil
}

func TestACallThatBreaksOffHasToldItsChanges(t *testing.T) {
	var out bytes.Buffer
	cmd := &cobra.Command{}
	cmd.SetContext(t.Context())
	err := (&settings{output: "table"}).follow(cmd, &broken{}, newApplyView(&out, io.Discard, "f", false))
	if err == nil || out.String() != "+ route /x created\n" {
		t.Errorf("printed %q, %v", out.String(), err)
	}
}

func TestApplyBeforeTheFirstRevision(t *testing.T) {
	var out, errs bytes.Buffer
	newApplyView(&out, &errs, "f", false).finish(&operatorv1.ApplyResult{Outcome: 3, Reason: "no"})
	if want := "refused, nothing was changed: no; no configuration is active\n"; errs.String() != want {
		t.Errorf("printed %q", errs.String())
	}
}

func TestApplyForPrograms(t *testing.T) {
	var out, errs bytes.Buffer
	v := newApplyView(&out, &errs, "f", true)
	v.take(node("n1", offered, ""))
	v.take(node("n1", committed, ""))
	if err := (&settings{output: "json"}).applyResult(v, &operatorv1.ApplyResult{Outcome: 1, Revision: 1, Digest: "d"}); err != nil {
		t.Fatal(err)
	}
	if keys := keysOf(t, out.Bytes()); !slices.Equal(keys, []string{"outcome", "revision", "digest", "reason", "problems", "changes", "nodes", "name", "phase", "note"}) || errs.Len() > 0 {
		t.Errorf("the keys are %v; %s", keys, errs.String())
	}
	var got applied
	if err := json.Unmarshal(out.Bytes(), &got); err != nil || got.Outcome != "applied" || len(got.Nodes) != 1 || got.Nodes[0].Phase != "serving" || got.Problems == nil || got.Changes == nil {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestApplyRedrawsItsNodesOnATerminal(t *testing.T) {
	var out bytes.Buffer
	v := newApplyView(&out, io.Discard, "f", false)
	v.live = true
	v.take(node("n1", offered, ""))
	v.take(node("n2", offered, ""))
	v.take(node("n1", committed, ""))
	want := "\r\x1b[2Knode n1: offered\n\x1b[1A\r\x1b[2Knode n1: offered\n\r\x1b[2Knode n2: offered\n\x1b[2A\r\x1b[2Knode n1: serving\n\r\x1b[2Knode n2: offered\n"
	if out.String() != want {
		t.Errorf("drew %q", out.String())
	}
}

func TestContextIsTheFirstThatIsNamedOrThere(t *testing.T) {
	home, here := t.TempDir(), t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("PYSERVE_CONTEXT", "")
	t.Chdir(here)
	s := &settings{}
	if _, err := s.contextFile(); err == nil || !strings.Contains(err.Error(), "--context FILE") {
		t.Errorf("the error is %v", err)
	}
	check := func(want string) {
		t.Helper()
		if got, err := s.contextFile(); err != nil || got != want {
			t.Errorf("got %q, %v, want %q", got, err, want)
		}
	}
	put := func(path string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	local := filepath.Join("data", "control", "admin.yaml")
	put(filepath.Join(here, local))
	check(local)
	user := filepath.Join(home, ".pyserve", "admin.yaml")
	put(user)
	check(user)
	t.Setenv("PYSERVE_CONTEXT", "/from/environment")
	check("/from/environment")
	s.context = "/from/flag"
	check("/from/flag")
}

func TestControlThatCannotBeReached(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want string
	}{
		{status.Error(codes.Unavailable, "connection error: dial tcp: connect: connection refused"), "no control answers at x:1: connection refused; is it running?"},
		{status.Error(codes.Unavailable, "x509: certificate signed by unknown authority"), "is not of the cluster that admin.yaml is for"},
		{status.Error(codes.Unavailable, "remote error: tls: bad certificate"), "is not of the cluster that admin.yaml is for"},
		{status.Error(codes.Unavailable, "certificate has expired"), "has expired"},
		{status.Error(codes.DeadlineExceeded, "context deadline exceeded"), "no control answers at x:1 in time"},
		{status.Error(codes.Unavailable, "connection error: something"), "no control answers at x:1: something"},
		{status.Error(codes.PermissionDenied, "not you"), "the control at x:1 says: not you"},
	} {
		if got := unreachable("x:1", "admin.yaml", tt.err); !strings.Contains(got.Error(), tt.want) {
			t.Errorf("%v became %q, want %q", tt.err, got, tt.want)
		}
	}
	if err := plain(nil); err != nil {
		t.Errorf("nothing became %v", err)
	}
	if err := plain(io.EOF); !errors.Is(err, io.EOF) {
		t.Errorf("another error became %v", err)
	}
}

func TestSettingsNameWhatIsWrong(t *testing.T) {
	for _, args := range [][]string{
		{"version", "-o", "xml"}, {"version", "--timeout", "0s"}, {"version", "--timeout", "soon"}, {"get"}, {"nonsense"}, {"apply"}, {"apply", "a", "b"},
	} {
		if _, _, err := run(t, "", args...); err == nil || errors.Is(err, errNo) {
			t.Errorf("%v: the error is %v, want one of usage", args, err)
		}
	}
	if out, _, err := run(t, "", "version", "-o", "json"); err != nil || !strings.Contains(out, `"version"`) {
		t.Errorf("version -o json prints %q, %v", out, err)
	}
}

const good = "server:\n  reverse_proxy:\n    - {path: /, host: 127.0.0.1, port: 3000}\n"

func TestValidateIsOffline(t *testing.T) {
	t.Setenv("PYSERVE_CONTEXT", "/nowhere")
	dir := t.TempDir()
	file := filepath.Join(dir, "config.yaml")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(good)
	if out, errs, err := run(t, "", "validate", file); err != nil || out != file+" is valid: 1 route, 1 backend\n" || errs != "" {
		t.Errorf("printed %q and %q, %v", out, errs, err)
	}
	if out, _, err := run(t, good, "validate", "-"); err != nil || out != "standard input is valid: 1 route, 1 backend\n" {
		t.Errorf("printed %q, %v", out, err)
	}
	write("server:\n  port: high\n  prot: 1\n")
	out, _, err := run(t, "", "validate", file)
	if lines := strings.Split(strings.TrimSpace(out), "\n"); !errors.Is(err, errNo) || len(lines) < 2 || !strings.HasPrefix(lines[0], file+":2: server.port: ") {
		t.Errorf("printed %q, %v", out, err)
	}
	out, _, err = run(t, "", "validate", "-o", "json", file)
	if keys := keysOf(t, []byte(out)); !errors.Is(err, errNo) || !slices.Equal(keys[:5], []string{"problems", "line", "path", "message", "warning"}) {
		t.Errorf("printed %q, %v", out, err)
	}
	if _, _, err := run(t, "", "validate", filepath.Join(dir, "gone.yaml")); err == nil || errors.Is(err, errNo) || !strings.Contains(err.Error(), "cannot read the configuration") {
		t.Errorf("the error is %v", err)
	}
}

func TestFileWithErrorsNeverTravels(t *testing.T) {
	t.Setenv("PYSERVE_CONTEXT", "/nowhere")
	for _, command := range []string{"apply", "diff"} {
		if _, errs, err := run(t, "server: {prot: 1}", command, "-"); !errors.Is(err, errNo) || !strings.Contains(errs, "standard input:1: ") {
			t.Errorf("%s printed %q, %v", command, errs, err)
		}
		if _, _, err := run(t, good, command, "-"); err == nil || errors.Is(err, errNo) || !strings.Contains(err.Error(), "/nowhere") {
			t.Errorf("%s without a context: %v", command, err)
		}
	}
	if _, _, err := run(t, good, "apply", "--strategy", "canary", "-"); err == nil || !strings.Contains(err.Error(), "not supported yet") {
		t.Errorf("the error is %v", err)
	}
}

func TestDocumentTravelsWithTheFilesThatItNames(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"config.yaml": "server: {reverse_proxy: [{path: /}]}\nssl: {enabled: true, cert_file: ./c.pem, key_file: gone.pem}\n# " + strings.Repeat("x", 3<<20),
		"c.pem":       "certificate",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	d, err := readDocument(filepath.Join(dir, "config.yaml"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if string(d.files["./c.pem"]) != "certificate" || !os.IsNotExist(d.unread["gone.pem"]) {
		t.Errorf("read %q, unread %v", d.files, d.unread)
	}
	if _, err := d.file("gone.pem"); !os.IsNotExist(err) {
		t.Errorf("the error is %v", err)
	}
	if _, err := d.file("other.pem"); !os.IsNotExist(err) {
		t.Errorf("the error is %v", err)
	}
	parts := d.parts()
	var document []byte
	for i, p := range parts {
		if len(p.GetData()) > 1<<20 {
			t.Errorf("part %d has %d bytes", i, len(p.GetData()))
		}
		if p.GetName() == "" {
			document = append(document, p.GetData()...)
		} else if len(document) > 0 {
			t.Error("a file comes after the document")
		}
	}
	if !bytes.Equal(document, d.data) || len(parts) != 5 {
		t.Errorf("%d parts make %d bytes, want %d", len(parts), len(document), len(d.data))
	}
}
