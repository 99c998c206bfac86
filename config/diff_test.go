package config

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"
)

// told writes changes as a user sees them.
func told(changes []Change) string {
	var lines []string
	for _, c := range changes {
		lines = append(lines, fmt.Sprintf("%s %s %s", c.Action, c.Kind, c.Name))
		for _, d := range c.Details {
			lines = append(lines, "  "+d)
		}
	}
	return strings.Join(lines, "\n")
}

func TestDiff(t *testing.T) {
	const route = "changed route /api\n  "
	for name, test := range map[string]struct{ old, new, want string }{
		"nothing":      {"{path: /api}", "{path: /api}", ""},
		"another form": {"{path: /api, host: '[::1]', health_check: {interval: 5s}}", "{path: /api/, backends: [{host: '::1', weight: 1}]}", ""},
		"routes":       {"{path: /a}\n- {path: /b}", "{path: /b}\n- {path: /c, host: x, preserve_host: true, strip_path: false, health_check: {type: http, path: /up}}", "removed route /a\ncreated route /c\n  strip_path: false\n  preserve_host: true\n  backends: + x:80\n  health_check: http /up every 5s"},
		"backends": {
			"{path: /api, backends: [{host: a}, {host: b}, {host: c, port: 443}]}",
			"{path: /api, backends: [{host: d, weight: 2, ssl: true, port: 443}, {host: b, weight: 3}, {host: c, port: 443, ssl: true}]}",
			route + "backends: + d:443 weight 2 ssl\n  backends: b:80 weight 1 → 3\n  backends: c:443 ssl false → true\n  backends: - a:80"},
		"order of backends": {"{path: /api, backends: [{host: a}, {host: b}]}", "{path: /api, backends: [{host: b}, {host: a}]}", route + "backends: in another order"},
		"options":           {"{path: /api}", "{path: /api, strip_path: false, preserve_host: true}", route + "strip_path: true → false\n  preserve_host: false → true"},
		"interval":          {"{path: /api}", "{path: /api, health_check: {interval: 2s}}", route + "health_check: interval 5s → 2s"},
		"probe":             {"{path: /api}", "{path: /api, health_check: {type: http, expected_status: '200,404'}}", route + "health_check: type tcp → http\n  health_check: path none → /\n  health_check: expected_status none → 200,404"},
		"no probe":          {"{path: /api}", "{path: /api, health_check: {type: none}}", route + "health_check: type tcp → none"},
		"thresholds": {"{path: /api}", "{path: /api, health_check: {timeout: 1s, healthy_threshold: 1, unhealthy_threshold: 1}}",
			route + "health_check: timeout 2s → 1s\n  health_check: healthy_threshold 2 → 1\n  health_check: unhealthy_threshold 3 → 1"},
		"panic": {"{path: /api}", "{path: /api, load_balancing: {panic_percent: 0}}", route + "load_balancing: policy round_robin, panic_percent 0"},
		"panic beside a policy": {"{path: /api, load_balancing: {policy: random}}", "{path: /api, load_balancing: {policy: random, panic_percent: 30}}",
			route + "load_balancing: panic_percent 50 → 30"},
		"default panic": {"{path: /api}", "{path: /api, load_balancing: {panic_percent: 50}}", ""},
		"timeouts": {"{path: /api, timeouts: {request: 30s, idle: 0s}}", "{path: /api, timeouts: {connect: 500ms, response_header: 0s, websocket_idle: 2h}}",
			route + "timeouts: connect 5s → 500ms\n  timeouts: response_header 1m → no limit\n  timeouts: idle no limit → 1m\n  timeouts: request 30s → no limit\n  timeouts: websocket_idle 1h → 2h"},
		"timeouts of a new route": {"{}", "{}\n- {path: /api, timeouts: {idle: 0s, connect: 5s}}", "created route /api\n  timeouts: idle no limit\n  backends: + localhost:80"},
		"default timeouts":        {"{path: /api}", "{path: /api, timeouts: {connect: 5000ms, response_header: 1m, idle: 60s, request: 0, websocket_idle: 60m}}", ""},
		"tls": {"{path: /api, port: 443, ssl: true}", "{path: /api, port: 443, ssl: true, tls: {ca_file: ./ca.pem, cert_file: ./ssl/cert.pem, key_file: ./ssl/key.pem, server_name: x, insecure_skip_verify: false}}",
			route + "tls: ca_file added\n  tls: client certificate added (expires 2027-01-02)\n  tls: server_name none → x"},
		"regex order":   {"{path: a, match: regex}\n- {path: b, match: regex}", "{path: b, match: regex}\n- {path: a, match: regex}", "changed route ~ a\n  order: changed among the regular expressions\nchanged route ~ b\n  order: changed among the regular expressions"},
		"regex numbers": {"{path: a, match: regex}\n- {path: b, match: regex}", "{path: b, match: regex}", "removed route ~ a"},
		"created regex": {"{}", "{}\n- {path: a, match: regex}", "created route ~ a\n  backends: + localhost:80"},
	} {
		t.Run(name, func(t *testing.T) {
			files := sslFiles(t)
			document := func(entries string) string {
				return "server:\n  reverse_proxy:\n    - " + strings.ReplaceAll(entries, "\n", "\n    ") + "\n"
			}
			old, new := mustParse(t, document(test.old), files), mustParse(t, document(test.new), files)
			if got := told(Diff(old, new)); got != test.want {
				t.Errorf("got:\n%s\nwant:\n%s", got, test.want)
			}
			if changes := Diff(new, new); changes != nil {
				t.Errorf("differs from itself:\n%s", told(changes))
			}
		})
	}
}

