package state

import (
	"bytes"
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/pyserve/pyserve/proto/voucher"
)

// encoded is metadata as it travels.
func encoded(m Metadata) []byte { return append(m.EncodeUnsigned(), m.Signature...) }

func vouchedFor(facts Facts) Metadata {
	return Metadata{
		Facts: facts, KeyMark: ^uint16(0), Sequence: 1<<48 - 1,
		Voucher: bytes.Repeat([]byte{0xff}, voucher.Size), Signature: bytes.Repeat([]byte{0xee}, voucher.SignatureSize),
	}
}

func TestMetadataSurvivesTheWire(t *testing.T) {
	for _, want := range []Metadata{
		{},
		{Facts: Facts{Revision: 1}, Sequence: 2},
		vouchedFor(Facts{Epoch: 2, Revision: 3, DigestPrefix: [8]byte{1, 2, 3, 4, 5, 6, 7, 8}, Draining: true, Leaving: true, Room: 17}),
	} {
		got, unsigned, err := DecodeMetadata(encoded(want))
		if err != nil || !reflect.DeepEqual(got, want) || !bytes.Equal(unsigned, want.EncodeUnsigned()) {
			t.Errorf("%+v came back as %+v, %v", want, got, err)
		}
	}
}

func TestLargestMetadataFits(t *testing.T) {
	largest := vouchedFor(Facts{Epoch: ^uint64(0), Revision: ^uint64(0), Draining: true, Leaving: true, Room: mostRoom})
	for i := range largest.Facts.DigestPrefix {
		largest.Facts.DigestPrefix[i] = 0xff
	}
	b := encoded(largest)
	if len(b) > MaxMetadata {
		t.Errorf("the largest metadata has %d bytes, more than %d", len(b), MaxMetadata)
	}
	if got, _, err := DecodeMetadata(b); err != nil || !reflect.DeepEqual(got, largest) {
		t.Errorf("it came back as %+v, %v", got, err)
	}
}

func TestDecodeMetadataRefuses(t *testing.T) {
	good := Metadata{Facts: Facts{Revision: 7}}.EncodeUnsigned()
	for name, b := range map[string][]byte{
		"empty":           nil,
		"another version": append([]byte{2}, good[1:]...),
		"cut short":       good[:oldSize-1],
		"too long":        append(good, make([]byte, MaxMetadata)...),
	} {
		if m, _, err := DecodeMetadata(b); err == nil || m.Facts != (Facts{}) {
			t.Errorf("%s: %+v, %v, want no facts and an error", name, m, err)
		}
	}
}

func TestMetadataOfOlderAndNewerMembersIsRead(t *testing.T) {
	want := vouchedFor(Facts{Epoch: 1, Revision: 7, Draining: true, Leaving: true})
	old, _, err := DecodeMetadata(encoded(want)[:oldSize])
	if err != nil || old.Facts != want.Facts || old.Voucher != nil {
		t.Errorf("of an older member: %+v, %v", old, err)
	}
	b := append(encoded(want), 1)
	b[1] |= 0x80
	if got, _, err := DecodeMetadata(b); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("of a newer member: %+v, %v, want %+v", got, err, want)
	}
}

func TestWhatIsSignedOfMetadataHasNameAndAddress(t *testing.T) {
	a, b := netip.MustParseAddrPort("10.0.0.1:7946"), netip.MustParseAddrPort("10.0.0.2:7946")
	base := SignedMetadata("c", Origin{RoleNode, "n1"}, a, []byte("x"))
	for what, other := range map[string][]byte{
		"another cluster": SignedMetadata("d", Origin{RoleNode, "n1"}, a, []byte("x")),
		"another role":    SignedMetadata("c", Origin{RoleControl, "n1"}, a, []byte("x")),
		"another name":    SignedMetadata("c", Origin{RoleNode, "n2"}, a, []byte("x")),
		"another address": SignedMetadata("c", Origin{RoleNode, "n1"}, b, []byte("x")),
		"another port":    SignedMetadata("c", Origin{RoleNode, "n1"}, netip.MustParseAddrPort("10.0.0.1:7947"), []byte("x")),
	} {
		if bytes.Equal(base, other) {
			t.Errorf("%s signs the same", what)
		}
	}
}

func FuzzDecodeMetadata(f *testing.F) {
	f.Add([]byte(nil))
	f.Add(encoded(vouchedFor(Facts{Epoch: 1, Revision: 2, Draining: true, Leaving: true})))
	f.Add(Metadata{Sequence: 5}.EncodeUnsigned())
	f.Add(make([]byte, MaxMetadata+1))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, _, err := DecodeMetadata(b)
		if err != nil {
			return
		}
		again, _, err := DecodeMetadata(encoded(m))
		if err != nil || !reflect.DeepEqual(again, m) {
			t.Errorf("%+v does not survive: %+v, %v", m, again, err)
		}
	})
}

func TestFactsToldAgainArePassedOver(t *testing.T) {
	r := NewRoster(time.Hour, 10)
	now, old := node("a", Alive), node("a", Alive)
	now.Facts.Revision, now.Sequence = 8, 2
	old.Facts.Revision, old.Sequence = 7, 1
	r.Merge([]Member{now}, epoch)
	changes, stale := r.Merge([]Member{old}, epoch)
	if len(changes) > 0 || stale != 1 || r.Members()[0].Facts.Revision != 8 {
		t.Errorf("%d changes, %d stale, now %+v", len(changes), stale, r.Members())
	}
}

