package route

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"
)

func TestNormalizePath(t *testing.T) {
	for _, c := range []struct{ name, raw, want string }{
		{"empty is the root", "", "/"},
		{"root", "/", "/"},
		{"plain", "/a/b", "/a/b"},
		{"trailing slash stays", "/a/", "/a/"},
		{"case stays", "/A/b", "/A/b"},
		{"all of pchar", "/-._~!$&'()*+,;=:@", "/-._~!$&'()*+,;=:@"},

		// RFC 3986 section 5.2.4 and 5.4.
		{"the RFC's own example", "/a/b/c/./../../g", "/a/g"},
		{"dot", "/a/./b", "/a/b"},
		{"dot at the start", "/./a", "/a"},
		{"dot at the end", "/a/.", "/a/"},
		{"dot alone", "/.", "/"},
		{"dots", "/a/../b", "/b"},
		{"dots at the end", "/a/b/..", "/a/"},
		{"dots to the root", "/a/..", "/"},
		{"dots after dots", "/a/b/c/../../d", "/a/d"},
		{"three dots are a name", "/a/.../b", "/a/.../b"},
		{"a dot before a name", "/a/.b/..c/d./e..", "/a/.b/..c/d./e.."},
		{"a parameter makes it a name", "/a/..;x/b", "/a/..;x/b"},

		{"double slash stays", "//a//b//", "//a//b//"},
		{"dots take an empty segment", "/a//../b", "/a/b"},
		{"dots take one of two slashes", "//..", "/"},
		{"dot between slashes", "/a/./", "/a/"},
		{"a double slash may come about", "/a/..//b", "//b"},

		// Section 6.2.2.1 and 6.2.2.2.
		{"capitals in encodings", "/%c3%a9", "/%C3%A9"},
		{"needless encoding", "/%61%7E%2d%5F%30", "/a~-_0"},
		{"encoded slash stays", "/a%2fb", "/a%2Fb"},
		{"encoded question mark stays", "/a%3Fb", "/a%3Fb"},
		{"encoded percent stays", "/a%252e", "/a%252e"},
		{"encoded NUL stays", "/a%00", "/a%00"},
		{"encoded sub-delimiters stay", "/%21%3B%40", "/%21%3B%40"},
		{"encoded dot", "/a/%2e/b", "/a/b"},
		{"encoded dots", "/a/%2E%2e/b", "/b"},
		{"half encoded dots", "/a/.%2e/b/%2E./c", "/c"},
		{"dots with an encoded slash are a name", "/a/..%2Fb", "/a/..%2Fb"},

		{"bytes that may not stand", "/{a}|\"<>^`[]\\", "/%7Ba%7D%7C%22%3C%3E%5E%60%5B%5D%5C"},
		{"backslashes are no slashes", `/a\..\b`, "/a%5C..%5Cb"},
		{"UTF-8", "/é", "/%C3%A9"},
		{"not UTF-8", "/\xff", "/%FF"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got, err := NormalizePath(c.raw); err != nil || got != c.want {
				t.Errorf("%q becomes %q, %v; want %q", c.raw, got, err, c.want)
			}
		})
	}
}

func TestPathsRefused(t *testing.T) {
	for _, c := range []struct {
		name, raw string
		climbs    bool
	}{
		{"climbs", "/..", true},
		{"climbs with more to come", "/../a", true},
		{"climbs and returns", "/a/../../a", true},
		{"climbs by encoded dots", "/%2e%2e", true},
		{"climbs past an empty segment", "//../..", true},
		{"climbs through dots", "/./..", true},
		{"no slash", "a", false},
		{"asterisk", "*", false},
		{"percent at the end", "/a%", false},
		{"percent and one digit", "/a%4", false},
		{"percent and no digits", "/a%zz", false},
		{"percent and a half", "/a%4g", false},
		{"fragment", "/a#b", false},
		{"query", "/a?b", false},
		{"space", "/a b", false},
		{"NUL", "/a\x00", false},
		{"line feed", "/a\n", false},
		{"tab", "/a\t", false},
		{"delete", "/a\x7f", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := NormalizePath(c.raw)
			if err == nil || errors.Is(err, ErrClimbs) != c.climbs {
				t.Errorf("%q becomes %q, %v; climbs: %v", c.raw, got, err, c.climbs)
			}
		})
	}
}