func TestDiffOfListenerAndCertificate(t *testing.T) {
	files := sslFiles(t)
	plain := mustParse(t, "server: {trusted_proxies: [10.0.0.0/8], reverse_proxy: [{}]}", nil)
	secure := mustParse(t, strings.Replace(sslDocument, "server: {", "server: {port: 8080, trusted_proxies: [10.1.0.0/16], ", 1), files)
	want := `changed listener default
  host/port: 0.0.0.0:8000 → 0.0.0.0:8080
  ssl: off → on
  trusted_proxies: + 10.1.0.0/16
  trusted_proxies: - 10.0.0.0/8
created certificate default
  certificate: expires 2027-01-02`
	if got := told(Diff(plain, secure)); got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
	files["./ssl/cert.pem"], files["./ssl/key.pem"] = newAuthority(t).pair(time.Date(2028, 3, 4, 0, 0, 0, 0, time.UTC))
	renewed := mustParse(t, strings.Replace(sslDocument, "server: {", "server: {port: 8080, trusted_proxies: [10.1.0.0/16], ", 1), files)
	want = "changed certificate default\n  certificate: changed (expires 2028-03-04)"
	if got := told(Diff(secure, renewed)); got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

func TestDiffWithNothing(t *testing.T) {
	r := mustParse(t, "server: {reverse_proxy: [{path: /b}, {path: /a}]}", nil)
	want := "created listener default\n  host/port: 0.0.0.0:8000\ncreated route /a\n  backends: + localhost:80\ncreated route /b\n  backends: + localhost:80"
	if got := told(Diff(nil, r)); got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
	want = "removed listener default\nremoved route /a\nremoved route /b"
	if got := told(Diff(r, nil)); got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
	if changes := Diff(nil, nil); changes != nil {
		t.Errorf("nothing differs from nothing: %v", changes)
	}
}

func TestDiffOfALargePoolIsShort(t *testing.T) {
	var backends strings.Builder
	for i := range 100 {
		fmt.Fprintf(&backends, "{port: %d}, ", i+1)
	}
	r := mustParse(t, routeEntry("backends: ["+backends.String()+"]"), nil)
	details := Diff(nil, r)[1].Details
	if len(details) != maxDetails+1 || details[maxDetails] != "and 80 more" {
		t.Errorf("%d details, the last %q", len(details), details[len(details)-1])
	}
	if !reflect.DeepEqual(Diff(nil, r), Diff(nil, r)) {
		t.Error("two diffs of the same differ")
	}
}
