package main

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

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
