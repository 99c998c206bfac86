package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Every wait is bounded by one of these. They are long: a slow machine is no bug, a hang is.
const (
	patience  = 30 * time.Second
	pollEvery = 10 * time.Millisecond
)

// eventually polls until check gives no complaint. It is for what other processes do in their own time.
func eventually(t testing.TB, what string, check func() (complaint string)) {
	t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		complaint := check()
		if complaint == "" {
			return
		}
		select {
		case <-deadline.C:
			t.Fatalf("%s: not within %s: %s", what, patience, complaint)
		case <-tick.C:
		}
	}
}

// registry holds the processes that run, so that none outlives the tests.
type registry struct {
	mu      sync.Mutex // guards running
	running map[*process]struct{}
}

var started = &registry{running: map[*process]struct{}{}}

func (r *registry) add(p *process) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.running[p] = struct{}{}
}

func (r *registry) remove(p *process) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.running, p)
}

// kill ends what is left and names it.
func (r *registry) kill() []string {
	r.mu.Lock()
	var left []*process
	for p := range r.running {
		left = append(left, p)
	}
	r.mu.Unlock()
	var names []string
	for _, p := range left {
		names = append(names, p.name)
		p.cmd.Process.Kill()
		<-p.ended
	}
	return names
}

// output keeps what a process writes.
type output struct {
	mu   sync.Mutex // guards text
	text bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

// process is a program that was started. Its output is shown only if the test fails.
type process struct {
	name           string
	cmd            *exec.Cmd
	stdout, stderr output
	ended          chan struct{} // closed when it has ended and its output is complete
}

// command says what to start. The zero value of a field: nothing special.
type command struct {
	name    string // for messages
	program string
	args    []string
	dir     string   // working directory; empty: one of its own
	env     []string // over a bare environment without PYSERVE_ variables and with a home of its own
}

// launch starts a process that ends with the test at the latest.
func launch(t *testing.T, c command) *process {
	t.Helper()
	p := &process{name: c.name, cmd: exec.Command(c.program, c.args...), ended: make(chan struct{})}
	if p.cmd.Dir = c.dir; c.dir == "" {
		p.cmd.Dir = t.TempDir()
	}
	p.cmd.Env = append(bareEnvironment(p.cmd.Dir), c.env...)
	p.cmd.Stdout, p.cmd.Stderr = &p.stdout, &p.stderr
	p.cmd.WaitDelay = 5 * time.Second
	p.cmd.SysProcAttr = diesWithUs()
	if err := p.cmd.Start(); err != nil {
		t.Fatalf("start %s: %v", c.name, err)
	}
	started.add(p)
	go func() {
		defer close(p.ended)
		p.cmd.Wait()
		started.remove(p)
	}()
	t.Cleanup(func() {
		p.kill()
		checkSane(t, p.name, p.stderr.String())
		if t.Failed() {
			t.Logf("%s: %s %s\nexit code %d\n--- stdout\n%s--- stderr\n%s---", p.name, c.program, strings.Join(c.args, " "),
				p.cmd.ProcessState.ExitCode(), tail(p.stdout.String()), tail(p.stderr.String()))
		}
	})
	return p
}

// checkSane wants no trace of a defect in what a program wrote: an exit code does not tell of a race in one that is killed.
func checkSane(t *testing.T, name, stderr string) {
	t.Helper()
	for _, trace := range []string{"DATA RACE", "panic:", "fatal error:", "goroutine 1 ["} {
		if strings.Contains(stderr, trace) {
			t.Errorf("%s has a defect: %s\n%s", name, trace, tail(stderr))
			return
		}
	}
}

// bareEnvironment is what a process needs of ours; a user's own PYSERVE_CONTEXT or ~/.pyserve must not be found.
func bareEnvironment(home string) []string {
	env := []string{"HOME=" + home, "NO_COLOR=1"}
	for _, name := range []string{"PATH", "TMPDIR", "GORACE", "GOCOVERDIR"} {
		if value, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+value)
		}
	}
	return env
}

func tail(text string) string {
	const most = 16 << 10
	if len(text) > most {
		return "…" + text[len(text)-most:]
	}
	return text
}

// kill is kill -9. It returns when the process has ended.
func (p *process) kill() {
	p.cmd.Process.Kill() // fails only where it has ended already
	<-p.ended
}

