package http1

import (
	"bytes"
	"strings"
	"testing"
)

// FuzzRequest: the way of feeding makes no difference, what is accepted keeps the promises of the package comment and is read
// the same by net/http, and what we write of it is read the same again.
func FuzzRequest(f *testing.F) {
	for _, c := range acceptedRequests {
		if len(c.head) < 2<<10 { // great seeds make a slow fuzzer
			f.Add([]byte(c.head), uint16(len(c.head)/2))
		}
	}
	for _, c := range refusedRequests {
		if len(c.head) < 1<<10 {
			f.Add([]byte(c.head), uint16(1))
		}
	}
	for _, c := range acceptedChunks[:10] {
		f.Add([]byte(chunkedPost+c.body), uint16(len(chunkedPost)))
	}
	f.Add([]byte(get("Content-Length: 5")+"helloGET /"), uint16(3))
	f.Fuzz(func(t *testing.T, data []byte, at uint16) {
		var r Request
		parse := func(buf []byte) (int, error) { return r.Parse(buf) }
		checkFeeding(t, data, int(at), r.Reset, parse, func() string { return describeRequest(&r) })
		r.Reset()
		if n, err := r.Parse(data); n > 0 {
			checkRequest(t, &r, data[:n])
			compareRequest(t, data)
		} else if err == nil && len(data) >= MaxHead {
			t.Errorf("more than %d bytes are wanted", MaxHead)
		}
	})
}

// checkFeeding parses data whole, in two parts and by single bytes.
func checkFeeding(t *testing.T, data []byte, at int, reset func(), parse func([]byte) (int, error), describe func() string) {
	reset()
	n, err := parse(data)
	want := reasonOf(t, err)
	said := ""
	if n > 0 {
		said = describe()
	}
	if n < 0 || n > len(data) || n > 0 && err != nil {
		t.Fatalf("%d of %d bytes, %v", n, len(data), err)
	}
	ways := map[string]func() (int, error){
		"again":        func() (int, error) { return whole(parse, data) },
		"in two parts": func() (int, error) { return splitAt(at%(len(data)+1))(parse, data) },
	}
	if len(data) < 2<<10 {
		ways["by single bytes"] = func() (int, error) { return dripped(parse, data) }
	}
	for name, way := range ways {
		reset()
		n2, err2 := way()
		got := reasonOf(t, err2)
		if got == none && want != none {
			// The line that is wrong has no end yet, so it was not looked at again: with an end it must be.
			_, err2 = parse(append(bytes.Clone(data), '\n'))
			got = reasonOf(t, err2)
		}
		if n2 != n || got != want {
			t.Fatalf("%q\n%s: %d, %q; whole: %d, %q", data, name, n2, got, n, want)
		}
		if n > 0 && describe() != said {
			t.Fatalf("%q\n%s: %s\nwhole: %s", data, name, describe(), said)
		}
	}
}

// checkRequest checks what is promised of a request that was accepted, and writes it again.
func checkRequest(t *testing.T, r *Request, head []byte) {
	checkHead(t, &r.Head, head)
	if !isToken(r.MethodName()) || bytes.ContainsAny(r.RawTarget(), "\x00\t\n\r #\x7f") {
		t.Errorf("method %q, target %q", r.MethodName(), r.RawTarget())
	}
	query, present := r.Query()
	if r.Form == OriginForm {
		whole := string(r.Path())
		if present {
			whole += "?" + string(query)
		}
		if whole != string(r.RawTarget()) || r.Path()[0] != '/' {
			t.Errorf("%q is %q and %q", r.RawTarget(), r.Path(), query)
		}
	}
	if authority := r.Authority(); len(authority) > 0 && !validAuthority(authority) {
		t.Errorf("authority %q", authority)
	}
	if r.Framing == UntilClose || r.Framing == Length && r.ContentLength < 1 {
		t.Errorf("framing %d, length %d", r.Framing, r.ContentLength)
	}

	out, err := AppendRequestLine(nil, r.MethodName(), r.RawTarget(), "", false)
	if err != nil {
		t.Fatal(err)
	}
	if !r.Has(Host) { // HTTP/1.0
		out = append(append(append(out, "Host: "...), r.Authority()...), "\r\n"...)
	}
	out = appendFields(t, out, &r.Fields)
	again := request(t, string(out))
	// Whatever the version was, ours is written, and with it go those facts that HTTP/1.0 does not know.
	if r.Minor == 1 && describeRequest(again) != describeRequest(r) {
		t.Fatalf("%q\nis written as %q\nand read as %s\nnot as %s", head, out, describeRequest(again), describeRequest(r))
	}
}

