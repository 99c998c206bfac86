// Package proxyproto reads the header of the PROXY protocol, version 1 and 2, that a proxy puts before a connection to say
// whose it is (https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt).
//
// It does not decide who may send one: a header from anybody else is a forgery, and whoever calls has to know. It writes none,
// and sets no deadline.
//
// Order of calls: [Read] once, before anything else is read from the connection.
package proxyproto

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strconv"
	"strings"
)

const (
	// maxLine is how long a header of version 1 may be, its end of line included.
	maxLine = 107
	// MaxSize is how long one of version 2 may be. The protocol allows 64 KiB; what proxies add to the addresses is tens of
	// bytes, or a client's certificate.
	MaxSize = 8 << 10
)

// Header is what a proxy says of a connection.
type Header struct {
	// Source and Destination are the addresses of the connection that the proxy speaks for, IPv4 as such. They are not valid
	// where the proxy speaks for itself (LOCAL, for its health checks), or does not know (UNKNOWN), or the connection came over
	// something else than TCP and IP: then the connection is what it looks like.
	Source, Destination netip.AddrPort
}

var (
	signature = []byte("\r\n\r\n\x00\r\nQUIT\n")
	word      = []byte("PROXY ")
)

// ErrMissing is that of a connection that begins with something else than a header.
var ErrMissing = errors.New("no PROXY protocol header")

// Read reads a header from r, and not one byte more. The error wraps ErrMissing where something else came, io.EOF where nothing
// did, and io.ErrUnexpectedEOF where it broke off. It may be called concurrently for different readers.
func Read(r io.Reader) (Header, error) {
	b := make([]byte, 0, maxLine)
	for {
		h, need, err := parse(b)
		if err != nil || need == 0 {
			return h, err
		}
		have := len(b)
		b = append(b, make([]byte, need)...)
		if n, err := io.ReadFull(r, b[have:]); err != nil {
			if have+n > 0 && err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return Header{}, fmt.Errorf("read the PROXY protocol header: %w", err)
		}
	}
}

// parse reads the header that b is the beginning of. need is how many bytes belong to it for certain that b does not have; 0:
// it is complete.
func parse(b []byte) (h Header, need int, err error) {
	switch {
	case begins(b, word):
		return parseLine(b)
	case begins(b, signature):
		return parseBinary(b)
	}
	return Header{}, 0, ErrMissing
}

// begins says whether b begins like whole, as far as it goes.
func begins(b, whole []byte) bool {
	n := min(len(b), len(whole))
	return bytes.Equal(b[:n], whole[:n])
}

// shortest is how long a header is at least: "PROXY UNKNOWN" and its end of line.
const shortest = len("PROXY UNKNOWN\r\n")

// The least that each word of a line with addresses has: of IPv4, and of IPv6.
var leastWords = map[string][]int{"TCP4": {len("0.0.0.0"), len("0.0.0.0"), 1, 1}, "TCP6": {len("::"), len("::"), 1, 1}}

// parseLine reads version 1. Since the length stands nowhere, it is read in pieces that the line must have at least.
func parseLine(b []byte) (Header, int, error) {
	if len(b) < shortest {
		return Header{}, shortest - len(b), nil
	}
	end := bytes.IndexByte(b, '\n')
	switch {
	case end < 0 && len(b) >= maxLine:
		return Header{}, 0, fmt.Errorf("a PROXY protocol header of more than %d bytes", maxLine)
	case end < 0:
		return Header{}, min(missing(b), maxLine-len(b)), nil
	case b[end-1] != '\r' || end != len(b)-1:
		return Header{}, 0, errors.New("a PROXY protocol header that does not end in CRLF")
	}
	h, err := parseWords(string(b[len(word) : end-1]))
	return h, 0, err
}