// slowNormalize is RFC 3986 read aloud: characters first, then a stack of segments.
func slowNormalize(raw string) (string, bool) {
	if raw == "" {
		return "/", true
	}
	if raw[0] != '/' {
		return "", false
	}
	var decoded strings.Builder
	const free = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~"
	for i := 0; i < len(raw); i++ {
		c := raw[i]
		switch {
		case c == '%':
			if i+3 > len(raw) {
				return "", false
			}
			one, err := url.PathUnescape(raw[i : i+3])
			if err != nil {
				return "", false
			}
			if strings.Contains(free, one) {
				decoded.WriteString(one)
			} else {
				decoded.WriteString(strings.ToUpper(raw[i : i+3]))
			}
			i += 2
		case c <= ' ' || c == 0x7f || c == '?' || c == '#':
			return "", false
		case strings.IndexByte(free+"!$&'()*+,;=:@/", c) >= 0:
			decoded.WriteByte(c)
		default:
			fmt.Fprintf(&decoded, "%%%02X", c)
		}
	}
	segments := strings.Split(decoded.String(), "/")[1:]
	var stack []string
	for i, s := range segments {
		last := i == len(segments)-1
		switch s {
		case "..":
			if len(stack) == 0 {
				return "", false
			}
			stack = stack[:len(stack)-1]
			fallthrough
		case ".":
			if last {
				stack = append(stack, "")
			}
		default:
			stack = append(stack, s)
		}
	}
	return "/" + strings.Join(stack, "/"), true
}

func FuzzNormalizePath(f *testing.F) {
	for _, seed := range []string{"", "/", "/a/b", "/a/../b", "//../x", "/%2e%2E/", "/.%2e", "/a%2Fb%5c", "/%", "/é|", "/a//./..//", "/%25%32%65", "/..;/", "/a#", "*"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		got, err := NormalizePath(raw)
		want, ok := slowNormalize(raw)
		if (err == nil) != ok || err == nil && got != want {
			t.Fatalf("%q becomes %q, %v; the slow twin says %q, %v", raw, got, err, want, ok)
		}
		if err != nil {
			return
		}
		if again, err := NormalizePath(got); err != nil || again != got {
			t.Errorf("%q becomes %q, and that becomes %q, %v", raw, got, again, err)
		}
		if got[0] != '/' || strings.ContainsFunc(got, func(r rune) bool { return r <= ' ' || r >= 0x7f || strings.ContainsRune("?#\\", r) }) {
			t.Errorf("%q becomes %q", raw, got)
		}
		for _, s := range strings.Split(got, "/") {
			if s == "." || s == ".." {
				t.Errorf("%q becomes %q, which has dot segments", raw, got)
			}
		}
	})
}

func TestNormalPathIsNotCopied(t *testing.T) {
	for _, path := range []string{"/", "/api/v1/users/42", "/a%2Fb/.well-known/x..y"} {
		if n := testing.AllocsPerRun(100, func() { NormalizePath(path) }); n != 0 {
			t.Errorf("%q: %v allocations", path, n)
		}
	}
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
		{"[::1]", "::1"},
		{"[::1]:8080", "::1"},
		{"[0:0:0:0:0:0:0:1]:80", "::1"},
		{"[2001:DB8::A]", "2001:db8::a"},
		{"2001:DB8::A", "2001:db8::a"},
		{"\u212Aelvin", "\u212Aelvin"}, // the Kelvin sign is not a k
		{"*.Example.com", "*.example.com"},
		{"[::1]x", "[::1]x"},
		{"[::1.", "[::1."},
		{"0::0.", "0::0."},
	} {
		if got := CanonicalHost(c.host); got != c.want {
			t.Errorf("%q becomes %q, want %q", c.host, got, c.want)
		}
	}
	if n := testing.AllocsPerRun(100, func() { CanonicalHost("example.com"); CanonicalHost("example.com:80") }); n != 0 {
		t.Errorf("%v allocations for hosts in canonical form", n)
	}
}

func FuzzCanonicalHost(f *testing.F) {
	for _, seed := range []string{"", "a:b:c.", "[::1]:80", "[x]", "[", "A.:1", "..:", "[::FFFF:1.2.3.4%Z]", "\xff:"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, host string) {
		once := CanonicalHost(host)
		if twice := CanonicalHost(once); twice != once {
			t.Errorf("%q becomes %q, and that becomes %q", host, once, twice)
		}
		if slices.ContainsFunc([]byte(once), capital) && !strings.Contains(once, "%") { // zones keep their case
			t.Errorf("%q becomes %q", host, once)
		}
	})
}

func BenchmarkNormalizePath(b *testing.B) {
	for name, path := range map[string]string{
		"normal":  "/api/v1/users/42/orders/2024-01-01",
		"rewrite": "/api/v1/../v2/%7Euser/a|b/%c3%a9",
		"hostile": strings.Repeat("/a/..", 13000),
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(path)))
			for b.Loop() {
				NormalizePath(path)
			}
		})
	}
}
