package state

// maxKeysHeard is how many keys of one origin are remembered.
const maxKeysHeard = 4096

// Ledger remembers the latest message of each origin, topic and key, so that each is news once however often it comes.
// It is not safe for concurrent use.
type Ledger struct {
	origins map[Origin]map[subject]uint64
}

type subject struct {
	topic Topic
	key   string
}

// NewLedger makes an empty ledger.
func NewLedger() *Ledger { return &Ledger{origins: make(map[Origin]map[subject]uint64)} }

// IsNews tells whether nothing as late was noted of the message's origin, topic and key.
func (l *Ledger) IsNews(m Message) bool {
	last, known := l.origins[m.Origin][subject{m.Topic, m.Key}]
	return !known || m.Sequence > last
}

// Note remembers a message. Of an origin with too many keys the one that was quiet for the longest is forgotten.
func (l *Ledger) Note(m Message) {
	heard := l.origins[m.Origin]
	if heard == nil {
		heard = make(map[subject]uint64)
		l.origins[m.Origin] = heard
	}
	heard[subject{m.Topic, m.Key}] = m.Sequence
	if len(heard) > maxKeysHeard {
		forgetQuietest(heard)
	}
}

func forgetQuietest(heard map[subject]uint64) {
	var quietest subject
	lowest := ^uint64(0)
	for s, sequence := range heard {
		if sequence <= lowest {
			quietest, lowest = s, sequence
		}
	}
	delete(heard, quietest)
}

// Forget drops all that is remembered of an origin.
func (l *Ledger) Forget(o Origin) { delete(l.origins, o) }

// Len counts what is remembered.
func (l *Ledger) Len() (n int) {
	for _, heard := range l.origins {
		n += len(heard)
	}
	return n
}