// missing is how many bytes a line that has not ended must have more, at least.
func missing(b []byte) int {
	n := len("\r\n")
	if b[len(b)-1] == '\r' {
		n = len("\n")
	}
	words := strings.Split(string(b[len(word):]), " ")
	least := leastWords[words[0]]
	if len(words) < 2 || len(words)-2 >= len(least) {
		return n
	}
	have := len(words) - 2 // words before the last, which may go on
	n += max(0, least[have]-len(words[have+1]))
	for _, more := range least[have+1:] {
		n += len(" ") + more
	}
	return n
}

func parseWords(line string) (h Header, err error) {
	words := strings.Split(line, " ")
	switch {
	case words[0] == "UNKNOWN": // whatever stands behind it
		return Header{}, nil
	case leastWords[words[0]] == nil || len(words) != 5:
		return Header{}, fmt.Errorf("a PROXY protocol header of %q", line)
	}
	if h.Source, err = parseAddress(words[1], words[3], words[0] == "TCP4"); err == nil {
		h.Destination, err = parseAddress(words[2], words[4], words[0] == "TCP4")
	}
	if err != nil {
		return Header{}, fmt.Errorf("a PROXY protocol header of %q: %w", line, err)
	}
	return h, nil
}

func parseAddress(host, port string, four bool) (netip.AddrPort, error) {
	a, err := netip.ParseAddr(host)
	if err != nil || a.Is4() != four || a.Zone() != "" {
		return netip.AddrPort{}, fmt.Errorf("%q is not an address of that family", host)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || strconv.FormatUint(n, 10) != port {
		return netip.AddrPort{}, fmt.Errorf("%q is not a port", port)
	}
	return netip.AddrPortFrom(a.Unmap(), uint16(n)), nil
}

// What stands in the bytes 13 and 14 of version 2.
const (
	local, proxied                 = 0x20, 0x21
	unspecified, inet, inet6, unix = 0, 1, 2, 3
	stream, datagram               = 1, 2

	fixed               = 16 // bytes before the addresses
	inetSize, inet6Size = 12, 36
)

// parseBinary reads version 2.
func parseBinary(b []byte) (Header, int, error) {
	if len(b) < fixed {
		return Header{}, fixed - len(b), nil
	}
	size := int(binary.BigEndian.Uint16(b[14:]))
	switch {
	case b[12] != local && b[12] != proxied:
		return Header{}, 0, fmt.Errorf("a PROXY protocol header of version %d with command %d", b[12]>>4, b[12]&15)
	case fixed+size > MaxSize:
		return Header{}, 0, fmt.Errorf("a PROXY protocol header of %d bytes, more than %d", fixed+size, MaxSize)
	case len(b) < fixed+size:
		return Header{}, fixed + size - len(b), nil
	case b[12] == local:
		return Header{}, 0, nil
	}
	return parseBlock(b[13]>>4, b[13]&15, b[fixed:])
}

// parseBlock reads the addresses. What follows them (TLVs) is not ours.
func parseBlock(family, protocol byte, b []byte) (Header, int, error) {
	size := 0
	switch {
	case family > unix || protocol > datagram:
		return Header{}, 0, fmt.Errorf("a PROXY protocol header of family %d and protocol %d", family, protocol)
	case family == unspecified, family == unix, protocol != stream:
		return Header{}, 0, nil
	case family == inet:
		size = inetSize
	case family == inet6:
		size = inet6Size
	}
	if len(b) < size {
		return Header{}, 0, fmt.Errorf("a PROXY protocol header with %d bytes of addresses instead of %d", len(b), size)
	}
	each := (size - 4) / 2
	source, _ := netip.AddrFromSlice(b[:each]) // 4 or 16 bytes always are one
	destination, _ := netip.AddrFromSlice(b[each : 2*each])
	return Header{
		Source:      netip.AddrPortFrom(source.Unmap(), binary.BigEndian.Uint16(b[2*each:])),
		Destination: netip.AddrPortFrom(destination.Unmap(), binary.BigEndian.Uint16(b[2*each+2:])),
	}, 0, nil
}
