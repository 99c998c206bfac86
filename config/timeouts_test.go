package config

import (
	"testing"
	"time"

	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
)

func TestTimeouts(t *testing.T) {
	for written, want := range map[string]struct {
		resource *resourcev1.Timeouts
		change   func(*Timeouts)
	}{
		"{connect: 10m}":         {&resourcev1.Timeouts{Connect: durationpb.New(10 * time.Minute)}, func(t *Timeouts) { t.Connect = 10 * time.Minute }},
		"{connect: 1ms}":         {&resourcev1.Timeouts{Connect: durationpb.New(time.Millisecond)}, func(t *Timeouts) { t.Connect = time.Millisecond }},
		"{response_header: 0s}":  {&resourcev1.Timeouts{ResponseHeader: durationpb.New(0)}, func(t *Timeouts) { t.ResponseHeader = 0 }},
		"{idle: 0}":              {&resourcev1.Timeouts{Idle: durationpb.New(0)}, func(t *Timeouts) { t.Idle = 0 }},
		"{idle: 1m30s}":          {&resourcev1.Timeouts{Idle: durationpb.New(90 * time.Second)}, func(t *Timeouts) { t.Idle = 90 * time.Second }},
		"{request: 8784h}":       {&resourcev1.Timeouts{Request: durationpb.New(8784 * time.Hour)}, func(t *Timeouts) { t.Request = 8784 * time.Hour }},
		"{websocket_idle: '0s'}": {&resourcev1.Timeouts{WebsocketIdle: durationpb.New(0)}, func(t *Timeouts) { t.WebSocketIdle = 0 }},
		"{connect: 5s, request: 2s, idle: 60s}": {&resourcev1.Timeouts{Request: durationpb.New(2 * time.Second)},
			func(t *Timeouts) { t.Request = 2 * time.Second }},
	} {
		route := mustParse(t, routeEntry("timeouts: "+written), nil).Routes["/"]
		if !proto.Equal(route.Timeouts, want.resource) {
			t.Errorf("%s: the resource has %v, want %v", written, route.Timeouts, want.resource)
		}
		all := TimeoutsOf(nil)
		want.change(&all)
		if got := TimeoutsOf(route); got != all {
			t.Errorf("%s: got %+v, want %+v", written, got, all)
		}
	}
}

func TestDefaultTimeoutsAreThoseOfTheContract(t *testing.T) {
	want := Timeouts{Connect: 5 * time.Second, ResponseHeader: 60 * time.Second, Idle: 60 * time.Second, Request: 0, WebSocketIdle: time.Hour}
	for what, route := range map[string]*resourcev1.Route{"nil": nil, "no timeouts": {}, "empty timeouts": {Timeouts: &resourcev1.Timeouts{}}} {
		if got := TimeoutsOf(route); got != want {
			t.Errorf("%s: got %+v, want %+v", what, got, want)
		}
	}
}

// A digest is over the bytes of resources, so that it is not enough that both mean the same.
func TestTimeoutsWrittenAsTheirDefaultsAreThoseLeftOut(t *testing.T) {
	left := mustParse(t, routeEntry("{}"), nil).Routes["/"]
	for _, written := range []string{
		"", "{}", "{connect: 5s}", "{request: 0}",
		"{connect: 5s, response_header: 60s, idle: 60s, request: 0s, websocket_idle: 1h}",
		"{connect: 5000ms, response_header: 1m, idle: 1m0s, request: -0s, websocket_idle: 60m}",
	} {
		route := mustParse(t, routeEntry("timeouts: "+written), nil).Routes["/"]
		if route.Timeouts != nil || !proto.Equal(route, left) {
			t.Errorf("%s: got %v", written, route)
		}
	}
}

func TestTimeoutProblems(t *testing.T) {
	const limits = `: write a time from 1ms to 8784h, or 0s for no limit`
	for written, want := range map[string]string{
		"{connect: 5}":           `connect: 5 has no unit: write "5s" for seconds (ms, s, m and h are known)`,
		"{connect: 0s}":          `connect: "0s" is out of range: write a time from 1ms to 10m`,
		"{connect: 0}":           `connect: "0" is out of range: write a time from 1ms to 10m`,
		"{connect: -5s}":         `connect: "-5s" is out of range: write a time from 1ms to 10m`,
		"{connect: 601s}":        `connect: "601s" is out of range: write a time from 1ms to 10m`,
		"{connect: }":            `connect: nothing stands here: write a time with its unit, such as "5s"`,
		"{response_header: -1s}": `response_header: "-1s" is out of range: write a time from 0s to 8784h`,
		"{response_header: 1us}": `response_header: "1us" is out of range` + limits,
		"{idle: 8785h}":          `idle: "8785h" is out of range: write a time from 0s to 8784h`,
		"{idle: 999999ns}":       `idle: "999999ns" is out of range` + limits,
		"{request: never}":       `request: "never" is not a time: write a number and its unit (ms, s, m or h), such as "5s"`,
		"{websocket_idle: 1d}":   `websocket_idle: "1d" is not a time: write a number and its unit (ms, s, m or h), such as "5s"`,
		"{websocket_idle: [1h]}": `websocket_idle: a list stands here: write a time with its unit, such as "5s"`,
	} {
		wantProblems(t, routeEntry("timeouts: "+written), nil, "3: server.reverse_proxy[0].timeouts."+want)
	}
	wantProblems(t, routeEntry("path: /a\ntimeouts:\n  connect: 1\n  idle: -1s"), nil,
		`5: server.reverse_proxy[0].timeouts.connect: 1 has no unit: write "1s" for seconds (ms, s, m and h are known)`,
		`6: server.reverse_proxy[0].timeouts.idle: "-1s" is out of range: write a time from 0s to 8784h`)
}

func TestTimeoutsOfOneEntryAreThoseOfTheRoute(t *testing.T) {
	const entries = "server:\n  reverse_proxy:\n    - {path: /a, host: a}\n    - {path: /a, host: b, timeouts: {idle: 2m}}\n" +
		"    - {path: /a, host: c, timeouts: {idle: 120s, connect: 5s}}\n    - {path: /b}\n"
	r := mustParse(t, entries, nil)
	if a, b := TimeoutsOf(r.Routes["/a"]).Idle, TimeoutsOf(r.Routes["/b"]).Idle; a != 2*time.Minute || b != time.Minute {
		t.Errorf("idle is %s and %s", a, b)
	}
}
