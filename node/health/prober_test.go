package health

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pyserve/pyserve/node/upstream"
	"github.com/pyserve/pyserve/node/vote"
	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
	"pgregory.net/rapid"
)

// pair is a pool of two backends in a world, both known to be healthy.
func pair(t *testing.T, w *world) (*upstream.Pool, *upstream.Backend, *upstream.Backend) {
	a, b := w.acquire(t, "a", tcpCheck()), w.acquire(t, "b", tcpCheck())
	pool := upstream.NewPool([]upstream.Member{{Backend: a, Weight: 1}, {Backend: b, Weight: 1}}, upstream.PoolOptions{})
	wait(2 * time.Second)
	if a.Verdict().State != upstream.Healthy || b.Verdict().State != upstream.Healthy {
		t.Fatal("not healthy")
	}
	return pool, a, b
}

// picks says whether b is one of the two that are picked next.
func picks(pool *upstream.Pool, b *upstream.Backend) bool {
	first, second := pool.Pick(0, nil), pool.Pick(0, nil)
	return first == b || second == b
}

func TestBackendThatRefusesARequestIsPassedOverAtOnceAndReturnsWhenItIsReached(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(middle)
		defer w.close()
		pool, a, _ := pair(t, w)
		defer pool.Close()
		w.set(syscall.ECONNREFUSED, 0)
		w.prober.Failed(a, &upstream.DialError{Address: "a:1", Err: syscall.ECONNREFUSED})
		if picks(pool, a) {
			t.Error("it is picked after the refusal")
		}
		if a.Verdict().State != upstream.Healthy {
			t.Errorf("one request has made it %v", a.Verdict().State)
		}
		if e := w.prober.Evidence(a); e.Refused != "connection refused" {
			t.Errorf("the evidence is %+v", e)
		}
		wait(250 * time.Millisecond) // it is looked at at once, after 100 ms and after 200 more
		if picks(pool, a) {
			t.Error("it is picked though no look has reached it")
		}
		w.set(nil, 0)
		wait(100 * time.Millisecond)
		if !picks(pool, a) || w.prober.Evidence(a).Refused != "" {
			t.Error("it is not picked though a look has reached it")
		}
		if c := w.prober.Counters(); c.OwnConnections != 1 || c.Looks != 3 {
			t.Errorf("counted %+v", c)
		}
	})
}

// Requests may go on to fail where looks do not.
func TestLooksAreNoMoreThanTenASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(middle)
		defer w.close()
		pool, a, _ := pair(t, w)
		defer pool.Close()
		for range 1000 {
			w.prober.Failed(a, syscall.ECONNREFUSED)
			wait(time.Millisecond)
		}
		if n := w.prober.Counters().Looks; n < 5 || n > 11 {
			t.Errorf("%d looks in a second", n)
		}
	})
}

// The looks at it count towards no threshold: they come faster than what the thresholds are meant for.
func TestLooksAtARefusingBackendDoNotHastenTheVerdict(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(middle)
		defer w.close()
		pool, a, _ := pair(t, w)
		defer pool.Close()
		w.set(syscall.ECONNREFUSED, 0)
		w.prober.Failed(a, syscall.ECONNREFUSED)
		wait(8 * time.Second)
		if a.Verdict().State != upstream.Healthy || w.prober.Counters().Looks < 6 {
			t.Errorf("%v after %d looks and two probes", a.Verdict().State, w.prober.Counters().Looks)
		}
		wait(6 * time.Second)
		if a.Verdict().State != upstream.Unhealthy || w.prober.Evidence(a).Refused != "" {
			t.Errorf("%v, refused %q: the verdict is to take the refusal's place", a.Verdict().State, w.prober.Evidence(a).Refused)
		}
	})
}

func TestOnlyBackendOfAPoolIsAskedOnThoughItRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(middle)
		defer w.close()
		pool, a, b := pair(t, w)
		defer pool.Close()
		w.set(syscall.ECONNREFUSED, 0)
		w.prober.Failed(a, syscall.ECONNREFUSED)
		w.prober.Failed(b, syscall.ECONNREFUSED)
		wait(time.Second)
		if !picks(pool, a) || !picks(pool, b) {
			t.Error("a pool is empty before its backends' verdicts say so")
		}
	})
}

func TestBackendThatIsNotProbedIsNeverPassedOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(middle)
		defer w.close()
		b := w.acquire(t, "a", nil)
		w.prober.Failed(b, syscall.ECONNREFUSED)
		if b.Avoided() {
			t.Error("nothing would bring it back")
		}
		if e := w.prober.Evidence(b); e.Source != NoCheck || e.Verdict.State != upstream.Healthy {
			t.Errorf("%+v", e)
		}
	})
}

func TestWhatOthersSayIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := NewProber(Options{Self: "n0"})
		defer p.Close()
		v := vote.Vote{Origin: "n1", Sequence: uint64(time.Now().UnixMicro()), State: vote.Healthy, Repeat: time.Second, Heard: time.Now()}
		say := func(change func(*vote.Vote)) []byte {
			v := v
			change(&v)
			message, _ := vote.Encode([]vote.Vote{v}, MaxMessage)
			return message
		}
		hear := func(message []byte) error { return p.Hear(Heard{From: "n1", Message: message}) }
		for _, c := range []struct {
			err  error
			want string
		}{
			{hear([]byte("nonsense")), "cannot be read"},
			{hear(nil), "empty"},
			{hear(say(func(v *vote.Vote) { v.Sequence = uint64(time.Now().Add(25 * time.Hour).UnixMicro()) })), "a day ahead"},
		} {
			if c.err == nil || !strings.Contains(c.err.Error(), c.want) {
				t.Errorf("%v, want %q", c.err, c.want)
			}
		}
		if err := hear(say(func(*vote.Vote) {})); err != nil {
			t.Error(err)
		}
		if c := p.Counters(); c.Received != 2 || c.Refused != 3 {
			t.Errorf("counted %+v", c)
		}
	})
}

func TestFloodOfChecksNobodyKnowsIsRefusedAndCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := NewProber(Options{Self: "n0"})
		defer p.Close()
		var votes []vote.Vote
		for i := range 5000 {
			votes = append(votes, vote.Vote{Key: vote.Key{byte(i), byte(i >> 8)}, Origin: "n1", State: vote.Healthy, Repeat: time.Second, Heard: time.Now()})
		}
		message, _ := vote.Encode(votes, 1<<20)
		if err := p.Hear(Heard{From: "n1", Message: message}); err == nil || p.Counters().Refused < 500 {
			t.Errorf("%v, %+v", err, p.Counters())
		}
	})
}

// A node that comes new knows the verdict from the first exchange, before anything was probed.
func TestNewcomerHearsTheVerdictWithTheState(t *testing.T) {
	inFleet(t, 1, 5, []string{backend}, func(fl *fleet) {
		fl.network(nowhere)
		wait(time.Minute)
		p := NewProber(Options{Self: "zz", Random: middle})
		r := upstream.NewRegistry(upstream.Options{Added: p.Watch, Removed: p.Unwatch})
		defer p.Close()
		defer r.Close()
		p.SetMembers(append(fl.names(), "zz"))
		for text, age := range fl.nodes["n0"].prober.State() {
			if err := p.Hear(heard(text, age)); err != nil {
				t.Fatal(err)
			}
		}
		b, err := r.Acquire(upstream.Spec{Host: backend, Port: 80, Check: tcpCheck()})
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		e := p.Evidence(b)
		if b.Verdict().State != upstream.Unhealthy || e.Source != Majority || e.Members != 6 || len(e.Votes) != 3 || !e.Votes[0].Counted || len(e.Probers) != 3 {
			t.Errorf("%v: %+v", b.Verdict(), e)
		}
	})
}

func TestStateTellsBadNewsFirstAndEachKindByTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turn := time.Duration(0)
		p := NewProber(Options{Self: "n0", Random: func(n time.Duration) time.Duration {
			turn++
			return n * (turn / 2 % 3) / 3
		}})
		defer p.Close()
		for i := range 600 {
			v := vote.Vote{Key: vote.Key{byte(i), byte(i >> 8)}, Sequence: 1, State: vote.Healthy, Repeat: time.Second}
			if i%10 == 0 {
				v.State = vote.Unhealthy
			}
			p.table.Expect(v.Key)
			message, _ := vote.Encode([]vote.Vote{v}, MaxMessage)
			if err := p.Hear(heard(signed("n1", message), 0)); err != nil {
				t.Fatal(err)
			}
		}
		bad, good := make(map[string]bool), make(map[string]bool)
		for range 3 {
			n := 0
			for text := range p.State() {
				h := heard(text, 0)
				votes, err := vote.Decode(h.From, h.Message, time.Now())
				if err != nil || len(votes) != 1 || (votes[0].State == vote.Unhealthy) != (n < 60) {
					t.Fatalf("message %d holds %+v, %v", n, votes, err)
				}
				switch n {
				case 0:
					bad[text] = true
				case 60:
					good[text] = true
				}
				n++
			}
			if n != 600 {
				t.Errorf("%d messages are told", n)
			}
		}
		if len(bad) != 3 || len(good) != 3 {
			t.Errorf("in three turns the bad news begin with %d messages and the good with %d", len(bad), len(good))
		}
	})
}

