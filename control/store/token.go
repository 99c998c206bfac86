package store

import (
	"context"
	"errors"
	"fmt"
	"path"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	storev1 "github.com/pyserve/pyserve/proto/pyserve/store/v1"
)

// Token is what is remembered of a token: who knows the hash cannot make it again.
type Token struct {
	ID   string
	Kind string
	// Hash is the SHA-256 of its secret.
	Hash    [32]byte
	Created time.Time
	// Expires is from when on it lets nobody in; zero: it does not expire.
	Expires time.Time
	// MaxUses is how often it lets somebody in, 0 without limit, and Uses how often it has.
	MaxUses, Uses uint64
	// Pattern says which names it lets in, as package path's Match reads it; empty: any.
	Pattern string
	// Author is who made it.
	Author string
}

// Why a token lets somebody not in.
var (
	// ErrTokenGone says that there is no such token, any more or at all.
	ErrTokenGone = errors.New("there is no such token; it may have been revoked")
	// ErrTokenExpired says that a token's time is over.
	ErrTokenExpired = errors.New("the token has expired")
	// ErrTokenUsedUp says that a token has let in as many as it may.
	ErrTokenUsedUp = errors.New("the token is used up")
	// ErrTokenName says that a token is not for this name.
	ErrTokenName = errors.New("the token is not for this name")
	// ErrTokenKind says that a token is for something else.
	ErrTokenKind = errors.New("the token is of another kind")
)

// tokenMemory is how long a token is remembered after it has expired, so that who asks why it lets nobody in is told.
const tokenMemory = 7 * 24 * time.Hour

// Admits says whether the token lets somebody of that name in at that moment; its errors say why not, and are those
// above.
func (t *Token) Admits(kind, name string, at time.Time) error {
	if t.Kind != kind {
		return ErrTokenKind
	}
	if !t.Expires.IsZero() && !at.Before(t.Expires) {
		return fmt.Errorf("%w: it was good until %s", ErrTokenExpired, t.Expires.UTC().Format(time.RFC3339))
	}
	if t.MaxUses > 0 && t.Uses >= t.MaxUses {
		return fmt.Errorf("%w: it was for %d", ErrTokenUsedUp, t.MaxUses)
	}
	if t.Pattern == "" {
		return nil
	}
	if fits, err := path.Match(t.Pattern, name); err != nil || !fits {
		return fmt.Errorf("%w: it is for names like %s, not for %.80q", ErrTokenName, t.Pattern, name)
	}
	return nil
}

// CheckTokenPattern says whether a token may have the pattern.
func CheckTokenPattern(pattern string) error {
	if len(pattern) > maxNameBytes {
		return fmt.Errorf("a pattern of names has at most %d bytes", maxNameBytes)
	}
	if _, err := path.Match(pattern, ""); err != nil {
		return fmt.Errorf("the pattern %q cannot be read: %w", pattern, err)
	}
	return nil
}

func (t *Token) toProto() *storev1.Token {
	m := &storev1.Token{
		Id: t.ID, Kind: t.Kind, Hash: t.Hash[:], Created: timestamppb.New(t.Created),
		MaxUses: t.MaxUses, Uses: t.Uses, Pattern: t.Pattern, Author: t.Author,
	}
	if !t.Expires.IsZero() {
		m.Expires = timestamppb.New(t.Expires)
	}
	return m
}

func tokenFrom(m *storev1.Token) (t Token, err error) {
	t = Token{
		ID: m.GetId(), Kind: m.GetKind(), MaxUses: m.GetMaxUses(), Uses: m.GetUses(), Pattern: m.GetPattern(), Author: m.GetAuthor(),
	}
	if t.Hash, err = hashFrom(m.GetHash()); err != nil {
		return Token{}, fmt.Errorf("the token's hash: %w", err)
	}
	if t.Created, err = timeFrom(m.GetCreated()); err != nil {
		return Token{}, err
	}
	if m.GetExpires() != nil {
		if t.Expires, err = timeFrom(m.GetExpires()); err != nil {
			return Token{}, err
		}
	}
	if len(t.Author) > maxNameBytes {
		return Token{}, fmt.Errorf("the name of the token's author is longer than %d bytes", maxNameBytes)
	}
	return t, errors.Join(checkName("the token's id", t.ID), checkName("the token's kind", t.Kind), CheckTokenPattern(t.Pattern))
}

