package e2e

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"sync"
	"testing"
	"time"
)

// Who wants more of these tests, or the same again, says so.
const (
	killRoundsVariable = "PYSERVE_E2E_KILLS" // how many rounds
	killSeedVariable   = "PYSERVE_E2E_SEED"  // what decides when who is killed
)

// killRounds gives how many rounds of kills a test has, and what decides about each. A test that fails shows the seed.
func killRounds(t *testing.T, usual int) (rounds int, random *rand.Rand) {
	t.Helper()
	rounds, seed := usual, rand.Uint64()
	if text := os.Getenv(killRoundsVariable); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil {
			t.Fatalf("%s: %v", killRoundsVariable, err)
		}
		rounds = n
	}
	if text := os.Getenv(killSeedVariable); text != "" {
		n, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			t.Fatalf("%s: %v", killSeedVariable, err)
		}
		seed = n
	}
	t.Logf("%s=%d %s=%d", killSeedVariable, seed, killRoundsVariable, rounds)
	return rounds, rand.New(rand.NewPCG(seed, 0))
}

// after waits for a random time below most, which decides what a kill comes upon, and nothing else.
func after(random *rand.Rand, most time.Duration) {
	timer := time.NewTimer(time.Duration(random.Int64N(int64(most))))
	<-timer.C
}

// generations are documents that are told apart by two routes of their own, which are only right together. Each has
// /keep, too.
type generations struct{ port int }

func (g generations) document(i int) string {
	return route("/keep", g.port) + fmt.Sprintf("    - {path: /a%[1]d, host: 127.0.0.1, port: %[2]d}\n    - {path: /b%[1]d, host: 127.0.0.1, port: %[2]d}\n", i, g.port)
}

// served wants a node to serve document i, and nothing of the document other.
func (g generations) served(t *testing.T, client *http.Client, n *daemon, i, other int) {
	t.Helper()
	for _, path := range []string{"/keep", fmt.Sprintf("/a%d", i), fmt.Sprintf("/b%d", i)} {
		get(t, client, "http://"+n.listen+path+"/x").seen(t)
	}
	for _, path := range []string{fmt.Sprintf("/a%d", other), fmt.Sprintf("/b%d", other)} {
		if r := get(t, client, "http://"+n.listen+path+"/x"); r.status != http.StatusNotFound {
			t.Errorf("%s serves %s of a document that is not active: %d", n.name, path, r.status)
		}
	}
}

// restart starts daemons again that were killed.
func (c *cluster) restart(killed []*daemon) {
	c.t.Helper()
	for _, d := range killed {
		c.start(d)
	}
	for _, d := range killed {
		if !c.up(d) {
			c.t.Fatalf("%s does not start after a kill -9:\n%s", d.name, tail(d.stderr.String()))
		}
	}
}

// TestKillsInTheMiddleOfApplies ends control, a node, or both, with -9 at any moment of an apply. Whatever came of it,
// control has the old revision or the new one, whole, everybody comes back and serves it, and takes the next.
func TestKillsInTheMiddleOfApplies(t *testing.T) {
	t.Parallel()
	rounds, random := killRounds(t, 25)
	c := newCluster(t, "n1", "n2")
	g := generations{newBackend(t, "b").port}
	client := newClient(t, nil, false)
	n1, n2 := c.node("n1"), c.node("n2")
	kept := 0
	for round := range rounds {
		// A node that is killed twice within 30 s of taking a revision gives it up, so every round begins with one of its own.
		before, next := 2*round, 2*round+1
		c.mustApply(g.document(before))
		was := c.converged().Revision
		victims := [][]*daemon{{c.control}, {c.control}, {n2}, {c.control, n2}}[random.IntN(4)]
		file := c.write("next.yaml", g.document(next))
		var r result
		var applying sync.WaitGroup
		applying.Go(func() { r = c.ctl("apply", "--timeout", "10s", file) })
		after(random, 60*time.Millisecond) // a pyservectl takes some 40 ms to its end
		for _, d := range victims {
			d.kill()
		}
		applying.Wait()
		get(t, client, "http://"+n1.listen+"/keep/x").seen(t) // whoever is dead
		c.restart(victims)
		for _, n := range c.nodes {
			c.ready(n)
			get(t, client, "http://"+n.listen+"/keep/x").seen(t)
		}
		s := c.converged()
		active, other := before, next
		switch running := c.ctl("get", "config").must(t, 0).stdout; {
		case running == g.document(next) && s.Revision == was+1:
			active, other = next, before
			kept++
		case running != g.document(before) || s.Revision != was:
			t.Fatalf("round %d: revision %d is neither %d nor the one after it:\n%s", round, s.Revision, was, running)
		case r.code == 0:
			t.Errorf("round %d: apply said that it was done, and it is not:\n%s", round, r.stdout)
		}
		for _, n := range c.nodes {
			g.served(t, client, n, active, other)
		}
	}
	c.mustApply(g.document(2 * rounds))
	t.Logf("%d of %d applies were kept", kept, rounds)
}

// bootedFrom is what a node says of the bundle that it serves before any control was reached.
var bootedFrom = regexp.MustCompile(`msg="serving the last known good bundle" revision=(\d+) digest=([0-9a-f]+)`)

// TestANodeIsKilledWhileItWritesItsBundle ends it with -9 a moment after control has stored a revision: it boots from the
// old or the new one, whole, and then serves the new one.
func TestANodeIsKilledWhileItWritesItsBundle(t *testing.T) {
	t.Parallel()
	rounds, random := killRounds(t, 50)
	c := newCluster(t, "n1")
	g := generations{newBackend(t, "b").port}
	client := newClient(t, nil, false)
	n := c.node("n1")
	booted := map[string]int{}
	for round := range rounds {
		before, next := 2*round, 2*round+1
		c.mustApply(g.document(before))
		old := c.converged()
		c.apply(g.document(next), "--detach").must(t, 0)
		after(random, 20*time.Millisecond)
		n.kill()
		c.restart([]*daemon{n})
		n.logs(t, "serving the last known good bundle")
		c.ready(n)
		get(t, client, "http://"+n.listen+"/keep/x").seen(t)
		now := c.converged()
		if now.Revision != old.Revision+1 {
			t.Fatalf("round %d: revision %d follows %d", round, now.Revision, old.Revision)
		}
		from := bootedFrom.FindStringSubmatch(n.stderr.String())
		if from == nil {
			t.Fatalf("round %d: the node does not say what it serves:\n%s", round, tail(n.stderr.String()))
		}
		switch {
		case from[1] == fmt.Sprint(old.Revision) && old.Digest[:len(from[2])] == from[2]:
			booted["old"]++
		case from[1] == fmt.Sprint(now.Revision) && now.Digest[:len(from[2])] == from[2]:
			booted["new"]++
		default:
			t.Fatalf("round %d: it booted from revision %s (%s), which is neither %d (%s) nor %d (%s)",
				round, from[1], from[2], old.Revision, old.Digest, now.Revision, now.Digest)
		}
		g.served(t, client, n, next, before)
	}
	t.Logf("booted from %v", booted)
}
