package proxyproto

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net/netip"
	"strings"
	"testing"
)

// v2 makes a header of version 2.
func v2(command, family byte, block string) string {
	b := append(bytes.Clone(signature), command, family)
	return string(binary.BigEndian.AppendUint16(b, uint16(len(block)))) + block
}

const (
	block4 = "\xc0\x00\x02\x01\xc0\x00\x02\x02\x12\x34\x01\xbb"
	six1   = "\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01"
	six2   = "\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02"
	mapped = "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xff\xff\xc0\x00\x02\x01"
)

var headers = []struct{ name, header, source, destination string }{
	{"IPv4", "PROXY TCP4 192.0.2.1 192.0.2.2 4660 443\r\n", "192.0.2.1:4660", "192.0.2.2:443"},
	{"shortest of IPv4", "PROXY TCP4 0.0.0.0 0.0.0.0 0 0\r\n", "0.0.0.0:0", "0.0.0.0:0"},
	{"IPv6", "PROXY TCP6 2001:db8::1 2001:db8::2 65535 1\r\n", "[2001:db8::1]:65535", "[2001:db8::2]:1"},
	{"shortest of IPv6", "PROXY TCP6 :: :: 1 2\r\n", "[::]:1", "[::]:2"},
	{"longest", "PROXY TCP6 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe 65535 65535\r\n",
		"[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535", "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe]:65535"},
	{"IPv4 in IPv6", "PROXY TCP6 ::ffff:192.0.2.1 ::1 1 2\r\n", "192.0.2.1:1", "[::1]:2"},
	{"unknown", "PROXY UNKNOWN\r\n", "", ""},
	{"unknown with anything", "PROXY UNKNOWN TCP4 x 999 " + strings.Repeat("y", 80) + "\r\n", "", ""},
	{"binary IPv4", v2(0x21, 0x11, block4), "192.0.2.1:4660", "192.0.2.2:443"},
	{"binary IPv6", v2(0x21, 0x21, six1+six2+"\x00\x01\x00\x02"), "[2001:db8::1]:1", "[2001:db8::2]:2"},
	{"binary IPv4 in IPv6", v2(0x21, 0x21, mapped+six2+"\x00\x01\x00\x02"), "192.0.2.1:1", "[2001:db8::2]:2"},
	{"more behind the addresses", v2(0x21, 0x11, block4+"\x02\x00\x05hello\x04\xff"), "192.0.2.1:4660", "192.0.2.2:443"},
	{"as long as it may be", v2(0x21, 0x11, block4+strings.Repeat("x", MaxSize-16-12)), "192.0.2.1:4660", "192.0.2.2:443"},
	{"for itself", v2(0x20, 0x00, ""), "", ""},
	{"for itself, with addresses", v2(0x20, 0x11, block4), "", ""},
	{"for itself, with nonsense", v2(0x20, 0xff, "x"), "", ""},
	{"unspecified", v2(0x21, 0x00, "anything"), "", ""},
	{"a socket of the system", v2(0x21, 0x31, strings.Repeat("\x00", 216)), "", ""},
	{"datagrams", v2(0x21, 0x12, block4), "", ""},
}

func text(a netip.AddrPort) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

// one gives a byte at a time.
type one struct{ io.Reader }

func (o one) Read(b []byte) (int, error) { return o.Reader.Read(b[:1]) }

func TestHeadersAreReadToTheirLastByte(t *testing.T) {
	for _, c := range headers {
		r := strings.NewReader(c.header + "PROXY")
		for name, from := range map[string]io.Reader{"at once": r, "byte by byte": one{r}} {
			r.Reset(c.header + "PROXY")
			h, err := Read(from)
			if err != nil || text(h.Source) != c.source || text(h.Destination) != c.destination {
				t.Errorf("%s %s: %v, %v", c.name, name, h, err)
			}
			if r.Len() != len("PROXY") {
				t.Errorf("%s %s: %d bytes are left", c.name, name, r.Len())
			}
		}
	}
}

