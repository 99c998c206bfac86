package state

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"
)

// Told is a message as a full exchange carries it: as its origin signed it, whoever passes it on.
type Told struct {
	// Message is what DecodeMessage reads.
	Message []byte
	// Age is how long ago it was said, by the word of who passes it on, in whole milliseconds. It takes the place of a date,
	// so that no two clocks need to agree.
	Age time.Duration
}

// The layout of a full exchange: the layout version, 2, and messages, each after its age in milliseconds and its length, both
// unsigned varints.
const (
	toldVersion = 2
	maxTold     = 1 << 10             // bytes of a message
	maxAge      = 30 * 24 * time.Hour // of what is passed on
)

// AppendTold adds a message to an exchange, which it begins where b is empty.
func AppendTold(b []byte, t Told) []byte {
	if len(b) == 0 {
		b = append(b, toldVersion)
	}
	b = binary.AppendUvarint(b, uint64(min(max(0, t.Age), maxAge).Milliseconds()))
	b = binary.AppendUvarint(b, uint64(len(t.Message)))
	return append(b, t.Message...)
}

// DecodeTold reads an exchange as it came from the network; the messages are parts of b. What they say is read by
// DecodeMessage.
func DecodeTold(b []byte) ([]Told, error) {
	if len(b) == 0 {
		return nil, errors.New("an exchange is empty")
	}
	if b[0] != toldVersion {
		return nil, fmt.Errorf("an exchange of another layout version: %d", b[0])
	}
	var told []Told
	for b = b[1:]; len(b) > 0; {
		age, rest, err := cutNumber(b, uint64(maxAge.Milliseconds()))
		if err != nil {
			return nil, fmt.Errorf("the age of a message: %w", err)
		}
		length, rest, err := cutNumber(rest, maxTold)
		if err != nil {
			return nil, fmt.Errorf("the length of a message: %w", err)
		}
		if length > uint64(len(rest)) {
			return nil, errCut
		}
		told = append(told, Told{Message: rest[:length:length], Age: time.Duration(age) * time.Millisecond})
		b = rest[length:]
	}
	return told, nil
}

// cutNumber takes off an unsigned varint.
func cutNumber(b []byte, most uint64) (number uint64, rest []byte, err error) {
	number, size := binary.Uvarint(b)
	switch {
	case size == 0:
		return 0, nil, errCut
	case size < 0 || number > most:
		return 0, nil, fmt.Errorf("it is more than %d", most)
	}
	return number, b[size:], nil
}
