package vote

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"
	"unicode"
	"unicode/utf8"
)

// The form of a message: one byte of version, then votes one after the other until its end. A vote is its key, its origin
// behind a length, sequence, state, since, time to its repetition and age, and its reason behind a length. Numbers are unsigned varints,
// times are in milliseconds, since is Unix time. The age takes the place of Heard, so that no two clocks need to agree.
const wireVersion = 1

// What is taken from others.
const (
	// MaxReason is how long a reason is at most, in bytes.
	MaxReason = 200
	// MaxOrigin is how long the name of a node is at most, in bytes.
	MaxOrigin = 63
	// MaxVotes is how many votes one message holds at most.
	MaxVotes = 1 << 16

	maxSequence = 1 << 62
	maxSince    = 1 << 48 // in the year 10889
	maxRepeat   = 24 * time.Hour
	maxAge      = 30 * 24 * time.Hour
)

// errShort says that a message ends within a vote.
var errShort = errors.New("it ends within a vote")

// Encode writes as many of votes as fit into limit bytes, in their order, and says how many those are. Nothing is written if
// not even one fits.
func Encode(votes []Vote, now time.Time, limit int) (message []byte, n int) {
	message = []byte{wireVersion}
	for _, v := range votes {
		before := len(message)
		message = v.append(message, now)
		if len(message) > limit {
			message = message[:before]
			break
		}
		if n++; n == MaxVotes {
			break
		}
	}
	if n == 0 {
		return nil, 0
	}
	return message, n
}

func (v Vote) append(b []byte, now time.Time) []byte {
	b = append(b, v.Key[:]...)
	b = binary.AppendUvarint(b, uint64(len(v.Origin)))
	b = append(b, v.Origin...)
	b = binary.AppendUvarint(b, v.Sequence)
	b = append(b, byte(v.State))
	b = binary.AppendUvarint(b, uint64(max(0, v.Since.UnixMilli())))
	b = binary.AppendUvarint(b, uint64(v.Repeat.Milliseconds()))
	b = binary.AppendUvarint(b, uint64(min(max(0, now.Sub(v.Heard)), maxAge).Milliseconds()))
	b = binary.AppendUvarint(b, uint64(len(v.Reason)))
	return append(b, v.Reason...)
}

// Decode reads a message, which comes from the network. It gives all of its votes or an error, and keeps nothing of b.
func Decode(b []byte, now time.Time) ([]Vote, error) {
	if len(b) == 0 {
		return nil, errors.New("votes cannot be read: the message is empty")
	}
	if b[0] != wireVersion {
		return nil, fmt.Errorf("votes cannot be read: they are of version %d, and only %d is known here", b[0], wireVersion)
	}
	r := reader{rest: b[1:]}
	var votes []Vote
	for len(r.rest) > 0 && r.err == nil {
		if len(votes) == MaxVotes {
			return nil, fmt.Errorf("votes cannot be read: there are more than %d", MaxVotes)
		}
		votes = append(votes, r.vote(now))
	}
	if r.err != nil {
		return nil, fmt.Errorf("votes cannot be read: vote %d: %w", len(votes), r.err)
	}
	return votes, nil
}

// reader takes a message apart. After an error everything is zero.
type reader struct {
	rest []byte
	err  error
}

func (r *reader) vote(now time.Time) Vote {
	var v Vote
	copy(v.Key[:], r.bytes(uint64(len(v.Key))))
	v.Origin = string(r.text("origin", MaxOrigin))
	v.Sequence = r.number("sequence", maxSequence)
	if state := r.bytes(1); len(state) == 1 {
		v.State = State(state[0])
	}
	v.Since = time.UnixMilli(int64(r.number("since", maxSince)))
	v.Repeat = time.Duration(r.number("time to its repetition", uint64(maxRepeat.Milliseconds()))) * time.Millisecond
	v.Heard = now.Add(-time.Duration(r.number("age", uint64(maxAge.Milliseconds()))) * time.Millisecond)
	v.Reason = string(r.text("reason", MaxReason))
	if r.err == nil {
		r.err = v.check()
	}
	return v
}

func (v Vote) check() error {
	switch {
	case v.Origin == "":
		return errors.New("it has no origin")
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
