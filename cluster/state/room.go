package state

import "math/bits"

// Room is for how many more connections a member has room, in powers of two: it is in the metadata, which goes to everybody with
// each change. The zero Room is that of a member that does not say.
type Room uint8

// mostRoom fills the bits that metadata has for it.
const mostRoom Room = 31

// AtLeast is how many connections there is room for; told is false for the zero Room.
func (r Room) AtLeast() (n int, told bool) {
	switch r {
	case 0:
		return 0, false
	case 1:
		return 0, true
	}
	return 1 << (r - 2), true
}

// Next is what a member that has said r says when it has room for n connections, 0 or less for none. It says less at once, and
// more only when there is twice as much as that: a member at a power of two would not be quiet otherwise.
func (r Room) Next(n int) Room {
	now := min(Room(bits.Len(uint(max(n, 0)))+1), mostRoom)
	if r == 0 || now < r || now > r+1 || now == mostRoom {
		return now
	}
	return r
}
