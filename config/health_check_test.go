package config

import (
	"strings"
	"testing"
	"time"

	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
)

func TestHealthChecks(t *testing.T) {
	http := &resourcev1.HealthCheck{
		Type: resourcev1.HealthCheckType_HEALTH_CHECK_TYPE_HTTP, Path: "/", Interval: durationpb.New(5 * time.Second), Timeout: durationpb.New(2 * time.Second),
		HealthyThreshold: 2, UnhealthyThreshold: 3, ExpectedStatuses: []*resourcev1.StatusRange{{First: 200, Last: 399}},
	}
	change := func(f func(c *resourcev1.HealthCheck)) *resourcev1.HealthCheck {
		c := proto.Clone(http).(*resourcev1.HealthCheck)
		f(c)
		return c
	}
	grpc := defaultHealthCheck()
	grpc.Type = resourcev1.HealthCheckType_HEALTH_CHECK_TYPE_GRPC
	cart := proto.Clone(grpc).(*resourcev1.HealthCheck)
	cart.Path = "/shop.Cart"
	socket := defaultHealthCheck()
	socket.Type, socket.Path = resourcev1.HealthCheckType_HEALTH_CHECK_TYPE_WEBSOCKET, "/"
	chat := proto.Clone(socket).(*resourcev1.HealthCheck)
	chat.Path = "/chat%20room?probe=1"
	short := defaultHealthCheck()
	short.Interval, short.Timeout = durationpb.New(time.Second), durationpb.New(time.Second)
	for written, want := range map[string]*resourcev1.HealthCheck{
		"":                               defaultHealthCheck(),
		"{}":                             defaultHealthCheck(),
		"{type: tcp}":                    defaultHealthCheck(),
		"{interval: 1s}":                 short,
		"{type: none}":                   {Type: resourcev1.HealthCheckType_HEALTH_CHECK_TYPE_NONE},
		"{type: http}":                   http,
		"{type: grpc}":                   grpc,
		"{type: grpc, path: /}":          grpc,
		"{type: grpc, path: /shop.Cart}": cart,
		"{type: websocket}":              socket,
		`{type: websocket, path: "/chat%20room?probe=1"}`: chat,
		`{type: http, path: "/up?x=1"}`:                   change(func(c *resourcev1.HealthCheck) { c.Path = "/up?x=1" }),
		"{type: http, interval: 1m30s, timeout: 500ms, healthy_threshold: 1, unhealthy_threshold: 100}": change(func(c *resourcev1.HealthCheck) {
			c.Interval, c.Timeout, c.HealthyThreshold, c.UnhealthyThreshold = durationpb.New(90*time.Second), durationpb.New(500*time.Millisecond), 1, 100
		}),
		"{type: http, expected_status: 204}": change(func(c *resourcev1.HealthCheck) {
			c.ExpectedStatuses = []*resourcev1.StatusRange{{First: 204, Last: 204}}
		}),
		`{type: http, expected_body: '"status":"ok"'}`: change(func(c *resourcev1.HealthCheck) { c.ExpectedBody = `"status":"ok"` }),
		`{type: http, expected_status: "404, 250-299,200-249,204"}`: change(func(c *resourcev1.HealthCheck) {
			c.ExpectedStatuses = []*resourcev1.StatusRange{{First: 200, Last: 299}, {First: 404, Last: 404}}
		}),
	} {
		r := mustParse(t, routeEntry("health_check: "+written), nil)
		if got := r.Pools["/"].HealthCheck; !proto.Equal(got, want) {
			t.Errorf("%s: got %v, want %v", written, got, want)
		}
	}
}