func FuzzParseWireName(f *testing.F) {
	f.Add("node:n1")
	f.Add("control:")
	f.Add("n1")
	f.Add(strings.Repeat(":", 1000))
	f.Fuzz(func(t *testing.T, wire string) {
		role, name, err := ParseWireName(wire)
		if err == nil && WireName(role, name) != wire {
			t.Errorf("ParseWireName(%q) = %v, %q", wire, role, name)
		}
		if err != nil && len(err.Error()) > 1000 {
			t.Errorf("an error of %d bytes", len(err.Error()))
		}
	})
}

func TestCheckName(t *testing.T) {
	for _, good := range []string{"n1", "N.a_b-c", "0", strings.Repeat("x", 63)} {
		if err := CheckName(good); err != nil {
			t.Errorf("CheckName(%q) = %v", good, err)
		}
	}
	for _, bad := range []string{"", ".n", "-n", "a b", "a/b", "a:b", "ä", strings.Repeat("x", 64)} {
		if CheckName(bad) == nil {
			t.Errorf("CheckName(%q) = nil", bad)
		}
	}
}

var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func node(name string, liveness Liveness) Member {
	return Member{Name: name, Role: RoleNode, Address: name + ":7946", State: liveness}
}

func TestRosterTellsWhatChanged(t *testing.T) {
	r := NewRoster(time.Hour, 10)
	step := func(after time.Duration, seen ...Member) string {
		t.Helper()
		var b strings.Builder
		changes, _ := r.Merge(seen, epoch.Add(after))
		for _, c := range changes {
			fmt.Fprintf(&b, "%s %s→%s since %s; ", c.Member.Name, c.Before, c.Member.State, c.Member.Since.Sub(epoch))
		}
		return strings.TrimSuffix(b.String(), "; ")
	}
	draining := node("a", Alive)
	draining.Facts.Draining = true
	for i, tt := range []struct{ got, want string }{
		{step(0, node("b", Alive), node("a", Alive)), "a unknown→alive since 0s; b unknown→alive since 0s"},
		{step(time.Second, node("a", Alive), node("b", Alive)), ""},
		{step(3*time.Second, draining, node("b", Left)), "a alive→alive since 0s; b alive→left since 3s"},
		{step(4 * time.Second), "a alive→dead since 4s"},
		{step(5*time.Second, node("a", Alive)), "a dead→alive since 5s"},
		{step(2*time.Hour, node("a", Alive)), "b left→unknown since 3s"},
	} {
		if tt.got != tt.want {
			t.Errorf("step %d: %q, want %q", i, tt.got, tt.want)
		}
	}
}

func TestRosterKeepsRolesApart(t *testing.T) {
	r := NewRoster(time.Hour, 10)
	control := Member{Name: "host", Role: RoleControl, State: Alive}
	r.Merge([]Member{control, node("host", Dead)}, epoch)
	got := r.Members()
	if len(got) != 2 || got[0].Role != RoleNode || got[1].State != Alive {
		t.Errorf("Members = %+v", got)
	}
}

func TestRosterForgetsTheLongestGoneOfTooMany(t *testing.T) {
	r := NewRoster(time.Hour, 2)
	for i := range 5 {
		r.Merge([]Member{node(fmt.Sprint("n", i), Dead), node("alive", Alive)}, epoch.Add(time.Duration(i)*time.Second))
	}
	var names []string
	for _, m := range r.Members() {
		names = append(names, m.Name)
	}
	if got := strings.Join(names, " "); got != "alive n3 n4" {
		t.Errorf("listed: %s", got)
	}
}

// Whatever is seen, whoever takes part is listed as seen, the gone are bounded, and the list is in order.
func TestRosterHoldsItsBounds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		limit := rapid.IntRange(0, 3).Draw(t, "limit")
		r := NewRoster(time.Minute, limit)
		now := epoch
		for range rapid.IntRange(1, 20).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.IntRange(0, 40).Draw(t, "seconds")) * time.Second)
			seen := drawSighting(t)
			r.Merge(seen, now)
			checkRoster(t, r, seen, limit)
		}
	})
}

func drawSighting(t *rapid.T) []Member {
	var seen []Member
	for i := range 8 {
		if liveness := Liveness(rapid.IntRange(0, 3).Draw(t, "liveness")); liveness != 0 {
			seen = append(seen, node(fmt.Sprint("n", i), liveness))
		}
	}
	return seen
}

func checkRoster(t *rapid.T, r *Roster, seen []Member, limit int) {
	gone, part := 0, 0
	members := r.Members()
	for i, m := range members {
		if m.State.Gone() {
			gone++
		} else {
			part++
		}
		if i > 0 && members[i-1].Name >= m.Name {
			t.Fatalf("%s comes after %s", m.Name, members[i-1].Name)
		}
	}
	for _, m := range seen {
		if !m.State.Gone() {
			part--
		}
	}
	if gone > limit || part != 0 {
		t.Fatalf("%d gone of at most %d, %d too many that take part", gone, limit, part)
	}
}
