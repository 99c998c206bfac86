package e2e

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// lab is a network of its own: a namespace for each machine, joined by a bridge in another. All have names and addresses of
// this test alone, and go with it.
type lab struct {
	t        *testing.T
	dir      string
	machines map[string]*machine
}

// machine is a namespace with one address.
type machine struct {
	namespace, address string
}

var labs atomic.Int32 // made so far, for names

// newLab makes the network, or skips the test where that is not allowed or a tool is missing.
func newLab(t *testing.T, names ...string) *lab {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces can be made by root alone")
	}
	for _, tool := range []string{"ip", "nft"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is not installed: apt-get install iproute2 nftables", tool)
		}
	}
	l := &lab{t: t, dir: t.TempDir(), machines: map[string]*machine{}}
	prefix := fmt.Sprintf("pyserve-%d-%d-", os.Getpid(), labs.Add(1))
	bridge := prefix + "switch"
	if err := l.namespace(bridge); err != nil {
		t.Skip("network namespaces cannot be made here:", err)
	}
	l.must("ip", "-n", bridge, "link", "add", "bridge", "type", "bridge")
	l.must("ip", "-n", bridge, "link", "set", "bridge", "up")
	for i, name := range names {
		m := &machine{namespace: prefix + name, address: fmt.Sprintf("10.213.77.%d", i+1)}
		if err := l.namespace(m.namespace); err != nil {
			t.Fatal(err)
		}
		port := fmt.Sprintf("port%d", i)
		l.must("ip", "-n", bridge, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", m.namespace)
		l.must("ip", "-n", bridge, "link", "set", port, "master", "bridge", "up")
		l.must("ip", "-n", m.namespace, "address", "add", m.address+"/24", "dev", "eth0")
		l.must("ip", "-n", m.namespace, "link", "set", "eth0", "up")
		l.machines[name] = m
	}
	return l
}

// namespace makes one with a loopback, which goes with the test.
func (l *lab) namespace(name string) error {
	if out, err := exec.Command("ip", "netns", "add", name).CombinedOutput(); err != nil {
		return fmt.Errorf("ip netns add: %w: %s", err, out)
	}
	l.t.Cleanup(func() {
		if out, err := exec.Command("ip", "netns", "delete", name).CombinedOutput(); err != nil {
			l.t.Errorf("ip netns delete %s: %v: %s", name, err, out)
		}
	})
	l.must("ip", "-n", name, "link", "set", "lo", "up")
	return nil
}

func (l *lab) must(program string, args ...string) {
	l.t.Helper()
	if out, err := exec.Command(program, args...).CombinedOutput(); err != nil {
		l.t.Fatalf("%s %s: %v: %s", program, strings.Join(args, " "), err, out)
	}
}

// filter drops part of what a machine receives from others; heal ends that.
func (l *lab) filter(name, rule string) {
	l.t.Helper()
	namespace := l.machines[name].namespace
	l.must("ip", "netns", "exec", namespace, "nft", fmt.Sprintf(
		"add table inet cut; add chain inet cut in { type filter hook input priority 0; }; add rule inet cut in iifname eth0 %s drop", rule))
}

func (l *lab) heal(name string) {
	l.t.Helper()
	l.must("ip", "netns", "exec", l.machines[name].namespace, "nft", "delete table inet cut")
}

// start starts a program on a machine.
func (l *lab) start(name, on, program string, env []string, args ...string) *process {
	l.t.Helper()
	return launch(l.t, command{
		name: name, program: "ip", dir: l.dir, env: env,
		args: append([]string{"netns", "exec", l.machines[on].namespace, program}, args...),
	})
}

// pyserve starts a control or a node with its usual ports.
func (l *lab) pyserve(kind, name string, args ...string) *process {
	l.t.Helper()
	address := l.machines[name].address
	data := filepath.Join(l.dir, name)
	args = append([]string{kind, "--name", name, "--data-dir", data, "--log-level", "debug"}, args...)
	if kind == "control" {
		args = append(args, "--listen", address+":7400", "--gossip", address+":7402", "--raft", address+":7403")
	} else {
		args = append(args, "--listen", address+":8080", "--gossip", address+":7946")
	}
	return l.start(name, name, programs.pyserve, nil, args...)
}

