package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/pflag"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestEnvironmentSetsWhatTheCommandLineDoesNot(t *testing.T) {
	for name, tt := range map[string]struct {
		args        []string
		environment map[string]string
		want        string // name, nodes and controls
		problem     string
	}{
		"nothing":                  {nil, nil, "default 3 [a]", ""},
		"the command line":         {[]string{"--name", "x", "--data-dir", "d"}, nil, "x 3 [a]", ""},
		"the environment":          {nil, map[string]string{"PYSERVE_NAME": "y", "PYSERVE_NODES": "5", "PYSERVE_CONTROL": "b:1,c:2"}, "y 5 [b:1 c:2]", ""},
		"both":                     {[]string{"--name", "x"}, map[string]string{"PYSERVE_NAME": "y"}, "x 3 [a]", ""},
		"the default on the line":  {[]string{"--name", "default"}, map[string]string{"PYSERVE_NAME": "y"}, "default 3 [a]", ""},
		"empty is a value":         {nil, map[string]string{"PYSERVE_NAME": ""}, " 3 [a]", ""},
		"not a number":             {nil, map[string]string{"PYSERVE_NODES": "many", "PYSERVE_DATA_DIR": "d"}, "", "PYSERVE_NODES"},
		"a flag that is no flag":   {nil, map[string]string{"PYSERVE_HELP": "x", "PYSERVE_JOIN_TOKEN": "t"}, "default 3 [a]", ""},
		"lower case is not looked": {nil, map[string]string{"pyserve_name": "y"}, "default 3 [a]", ""},
	} {
		t.Run(name, func(t *testing.T) {
			flags := pflag.NewFlagSet("", pflag.ContinueOnError)
			flags.Bool("help", false, "")
			text, dir := flags.String("name", "default", ""), flags.String("data-dir", "", "")
			nodes, controls := flags.Int("nodes", 3, ""), flags.StringSlice("control", []string{"a"}, "")
			if err := flags.Parse(tt.args); err != nil {
				t.Fatal(err)
			}
			err := fromEnvironment(flags, func(name string) (string, bool) {
				value, ok := tt.environment[name]
				return value, ok
			})
			if tt.problem != "" {
				if err == nil || !strings.Contains(err.Error(), tt.problem) || *dir != "d" {
					t.Errorf("the error is %v, and --data-dir %q", err, *dir)
				}
				return
			}
			if got := fmt.Sprintf("%s %d %v", *text, *nodes, *controls); err != nil || got != tt.want {
				t.Errorf("got %q, %v, want %q", got, err, tt.want)
			}
		})
	}
}

