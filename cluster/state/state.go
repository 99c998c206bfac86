// Package state is the pure part of the cluster lane: who is a member, what each member says of itself, and how the
// sightings of the gossip layer become the list that a user reads.
//
// It owns the layout of the metadata that members carry (Facts), the names they go by on the wire, and the Roster. It
// has no clock, no goroutine, no lock and no I/O: whoever drives it passes the time in and keeps calls apart.
//
// Order of calls: NewRoster, then Merge with each complete sighting, and Members whenever someone asks.
package state

import (
	"cmp"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Role says what a member is for.
type Role uint8

// The roles. The zero Role is none.
const (
	RoleNode Role = iota + 1
	RoleControl
)

// String gives "node" or "control".
func (r Role) String() string {
	switch r {
	case RoleNode:
		return "node"
	case RoleControl:
		return "control"
	}
	return "unknown"
}

// Liveness is what the gossip layer believes of a member.
type Liveness uint8

// Alive takes part. Dead did not answer probes and did not object for some seconds. Left said goodbye.
// The zero Liveness is that of someone not listed.
const (
	Alive Liveness = iota + 1
	Dead
	Left
)

// String gives "alive", "dead" or "left".
func (l Liveness) String() string {
	switch l {
	case Alive:
		return "alive"
	case Dead:
		return "dead"
	case Left:
		return "left"
	}
	return "unknown"
}

// Gone tells whether the member no longer takes part: it is dead, or it left.
func (l Liveness) Gone() bool { return l == Dead || l == Left }

// Member is one line of the roster. It is a plain value and may be copied and compared.
type Member struct {
	// Name is unique among the members of one role.
	Name string
	Role Role
	// Address is the host:port that gossip reaches the member by.
	Address string
	State   Liveness
	// Facts are the last that were heard; of a member that is gone, those from before.
	Facts Facts
	// KeyMark is the beginning of the SHA-256 of the gossip key that the member encrypts with: it shows who has followed when
	// the key is changed. 0: of an older version.
	KeyMark uint16
	// Sequence is that of the metadata that Facts are from.
	Sequence uint64
	// Since is when this roster saw the member come into State.
	Since time.Time
}

// maxName is the longest name, as in a node's enrolment.
const maxName = 63

// CheckName tells why a name cannot be a member's, or nil.
func CheckName(name string) error {
	if name == "" {
		return errors.New("the name is empty")
	}
	if len(name) > maxName {
		return fmt.Errorf("the name has %d bytes, more than %d", len(name), maxName)
	}
	for i := range len(name) {
		if !nameByte(name[i], i == 0) {
			return fmt.Errorf("%q is not a name: write a-z A-Z 0-9 . _ - and begin with a letter or digit", name)
		}
	}
	return nil
}

func nameByte(b byte, first bool) bool {
	switch {
	case 'a' <= b && b <= 'z', 'A' <= b && b <= 'Z', '0' <= b && b <= '9':
		return true
	}
	return !first && (b == '.' || b == '_' || b == '-')
}

// WireName is the name under which gossip knows a member: "node:n1". Both kinds of daemon are named after their host
// unless told otherwise, and gossip keeps one member a name; so the role is part of it.
func WireName(role Role, name string) string { return role.String() + ":" + name }

// ParseWireName undoes WireName. Its input comes from the network.
func ParseWireName(wire string) (Role, string, error) {
	prefix, name, found := strings.Cut(wire, ":")
	if !found {
		return 0, "", errors.New("the name has no role before it")
	}
	if err := CheckName(name); err != nil {
		return 0, "", err
	}
	for _, role := range []Role{RoleNode, RoleControl} {
		if prefix == role.String() {
			return role, name, nil
		}
	}
	return 0, "", fmt.Errorf("%.20q is not a role", prefix)
}

// compare orders members by name and then by role.
func compare(a, b Member) int {
	return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Role, b.Role))
}
