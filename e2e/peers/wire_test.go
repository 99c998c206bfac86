package main

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

func TestHead(t *testing.T) {
	text := "GET /small?x=1 HTTP/1.1\r\nhost: a\r\ncontent-length: 12\r\nCONNECTION:  Close \r\nsec-websocket-key: abc\r\nSec-WebSocket-Accept: def\r\n\r\n"
	for name, in := range map[string]io.Reader{"at once": strings.NewReader(text + "rest"), "byte by byte": iotest.OneByteReader(strings.NewReader(text + "rest"))} {
		r := bufio.NewReader(in)
		h, err := readHead(r)
		if err != nil {
			t.Fatal(name, err)
		}
		if string(h.first) != "GET /small?x=1 HTTP/1.1" || h.length != 12 || !h.close || string(h.key) != "abc" || string(h.accept) != "def" || string(h.text) != text {
			t.Errorf("%s: %+v", name, h)
		}
		if string(pathOf(h.first)) != smallPath {
			t.Errorf("%s: path %q", name, pathOf(h.first))
		}
		if rest, _ := io.ReadAll(r); string(rest) != "rest" {
			t.Errorf("%s: %q is left", name, rest)
		}
	}
}

func TestHeadsThatAreRefused(t *testing.T) {
	for text, want := range map[string]error{
		"":                   io.EOF,
		"GET / HTTP/1.1\r\n": io.ErrUnexpectedEOF,
		"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n": errPlain,
		strings.Repeat("x", 200):                               bufio.ErrBufferFull,
	} {
		if _, err := readHead(bufio.NewReaderSize(strings.NewReader(text), 100)); !errors.Is(err, want) {
			t.Errorf("%q: %v, want %v", text, err, want)
		}
	}
	if _, err := readHead(bufio.NewReader(strings.NewReader("HTTP/1.1 200 OK\r\nContent-Length: few\r\n\r\n"))); err == nil {
		t.Error("a length that is no number is taken")
	}
}

func TestFrames(t *testing.T) {
	for _, size := range []int{0, 1, 125, 126, 128, maxFrame} {
		want := pattern(size)
		r := bufio.NewReader(bytes.NewReader(appendFrame(nil, binaryFrame, []byte{1, 2, 3, 4}, want)))
		opcode, got, err := readFrame(r, make([]byte, maxFrame))
		if err != nil || opcode != binaryFrame || !bytes.Equal(got, want) {
			t.Errorf("a frame of %d bytes: opcode %d, %d bytes, %v", size, opcode, len(got), err)
		}
	}
	for name, frame := range map[string][]byte{
		"not masked": appendFrame(nil, binaryFrame, nil, []byte("x")),
		"too large":  appendFrame(nil, binaryFrame, []byte{1, 2, 3, 4}, make([]byte, 1<<16)),
		"cut off":    appendFrame(nil, binaryFrame, []byte{1, 2, 3, 4}, []byte("four"))[:8],
	} {
		if _, _, err := readFrame(bufio.NewReader(bytes.NewReader(frame)), make([]byte, maxFrame)); err == nil {
			t.Errorf("a frame that is %s is taken", name)
		}
	}
}

// TestAccept is the example of RFC 6455, section 1.3.
func TestAccept(t *testing.T) {
	if got := acceptOf([]byte("dGhlIHNhbXBsZSBub25jZQ==")); got != "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" {
		t.Error(got)
	}
}

func FuzzHead(f *testing.F) {
	f.Add([]byte("GET / HTTP/1.1\r\nContent-Length: 1\r\n\r\nx"))
	f.Fuzz(func(t *testing.T, text []byte) {
		h, err := readHead(bufio.NewReader(bytes.NewReader(text)))
		if err == nil && !bytes.HasPrefix(text, h.text) {
			t.Errorf("%q is not the beginning of %q", h.text, text)
		}
	})
}

func FuzzFrame(f *testing.F) {
	f.Add(appendFrame(nil, binaryFrame, []byte{1, 2, 3, 4}, []byte("x")))
	f.Fuzz(func(t *testing.T, text []byte) {
		readFrame(bufio.NewReader(bytes.NewReader(text)), make([]byte, maxFrame))
	})
}
