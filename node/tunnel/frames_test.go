package tunnel

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"testing"
)

// frame is one frame as it goes over the wire; masked ones have a key of zeros.
func frame(first byte, masked bool, length int) []byte {
	b := []byte{first}
	mask := byte(0)
	if masked {
		mask = maskBit
	}
	switch {
	case length < 126:
		b = append(b, mask|byte(length))
	case length < 1<<16:
		b = binary.BigEndian.AppendUint16(append(b, mask|126), uint16(length))
	default:
		b = binary.BigEndian.AppendUint64(append(b, mask|127), uint64(length))
	}
	if masked {
		b = append(b, 0, 0, 0, 0)
	}
	return append(b, make([]byte, length)...)
}

func TestFramesAreFollowed(t *testing.T) {
	for _, masked := range []bool{false, true} {
		text, binaryFrame, part, rest, ping, shut := frame(0x81, masked, 5), frame(0x82, masked, 70000), frame(0x01, masked, 300),
			frame(0x80, masked, 0), frame(0x89, masked, 125), frame(0x88, masked, 2)
		for name, c := range map[string]struct {
			stream   []byte
			messages uint64
			stage    stage
		}{
			"nothing":                     {nil, 0, atFirst},
			"short, long, empty":          {bytes.Join([][]byte{text, binaryFrame, frame(0x82, masked, 0), frame(0x81, masked, 126)}, nil), 4, atFirst},
			"fragments, a ping between":   {bytes.Join([][]byte{part, ping, part, rest}, nil), 1, atFirst},
			"half a head":                 {append(bytes.Clone(text), 0x81), 1, atLength},
			"half a length":               {binaryFrame[:4], 0, atLonger},
			"half a payload":              {binaryFrame[:60000], 0, atPayload},
			"compressed":                  {frame(0xc1, masked, 9), 1, atFirst},
			"close, and what is after it": {bytes.Join([][]byte{text, shut, text}, nil), 1, afterAll},
			"empty close":                 {frame(0x88, masked, 0), 0, afterAll},
			"wrong side":                  {append(bytes.Clone(text), frame(0x81, !masked, 5)...), 1, lost},
			"reserved data opcode":        {frame(0x83, masked, 5), 0, lost},
			"reserved control opcode":     {frame(0x8b, masked, 5), 0, lost},
			"fragmented ping":             {frame(0x09, masked, 5), 0, lost},
			"long ping":                   {frame(0x89, masked, 126), 0, lost},
			"length beyond 63 bits":       {append([]byte{0x82, text[1]&maskBit | 127, 0x80}, make([]byte, 7)...), 0, lost},
			"HTTP":                        {[]byte("HTTP/1.1 400 Bad Request\r\n\r\n"), 0, lost},
		} {
			f := frames{masked: masked}
			f.scan(c.stream)
			if f.stage != c.stage || f.messages != c.messages {
				t.Errorf("%s, masked %v: stage %d after %d messages, want %d after %d", name, masked, f.stage, f.messages, c.stage, c.messages)
			}
		}
	}
}

func TestNextStopsAtTheEndOfEachFrame(t *testing.T) {
	for _, masked := range []bool{false, true} {
		stream := bytes.Join([][]byte{frame(0x81, masked, 5), frame(0x80, masked, 0), frame(0x82, masked, 1000), frame(0x88, masked, 2)}, nil)
		f := frames{masked: masked}
		var ends []int
		for at := 0; at < len(stream); {
			at += f.next(stream[at:])
			ends = append(ends, at)
		}
		head := 2
		if masked {
			head += maskBytes
		}
		want := []int{head + 5, 2*head + 5, 3*head + 2 + 1005, 4*head + 2 + 1007}
		if fmt.Sprint(ends) != fmt.Sprint(want) {
			t.Errorf("masked %v: ends %v, want %v", masked, ends, want)
		}
	}
}

// whole is a second reading of RFC 6455 section 5.2, of a stream that is there in one piece: how many messages have passed,
// whether a Close has, and whether the stream stops being one of frames.
func whole(p []byte, masked bool) (messages uint64, closed, broken bool) {
	for len(p) > 0 {
		fin, opcode := p[0]>>7 == 1, p[0]&15
		control := opcode >= 8
		if opcode > 10 || opcode > 2 && !control || control && !fin {
			return messages, false, true
		}
		if len(p) < 2 {
			return messages, false, false
		}
		if p[1]>>7 == 1 != masked || control && p[1]&127 > 125 {
			return messages, false, true
		}
		head, length := 2, uint64(p[1]&127)
		if n := map[uint64]int{126: 2, 127: 8}[length]; n > 0 {
			if head += n; len(p) < head {
				return messages, false, false
			}
			length = 0
			for _, b := range p[2:head] {
				length = length<<8 + uint64(b)
			}
		}
		if length >= 1<<63 {
			return messages, false, true
		}
		if masked {
			head += 4
		}
		if uint64(len(p)) < uint64(head)+length {
			return messages, false, false
		}
		p = p[uint64(head)+length:]
		switch {
		case opcode == 8:
			return messages, true, false
		case !control && fin:
			messages++
		}
	}
	return messages, false, false
}

// FuzzFrames holds that the split of a stream makes no difference, and that a plain reading of the whole agrees.
func FuzzFrames(f *testing.F) {
	f.Add(bytes.Join([][]byte{frame(0x81, true, 5), frame(0x89, true, 3), frame(0x82, true, 130), frame(0x88, true, 2)}, nil), true, []byte{1, 0, 3})
	f.Add(bytes.Join([][]byte{frame(0x01, false, 0), frame(0x80, false, 300)}, nil), false, []byte{2})
	f.Add([]byte{0x82, 127, 0, 0, 0, 0, 0, 0, 0, 1, 9, 0x81, 126, 0, 1, 7}, false, []byte{1})
	f.Add([]byte("garbage"), true, []byte{0})
	f.Fuzz(func(t *testing.T, stream []byte, masked bool, cuts []byte) {
		once := frames{masked: masked}
		once.scan(stream)
		split := frames{masked: masked}
		rest := stream
		for i := 0; len(rest) > 0; i++ {
			n := 1
			if len(cuts) > 0 {
				n = int(cuts[i%len(cuts)])%len(rest) + 1
			}
			split.scan(rest[:n])
			rest = rest[n:]
		}
		if once != split {
			t.Fatalf("%+v in one piece, %+v in several", once, split)
		}
		messages, closed, broken := whole(stream, masked)
		if once.messages != messages || once.closed() != closed || (once.stage == lost) != broken {
			t.Fatalf("%+v, but a plain reading gives %d messages, closed %v, broken %v", once, messages, closed, broken)
		}
	})
}

func BenchmarkFrames(b *testing.B) {
	for _, size := range []int{0, 128, 4 << 10, 1 << 20} {
		b.Run(fmt.Sprintf("payload=%d", size), func(b *testing.B) {
			one := frame(0x82, true, size)
			stream := bytes.Repeat(one, max(1, (64<<10)/len(one)))
			perStream := len(stream) / len(one)
			b.SetBytes(int64(len(stream)))
			b.ReportAllocs()
			f := frames{masked: true}
			for b.Loop() {
				f.scan(stream)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*perStream), "ns/frame")
		})
	}
}
