package main

import (
	"bufio"
	"bytes"
	"crypto/sha1"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strconv"
)

// head is what backend and load want to know of a request's or a response's head. It is good until the next readHead
// with the same reader. What they speak with proxies is plain: nothing here is fit for strangers.
type head struct {
	first  []byte // the first line, without its end
	length int64  // Content-Length; -1: there is none
	close  bool   // Connection: close
	key    []byte // Sec-WebSocket-Key
	accept []byte // Sec-WebSocket-Accept
	text   []byte // all of it
}

// errPlain refuses what the measured exchanges never hold.
var errPlain = errors.New("a message of the measurement has a Content-Length and no Transfer-Encoding")

// readHead reads a head that fits into r's buffer.
func readHead(r *bufio.Reader) (head, error) {
	h := head{length: -1}
	size, err := peekHead(r)
	if err != nil {
		return h, err
	}
	h.text, _ = r.Peek(size) // it is there already
	first, rest, _ := bytes.Cut(h.text, []byte("\r\n"))
	h.first = first
	for len(rest) > 2 {
		var line []byte
		line, rest, _ = bytes.Cut(rest, []byte("\r\n"))
		name, value, _ := bytes.Cut(line, []byte(":"))
		if err := h.field(name, bytes.TrimSpace(value)); err != nil {
			return h, err
		}
	}
	_, err = r.Discard(size)
	return h, err
}

func (h *head) field(name, value []byte) (err error) {
	switch len(name) { // most fields are of no interest: tell them apart cheaply
	case len("Connection"):
		if bytes.EqualFold(name, []byte("Connection")) {
			h.close = bytes.EqualFold(value, []byte("close"))
		}
	case len("Content-Length"):
		if bytes.EqualFold(name, []byte("Content-Length")) {
			h.length, err = strconv.ParseInt(string(value), 10, 62)
		}
	case len("Transfer-Encoding"): // and Sec-WebSocket-Key, which is as long
		if bytes.EqualFold(name, []byte("Transfer-Encoding")) {
			err = errPlain
		} else if bytes.EqualFold(name, []byte("Sec-WebSocket-Key")) {
			h.key = value
		}
	case len("Sec-WebSocket-Accept"):
		if bytes.EqualFold(name, []byte("Sec-WebSocket-Accept")) {
			h.accept = value
		}
	}
	return err
}

// peekHead waits until all of a head is buffered, and gives its size. io.EOF: the peer closed between two messages.
func peekHead(r *bufio.Reader) (int, error) {
	for searched := 0; ; {
		have, err := r.Peek(max(searched+1, r.Buffered()))
		if i := bytes.Index(have[max(0, searched-3):], []byte("\r\n\r\n")); i >= 0 {
			return max(0, searched-3) + i + len("\r\n\r\n"), nil
		}
		searched = len(have)
		switch {
		case err == io.EOF && searched > 0:
			return 0, io.ErrUnexpectedEOF
		case err != nil:
			return 0, err
		}
	}
}

// acceptOf answers a Sec-WebSocket-Key (RFC 6455, section 4.2.2).
func acceptOf(key []byte) string {
	sum := sha1.Sum(append(bytes.Clone(key), "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"...))
	return base64.StdEncoding.EncodeToString(sum[:])
}

const (
	binaryFrame = 0x2
	closeFrame  = 0x8
)

// appendFrame appends a final WebSocket frame (RFC 6455, section 5.2). mask: nil on the way from a server, else 4 bytes.
func appendFrame(to []byte, opcode byte, mask, payload []byte) []byte {
	to = append(to, 0x80|opcode)
	masked := byte(0)
	if mask != nil {
		masked = 0x80
	}
	switch n := len(payload); {
	case n < 126:
		to = append(to, masked|byte(n))
	case n < 1<<16:
		to = binary.BigEndian.AppendUint16(append(to, masked|126), uint16(n))
	default:
		to = binary.BigEndian.AppendUint64(append(to, masked|127), uint64(n))
	}
	to = append(to, mask...)
	at := len(to)
	to = append(to, payload...)
	if mask != nil {
		unmask(to[at:], mask)
	}
	return to
}

func unmask(payload, mask []byte) {
	for i := range payload {
		payload[i] ^= mask[i&3]
	}
}

// maxFrame is more than any frame of the measurement.
const maxFrame = 4 << 10

// readFrame reads a masked frame; its payload is put into buf, which has room for maxFrame bytes.
func readFrame(r *bufio.Reader, buf []byte) (opcode byte, payload []byte, err error) {
	start, err := r.Peek(2)
	if err != nil {
		return 0, nil, err
	}
	opcode = start[0] & 0xf
	if start[1]&0x80 == 0 {
		return 0, nil, errors.New("the frame is not masked")
	}
	size, lengthBytes := int(start[1]&0x7f), 0
	switch size {
	case 126:
		lengthBytes = 2
	case 127:
		lengthBytes = 8
	}
	header, err := r.Peek(2 + lengthBytes + 4)
	if err != nil {
		return 0, nil, err
	}
	switch lengthBytes {
	case 2:
		size = int(binary.BigEndian.Uint16(header[2:]))
	case 8:
		size = int(min(binary.BigEndian.Uint64(header[2:]), maxFrame+1))
	}
	if size > maxFrame {
		return 0, nil, fmt.Errorf("the frame has more than %d bytes", maxFrame)
	}
	mask := [4]byte(header[2+lengthBytes:])
	if _, err := r.Discard(len(header)); err != nil {
		return 0, nil, err
	}
	payload = buf[:size]
	if _, err := io.ReadFull(r, payload); err != nil {
		return 0, nil, err
	}
	unmask(payload, mask[:])
	return opcode, payload, nil
}