// appendFields writes all fields, the checked way and the fast way, which must agree, and the end of the head.
func appendFields(t *testing.T, out []byte, f *Fields) []byte {
	for i := range f.List() {
		checked, err := AppendField(out, f.Name(i), f.Value(i))
		if err != nil {
			t.Fatal(err)
		}
		if fast := f.AppendLine(bytes.Clone(out), i); !bytes.Equal(fast, checked) {
			t.Fatalf("%q, checked %q", fast, checked)
		}
		out = checked
	}
	return AppendHeadEnd(out)
}

func checkHead(t *testing.T, h *Head, head []byte) {
	if !bytes.HasSuffix(head, []byte("\r\n\r\n")) || len(head) > MaxHead || h.Len() > MaxFields {
		t.Fatalf("%q is no head", head)
	}
	for i, f := range h.List() {
		name, value := h.Name(i), h.Value(i)
		if CheckName(name) != nil || CheckValue(value) != nil {
			t.Errorf("%q: %q", name, value)
		}
		if f.ID != identify(name) && f.ID != Lookalike {
			t.Errorf("%q has ID %d", name, f.ID)
		}
		if f.ID != Other && f.ID < XForwardedOther && !strings.EqualFold(string(name), names[f.ID]) {
			t.Errorf("%q is taken for %q", name, names[f.ID])
		}
	}
	if h.Has(TransferEncoding) && (h.ContentLength >= 0 || h.Minor == 0) {
		t.Error("framing is ambiguous")
	}
}

func FuzzResponse(f *testing.F) {
	for _, c := range acceptedResponses {
		f.Add([]byte(c.head+"hello"), uint16(len(c.head)/2), c.method == HEAD)
	}
	for _, c := range refusedResponses {
		if len(c.head) < 1<<10 {
			f.Add([]byte(c.head), uint16(1), false)
		}
	}
	f.Add([]byte(ok("Transfer-Encoding: chunked")+"5\r\nhello\r\n0\r\nA: b\r\n\r\nHTTP/1.1"), uint16(30), false)
	f.Fuzz(func(t *testing.T, data []byte, at uint16, head bool) {
		method := GET
		if head {
			method = HEAD
		}
		var r Response
		parse := func(buf []byte) (int, error) { return r.Parse(buf, method) }
		checkFeeding(t, data, int(at), r.Reset, parse, func() string { return describeResponse(&r) })
		r.Reset()
		n, _ := r.Parse(data, method)
		if n == 0 {
			return
		}
		checkHead(t, &r.Head, data[:n])
		if head && r.Framing != None {
			t.Errorf("framing %d of HEAD", r.Framing)
		}
		out, err := AppendStatusLine(nil, r.Status, r.ReasonPhrase())
		if err != nil {
			t.Fatal(err)
		}
		for i := range r.List() {
			out = r.AppendLine(out, i)
		}
		if again := response(t, string(AppendHeadEnd(out)), method); r.Minor == 1 && describeResponse(again) != describeResponse(&r) {
			t.Fatalf("%q\nis written as %q", data[:n], out)
		}
		compareResponse(t, data, method)
	})
}