// putToken keeps a token, and forgets those that expired long before it was made.
func (s *state) putToken(t Token) error {
	if err := put(s.tokens, t.ID, t); err != nil {
		return err
	}
	for id, old := range s.tokens {
		if !old.Expires.IsZero() && t.Created.After(old.Expires.Add(tokenMemory)) {
			delete(s.tokens, id)
		}
	}
	return nil
}

func (s *state) removeToken(c *storev1.RemoveToken) error {
	if _, known := s.tokens[c.GetId()]; !known {
		return ErrTokenGone
	}
	delete(s.tokens, c.GetId())
	return nil
}

// useToken counts a use and registers the node that came by it. That both are one command is what keeps two that come
// at once by a token for one from both being let in.
func (s *state) useToken(c *storev1.UseToken) error {
	at, err := timeFrom(c.GetAt())
	if err != nil {
		return err
	}
	newcomer, err := nodeFrom(&storev1.Node{Name: c.GetName(), KeyHash: c.GetKeyHash(), Enrolled: c.GetAt(), Token: c.GetId()})
	if err != nil {
		return err
	}
	t, known := s.tokens[c.GetId()]
	if !known {
		return ErrTokenGone
	}
	if known, ok := s.nodes[newcomer.Name]; ok && known.KeyHash == newcomer.KeyHash && known.Token == t.ID && t.Kind == c.GetKind() {
		return nil // it asks again, since the answer got lost
	}
	if err := t.Admits(c.GetKind(), newcomer.Name, at); err != nil {
		return err
	}
	if c.GetKind() == TokenForNodes {
		if err := put(s.nodes, newcomer.Name, newcomer); err != nil {
			return err
		}
	}
	t.Uses++
	s.tokens[t.ID] = t
	return nil
}

// TokenForNodes is the kind of token whose use registers a node.
const TokenForNodes = "join"

// PutToken remembers a token, in the place of what was remembered under its id.
func (s *Store) PutToken(ctx context.Context, t Token) error {
	c := &storev1.Command{Action: &storev1.Command_PutToken{PutToken: &storev1.PutToken{Token: t.toProto()}}}
	if err := s.write(ctx, c); err != nil {
		return fmt.Errorf("remember token %.80q: %w", t.ID, err)
	}
	return nil
}

// RemoveToken forgets a token. It fails with [ErrTokenGone] where there is none.
func (s *Store) RemoveToken(ctx context.Context, id string) error {
	c := &storev1.Command{Action: &storev1.Command_RemoveToken{RemoveToken: &storev1.RemoveToken{Id: id}}}
	if err := s.write(ctx, c); err != nil {
		return fmt.Errorf("forget token %.80q: %w", id, err)
	}
	return nil
}

// UseToken lets somebody in by a token, whose secret the caller has checked: a node, where the token is for nodes, is
// registered with its name and key hash, in the place of what was registered under its name. Of two that come at once
// by a token for one, one is let in. A request that is not zero names the wish: asking again with it counts no other use. It
// fails with the errors of [Token.Admits] and with [ErrTokenGone].
func (s *Store) UseToken(ctx context.Context, id, kind string, n Node, request RequestID) error {
	c := &storev1.Command{Action: &storev1.Command_UseToken{UseToken: &storev1.UseToken{
		Id: id, Kind: kind, Name: n.Name, KeyHash: n.KeyHash[:], At: timestamppb.New(n.Enrolled),
	}}}
	if request != (RequestID{}) {
		c.RequestId = request[:]
	}
	if err := s.write(ctx, c); err != nil {
		return fmt.Errorf("let %.80q in by token %.80q: %w", n.Name, id, err)
	}
	return nil
}

// Tokens gives every token that is remembered, in the order of their ids.
func (s *Store) Tokens() []Token {
	s.machine.mu.RLock()
	defer s.machine.mu.RUnlock()
	return sorted(s.machine.state.tokens)
}

// Token gives the token of that id.
func (s *Store) Token(id string) (Token, bool) {
	s.machine.mu.RLock()
	defer s.machine.mu.RUnlock()
	t, ok := s.machine.state.tokens[id]
	return t, ok
}
