package config

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

func TestLoadBalancing(t *testing.T) {
	const (
		ring   = resourcev1.BalancingPolicy_BALANCING_POLICY_RING_HASH
		maglev = resourcev1.BalancingPolicy_BALANCING_POLICY_MAGLEV
	)
	for section, want := range map[string]*resourcev1.LoadBalancing{
		"{}":                      nil,
		"{policy: round_robin}":   nil,
		"{policy: least_request}": {Policy: resourcev1.BalancingPolicy_BALANCING_POLICY_LEAST_REQUEST},
		"{policy: random}":        {Policy: resourcev1.BalancingPolicy_BALANCING_POLICY_RANDOM},
		"{policy: p2c_ewma}":      {Policy: resourcev1.BalancingPolicy_BALANCING_POLICY_P2C_EWMA},
		"{policy: ring_hash}":     {Policy: ring, HashOn: resourcev1.HashOn_HASH_ON_CLIENT_IP},
		"{policy: maglev}":        {Policy: maglev, HashOn: resourcev1.HashOn_HASH_ON_CLIENT_IP},
		"{policy: maglev, hash: {}}": {
			Policy: maglev, HashOn: resourcev1.HashOn_HASH_ON_CLIENT_IP},
		"{policy: maglev, hash: {on: path}}": {Policy: maglev, HashOn: resourcev1.HashOn_HASH_ON_PATH},
		"{policy: ring_hash, hash: {on: header, name: X-User}}": {
			Policy: ring, HashOn: resourcev1.HashOn_HASH_ON_HEADER, HashName: "x-user"},
		"{policy: ring_hash, hash: {on: cookie, name: User}}": {
			Policy: ring, HashOn: resourcev1.HashOn_HASH_ON_COOKIE, HashName: "User"},
		"{panic_percent: 50}": nil,
		"{panic_percent: 0}":  {Policy: resourcev1.BalancingPolicy_BALANCING_POLICY_ROUND_ROBIN, PanicPercent: new(uint32(0))},
		"{policy: round_robin, panic_percent: 100}": {
			Policy: resourcev1.BalancingPolicy_BALANCING_POLICY_ROUND_ROBIN, PanicPercent: new(uint32(100))},
		"{policy: maglev, panic_percent: 30}": {Policy: maglev, HashOn: resourcev1.HashOn_HASH_ON_CLIENT_IP, PanicPercent: new(uint32(30))},
		"{policy: maglev, panic_percent: 50}": {Policy: maglev, HashOn: resourcev1.HashOn_HASH_ON_CLIENT_IP},
	} {
		out := mustParse(t, routeEntry("load_balancing: "+section), nil)
		if got := out.Pools["/"].GetLoadBalancing(); !proto.Equal(got, want) {
			t.Errorf("%s is %v, want %v", section, got, want)
		}
	}
}

func TestStickyAndSlowStart(t *testing.T) {
	out := mustParse(t, routeEntry("sticky: {cookie: lane, ttl: 1h}\nslow_start: 30s"), nil)
	if got, want := out.Routes["/"].GetSticky(), (&resourcev1.Sticky{Cookie: "lane", Ttl: durationpb.New(time.Hour)}); !proto.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if got := out.Pools["/"].GetSlowStart().AsDuration(); got != 30*time.Second {
		t.Errorf("slow_start %v", got)
	}
	out = mustParse(t, routeEntry("sticky: {}\nslow_start: 0s"), nil)
	if got, want := out.Routes["/"].GetSticky(), (&resourcev1.Sticky{Cookie: "pyserve_backend"}); !proto.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if got := out.Pools["/"].GetSlowStart(); got != nil {
		t.Errorf("slow_start %v", got)
	}
}

func TestBalancingProblems(t *testing.T) {
	for keys, want := range map[string]string{
		"load_balancing: {panic_percent: 101}":                                 "0 to 100",
		"load_balancing: {panic_percent: half}":                                "0 to 100",
		"load_balancing: {panic_prcent: 30}":                                   "did you mean panic_percent?",
		"load_balancing: {policy: least}":                                      `"least" is not known here`,
		"load_balancing: {hash: {on: path}}":                                   "hash is for the policies ring_hash and maglev",
		"load_balancing: {policy: maglev, hash: {on: header}}":                 "needs the header's name",
		"load_balancing: {policy: maglev, hash: {on: cookie}}":                 "needs the cookie's name",
		"load_balancing: {policy: maglev, hash: {on: path, name: x}}":          "name is for on: header and on: cookie",
		"load_balancing: {policy: maglev, hash: {on: header, name: 'X User'}}": "cannot be the name of a header or cookie",
		"load_balancing: {policy: maglev, hash: {on: query}}":                  `"query" is not known here`,
		"load_balancing: {policy: maglev, hash: {nam: x}}":                     "did you mean name?",
		"load_balancing: {policy: maglev, hash: path}":                         "write a mapping such as {on: header",
		"load_balancing: {policy: maglev}\nslow_start: 30s":                    "slow_start: warning: is not used with maglev",
		"sticky: {cookie: ''}":                                                 "1 to 256 characters",
		"sticky: {cookie: 'a;b'}":                                              "cannot be the name",
		"sticky: {cookie: " + strings.Repeat("a", 257) + "}":                   "1 to 256 characters",
		"sticky: {ttl: 0s}":                                                    `"0s" is out of range`,
		"sticky: {ttl: 9601h}":                                                 `"9601h" is out of range`,
		"sticky: true":                                                         "write a mapping such as {cookie:",
		"slow_start: 10ms":                                                     "too short to be of use",
		"slow_start: 2h":                                                       `"2h" is out of range`,
	} {
		_, problems := parse([]byte(routeEntry(keys)), nil, today)
		if text := joined(problems); !strings.Contains(text, want) {
			t.Errorf("%s: %q does not say %q", keys, text, want)
		}
	}
}