// ctl runs pyservectl on control's machine.
func (l *lab) ctl(args ...string) result {
	l.t.Helper()
	return runToEnd(l.t, command{name: "pyservectl", program: "ip", dir: l.dir, args: append([]string{
		"netns", "exec", l.machines["control"].namespace, programs.pyservectl, "--context", filepath.Join(l.dir, "control", "admin.yaml"),
	}, args...)}, "")
}

func (l *lab) status() (s status) {
	l.t.Helper()
	r := l.ctl("status", "-o", "json")
	if err := json.Unmarshal([]byte(r.stdout), &s); err != nil {
		l.t.Fatalf("status -o json: %v\n%s%s", err, r.stdout, r.stderr)
	}
	return s
}

func (l *lab) shows(what string, check func(status) bool) (s status) {
	l.t.Helper()
	eventually(l.t, what, func() string {
		if s = l.status(); check(s) {
			return ""
		}
		return fmt.Sprintf("%+v", s)
	})
	return s
}

func (l *lab) apply(document string, flags ...string) result {
	l.t.Helper()
	file := filepath.Join(l.dir, "config.yaml")
	if err := os.WriteFile(file, []byte(document), 0o600); err != nil {
		l.t.Fatal(err)
	}
	return l.ctl(append([]string{"apply", file}, flags...)...)
}

// ask sends a request from one machine to an address, and gives the first line of the answer. The goroutine's thread goes to
// the machine's namespace and comes back: were it to end there, as threads of goroutines that stay locked do, it would take
// with it the processes that were started from it (see diesWithUs).
func (l *lab) ask(on, address, path string) (answer string) {
	l.t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		l.t.Fatal(err)
	}
	defer home.Close()
	there, err := os.Open("/run/netns/" + l.machines[on].namespace)
	if err != nil {
		l.t.Fatal(err)
	}
	defer there.Close()
	if err := unix.Setns(int(there.Fd()), unix.CLONE_NEWNET); err != nil {
		l.t.Fatal(err)
	}
	conn, err := dialHere(address)
	if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); back != nil {
		panic(back) // whatever runs on this thread next would be in the wrong network
	}
	if err != nil {
		return err.Error()
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", path)
	line := make([]byte, 512)
	n, err := conn.Read(line)
	if err != nil {
		return err.Error()
	}
	first, _, _ := strings.Cut(string(line[:n]), "\r\n")
	return first
}

// dialHere connects to one address, so that the socket is made by the calling goroutine. It stays in the network that it was
// made in.
func dialHere(address string) (*net.TCPConn, error) {
	to, err := net.ResolveTCPAddr("tcp", address)
	if err != nil {
		return nil, err
	}
	return net.DialTCP("tcp", nil, to)
}

// fleetOfFive starts a control, a backend beside it, and five nodes, and applies a first route.
func (l *lab) fleetOfFive() (nodes []string) {
	l.t.Helper()
	l.pyserve("control", "control")
	eventually(l.t, "control is ready", func() string { return needs200(l.ask("control", "127.0.0.1:7401", "/readyz")) })
	self, err := os.Executable()
	if err != nil {
		l.t.Fatal(err)
	}
	l.start("b1", "control", self, []string{backendNameVariable + "=b1", backendAddressVariable + "=" + l.backend()})
	for i := range 5 {
		name := fmt.Sprintf("n%d", i+1)
		l.pyserve("node", name, "--control", l.machines["control"].address+":7400", "--token-file", filepath.Join(l.dir, "control", "join-token"))
		nodes = append(nodes, name)
	}
	l.shows("five nodes are there", func(s status) bool { return len(s.Nodes) == 5 && s.Nodes[0].State != "" })
	l.apply(l.route("/a")).must(l.t, 0)
	l.shows("all serve, and gossip knows them", func(s status) bool {
		for _, n := range s.Nodes {
			if n.Gossip != "alive" {
				return false
			}
		}
		return s.Converged && len(s.Nodes) == 5
	})
	return nodes
}

