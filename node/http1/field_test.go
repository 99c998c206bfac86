package http1

import (
	"strings"
	"testing"
)

func TestIdentify(t *testing.T) {
	for id := Other + 1; id < XForwardedOther; id++ {
		name := names[id]
		if name == "" {
			t.Errorf("ID %d has no name", id)
			continue
		}
		for _, spelt := range []string{name, strings.ToUpper(name), strings.ToUpper(name[:1]) + name[1:]} {
			if got := identify([]byte(spelt)); got != id {
				t.Errorf("%q is %d, want %d", spelt, got, id)
			}
		}
		// One byte more, less or other is another name.
		for i := range name {
			changed := []byte(name)
			changed[i] = '~'
			for _, other := range []string{string(changed), name[:i] + name[i+1:], name[:i] + "a" + name[i:], name + name[i:]} {
				if got := identify([]byte(other)); got == id && other != name {
					t.Errorf("%q is taken for %q", other, name)
				}
			}
		}
	}
	if numIDs > 64 {
		t.Error("a set has no room for all IDs")
	}
}

func TestIdentifyWhatIsNearlyKnown(t *testing.T) {
	for name, want := range map[string]ID{
		"":                          Other,
		"a":                         Other,
		"x-forwarded-":              Other,
		"x-forwarded":               Other,
		"X-Forwarded-Client-Cert":   XForwardedOther,
		"x-forwarded-fo":            XForwardedOther,
		"x-forwarded-for-":          XForwardedOther,
		"x-forwarde":                Other,
		"x-forwarxxxxxxxx":          Other,
		"content-lengtH":            ContentLength,
		"content-length\x00":        Other,
		"content\rlength":           Other, // the case bit would make a hyphen of CR; no token has one
		strings.Repeat("a", 60<<10): Other,
	} {
		if strings.ContainsAny(name, "\r\x00") {
			continue
		}
		if got := identify([]byte(name)); got != want {
			t.Errorf("%.40q is %d, want %d", name, got, want)
		}
	}
}

func TestIDOf(t *testing.T) {
	for name, want := range map[string]ID{
		"HOST": Host, "x-forwarded-for": XForwardedFor, "X-Forwarded-" + strings.Repeat("a", 100): XForwardedOther, "X_Real_IP": Lookalike,
		"transfer-encoding": TransferEncoding, "": Other, ":path": Other, "ho\rst": Other, "x-mine": Other, "host\x00": Other,
		"proxy-authentication-infoproxy-authentication-info": Other,
	} {
		if got := IDOf(name); got != want {
			t.Errorf("%q is %d, want %d", name, got, want)
		}
	}
	for _, name := range names {
		if len(name) >= longestName {
			t.Errorf("%q is too long", name)
		}
	}
}

func TestLookalikes(t *testing.T) {
	for name, want := range map[string]ID{
		"X_Forwarded_For":                         Lookalike,
		"x-forwarded_for":                         Lookalike,
		"X_FORWARDED_CLIENT_CERT":                 Lookalike,
		"Content_Length":                          Lookalike,
		"transfer_encoding":                       Lookalike,
		"User_Agent":                              Lookalike,
		"x_forwarded_" + strings.Repeat("a", 100): Lookalike,
		"_host":                                 Other,
		"my_name":                               Other,
		"proxy_authentication_info_of_somebody": Other,
	} {
		r := request(t, get(name+": x"))
		if got := r.List()[1].ID; got != want {
			t.Errorf("%s is %d, want %d", name, got, want)
		}
	}
}