func TestHealthCheckProblems(t *testing.T) {
	const check = "3: server.reverse_proxy[0].health_check."
	const statuses = `: write statuses such as 200, "200,204" or "200-399"`
	for written, want := range map[string]string{
		"{interval: 5}":                           `interval: 5 has no unit: write "5s" for seconds (ms, s, m and h are known)`,
		"{interval: 0.5}":                         `interval: 0.5 has no unit: write "0.5s" for seconds (ms, s, m and h are known)`,
		"{interval: 5sec}":                        `interval: "5sec" is not a time: write a number and its unit (ms, s, m or h), such as "5s"`,
		"{interval: 5 s}":                         `interval: "5 s" is not a time: write a number and its unit (ms, s, m or h), such as "5s"`,
		"{interval: 50ms}":                        `interval: "50ms" is out of range: write a time from 100ms to 1h`,
		"{interval: -5s}":                         `interval: "-5s" is out of range: write a time from 100ms to 1h`,
		"{interval: 2h}":                          `interval: "2h" is out of range: write a time from 100ms to 1h`,
		"{interval: }":                            `interval: nothing stands here: write a time with its unit, such as "5s"`,
		"{interval: [5s]}":                        `interval: a list stands here: write a time with its unit, such as "5s"`,
		"{interval: 1s, timeout: 2s}":             "timeout: 2s is longer than the interval: write at most 1s",
		"{timeout: 1ms}":                          `timeout: "1ms" is out of range: write a time from 10ms to 1h`,
		"{healthy_threshold: 0}":                  "healthy_threshold: 0 is out of range: write a whole number from 1 to 100",
		"{unhealthy_threshold: 101}":              "unhealthy_threshold: 101 is out of range: write a whole number from 1 to 100",
		"{type: htpp}":                            `type: "htpp" is not known here: did you mean http?`,
		"{type: smtp}":                            `type: "smtp" is not known here: write tcp, http, grpc, websocket or none`,
		"{path: /up}":                             "path: is for type: http, grpc and websocket, and the type is tcp: write one of those, or leave it out",
		"{type: none, path: /up}":                 "path: is for type: http, grpc and websocket, and the type is none: write one of those, or leave it out",
		"{type: grpc, expected_status: 200}":      "expected_status: is for type: http, and the type is grpc: write type: http, or leave it out",
		"{type: websocket, expected_status: 101}": "expected_status: is for type: http, and the type is websocket: write type: http, or leave it out",
		"{type: grpc, path: shop.Cart}":           `path: "shop.Cart" does not begin with "/": write a path such as "/healthz"`,
		"{type: grpc, path: /shop.Cart/Check}":    `path: "/shop.Cart/Check" is more than the name of a service: write "/shop.Cart"`,
		"{type: grpc, path: //}":                  `path: "//" does not name a service of gRPC: write "/" and its name, such as "/shop.Cart"`,
		`{type: grpc, path: "/a?b"}`:              `path: "/a?b" does not name a service of gRPC: write "/" and its name, such as "/shop.Cart"`,
		"{type: grpc, path: /a%20b}":              `path: "/a%20b" does not name a service of gRPC: write "/" and its name, such as "/shop.Cart"`,
		"{type: websocket, path: /100%}":          `path: "/100%" has a % that two hexadecimal digits do not follow: write %25`,
		"{type: none, expected_status: 200}":      "expected_status: is for type: http, and the type is none: write type: http, or leave it out",
		"{type: http, path: up}":                  `path: "up" does not begin with "/": write a path such as "/healthz"`,
		"{type: http, path: /a b}":                `path: "/a b" has characters that cannot stand in a request: write them percent-encoded`,
		"{type: http, expected_status: OK}":       `expected_status: "OK" is no status` + statuses,
		"{type: http, expected_status: 2xx}":      `expected_status: "2xx" is no status` + statuses,
		"{type: http, expected_status: 600}":      `expected_status: "600" is no status, which is from 100 to 599` + statuses,
		"{type: http, expected_status: 50}":       `expected_status: "50" is no status, which is from 100 to 599` + statuses,
		"{type: http, expected_status: 300-200}":  `expected_status: "300-200" ends before it begins` + statuses,
		`{type: http, expected_status: "200,"}`:   `expected_status: "" is no status` + statuses,
		"{type: grpc, expected_body: ok}":         "expected_body: is for type: http, and the type is grpc: write type: http, or leave it out",
		`{type: http, expected_body: ""}`:         `expected_body: nothing stands here, which every body holds: write a text such as "ready", or leave the key out`,
		"{type: http, expected_body: " + strings.Repeat("a", 1025) + "}": "expected_body: the text has 1025 bytes: write at most 1024",
		"{type: none, interval: 5s}":                                     "interval: warning: is not used: type none probes nothing",
	} {
		wantProblems(t, routeEntry("health_check: "+written), nil, check+want)
	}
}