func FuzzChunked(f *testing.F) {
	for _, c := range acceptedChunks {
		if len(c.body) < 1<<10 {
			f.Add([]byte(c.body+"GET / "), uint16(len(c.body)/2), uint16(len(c.body)))
		}
	}
	for _, c := range refusedChunks {
		if len(c.body) < 1<<10 {
			f.Add([]byte(c.body), uint16(1), uint16(2))
		}
	}
	f.Fuzz(func(t *testing.T, data []byte, one, two uint16) {
		want := decode(t, chunked, data)
		first := int(one) % (len(data) + 1)
		second := max(first, int(two)%(len(data)+1))
		ways := map[string][]int{"in parts": {first, second}}
		if len(data) < 1<<10 {
			ways["by single bytes"] = everyByte(len(data))
		}
		for name, ends := range ways {
			got := decode(t, chunked, data, ends...)
			if got.reason == none && want.reason != none {
				// A trailer that is wrong and has no end, as in checkFeeding.
				got = decode(t, chunked, append(bytes.Clone(data), '\n'), append(ends, len(data))...)
			}
			if got != want {
				t.Fatalf("%q\n%s: %+v\nwhole: %+v", data, name, got, want)
			}
			checkRawAgainst(t, data, want, ends)
		}
		if want.reason != none {
			return
		}
		compareRequest(t, append([]byte(chunkedPost), data...))
		if !want.done {
			return
		}
		// Exactly these bytes are the body, and nothing shorter is.
		if d := decode(t, chunked, data[:want.n]); d != want {
			t.Fatalf("%q alone: %+v, not %+v", data[:want.n], d, want)
		}
		if d := decode(t, chunked, data[:want.n-1]); d.done || d.reason != none {
			t.Fatalf("%q less one: %+v", data[:want.n], d)
		}
	})
}

// checkRawAgainst holds NextRaw against what Next found.
func checkRawAgainst(t *testing.T, data []byte, want decoded, ends []int) {
	var b Body
	b.Reset(chunked)
	raw := decodeWith(t, &b, b.NextRaw, data, ends...)
	if raw.done != want.done || want.reason != none && raw.reason != want.reason && raw.reason != none {
		t.Fatalf("%q\nraw: %+v\nnot: %+v", data, raw, want)
	}
	if raw.done {
		if raw.trailers != want.trailers || raw.n != want.n {
			t.Fatalf("%q\nraw: %+v\nnot: %+v", data, raw, want)
		}
		sent := []byte(raw.data)
		if b.Trailer().Len() > 0 {
			sent = AppendHeadEnd(AppendLastChunk(sent))
		}
		if again := decode(t, chunked, sent); !again.done || again.data != want.data || again.n != len(sent) {
			t.Fatalf("%q\nis passed on as %q", data, sent)
		}
	}
}

// FuzzAppend: whatever is given, a line is one line or none.
func FuzzAppend(f *testing.F) {
	for _, value := range injections {
		f.Add("A", value)
		f.Add(value, "a")
	}
	f.Fuzz(func(t *testing.T, name, value string) {
		if out, err := AppendField(nil, name, value); err == nil {
			r := request(t, get()[:len(get())-2]+string(out)+"\r\n")
			if r.Len() != 2 || string(r.Name(1)) != name || string(r.Value(1)) != value {
				t.Errorf("%q: %q became %q", name, value, out)
			}
		} else if len(out) > 0 {
			t.Errorf("%q beside %v", out, err)
		}
		if out, err := AppendRequestLine(nil, name, "/"+value, value, true); err == nil {
			r := request(t, string(out)+"Host: a\r\n\r\n")
			if query, _ := r.Query(); string(r.MethodName()) != name || !strings.HasSuffix(string(r.RawTarget()), string(query)) {
				t.Errorf("%q %q became %q", name, value, out)
			}
		}
		if out, err := AppendStatusLine(nil, 200, value); err == nil {
			if r := response(t, string(out)+"\r\n", GET); string(r.ReasonPhrase()) != value {
				t.Errorf("%q became %q", value, out)
			}
		}
	})
}
