package main

import (
	"bufio"
	"bytes"
	"errors"
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
