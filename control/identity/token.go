package identity

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"
)

// TokenKind is what a token lets its bearer become. The zero value is none.
type TokenKind uint8

// The kinds there are.
const (
	// TokenJoin makes a node.
	TokenJoin TokenKind = iota + 1
	// TokenControl makes a further control.
	TokenControl
)

var (
	tokenKindNames = [...]string{TokenJoin: "join", TokenControl: "control"}
	tokenPrefixes  = [...]string{TokenJoin: "psj1", TokenControl: "psc1"}
)

// String is the kind's name, for records and people.
func (k TokenKind) String() string {
	if k == 0 || int(k) >= len(tokenKindNames) {
		return fmt.Sprintf("token kind %d", uint8(k))
	}
	return tokenKindNames[k]
}

// ParseTokenKind reads what String wrote.
func ParseTokenKind(s string) (TokenKind, error) {
	for k, name := range tokenKindNames {
		if k > 0 && s == name {
			return TokenKind(k), nil
		}
	}
	return 0, fmt.Errorf("%.40q is no kind of token", s)
}

// TokenRecord is what control remembers of a token: not enough to make it again.
type TokenRecord struct {
	ID   string
	Kind TokenKind
	// Hash is the SHA-256 of the secret's 32 bytes.
	Hash    [32]byte
	Created time.Time
}

// Why a token is not taken.
var (
	ErrTokenMalformed = errors.New("the token is malformed: it must be the whole line of the join-token or control-token file")
	ErrTokenUnknown   = errors.New("the token is not one of this cluster, or was revoked")
	ErrTokenKind      = errors.New("a node's token never makes a control, nor a control's token a node")
)

const (
	secretBytes = 32
	maxToken    = 256
)

// NewToken makes a token, "PREFIX.ID.SECRET.PIN" where PREFIX is psj1 for a node and psc1 for a control and PIN is the
// SHA-256 of the authority's certificate, hexadecimal, by which the bearer knows the right cluster.
func (a *Authority) NewToken(kind TokenKind) (string, TokenRecord, error) {
	if kind == 0 || int(kind) >= len(tokenPrefixes) {
		return "", TokenRecord{}, fmt.Errorf("there is no %s", kind)
	}
	id, secret := make([]byte, 6), make([]byte, secretBytes)
	rand.Read(id) // never fails: crypto/rand ends the process instead
	rand.Read(secret)
	record := TokenRecord{ID: hex.EncodeToString(id), Kind: kind, Hash: sha256.Sum256(secret), Created: a.now().UTC()}
	pin := a.AuthorityHash()
	token := strings.Join([]string{
		tokenPrefixes[kind], record.ID, base64.RawURLEncoding.EncodeToString(secret), hex.EncodeToString(pin[:]),
	}, ".")
	return token, record, nil
}

// CheckToken says whether the token is one that lookup knows, of the wanted kind. Its errors are [ErrTokenMalformed],
// [ErrTokenUnknown] and [ErrTokenKind]. How long it takes tells nothing about the secret.
func CheckToken(token string, want TokenKind, lookup func(id string) (TokenRecord, bool)) error {
	kind, id, secret, err := parseToken(token)
	if err != nil {
		return err
	}
	if kind != want {
		return ErrTokenKind
	}
	record, known := lookup(id)
	hash := sha256.Sum256(secret)
	same := subtle.ConstantTimeCompare(hash[:], record.Hash[:]) == 1
	switch {
	case !known || !same:
		return ErrTokenUnknown
	case record.Kind != want:
		return ErrTokenKind
	}
	return nil
}

// TokenID gives the id in a token, which is no secret; empty where it is none.
func TokenID(token string) string {
	_, id, _, err := parseToken(strings.TrimSpace(token))
	if err != nil {
		return ""
	}
	return id
}

func parseToken(token string) (kind TokenKind, id string, secret []byte, err error) {
	parts := strings.Split(token[:min(len(token), maxToken)], ".")
	if len(token) > maxToken || len(parts) != 4 {
		return 0, "", nil, ErrTokenMalformed
	}
	for k, prefix := range tokenPrefixes {
		if k > 0 && parts[0] == prefix {
			kind = TokenKind(k)
		}
	}
	secret, err = base64.RawURLEncoding.Strict().DecodeString(parts[2])
	pin, pinErr := hex.DecodeString(parts[3])
	if kind == 0 || parts[1] == "" || err != nil || len(secret) != secretBytes || pinErr != nil || len(pin) != sha256.Size {
		return 0, "", nil, ErrTokenMalformed
	}
	return kind, parts[1], secret, nil
}