// What cannot be proved to be another's is not passed on, and what no vote of counts any more neither; many votes of one message are
// passed on together.
func TestStateTellsWhatIsSignedAndCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := NewProber(Options{Self: "n0"})
		defer p.Close()
		say := func(h Heard, state vote.State, keys ...byte) {
			var votes []vote.Vote
			for _, k := range keys {
				p.table.Expect(vote.Key{k})
				votes = append(votes, vote.Vote{Key: vote.Key{k}, Sequence: uint64(time.Now().UnixMicro()), State: state, Repeat: time.Second})
			}
			h.From = "n1"
			h.Message, _ = vote.Encode(votes, MaxMessage)
			if err := p.Hear(h); err != nil {
				t.Fatal(err)
			}
		}
		say(Heard{Signed: "old", Age: time.Minute}, vote.Healthy, 1)
		say(Heard{}, vote.Healthy, 2)
		say(Heard{Signed: "replaced"}, vote.Healthy, 3)
		wait(time.Millisecond)
		say(Heard{Signed: "together", Age: time.Millisecond}, vote.Unhealthy, 3, 4, 5)
		wait(time.Second)
		var told []string
		for text, age := range p.State() {
			told = append(told, fmt.Sprint(text, " ", age))
		}
		if want := "together 1.001s"; strings.Join(told, ", ") != want {
			t.Errorf("%q, want %q", told, want)
		}
	})
}

// A hundred backends that die at once are told of in few messages; the first of them at once.
func TestABurstGoesIntoFewMessages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		told := make(map[vote.Key]bool)
		messages := 0
		p := NewProber(Options{Self: "n0", Publish: func(message []byte) string {
			got, err := vote.Decode("n0", message, time.Now())
			if err != nil {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			bad := 0
			for _, v := range got {
				if v.State == vote.Unhealthy {
					told[v.Key] = true
					bad++
				}
			}
			if bad > 0 {
				messages++
			}
			return ""
		}})
		w := &world{prober: p, dials: make(map[string][]time.Time)}
		w.registry = upstream.NewRegistry(upstream.Options{Added: p.Watch, Removed: p.Unwatch, DialContext: w.dial})
		defer w.close()
		p.SetMembers([]string{"n0", "n1", "n2"})
		for i := range 100 {
			w.acquire(t, fmt.Sprint("h", i), tcpCheck())
		}
		wait(time.Minute)
		w.set(syscall.ECONNREFUSED, 0)
		wait(15*time.Second + maxGather)
		mu.Lock()
		defer mu.Unlock()
		if len(told) != 100 || messages > 20 {
			t.Errorf("%d of 100 deaths are told, in %d messages", len(told), messages)
		}
	})
}

// Many votes travel in few messages, and each is told again before it ceases to count.
func TestVotesAreRepeatedInTimeAndTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		said := make(map[vote.Key]time.Time)
		messages, votes := 0, 0
		p := NewProber(Options{Self: "n0", Publish: func(message []byte) string {
			got, err := vote.Decode("n0", message, time.Now())
			if err != nil || len(message) > MaxMessage {
				t.Errorf("%d bytes, %v", len(message), err)
			}
			mu.Lock()
			defer mu.Unlock()
			messages++
			for _, v := range got {
				votes++
				if before := said[v.Key]; !before.IsZero() && time.Since(before) > 14*time.Second {
					t.Errorf("repeated after %v", time.Since(before))
				}
				said[v.Key] = time.Now()
			}
			return ""
		}})
		w := &world{prober: p, dials: make(map[string][]time.Time)}
		w.registry = upstream.NewRegistry(upstream.Options{Added: p.Watch, Removed: p.Unwatch, DialContext: w.dial})
		defer w.close()
		p.SetMembers([]string{"n0", "n1", "n2"})
		for i := range 100 {
			w.acquire(t, fmt.Sprint("h", i), tcpCheck())
		}
		wait(2 * time.Minute)
		mu.Lock()
		defer mu.Unlock()
		if len(said) != 100 || votes < 3*messages {
			t.Errorf("%d checks, %d votes in %d messages", len(said), votes, messages)
		}
		for key, at := range said {
			if time.Since(at) > 14*time.Second {
				t.Errorf("%x was not repeated for %v", key, time.Since(at))
			}
		}
	})
}

