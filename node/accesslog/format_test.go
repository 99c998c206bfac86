package accesslog

import (
	"encoding/json"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

func TestTextIsTheCombinedFormatWithMore(t *testing.T) {
	e := typical()
	want := `192.0.2.7 - - [23/Nov/2026:19:01:43 +0000] "GET /a?b=1 HTTP/1.1" 200 512 "https://example.com/" "curl/8.9" ` +
		`host="example.com" route="/a" backend="10.0.0.1:3000" request_id="0f1e2d3c" class="-" took=0.001234 ` +
		`upstream_took=0.001100 received=3 retries=1 part=2` + "\n"
	if got := line(&e, Text, 100); got != want {
		t.Errorf("\n%swant\n%s", got, want)
	}
}

func TestJSONHasAllKeysInOrder(t *testing.T) {
	e := typical()
	want := `{"time":"2026-11-23T19:01:43.123456Z","client":"192.0.2.7","method":"GET","host":"example.com","target":"/a?b=1",` +
		`"proto":"HTTP/1.1","status":200,"received":3,"sent":512,"took":0.001234,"upstream_took":0.001100,"route":"/a",` +
		`"backend":"10.0.0.1:3000","request_id":"0f1e2d3c","user_agent":"curl/8.9","referer":"https://example.com/","class":"",` +
		`"retries":1,"part":2}` + "\n"
	if got := line(&e, JSON, 100); got != want {
		t.Errorf("\n%swant\n%s", got, want)
	}
}

func TestEmptyEntry(t *testing.T) {
	want := `- - - [01/Jan/0001:00:00:00 +0000] "- - -" 000 0 "-" "-" host="-" route="-" backend="-" request_id="-" class="-" ` +
		`took=0.000000 upstream_took=0.000000 received=0 retries=0 part=0` + "\n"
	if got := line(&Entry{}, Text, 100); got != want {
		t.Errorf("\n%swant\n%s", got, want)
	}
	var decoded map[string]any
	if err := json.Unmarshal([]byte(line(&Entry{}, JSON, 100)), &decoded); err != nil {
		t.Error(err)
	}
}

func TestValuesAreEscaped(t *testing.T) {
	for _, c := range []struct{ value, text, json string }{
		{`a"b\c`, `a\x22b\x5cc`, `a\"b\\c`},
		{"a\r\nb\x00", `a\x0d\x0ab\x00`, `a\u000d\u000ab\u0000`},
		{"\x1b[31m\x7f", `\x1b[31m\x7f`, `\u001b[31m\u007f`},
		{"é", `\xc3\xa9`, "é"},
		{"\xff\xc3", `\xff\xc3`, `\ufffd\ufffd`},
		{"\u2028\u0085\u202e", `\xe2\x80\xa8\xc2\x85\xe2\x80\xae`, `\u2028\u0085\u202e`},
		{"\U000e0001", `\xf3\xa0\x80\x81`, `\udb40\udc01`},
		{"\ufffd😀", `\xef\xbf\xbd\xf0\x9f\x98\x80`, "\ufffd😀"},
		{"two words", "two words", "two words"},
	} {
		e := Entry{UserAgent: []byte(c.value)}
		if got := line(&e, Text, 100); !strings.Contains(got, ` "`+c.text+`" host=`) {
			t.Errorf("%q as text: %s", c.value, got)
		}
		if got := line(&e, JSON, 100); !strings.Contains(got, `"user_agent":"`+c.json+`",`) {
			t.Errorf("%q as JSON: %s", c.value, got)
		}
	}
}

func TestRequestLineIsThreeWords(t *testing.T) {
	e := Entry{Method: []byte("G T"), Target: []byte("/a b"), Proto: "HTTP/1.1 x"}
	if got := line(&e, Text, 100); !strings.Contains(got, `"G\x20T /a\x20b HTTP/1.1\x20x"`) {
		t.Error(got)
	}
}

func TestLongValuesAreCut(t *testing.T) {
	for _, c := range []struct{ value, want string }{
		{"1234", "1234"},
		{"12345", "1234…"},
		{"123é", "123…"},
		{"1😀5", "1…"},
		{"12\x80\x80\x80", `12\ufffd\ufffd…`},
		{"\x80\x80\x80\x80\x80", `\ufffd\ufffd\ufffd\ufffd…`},
	} {
		e := Entry{Referer: []byte(c.value)}
		if got := line(&e, JSON, 4); !strings.Contains(got, `"referer":"`+c.want+`"`) {
			t.Errorf("%q: %s", c.value, got)
		}
	}
	e := Entry{Route: "12345", UserAgent: []byte("é")}
	if got := line(&e, Text, 4); !strings.Contains(got, `route="1234…"`) {
		t.Error(got)
	}
	if got := line(&e, Text, 1); !strings.Contains(got, ` "…" host=`) {
		t.Errorf("nothing is left but the mark: %s", got)
	}
}

func TestClients(t *testing.T) {
	for given, want := range map[string]string{
		"2001:db8::1": "2001:db8::1", "::ffff:192.0.2.7": "192.0.2.7", "fe80::1%eth0": "fe80::1%eth0", "::": "::",
		"0.0.0.0": "0.0.0.0",
	} {
		e := Entry{Client: netip.MustParseAddr(given)}
		if got := line(&e, Text, 100); !strings.HasPrefix(got, want+" - - ") {
			t.Errorf("%s: %s", given, got)
		}
		if got := line(&e, JSON, 100); !strings.Contains(got, `"client":"`+want+`"`) {
			t.Errorf("%s: %s", given, got)
		}
	}
	e := Entry{Client: netip.MustParseAddr("fe80::1").WithZone("a b\n")}
	if got := line(&e, Text, 100); !strings.HasPrefix(got, `fe80::1%a\x20b\x0a - - `) {
		t.Error(got)
	}
}

func TestStatusHasThreeDigits(t *testing.T) {
	for status, want := range map[int]string{0: "000", 7: "007", 42: "042", 100: "100", 999: "999"} {
		e := Entry{Status: status}
		if got := line(&e, Text, 100); !strings.Contains(got, `" `+want+` 0 "`) {
			t.Errorf("%d: %s", status, got)
		}
	}
}

func TestClockFollowsTheSecond(t *testing.T) {
	f := newFormatter(JSON)
	for _, at := range []int64{1, 1, 2, 0, -1} {
		got := string(f.append(nil, &record{seconds: at}))
		if want := time.Unix(at, 0).UTC().Format(jsonTime); !strings.HasPrefix(got, `{"time":"`+want+`.000000Z"`) {
			t.Errorf("%d: %s", at, got)
		}
	}
}

// jsonEntry is an entry as a reader of the log has it.
type jsonEntry struct {
	Time         time.Time   `json:"time"`
	Client       string      `json:"client"`
	Method       string      `json:"method"`
	Host         string      `json:"host"`
	Target       string      `json:"target"`
	Proto        string      `json:"proto"`
	Status       int         `json:"status"`
	Received     int64       `json:"received"`
	Sent         int64       `json:"sent"`
	Took         json.Number `json:"took"`
	UpstreamTook json.Number `json:"upstream_took"`
	Route        string      `json:"route"`
	Backend      string      `json:"backend"`
	RequestID    string      `json:"request_id"`
	UserAgent    string      `json:"user_agent"`
	Referer      string      `json:"referer"`
	Class        string      `json:"class"`
	Retries      int         `json:"retries"`
	Part         int         `json:"part"`
}

// textLine is the grammar of a line of Text; quoted values have escapes and nothing that would have to be one.
var textLine = regexp.MustCompile(`^(\S+) - - \[([^]]+)\] "(\S+) (\S+) (\S+)" (\d{3,}|-\d+) (-?\d+) ` +
	`"([^"]*)" "([^"]*)" host="([^"]*)" route="([^"]*)" backend="([^"]*)" request_id="([^"]*)" class="([^"]*)" ` +
	`took=(-?\d+\.\d{6}) upstream_took=(-?\d+\.\d{6}) received=(-?\d+) retries=(-?\d+) part=(-?\d+)\n$`)

// FuzzEntry: whatever is in an entry, it is one line in both formats, and reads as what it was.
func FuzzEntry(f *testing.F) {
	f.Add([]byte("GET"), []byte("example.com"), []byte("/a?b"), "HTTP/1.1", "/a", "h:1", []byte("id"), []byte("ua"),
		[]byte("ref"), "ours", []byte{192, 0, 2, 7}, "", int64(1_764_000_000), int64(200), int64(512), int64(1_234_567))
	f.Add([]byte("\n"), []byte("\r"), []byte(`"\`), "\x00", "\u2028", "\x85", []byte("…"), []byte{0xff, 0xc3},
		[]byte("\U000e0001"), "-", make([]byte, 16), "\n", int64(-1), int64(-1), int64(-1), int64(-1))
	f.Fuzz(func(t *testing.T, method, host, target []byte, proto, route, backend string, id, agent, referer []byte, class string,
		address []byte, zone string, second, status, sent, took int64) {
		const limit = 64
		client, _ := netip.AddrFromSlice(address)
		e := Entry{
			Time: time.Unix(second%(1<<37), took&0x3fffffff%1e9), Client: client.WithZone(zone),
			Method: method, Host: host, Target: target, Proto: proto, Status: int(status),
			Received: sent ^ status, Sent: sent, Took: time.Duration(took),
			UpstreamTook: time.Duration(sent), Route: route, Backend: backend, RequestID: id, UserAgent: agent, Referer: referer,
			Class: class, Retries: int(took), Part: int(status),
		}
		if size, encoded := e.size(limit), e.encode(nil, limit); len(encoded) > size {
			t.Fatalf("a record of %d bytes has %d", size, len(encoded))
		}
		checkJSON(t, &e, limit)
		checkText(t, &e, limit)
	})
}

func checkJSON(t *testing.T, e *Entry, limit int) {
	t.Helper()
	got := line(e, JSON, limit)
	if strings.Count(got, "\n") != 1 || !strings.HasSuffix(got, "\n") {
		t.Fatalf("not one line: %q", got)
	}
	for _, r := range strings.TrimSuffix(got, "\n") {
		if !strconv.IsPrint(r) {
			t.Fatalf("%q in %q", r, got)
		}
	}
	var decoded jsonEntry
	decoder := json.NewDecoder(strings.NewReader(got))
	decoder.DisallowUnknownFields()
	if year := e.Time.UTC().Year(); year < 0 || year > 9999 {
		t.Skip("no time of RFC 3339")
	}
	if err := decoder.Decode(&decoded); err != nil {
		t.Fatalf("%v: %s", err, got)
	}
	want := jsonEntry{
		Time: e.Time.UTC().Truncate(time.Microsecond), Client: clientText(e, limit, asJSON), Method: asJSON(string(e.Method), limit),
		Host: asJSON(string(e.Host), limit), Target: asJSON(string(e.Target), limit), Proto: asJSON(e.Proto, limit), Status: e.Status,
		Received: e.Received, Sent: e.Sent, Took: secondsText(e.Took), UpstreamTook: secondsText(e.UpstreamTook),
		Route: asJSON(e.Route, limit), Backend: asJSON(e.Backend, limit), RequestID: asJSON(string(e.RequestID), limit),
		UserAgent: asJSON(string(e.UserAgent), limit), Referer: asJSON(string(e.Referer), limit), Class: asJSON(e.Class, limit),
		Retries: e.Retries, Part: e.Part,
	}
	if decoded != want {
		t.Fatalf("decoded as\n%+v, want\n%+v", decoded, want)
	}
}

func checkText(t *testing.T, e *Entry, limit int) {
	t.Helper()
	got := line(e, Text, limit)
	for _, r := range strings.ReplaceAll(strings.TrimSuffix(got, "\n"), mark, "") {
		if r < ' ' || r > '~' {
			t.Fatalf("%q in %q", r, got)
		}
	}
	m := textLine.FindStringSubmatch(got)
	if m == nil {
		t.Fatalf("not the format: %q", got)
	}
	for i, want := range map[int]string{
		1: clientText(e, limit, asText),
		3: asText(string(e.Method), limit), 4: asText(string(e.Target), limit), 5: asText(e.Proto, limit),
		8: asText(string(e.Referer), limit), 9: asText(string(e.UserAgent), limit), 10: asText(string(e.Host), limit),
		11: asText(e.Route, limit), 12: asText(e.Backend, limit), 13: asText(string(e.RequestID), limit), 14: asText(e.Class, limit),
		15: string(secondsText(e.Took)), 16: string(secondsText(e.UpstreamTook)),
	} {
		if read := unescape(t, m[i]); read != want {
			t.Fatalf("value %d reads as %q, want %q: %s", i, read, want, got)
		}
	}
}

// unescape is what a reader does with \xNN.
func unescape(t *testing.T, s string) string {
	t.Helper()
	read, err := strconv.Unquote(`"` + s + `"`)
	if err != nil {
		t.Fatalf("%v: %s", err, s)
	}
	return read
}

// cutText cuts by another rule than appendValue that gives the same: the longest beginning whose last character is whole.
func cutText(s string, limit int) string {
	if len(s) <= limit {
		return s
	}
	for i := range 4 {
		if at := limit - i; at >= 0 && s[at] >= 0xc0 {
			return s[:at] + mark
		} else if at < 0 || s[at] < 0x80 {
			break
		}
	}
	return s[:limit] + mark
}

func asJSON(s string, limit int) string { return string([]rune(cutText(s, limit))) }

func asText(s string, limit int) string {
	if s == "" {
		return "-"
	}
	return cutText(s, limit)
}

func clientText(e *Entry, limit int, as func(string, int) string) string {
	switch address := e.Client.Unmap(); {
	case !address.IsValid():
		return as("", limit)
	case address.Zone() == "":
		return address.String()
	default:
		return address.WithZone("").String() + "%" + as(address.Zone(), limit)
	}
}

func secondsText(d time.Duration) json.Number {
	micros := strconv.FormatInt(d.Microseconds(), 10)
	micros, negative := strings.CutPrefix(micros, "-")
	micros = strings.Repeat("0", max(7-len(micros), 0)) + micros
	text := micros[:len(micros)-6] + "." + micros[len(micros)-6:]
	if negative {
		text = "-" + text
	}
	return json.Number(text)
}
