package tunnel

// The opcodes and bits of a frame's first two bytes (RFC 6455 section 5.2).
const (
	finBit     = 0x80
	opcodeMask = 0x0f
	controlBit = 0x08
	opClose    = 0x8
	maskBit    = 0x80
	lengthMask = 0x7f
	length16   = 126
	length64   = 127
	maskBytes  = 4
)

// stage is the part of a frame that comes next.
type stage uint8

const (
	atFirst   stage = iota // the first byte of a head: between two frames
	atLength               // the second byte
	atLonger               // the 2 or 8 bytes of a longer length
	atPayload              // the masking key and the payload
	afterAll               // a Close frame has passed, and there is nothing more to follow
	lost                   // what came is not WebSocket, or not from the side it was said to be from
)

// frames follows one direction of a WebSocket by the heads of its frames. It sees any split of the stream alike, keeps no
// bytes and skips payloads, so it costs per frame and not per byte. The zero value is at the start of a server's stream.
//
// Bits that extensions may use (RSV1 to RSV3) are let through; opcodes that nobody has defined are not.
type frames struct {
	messages uint64 // data frames with FIN that have passed
	left     uint64 // of the longer length or of the payload
	length   uint64 // of the longer length, what has come of it
	first    byte   // of the head
	stage    stage
	masked   bool // frames come from a client, which masks them; a server must not (section 5.1)
}

// between says that a frame may be put in here.
func (f *frames) between() bool { return f.stage == atFirst }

// over says that a Close frame has passed, or that the frames cannot be followed: either way, none may be put in.
func (f *frames) over() bool { return f.stage >= afterAll }

// closed says that a Close frame has passed.
func (f *frames) closed() bool { return f.stage == afterAll }

// scan follows all of p.
func (f *frames) scan(p []byte) {
	for len(p) > 0 {
		p = p[f.next(p):]
	}
}

// next follows p up to the end of the frame that it begins in, or to its own end, and returns how many bytes that took.
// Once over, it takes everything.
func (f *frames) next(p []byte) int {
	for i := 0; i < len(p); {
		switch f.stage {
		case atFirst:
			f.begin(p[i])
			i++
		case atLength:
			i++
			if f.lengthen(p[i-1]); f.stage == atFirst || f.stage == afterAll {
				return i
			}
		case atLonger:
			f.length = f.length<<8 | uint64(p[i])
			i++
			if f.left--; f.left == 0 && f.carries(f.length) {
				return i
			}
		case atPayload:
			n := min(f.left, uint64(len(p)-i))
			i += int(n)
			if f.left -= n; f.left == 0 {
				f.end()
				return i
			}
		default:
			return len(p)
		}
	}
	return len(p)
}

// begin takes the first byte of a head.
func (f *frames) begin(b byte) {
	f.first, f.stage = b, atLength
	opcode := b & opcodeMask
	switch {
	case opcode > 0xa, opcode > 0x2 && opcode < opClose:
		f.stage = lost // section 5.2: reserved
	case opcode&controlBit != 0 && b&finBit == 0:
		f.stage = lost // section 5.5: a control frame must not be fragmented
	}
}

// lengthen takes the second byte of a head.
func (f *frames) lengthen(b byte) {
	length := b & lengthMask
	switch {
	case f.masked != (b&maskBit != 0):
		f.stage = lost
	case length < length16:
		f.carries(uint64(length))
	case f.first&controlBit != 0:
		f.stage = lost // section 5.5: a control frame carries 125 bytes at most
	case length == length16:
		f.stage, f.left, f.length = atLonger, 2, 0
	default:
		f.stage, f.left, f.length = atLonger, 8, 0
	}
}

// carries is told the payload's length. It reports whether the frame has ended with that.
func (f *frames) carries(length uint64) bool {
	if length>>63 != 0 {
		f.stage = lost // section 5.2: the most significant bit must be 0
		return false
	}
	f.stage, f.left = atPayload, length
	if f.masked {
		f.left += maskBytes // below 2^63 + 4: no overflow
	}
	if f.left == 0 {
		f.end()
		return true
	}
	return false
}

// end comes after the last byte of a frame.
func (f *frames) end() {
	f.stage = atFirst
	switch {
	case f.first&opcodeMask == opClose:
		f.stage = afterAll
	case f.first&controlBit == 0 && f.first&finBit != 0:
		f.messages++
	}
}