func (l *lab) backend() string { return l.machines["control"].address + ":9000" }

func (l *lab) route(path string) string {
	return fmt.Sprintf("server:\n  reverse_proxy:\n    - {path: %s, host: %s, port: 9000}\n", path, l.machines["control"].address)
}

// served says whether a node answers a path with 200, asked on its own machine.
func (l *lab) served(node, path string) string {
	return needs200(l.ask(node, l.machines[node].address+":8080", path))
}

func needs200(line string) string {
	if strings.HasPrefix(line, "HTTP/1.1 200") {
		return ""
	}
	return line
}

// cutTime is for how long the network is cut. PYSERVE_E2E_CUT sets another.
func cutTime(t *testing.T) time.Duration {
	t.Helper()
	text := os.Getenv("PYSERVE_E2E_CUT")
	if text == "" {
		return time.Second
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		t.Fatal("PYSERVE_E2E_CUT:", err)
	}
	return d
}

func TestANodeThatIsCutOffIsNamedAndCatchesUp(t *testing.T) {
	t.Parallel()
	l := newLab(t, "control", "n1", "n2", "n3", "n4", "n5")
	nodes := l.fleetOfFive()
	l.filter("n5", "")
	cut := time.Now()
	l.shows("n5 is gone", func(s status) bool { return s.row("n5").State == "disconnected" && s.row("n5").Gossip == "dead" })
	t.Logf("its stream and its membership were given up within %.1f s", time.Since(cut).Seconds())
	l.apply(l.route("/b")).must(t, 0, "n5")
	s := l.status()
	for _, n := range nodes[:4] {
		if r := s.row(n); r.Revision != 2 || r.State != "ready" {
			t.Errorf("%s: %+v", n, r)
		}
		eventually(t, n+" serves what was applied", func() string { return l.served(n, "/b") })
	}
	if r := s.row("n5"); s.Converged || r.State != "disconnected" || r.Revision != 1 {
		t.Errorf("n5 is cut off, and status says %+v, converged: %t", r, s.Converged)
	}
	if line := l.ask("n5", "127.0.0.1:7410", "/readyz"); needs200(line) != "" {
		t.Errorf("the node that is cut off is not ready: %s", line)
	}
	if rest := cutTime(t) - time.Since(cut); rest > 0 {
		<-time.After(rest)
	}
	l.heal("n5")
	healed := time.Now()
	l.shows("n5 has a stream again", func(s status) bool { return s.row("n5").State != "disconnected" })
	back := time.Now()
	l.shows("n5 serves what was applied meanwhile", func(s status) bool { return s.row("n5").Revision == 2 && s.Converged })
	t.Logf("%.1f s after the network was whole n5 had a stream, and %.2f s after that it served the new revision", back.Sub(healed).Seconds(), time.Since(back).Seconds())
	eventually(t, "n5 serves what was applied", func() string { return l.served("n5", "/b") })
	l.shows("gossip has n5 again", func(s status) bool { return s.row("n5").Gossip == "alive" })
}

func TestLossOfPacketsTakesNobodyOut(t *testing.T) {
	t.Parallel()
	l := newLab(t, "control", "n1", "n2", "n3", "n4", "n5")
	nodes := l.fleetOfFive()
	for _, n := range append(nodes, "control") {
		l.filter(n, "numgen random mod 100 < 5")
	}
	for i := range 5 {
		l.apply(l.route(fmt.Sprintf("/loss%d", i))).must(t, 0)
		for _, n := range l.status().Nodes {
			if n.State != "ready" || n.Gossip != "alive" {
				t.Errorf("with 5 %% of the packets lost: %+v", n)
			}
		}
	}
}
