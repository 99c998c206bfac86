package route

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
	"testing"
)

// within copies s into the middle of an array of its own. What is done to the slice must leave the array as it is, which
// intact says.
func within(s string) (slice []byte, intact func() bool) {
	const around = "~"
	whole := []byte(around + s + around)
	return whole[1 : 1+len(s)], func() bool { return string(whole) == around+s+around }
}

// inside says whether part lies in whole, and so was not copied. Of empty slices that cannot be said, nor need it be.
func inside(part, whole []byte) bool {
	for i := range whole {
		if len(part) > 0 && &whole[i] == &part[0] {
			return true
		}
	}
	return false
}

// normalize is NormalizePath, held to its word about memory.
func normalize(t *testing.T, raw string) (string, error) {
	t.Helper()
	slice, intact := within(raw)
	dst := make([]byte, 0, 3*len(raw)+1)
	path, err := NormalizePath(dst, slice)
	switch {
	case !intact():
		t.Errorf("%q is modified", raw)
	case err != nil && path != nil:
		t.Errorf("%q is refused, and %q returned", raw, path)
	case err != nil:
	case string(path) == raw && (!inside(path, slice) || dst[:cap(dst)][0] != 0):
		t.Errorf("%q is in normal form and was copied", raw)
	case string(path) != raw && !inside(path, dst[:cap(dst)]):
		t.Errorf("%q becomes %q, which is not in the room of %d bytes that was given", raw, path, cap(dst))
	}
	if grown, grownErr := NormalizePath(nil, slice); string(grown) != string(path) || (grownErr == nil) != (err == nil) {
		t.Errorf("%q becomes %q, %v without room, and %q, %v with it", raw, grown, grownErr, path, err)
	}
	return string(path), err
}

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
			if got, err := normalize(t, c.raw); err != nil || got != c.want {
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
			got, err := normalize(t, c.raw)
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
		got, err := normalize(t, raw)
		want, ok := slowNormalize(raw)
		if (err == nil) != ok || err == nil && got != want {
			t.Fatalf("%q becomes %q, %v; the slow twin says %q, %v", raw, got, err, want, ok)
		}
		if err != nil {
			return
		}
		if again, err := normalize(t, got); err != nil || again != got {
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

func TestNormalizePathAllocatesNothing(t *testing.T) {
	dst := make([]byte, 0, 128)
	for _, raw := range []string{"", "/", "/api/v1/users/42", "/a%2Fb/.well-known/x..y", "/a/./b/../c", "/%7euser/a|b/%c3%a9", "/é/.."} {
		in := []byte(raw)
		checkAllocations(t, raw, func() { NormalizePath(dst, in) })
	}
}

func BenchmarkNormalizePath(b *testing.B) {
	dst := make([]byte, 0, 1<<18)
	for name, path := range map[string]string{
		"normal":  "/api/v1/users/42/orders/2024-01-01",
		"rewrite": "/api/v1/../v2/%7Euser/a|b/%c3%a9",
		"hostile": strings.Repeat("/a/..", 13000),
	} {
		raw := []byte(path)
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(raw)))
			for b.Loop() {
				NormalizePath(dst, raw)
			}
		})
	}
}
