package vote

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"
	"unicode"
	"unicode/utf8"
)

// The form of a message: one byte of version, the sequence of all its votes, then groups until its end. A group is what its votes
// have in common, state, time to repetition in milliseconds, and the reason behind its length; then how many there are, in one
// byte, and of each the key and how many milliseconds before the sequence its state began. Numbers are unsigned varints. Whose
// votes they are, and how old, whoever carries the message says.
const wireVersion = 2

// What is taken from others.
const (
	// MaxReason is how long a reason is at most, in bytes.
	MaxReason = 200

	maxSequence = 1 << 62
	maxRepeat   = 24 * time.Hour
	maxGroup    = 255
)

// errShort says that a message ends within a vote.
var errShort = errors.New("it ends within a vote")

// Encode writes as many of votes as fit into limit bytes, in their order, up to the first of another sequence, and says how many
// those are. Votes that follow one another and say the same take the least room. Nothing is written if not even one fits.
func Encode(votes []Vote, limit int) (message []byte, n int) {
	if len(votes) == 0 {
		return nil, 0
	}
	sequence := votes[0].Sequence
	message = binary.AppendUvarint([]byte{wireVersion}, sequence)
	counter := 0 // where the number of votes of the last group stands
	for n < len(votes) && votes[n].Sequence == sequence {
		v := votes[n]
		longer, at := message, counter
		if n == 0 || !sameGroup(v, votes[n-1]) || message[counter] == maxGroup {
			longer, at = v.appendGroup(message)
		}
		longer = binary.AppendUvarint(append(longer, v.Key[:]...), v.beganBefore())
		if len(longer) > limit {
			break
		}
		message, counter = longer, at
		message[counter]++
		n++
	}
	if n == 0 {
		return nil, 0
	}
	return message, n
}

func sameGroup(a, b Vote) bool { return sameWords(a, b) && a.Repeat == b.Repeat }

// appendGroup begins a group, and says where the number of its votes stands.
func (v Vote) appendGroup(b []byte) (longer []byte, counter int) {
	b = append(b, byte(v.State))
	b = binary.AppendUvarint(b, uint64(v.Repeat.Milliseconds()))
	b = binary.AppendUvarint(b, uint64(len(v.Reason)))
	b = append(b, v.Reason...)
	return append(b, 0), len(b)
}

// beganBefore is how long before its sequence a vote's state began, in milliseconds.
func (v Vote) beganBefore() uint64 {
	said := int64(v.Sequence / 1000)
	return uint64(min(max(0, said-v.Since.UnixMilli()), said))
}

// Decode reads a message of origin, said at heard at the latest; it comes from the network. It gives all of its votes or an error,
// and keeps nothing of b.
func Decode(origin string, b []byte, heard time.Time) ([]Vote, error) {
	if len(b) == 0 {
		return nil, errors.New("votes cannot be read: the message is empty")
	}
	if b[0] != wireVersion {
		return nil, fmt.Errorf("votes cannot be read: they are of version %d, and only %d is known here", b[0], wireVersion)
	}
	r := reader{rest: b[1:]}
	common := Vote{Origin: origin, Sequence: r.number("sequence", maxSequence), Heard: heard}
	var votes []Vote
	for len(r.rest) > 0 && r.err == nil {
		votes = r.group(votes, common)
	}
	if r.err != nil {
		return nil, fmt.Errorf("votes cannot be read: after %d: %w", len(votes), r.err)
	}
	return votes, nil
}

// reader takes a message apart. After an error everything is zero.
type reader struct {
	rest []byte
	err  error
}

// group reads votes that have something in common, beside what all of the message have.
func (r *reader) group(votes []Vote, common Vote) []Vote {
	v := common
	if state := r.bytes(1); len(state) == 1 {
		v.State = State(state[0])
	}
	v.Repeat = time.Duration(r.number("time to its repetition", uint64(maxRepeat.Milliseconds()))) * time.Millisecond
	v.Reason = string(r.text("reason", MaxReason))
	n := r.bytes(1)
	if r.err == nil {
		r.err = v.check()
	}
	if r.err == nil && n[0] == 0 {
		r.err = errors.New("nothing is said of no check")
	}
	said := common.Sequence / 1000
	for i := 0; r.err == nil && i < int(n[0]); i++ {
		copy(v.Key[:], r.bytes(uint64(len(v.Key))))
		v.Since = time.UnixMilli(int64(said - r.number("time since its state", said)))
		if r.err == nil {
			votes = append(votes, v)
		}
	}
	return votes
}

func (v Vote) check() error {
	switch {
	case v.State != Healthy && v.State != Unhealthy && v.State != Unsure:
		return fmt.Errorf("state %d is not known", v.State)
	case v.Repeat == 0:
		return errors.New("it is never repeated")
	}
	return nil
}

func (r *reader) bytes(n uint64) []byte {
	if r.err == nil && n > uint64(len(r.rest)) {
		r.err = errShort
	}
	if r.err != nil {
		return nil
	}
	b := r.rest[:n]
	r.rest = r.rest[n:]
	return b
}

func (r *reader) number(what string, most uint64) uint64 {
	n, size := binary.Uvarint(r.rest)
	switch {
	case r.err != nil:
	case size == 0:
		r.err = errShort
	case size < 0 || n > most:
		r.err = fmt.Errorf("%s is more than %d", what, most)
	default:
		r.rest = r.rest[size:]
		return n
	}
	return 0
}

// text is one line of what a terminal takes for text: it is shown to people, and the sender may be anyone.
func (r *reader) text(what string, most uint64) []byte {
	n := r.number("length of "+what, most)
	b := r.bytes(n)
	if !utf8.Valid(b) {
		r.err = fmt.Errorf("%s is not UTF-8", what)
		return nil
	}
	for _, c := range string(b) {
		if unicode.IsControl(c) {
			r.err = fmt.Errorf("%s has control characters", what)
			return nil
		}
	}
	return b
}
