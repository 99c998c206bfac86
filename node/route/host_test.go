package route

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
)

// canonical is CanonicalHost, held to its word about memory.
func canonical(t *testing.T, host string) string {
	t.Helper()
	slice, intact := within(host)
	dst := make([]byte, 0, len(host)+6)
	got := CanonicalHost(dst, slice)
	if !intact() {
		t.Errorf("%q is modified", host)
	}
	switch inForm := string(got) == bare(host); {
	case inForm && (len(got) > 0 && !inside(got, slice) || dst[:cap(dst)][0] != 0):
		t.Errorf("%q becomes %q, which needed no copy", host, got)
	case !inForm && !inside(got, dst[:cap(dst)]):
		t.Errorf("%q becomes %q, which is not in the room of %d bytes that was given", host, got, cap(dst))
	}
	if grown := CanonicalHost(nil, slice); string(grown) != string(got) {
		t.Errorf("%q becomes %q without room, and %q with it", host, grown, got)
	}
	return string(got)
}

func TestCanonicalHost(t *testing.T) {
	for _, c := range []struct{ host, want string }{
		{"", ""},
		{"example.com", "example.com"},
		{"Example.COM", "example.com"},
		{"example.com:8080", "example.com"},
		{"example.com:", "example.com"},
		{"example.com.", "example.com"},
		{"Example.com.:443", "example.com"},
		{"127.0.0.1:80", "127.0.0.1"},
		{"\u212Aelvin", "\u212Aelvin"}, // the Kelvin sign is not a k
		{"*.Example.com", "*.example.com"},

		{"[::1]", "::1"},
		{"[::1]:8080", "::1"},
		{"[0:0:0:0:0:0:0:1]:80", "::1"},
		{"[2001:DB8::A]", "2001:db8::a"},
		{"2001:DB8::A", "2001:db8::a"},
		{"2001:db8::a", "2001:db8::a"},
		{"[127.0.0.1]:80", "127.0.0.1"},
		{"[::ffff:1.2.3.4]", "::ffff:1.2.3.4"},
		{"::ffff:ffff:ffff", "::ffff:255.255.255.255"}, // no other form grows as much
		{"1::3:4:5:6:7:8", "1:0:3:4:5:6:7:8"},
		{"[::1.2.3.4]", "::102:304"},
		{"[FE80::1%Eth0]", "fe80::1%Eth0"},
		{"[fe80:0::1%Eth0]:80", "fe80::1%Eth0"},

		{"[::1]X", "[::1]x"},
		{"[::1.", "[::1."},
		{"[::1%]", "[::1%]"},
		{"[example.COM]", "[example.com]"},
		{"0::0.", "0::0."},
		{"A:b:c", "a:b:c"},
	} {
		t.Run(c.host, func(t *testing.T) {
			if got := canonical(t, c.host); got != c.want {
				t.Errorf("%q becomes %q, want %q", c.host, got, c.want)
			}
		})
	}
}

// bare is the part of host that names it, as it stands there.
func bare(host string) string {
	inner, bracketed := strings.CutPrefix(host, "[")
	inner, rest, closed := strings.Cut(inner, "]")
	if _, err := netip.ParseAddr(inner); bracketed && closed && err == nil && (rest == "" || rest[0] == ':') {
		return inner
	}
	if bracketed || strings.Count(host, ":") > 1 {
		return host
	}
	name, _, _ := strings.Cut(host, ":")
	return strings.TrimRight(name, ".")
}

// slowCanonical reads addresses by way of netip.ParseAddr.
func slowCanonical(host string) string {
	name := bare(host)
	if ip, err := netip.ParseAddr(name); err == nil {
		return ip.String()
	}
	return slowLower(name)
}

func slowLower(s string) string {
	out := []byte(s)
	for i, c := range out {
		if 'A' <= c && c <= 'Z' {
			out[i] += 'a' - 'A'
		}
	}
	return string(out)
}

func FuzzCanonicalHost(f *testing.F) {
	for _, seed := range []string{
		"", "a:b:c.", "[::1]:80", "[x]", "[", "A.:1", "..:", "[::FFFF:1.2.3.4%Z]", "\xff:", "1::3:4:5:6:7:8", "[1:2:3:4:5:6:1.2.3.4]",
		"::1:", "1:::2", ":1::2", "[1.2.3.4::]", "[::00001]", "[::256.1.1.1]", "[::1.2.3.04]", "1::2::3", "[1:2:3:4:5:6:7:8:9]", "[::%]",
		"[01.2.3.4]", "[1.2.3]", "[1:2:3:4:5:6:7:1.2.3.4]", "[::%a%b:c.d]", "[1.2.3.4%e]", "000::", "::2:3:4:5:6:7:8", "1:2:3:4:5:6:7::8",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, host string) {
		once := canonical(t, host)
		if want := slowCanonical(host); once != want {
			t.Errorf("%q becomes %q, the slow twin says %q", host, once, want)
		}
		if twice := canonical(t, once); twice != once {
			t.Errorf("%q becomes %q, and that becomes %q", host, once, twice)
		}
		if slices.ContainsFunc([]byte(once), capital) && !strings.Contains(once, "%") { // zones keep their case
			t.Errorf("%q becomes %q", host, once)
		}
	})
}

func TestCanonicalHostAllocatesNothing(t *testing.T) {
	dst := make([]byte, 0, 64)
	for _, host := range []string{
		"example.com", "example.com:80", "Example.COM.:80", "127.0.0.1:80", "[::1]:80", "[2001:DB8:0::A]:80", "fe80:0::1%eth0", "[x",
	} {
		in := []byte(host)
		checkAllocations(t, host, func() { CanonicalHost(dst, in) })
	}
}

func BenchmarkCanonicalHost(b *testing.B) {
	dst := make([]byte, 0, 64)
	for name, host := range map[string]string{
		"canonical": "api.example.com", "port": "api.example.com:8443", "capitals": "API.Example.com", "IPv6": "[2001:DB8:0::A]:443",
	} {
		in := []byte(host)
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				CanonicalHost(dst, in)
			}
		})
	}
}
