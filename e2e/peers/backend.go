package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"strconv"
	"sync"
)

// The paths of the backend.
const (
	smallPath  = "/small"  // a few bytes
	mediumPath = "/16k"    // 16 KiB
	largePath  = "/1m"     // 1 MiB
	uploadPath = "/upload" // the size and checksum of the body that was sent
	echoPath   = "/echo"   // WebSocket: each message back
	seenPath   = "/seen"   // the head of the request, as the backend received it
)

// pattern is n bytes without a short period, so that bytes which were lost, doubled or exchanged show.
func pattern(n int) []byte {
	b := make([]byte, n)
	state := uint32(1)
	for i := range b {
		state = state*1664525 + 1013904223
		b[i] = byte(state >> 24)
	}
	return b
}

// receipt is the body of the answer to an upload.
func receipt(length int64, sum uint32) []byte {
	return fmt.Appendf(nil, "%d bytes, checksum %08x", length, sum)
}

// backend answers as fast as is easily done: no measurement should wait for it. It is for the proxies of this program
// alone.
type backend struct {
	answers map[string][]byte // head and body by path
	sums    *crc32.Table
	wg      sync.WaitGroup

	mu    sync.Mutex // guards conns
	conns map[net.Conn]struct{}
}

func newBackend() *backend {
	b := &backend{answers: map[string][]byte{}, sums: crc32.MakeTable(crc32.Castagnoli), conns: map[net.Conn]struct{}{}}
	for path, body := range map[string][]byte{smallPath: smallBody(), mediumPath: pattern(mediumSize), largePath: pattern(largeSize)} {
		b.answers[path] = appendAnswer(nil, body)
	}
	return b
}

func appendAnswer(to, body []byte) []byte {
	to = append(to, "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: "...)
	to = strconv.AppendInt(to, int64(len(body)), 10)
	return append(append(to, "\r\n\r\n"...), body...)
}

// runBackend serves until ctx ends.
func runBackend(ctx context.Context, args []string) error {
	if len(args) != 1 {
		return errors.New("backend ADDRESS")
	}
	l, err := net.Listen("tcp", args[0])
	if err != nil {
		return err
	}
	return newBackend().serve(ctx, l)
}

// serve answers the connections of l until ctx ends, and closes them and l.
func (b *backend) serve(ctx context.Context, l net.Listener) error {
	defer b.wg.Wait()
	defer b.closeAll()
	defer l.Close()
	defer context.AfterFunc(ctx, func() { l.Close() })()
	for {
		conn, err := l.Accept()
		if ctx.Err() != nil && err != nil {
			return nil
		}
		if err != nil {
			return err
		}
		b.mu.Lock()
		b.conns[conn] = struct{}{}
		b.mu.Unlock()
		b.wg.Go(func() {
			b.converse(conn) // a proxy that goes away is none of the backend's business
			conn.Close()
			b.mu.Lock()
			defer b.mu.Unlock()
			delete(b.conns, conn)
		})
	}
}

func (b *backend) closeAll() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for conn := range b.conns {
		conn.Close()
	}
}

// converse serves one connection until it ends.
func (b *backend) converse(conn net.Conn) error {
	r := bufio.NewReaderSize(conn, 16<<10)
	var scratch []byte
	for {
		h, err := readHead(r)
		if err != nil {
			return err
		}
		if string(pathOf(h.first)) == echoPath {
			return echo(conn, r, h)
		}
		closing := h.close
		answer, err := b.answer(r, h, scratch[:0])
		if err != nil {
			return err
		}
		if _, err := conn.Write(answer); err != nil || closing {
			return err
		}
	}
}

// answer gives the answer to a request: one that is ready, or one that is appended to scratch.
func (b *backend) answer(r *bufio.Reader, h head, scratch []byte) ([]byte, error) {
	path := pathOf(h.first)
	if ready, ok := b.answers[string(path)]; ok {
		return ready, nil
	}
	switch string(path) {
	case seenPath:
		return appendAnswer(scratch, h.text), nil
	case uploadPath:
		sum, err := b.receive(r, h.length)
		return appendAnswer(scratch, receipt(h.length, sum)), err
	}
	return append(scratch, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"...), nil
}

// pathOf takes the path, without its query, out of a request line.
func pathOf(line []byte) []byte {
	_, rest, _ := bytes.Cut(line, []byte(" "))
	target, _, _ := bytes.Cut(rest, []byte(" "))
	path, _, _ := bytes.Cut(target, []byte("?"))
	return path
}

// receive reads a body and gives its checksum.
func (b *backend) receive(r *bufio.Reader, length int64) (sum uint32, err error) {
	if length < 0 {
		return 0, errPlain
	}
	for length > 0 {
		if _, err := r.Peek(1); err != nil {
			return 0, err
		}
		chunk, err := r.Peek(int(min(int64(r.Buffered()), length)))
		if err != nil {
			return 0, err
		}
		sum = crc32.Update(sum, b.sums, chunk)
		length -= int64(len(chunk))
		if _, err := r.Discard(len(chunk)); err != nil {
			return 0, err
		}
	}
	return sum, nil
}

// echo upgrades the connection and sends each message back until the other side closes.
func echo(conn net.Conn, r *bufio.Reader, h head) error {
	if len(h.key) == 0 {
		_, err := io.WriteString(conn, "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
		return err
	}
	_, err := fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %s\r\n\r\n", acceptOf(h.key))
	var out []byte
	in := make([]byte, maxFrame)
	for err == nil {
		var opcode byte
		var payload []byte
		if opcode, payload, err = readFrame(r, in); err != nil {
			return err
		}
		out = appendFrame(out[:0], opcode, nil, payload)
		if _, err = conn.Write(out); opcode == closeFrame {
			return err
		}
	}
	return err
}