func TestLoggerIsWhatTheFlagsSay(t *testing.T) {
	for _, tt := range []struct {
		logging
		want, problem string
	}{
		{logging{"text", "info"}, "level=INFO msg=i", ""},
		{logging{"text", "WARN"}, "level=WARN msg=w", ""},
		{logging{"json", "debug"}, `"level":"DEBUG","msg":"d"`, ""},
		{logging{"json", "error"}, "", ""},
		{logging{"xml", "info"}, "", `--log-format is text or json, not "xml"`},
		{logging{"text", "loud"}, "", `--log-level is debug, info, warn or error, not "loud"`},
		{logging{"text", "info+1"}, "", "--log-level"},
	} {
		var out bytes.Buffer
		logger, err := tt.logger(&out)
		if tt.problem != "" {
			if err == nil || !strings.Contains(err.Error(), tt.problem) {
				t.Errorf("%v: the error is %v", tt.logging, err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		logger.Debug("d")
		logger.Info("i")
		logger.Warn("w")
		first, _, _ := strings.Cut(out.String(), "\n")
		if !strings.Contains(first, tt.want) || tt.want == "" && first != "" {
			t.Errorf("%v: the first line is %q, want %q", tt.logging, first, tt.want)
		}
	}
}

func TestAdvertisedAddress(t *testing.T) {
	for _, tt := range []struct{ flag, listening, want, problem string }{
		{"", "127.0.0.1:7400", "127.0.0.1", ""},
		{"", "[::1]:7400", "::1", ""},
		{"10.0.0.9", "127.0.0.1:7400", "10.0.0.9", ""},
		{"control.example.com", "0.0.0.0:7400", "control.example.com", ""},
		{"10.0.0.9:7400", "0.0.0.0:7400", "", "--advertise is an address without a port: 10.0.0.9"},
	} {
		listening, err := net.ResolveTCPAddr("tcp", tt.listening)
		if err != nil {
			t.Fatal(err)
		}
		got, err := advertised(tt.flag, listening)
		if got != tt.want || (err == nil) != (tt.problem == "") || err != nil && err.Error() != tt.problem {
			t.Errorf("%q on %s: got %q, %v, want %q", tt.flag, tt.listening, got, err, tt.want)
		}
	}
	// Where every address is listened on, others need one that is not.
	for _, ip := range []net.IP{net.IPv4zero, net.IPv6unspecified} {
		got, err := dialable(ip)
		if parsed := net.ParseIP(got); err != nil || parsed == nil || parsed.IsUnspecified() {
			t.Errorf("of %s: %q, %v", ip, got, err)
		}
	}
	if got := endpoint("::1", &net.TCPAddr{Port: 7400}); got != "[::1]:7400" {
		t.Errorf("the endpoint is %q", got)
	}
}

func TestGossipAdvertise(t *testing.T) {
	for _, tt := range []struct{ bind, host, want, problem string }{
		{"127.0.0.1:7946", "10.0.0.9", "", ""},
		{"0.0.0.0:7946", "10.0.0.9", "10.0.0.9", ""},
		{":7946", "10.0.0.9", "10.0.0.9", ""},
		{"[::]:7946", "10.0.0.9", "10.0.0.9", ""},
		{"node.example.com:7946", "10.0.0.9", "", ""},
		{"7946", "10.0.0.9", "", `--gossip: "7946" is not host:port`},
	} {
		got, err := gossipAdvertise(tt.bind, tt.host)
		if got != tt.want || (err == nil) != (tt.problem == "") || err != nil && err.Error() != tt.problem {
			t.Errorf("%q: got %q, %v, want %q", tt.bind, got, err, tt.want)
		}
	}
}

func TestNodeOptionsNameWhatIsWrong(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	good := nodeOptions{name: "n1", controls: []string{"127.0.0.1:7400"}, gossip: "127.0.0.1:0"}
	for name, tt := range map[string]struct {
		change func(*nodeOptions)
		want   string
	}{
		"good":             {func(*nodeOptions) {}, ""},
		"no name":          {func(o *nodeOptions) { o.name = "" }, "--name"},
		"a path":           {func(o *nodeOptions) { o.name = "../x" }, "--name"},
		"hidden":           {func(o *nodeOptions) { o.name = ".x" }, "--name"},
		"no control":       {func(o *nodeOptions) { o.controls = nil }, "--control"},
		"no port":          {func(o *nodeOptions) { o.controls = []string{"a:1", "b"} }, `--control: "b" is not host:port`},
		"a port in use":    {func(o *nodeOptions) { o.listen = taken.Addr().String() }, "--listen: cannot listen on " + taken.Addr().String() + ": address already in use"},
		"gossip in use":    {func(o *nodeOptions) { o.gossip = taken.Addr().String() }, "--gossip"},
		"nonsense address": {func(o *nodeOptions) { o.listen = "here" }, "--listen"},
	} {
		t.Run(name, func(t *testing.T) {
			o := good
			tt.change(&o)
			err := o.validate()
			if (tt.want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("the error is %v, want %q", err, tt.want)
			}
		})
	}
	o := good
	if err := o.validate(); err != nil || o.dataDir != filepath.Join("data", "n1") {
		t.Errorf("--data-dir is %q, %v", o.dataDir, err)
	}
}

func TestSecretFile(t *testing.T) {
	dir := t.TempDir()
	write := func(text string) string {
		path := filepath.Join(dir, "token")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	if got, err := readSecret("token-file", write("psj1.a.b.c\n")); err != nil || got != "psj1.a.b.c" {
		t.Errorf("got %q, %v", got, err)
	}
	for name, tt := range map[string]struct{ path, want string }{
		"missing":     {filepath.Join(dir, "gone"), "does not exist"},
		"a directory": {dir, "--token-file"},
		"empty":       {write(""), "holds no token"},
	} {
		if _, err := readSecret("token-file", tt.path); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: the error is %v", name, err)
		}
	}
	if _, err := readSecret("token-file", write(strings.Repeat("x", 5000))); err == nil {
		t.Error("5000 bytes were taken for a token")
	}
}

func TestCleanupsRunLastFirstAndAllOfThem(t *testing.T) {
	var order []int
	var c cleanups
	broken := errors.New("broken")
	for i := range 3 {
		c.add(func(context.Context) error {
			order = append(order, i)
			if i == 1 {
				return broken
			}
			return nil
		})
	}
	if err := c.run(t.Context()); !errors.Is(err, broken) || !slices.Equal(order, []int{2, 1, 0}) {
		t.Errorf("ran %v, %v", order, err)
	}
	if err := c.run(t.Context()); err != nil || len(order) != 3 {
		t.Errorf("ran again: %v, %v", order, err)
	}
}

func TestAdminAddress(t *testing.T) {
	l, err := listen("admin", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	reason := "no configuration to serve yet"
	page := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "page") })
	a := startAdmin(l, newRegistry(), func() string { return reason }, page, slog.New(slog.DiscardHandler))
	client := &http.Client{}
	get := func(path string) (int, string) {
		t.Helper()
		answer, err := client.Get("http://" + l.Addr().String() + path)
		if err != nil {
			t.Fatal(err)
		}
		defer answer.Body.Close()
		body, err := io.ReadAll(answer.Body)
		if err != nil {
			t.Fatal(err)
		}
		return answer.StatusCode, string(body)
	}
	for path, want := range map[string]struct {
		status int
		text   string
	}{"/healthz": {200, "ok"}, "/readyz": {503, reason}, "/metrics": {200, "go_goroutines"}, "/": {200, "page"}} {
		if status, body := get(path); status != want.status || !strings.Contains(body, want.text) {
			t.Errorf("%s: %d %.100q", path, status, body)
		}
	}
	reason = ""
	if status, _ := get("/readyz"); status != 200 {
		t.Errorf("/readyz: %d", status)
	}
	client.CloseIdleConnections()
	if err := a.stop(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestErrorOfAPortInUseIsShort(t *testing.T) {
	l, err := listen("admin", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, err = listen("admin", l.Addr().String())
	if want := "--admin: cannot listen on " + l.Addr().String() + ": address already in use"; err == nil || err.Error() != want {
		t.Errorf("the error is %v, want %s", err, want)
	}
}

func TestUpTakesNoDirectoryThatItDidNotMake(t *testing.T) {
	claim := func(dir string, named bool) (*up, error) {
		u := &up{options: upOptions{dataDir: dir, dataDirNamed: named}}
		return u, u.claimDataDir()
	}
	root := t.TempDir()
	foreign := filepath.Join(root, "foreign")
	if err := os.MkdirAll(filepath.Join(foreign, "control"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := claim(foreign, false); err == nil || !strings.Contains(err.Error(), "did not make") {
		t.Errorf("the error is %v", err)
	}
	own := filepath.Join(root, "own")
	u, err := claim(own, false)
	if err != nil {
		t.Fatal(err)
	}
	// Another up may be running in what was there before: claiming it removes nothing.
	second, err := claim(own, false)
	if err != nil {
		t.Fatal(err)
	}
	if err := second.undo.run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(own, upMark)); err != nil {
		t.Errorf("the directory is gone: %v", err)
	}
	if err := u.undo.run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(own); !os.IsNotExist(err) {
		t.Errorf("the directory is still there: %v", err)
	}
	named := filepath.Join(root, "named")
	if u, err = claim(named, true); err != nil {
		t.Fatal(err)
	}
	u.removeDataDir()
	if err := u.undo.run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(named); err != nil {
		t.Errorf("a directory that was named is gone: %v", err)
	}
}

func TestEveryCommandHasHelpAndExamples(t *testing.T) {
	for _, cmd := range newRoot().Commands() {
		if cmd.Name() != "version" && cmd.Name() != "completion" && cmd.Name() != "help" && (cmd.Short == "" || cmd.Example == "") {
			t.Errorf("%s has no help or no examples", cmd.Name())
		}
	}
	var out bytes.Buffer
	root := newRoot()
	root.SetOut(&out)
	root.SetArgs([]string{"version"})
	if err := root.Execute(); err != nil || !strings.HasPrefix(out.String(), "pyserve ") {
		t.Errorf("version prints %q, %v", out.String(), err)
	}
}

// The contract names the flags and their defaults.
func TestFlagsAndTheirDefaults(t *testing.T) {
	want := map[string]map[string]string{
		"control": {
			"data-dir": "./data/control", "name": hostName(), "listen": "127.0.0.1:7400", "admin": "127.0.0.1:7401", "gossip": "127.0.0.1:7402",
			"raft": "127.0.0.1:7403", "advertise": "", "join": "", "token-file": "", "log-format": "text", "log-level": "info",
		},
		"node": {
			"control": "[127.0.0.1:7400]", "token-file": "", "name": hostName(), "data-dir": "", "listen": "", "admin": "127.0.0.1:7410",
			"gossip": "127.0.0.1:7946", "join": "[]", "config": "", "access-log": "", "access-log-format": "text", "log-format": "text", "log-level": "info",
		},
		"up": {"nodes": "3"},
	}
	for _, cmd := range newRoot().Commands() {
		for name, value := range want[cmd.Name()] {
			flag := cmd.Flag(name)
			if flag == nil || flag.DefValue != value {
				t.Errorf("%s --%s: %+v, want the default %q", cmd.Name(), name, flag, value)
			}
		}
	}
}