func TestFieldsAsTheyWereSent(t *testing.T) {
	r := request(t, get("X-one:1", "x-TWO: 2", "X-Three:\t 3 3 \t", "X-Four: 4 ", "X-Five:", "X-Six:  6", "x-two: 22", "Cookie: a"))
	var out []byte
	for i := range r.List() {
		out = r.AppendLine(out, i)
	}
	want := "Host: a\r\nX-one: 1\r\nx-TWO: 2\r\nX-Three: 3 3\r\nX-Four: 4\r\nX-Five: \r\nX-Six: 6\r\nx-two: 22\r\nCookie: a\r\n"
	if string(out) != want {
		t.Errorf("%q, want %q", out, want)
	}
	if i := r.Lookup("X-Two", 0); i != 2 || r.Lookup("X-TWO", i+1) != 7 || r.Lookup("x-two", 8) != -1 || r.Lookup("X-Tw", 0) != -1 {
		t.Error("Lookup")
	}
	if i := r.Find(Cookie, 0); i != 8 || r.Find(Cookie, 9) != -1 || r.Find(Via, 0) != -1 {
		t.Error("Find")
	}
	if !r.Has(Host) || r.Has(Via) || string(r.Get(Cookie)) != "a" || r.Get(Via) != nil {
		t.Error("Has, Get")
	}
}

// Who appends to a value must not write into the head.
func TestValuesHaveNoRoom(t *testing.T) {
	r := request(t, get("A: b"))
	_ = append(r.Value(1), 'X')
	_ = append(r.Name(1), 'X')
	_ = append(r.Path(), 'X')
	if string(r.AppendLine(nil, 1)) != "A: b\r\n" || string(r.RawTarget()) != "/" {
		t.Error("a field was overwritten by what was appended to another")
	}
}

func TestNextElement(t *testing.T) {
	for list, want := range map[string]string{
		"":                "",
		" ,\t, ":          "",
		"a":               "a",
		" a , b,c ,, d e": "a|b|c|d e",
		"a,":              "a",
		",a":              "a",
	} {
		var got []string
		for e, rest := NextElement([]byte(list)); e != nil; e, rest = NextElement(rest) {
			got = append(got, string(e))
		}
		if strings.Join(got, "|") != want {
			t.Errorf("%q: %q, want %q", list, got, want)
		}
	}
}

// The tests of eight bytes at once must say what a test of each byte says, at every place.
func TestSkips(t *testing.T) {
	for c := range 256 {
		for at := range 20 {
			text := []byte(strings.Repeat("~", 20))
			text[at] = byte(c)
			stop := at
			if c > ' ' && c != 0x7F {
				stop = len(text)
			}
			if got := skipVisible(text, 0); got != stop {
				t.Fatalf("skipVisible stops for %#x at %d at %d, want %d", c, at, got, stop)
			}
			if c == ' ' {
				stop = len(text)
			}
			if got := skipText(text, 0); got != stop {
				t.Fatalf("skipText stops for %#x at %d at %d, want %d", c, at, got, stop)
			}
			if at > 0 {
				if got := skipText(text, 1); got != stop {
					t.Fatalf("skipText from 1 stops for %#x at %d at %d, want %d", c, at, got, stop)
				}
			}
		}
	}
}

func TestIPv6(t *testing.T) {
	for address, want := range map[string]bool{
		"::": true, "::1": true, "1::": true, "1:2:3:4:5:6:7:8": true, "1::8": true, "1:2:3:4:5:6:7::": true, "::2:3:4:5:6:7:8": true,
		"2001:DB8::a": true, "::ffff:1.2.3.4": true, "::1.2.3.4": true, "1:2:3:4:5:6:1.2.3.4": true, "1:2:3:4:5::1.2.3.4": true,
		"": false, ":": false, ":::": false, "1": false, "1:2:3:4:5:6:7": false, "1:2:3:4:5:6:7:8:9": false, "1::2::3": false,
		"1:2:3:4:5:6:7:": false, ":1:2:3:4:5:6:7": false, "12345::": false, "g::": false, "1:2:3:4:5:6:7::8": false, "::1%eth0": false,
		"1.2.3.4": false, "::1.2.3": false, "::1.2.3.4.5": false, "::256.1.1.1": false, "::01.2.3.4": false, "::1.2.3.4:5": false,
		"1:2:3:4:5:6:7:1.2.3.4": false, "::1..3.4": false, "::1.2.3.": false, "::.1.2.3": false, "v1.a": false, "1:2:3:4:5:6::1.2.3.4": false,
		"1::2:": false, "::1234.1.1.1": false,
	} {
		if got := validIPv6([]byte(address)); got != want {
			t.Errorf("%q: %t", address, got)
		}
	}
}