func (p *process) signal(t *testing.T, s syscall.Signal) {
	t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		t.Fatalf("signal %s to %s: %v", s, p.name, err)
	}
}

// wait gives the exit code; -1 says that a signal ended it.
func (p *process) wait(t *testing.T) int {
	t.Helper()
	timeout := time.NewTimer(patience + 30*time.Second) // a drain may take 30 s
	defer timeout.Stop()
	select {
	case <-p.ended:
	case <-timeout.C:
		t.Fatalf("%s does not end", p.name)
	}
	return p.cmd.ProcessState.ExitCode()
}

// stop asks the process to end and wants exit code 0.
func (p *process) stop(t *testing.T) {
	t.Helper()
	p.signal(t, syscall.SIGTERM)
	if code := p.wait(t); code != 0 {
		t.Errorf("%s: exit code %d after SIGTERM, want 0", p.name, code)
	}
}

func (p *process) hasEnded() bool {
	select {
	case <-p.ended:
		return true
	default:
		return false
	}
}

// logs waits until standard error holds text.
func (p *process) logs(t *testing.T, text string) {
	t.Helper()
	eventually(t, p.name+" says "+text, func() string {
		if strings.Contains(p.stderr.String(), text) {
			return ""
		}
		if p.hasEnded() {
			return "it has ended"
		}
		return "not said"
	})
}

// result is what a command that ended by itself left.
type result struct {
	code           int
	stdout, stderr string
}

// runToEnd runs a command that ends by itself.
func runToEnd(t *testing.T, c command, stdin string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, c.program, c.args...)
	if cmd.Dir = c.dir; c.dir == "" {
		cmd.Dir = t.TempDir()
	}
	cmd.Env = append(bareEnvironment(cmd.Dir), c.env...)
	cmd.Stdin = strings.NewReader(stdin)
	cmd.SysProcAttr = diesWithUs()
	cmd.WaitDelay = 5 * time.Second
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if ctx.Err() != nil {
		t.Fatalf("%s %s does not end\n%s%s", c.name, strings.Join(c.args, " "), &stdout, &stderr)
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("run %s: %v", c.name, err)
	}
	checkSane(t, c.name, stderr.String())
	return result{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

// wants checks the exit code, and texts that standard output and standard error together must hold.
func (r result) wants(t *testing.T, code int, texts ...string) result {
	t.Helper()
	if complaint := r.complaint(code, texts); complaint != "" {
		t.Error(complaint)
	}
	return r
}

// must is wants for what the rest of the test stands on.
func (r result) must(t *testing.T, code int, texts ...string) result {
	t.Helper()
	if complaint := r.complaint(code, texts); complaint != "" {
		t.Fatal(complaint)
	}
	return r
}

func (r result) complaint(code int, texts []string) string {
	var complaints []string
	if r.code != code {
		complaints = append(complaints, fmt.Sprintf("exit code %d, want %d", r.code, code))
	}
	for _, text := range texts {
		if !strings.Contains(r.stdout+r.stderr, text) {
			complaints = append(complaints, fmt.Sprintf("%q is not said", text))
		}
	}
	if complaints == nil {
		return ""
	}
	return fmt.Sprintf("%s\n--- stdout\n%s--- stderr\n%s---", strings.Join(complaints, "\n"), r.stdout, r.stderr)
}

// wantsOneLine checks that a daemon could not start and said so in one line that holds the texts. Log lines before it are
// no complaint.
func (r result) wantsOneLine(t *testing.T, texts ...string) {
	t.Helper()
	if r.code != 2 {
		t.Errorf("exit code %d, want 2", r.code)
	}
	if r.stdout != "" {
		t.Errorf("an error belongs on standard error; standard output is\n%s", r.stdout)
	}
	lines := strings.Split(strings.TrimSuffix(r.stderr, "\n"), "\n")
	complaints := slices.DeleteFunc(slices.Clone(lines), func(line string) bool { return strings.HasPrefix(line, "time=") })
	if len(complaints) != 1 || !strings.HasPrefix(complaints[0], "pyserve: ") {
		t.Errorf("want one line that begins with \"pyserve: \", have\n%s", r.stderr)
	}
	for _, text := range texts {
		if !strings.Contains(complaints[len(complaints)-1], text) {
			t.Errorf("%q is not said in\n%s", text, r.stderr)
		}
	}
}