func TestHeadersThatBreakOff(t *testing.T) {
	for _, c := range headers {
		for n := range len(c.header) {
			want := io.ErrUnexpectedEOF
			if n == 0 {
				want = io.EOF
			}
			if _, err := Read(strings.NewReader(c.header[:n])); !errors.Is(err, want) {
				t.Errorf("%s, %d bytes: %v", c.name, n, err)
			}
		}
	}
}

func TestWhatIsNoHeader(t *testing.T) {
	for _, begin := range []string{"GET / HTTP/1.1\r\n\r\n", "\x16\x03\x01\x00\x01\x00", "proxy TCP4 192.0.2.1", "PROXYTCP4       ", "\r\n\r\nGET / HTTP/1.1"} {
		if _, err := Read(strings.NewReader(begin + strings.Repeat(" ", 200))); !errors.Is(err, ErrMissing) {
			t.Errorf("%q: %v", begin, err)
		}
	}
}

func TestHeadersRefused(t *testing.T) {
	for _, header := range []string{
		"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\n",
		"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\r\n",
		"PROXY TCP4 192.0.2.1 192.0.2.2 1\r\n",
		"PROXY TCP4 192.0.2.1 192.0.2.2 1 2 3\r\n",
		"PROXY TCP4  192.0.2.1 192.0.2.2 1 2\r\n",
		"PROXY TCP4 192.0.2.01 192.0.2.2 1 2\r\n",
		"PROXY TCP4 192.0.2 192.0.2.2 1 2\r\n",
		"PROXY TCP4 ::1 ::2 1 2\r\n",
		"PROXY TCP6 192.0.2.1 192.0.2.2 1 2\r\n",
		"PROXY TCP6 fe80::1%eth0 ::1 1 2\r\n",
		"PROXY TCP4 192.0.2.1 192.0.2.2 01 2\r\n",
		"PROXY TCP4 192.0.2.1 192.0.2.2 65536 2\r\n",
		"PROXY TCP4 192.0.2.1 192.0.2.2 +1 2\r\n",
		"PROXY TCP4 192.0.2.1 192.0.2.2 1 -2\r\n",
		"PROXY UDP4 192.0.2.1 192.0.2.2 1 2\r\n",
		"PROXY UNKNOWNS\r\n ",
		"PROXY UNKNOWN " + strings.Repeat("x", maxLine-len("PROXY UNKNOWN \r\n")+1) + "\r\n",
		v2(0x11, 0x11, block4),
		v2(0x22, 0x11, block4),
		v2(0x21, 0x41, block4),
		v2(0x21, 0x13, block4),
		v2(0x21, 0x11, block4[:11]),
		v2(0x21, 0x21, block4),
		v2(0x20, 0x00, strings.Repeat("x", MaxSize-16+1)),
	} {
		if h, err := Read(strings.NewReader(header + strings.Repeat("x", 300))); err == nil || errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%q: %v, %v", header, h, err)
		}
	}
}

// FuzzRead: whatever comes, no more is read than a header may have, and a header that is good is so however it arrives, and
// whatever follows.
func FuzzRead(f *testing.F) {
	for _, c := range headers {
		f.Add([]byte(c.header))
	}
	f.Add([]byte("PROXY TCP4 1.2.3.4 1.2.3.4 "))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		h, err := Read(r)
		read := len(b) - r.Len()
		if read > MaxSize {
			t.Fatalf("%d bytes were read", read)
		}
		if err != nil {
			if h != (Header{}) {
				t.Fatalf("%v with %v", h, err)
			}
			return
		}
		if h.Source.IsValid() != h.Destination.IsValid() || h.Source.Addr().Is4In6() || h.Source.Addr().Zone() != "" {
			t.Fatalf("%v", h)
		}
		slow := bytes.NewReader(append(bytes.Clone(b[:read]), "GET"...))
		if again, err := Read(one{slow}); err != nil || again != h || slow.Len() != len("GET") {
			t.Fatalf("%v, then %v and %v", h, again, err)
		}
	})
}