func TestSlotsAreEvenAndNeverLaterThanTheInterval(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		now := time.Unix(0, rapid.Int64Range(0, 1<<60).Draw(t, "now"))
		interval := time.Duration(rapid.Int64Range(int64(3*time.Millisecond), int64(time.Hour)).Draw(t, "interval"))
		var key vote.Key
		copy(key[:], rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "key"))
		var at []time.Duration
		for place := range vote.Probers {
			s := slot(now, interval, key, place)
			if wait := s.Sub(now); wait <= 0 || wait > interval {
				t.Fatalf("place %d waits %v of %v", place, wait, interval)
			}
			if again := slot(s, interval, key, place); again.Sub(s) != interval {
				t.Fatalf("the next slot comes %v after", again.Sub(s))
			}
			at = append(at, s.Sub(now))
		}
		slices.Sort(at)
		for i := range at {
			gap := at[(i+1)%3] - at[i]
			if gap <= 0 {
				gap += interval
			}
			if third := interval / 3; gap < third-3 || gap > third+3 {
				t.Fatalf("%v of %v apart", gap, interval)
			}
		}
	})
}

func TestLongestVoteFitsIntoAMessage(t *testing.T) {
	v := vote.Vote{
		Reason: strings.Repeat("r", vote.MaxReason), Sequence: 1 << 62, State: vote.Unhealthy,
		Since: time.Unix(0, 0), Repeat: 24 * time.Hour,
	}
	if _, n := vote.Encode([]vote.Vote{v}, MaxMessage); n != 1 {
		t.Error("it does not fit, and its sender would tell nothing for ever")
	}
}

// Two dead backends of three must not cost two requests of three a connect timeout, though their pool does not believe the check.
func TestBackendOfAPoolThatFailsOpenIsPassedOverWhereItRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(middle)
		defer w.close()
		pool, a, b := pair(t, w)
		defer pool.Close()
		open := upstream.NewPool(pool.Members(), upstream.PoolOptions{PanicPercent: 51})
		defer open.Close()
		b.SetVerdict(upstream.Verdict{State: upstream.Healthy})
		w.set(syscall.ECONNREFUSED, 0)
		w.prober.Unwatch(b) // it stays healthy
		wait(16 * time.Second)
		if a.Verdict().State != upstream.Unhealthy || !picks(open, a) {
			t.Fatalf("%v, picked: %v", a.Verdict().State, picks(open, a))
		}
		w.prober.Failed(a, syscall.ECONNREFUSED)
		if picks(open, a) {
			t.Error("it is picked after a refusal")
		}
		wait(time.Second)
		if picks(open, a) || w.prober.Evidence(a).Refused == "" {
			t.Error("it is picked though no look has reached it")
		}
		w.set(nil, 0)
		wait(5 * time.Second)
		if !picks(open, a) || w.prober.Evidence(a).Refused != "" {
			t.Error("it is not picked though a look has reached it")
		}
	})
}

func TestBackendThatRefusedAndIsAskedNoMoreIsNotLookedAt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(middle)
		defer w.close()
		pool, a, b := pair(t, w)
		defer pool.Close()
		open := upstream.NewPool(pool.Members(), upstream.PoolOptions{PanicPercent: 51})
		w.set(syscall.ECONNREFUSED, 0)
		w.prober.Unwatch(b)
		wait(16 * time.Second)
		w.prober.Failed(a, syscall.ECONNREFUSED)
		open.Close()
		wait(10 * time.Second)
		looks := w.prober.Counters().Looks
		wait(time.Minute)
		if w.prober.Evidence(a).Refused != "" || w.prober.Counters().Looks != looks {
			t.Errorf("refused %q, %d looks more", w.prober.Evidence(a).Refused, w.prober.Counters().Looks-looks)
		}
		w.set(nil, 0)
		wait(15 * time.Second)
		if a.Avoided() || a.Verdict().State != upstream.Healthy {
			t.Errorf("%v after its return, avoided: %v", a.Verdict().State, a.Avoided())
		}
	})
}

// Most of what it cannot reach others cannot reach either, and are unsure of for the same reason. One old word of good news does
// not count against that: where everything is dead, all nodes would be unsure for as long as there is one.
func TestNodeThatReachesNothingIsSureWhereOthersAreUnsure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(middle)
		defer w.close()
		w.prober.Close()
		w.prober = NewProber(Options{Self: "n0", Random: middle})
		w.prober.SetMembers([]string{"n1", "n2"})
		w.registry = upstream.NewRegistry(upstream.Options{Added: w.prober.Watch, Removed: w.prober.Unwatch, DialContext: w.dial})
		w.set(syscall.ECONNREFUSED, 0)
		var backends []*upstream.Backend
		for _, host := range []string{"a", "b", "c"} {
			backends = append(backends, w.acquire(t, host, tcpCheck()))
		}
		hear := func(of *upstream.Backend, state vote.State) {
			v := vote.Vote{Key: of.Identity(), Origin: "n1", Sequence: uint64(time.Now().UnixMicro()), State: state, Repeat: time.Hour, Heard: time.Now()}
			message, _ := vote.Encode([]vote.Vote{v}, MaxMessage)
			if err := w.prober.Hear(Heard{From: "n1", Message: message}); err != nil {
				t.Error(err)
			}
		}
		own := func() vote.State {
			t.Helper()
			for _, word := range w.prober.Evidence(backends[0]).Votes {
				if word.Origin == "n0" {
					return word.State
				}
			}
			t.Fatal("it says nothing")
			return vote.Undecided
		}
		for _, b := range backends {
			hear(b, vote.Healthy)
		}
		wait(16 * time.Second)
		if own() != vote.Unsure {
			t.Errorf("it is %v where others reach everything", own())
		}
		hear(backends[1], vote.Unsure)
		hear(backends[2], vote.Unsure)
		wait(16 * time.Second)
		if own() != vote.Unhealthy {
			t.Errorf("it is %v where others reach one of three", own())
		}
	})
}

// Were it forgotten when the verdict says as much, the verdict that has the pool fail open would bring them all back, and most
// requests would wait for a connect timeout once more.
func TestBackendsThatRefusedAreStillPassedOverWhenTheirPoolFailsOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(middle)
		defer w.close()
		var members []upstream.Member
		for _, host := range []string{"a", "b", "c"} {
			members = append(members, upstream.Member{Backend: w.acquire(t, host, tcpCheck()), Weight: 1})
		}
		wait(2 * time.Second)
		pool := upstream.NewPool(members, upstream.PoolOptions{PanicPercent: 50})
		defer pool.Close()
		w.prober.Unwatch(members[2].Backend) // it stays healthy
		w.set(syscall.ECONNREFUSED, 0)
		for _, m := range members[:2] {
			w.prober.Failed(m.Backend, syscall.ECONNREFUSED)
		}
		wait(30 * time.Second)
		if !pool.FailsOpen() {
			t.Fatal("the pool does not fail open")
		}
		for range 10 {
			if b := pool.Pick(0, nil); b != members[2].Backend {
				t.Fatalf("%s is picked, which no look has reached", b.Address())
			}
		}
		w.set(nil, 0)
		wait(5 * time.Second)
		if !picks(pool, members[0].Backend) && !picks(pool, members[1].Backend) {
			t.Error("none is picked though looks have reached them")
		}
	})
}

// A new version with a wrong check refuses connections while it starts, and that is the last that can be said against it.
func TestBackendOfAPoolThatFailsOpenIsAskedAgainOnceItCanBeReachedThoughItFailsItsCheck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(middle)
		defer w.close()
		check := tcpCheck()
		check.Type = resourcev1.HealthCheckType_HEALTH_CHECK_TYPE_HTTP // of which connections here know nothing
		var members []upstream.Member
		for _, host := range []string{"a", "b", "c"} {
			members = append(members, upstream.Member{Backend: w.acquire(t, host, check), Weight: 1})
		}
		pool := upstream.NewPool(members, upstream.PoolOptions{PanicPercent: 50})
		defer pool.Close()
		a, healthy := members[0].Backend, members[2].Backend
		w.prober.Unwatch(healthy)
		healthy.SetVerdict(upstream.Verdict{State: upstream.Healthy})
		wait(20 * time.Second)
		if !pool.FailsOpen() || a.Verdict().State != upstream.Unhealthy {
			t.Fatalf("fails open: %v, %v", pool.FailsOpen(), a.Verdict().State)
		}
		w.set(syscall.ECONNREFUSED, 0)
		w.prober.Failed(a, syscall.ECONNREFUSED)
		wait(time.Second)
		if !a.Avoided() {
			t.Error("it is asked though no look has reached it")
		}
		w.set(nil, 0)
		wait(5 * time.Second)
		if a.Avoided() || a.Verdict().State != upstream.Unhealthy {
			t.Errorf("avoided: %v, %v", a.Avoided(), a.Verdict().State)
		}
	})
}
