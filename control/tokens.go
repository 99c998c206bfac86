package control

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/pyserve/pyserve/control/audit"
	"github.com/pyserve/pyserve/control/identity"
	"github.com/pyserve/pyserve/control/store"
)

// The files that the first start makes in the data directory and that hold a token.
const (
	JoinTokenFile    = "join-token"
	ControlTokenFile = "control-token"
)

// tokenFiles says which kind of token each file holds.
var tokenFiles = map[string]identity.TokenKind{JoinTokenFile: identity.TokenJoin, ControlTokenFile: identity.TokenControl}

// MaxTokenLifetime is how long a token that expires at all may be good.
const MaxTokenLifetime = 10 * 365 * 24 * time.Hour

// TokenRequest says what token is wanted.
type TokenRequest struct {
	Kind identity.TokenKind
	// TTL is how long it is good; 0: it does not expire.
	TTL time.Duration
	// Uses is how often it lets somebody in; 0: without limit.
	Uses uint64
	// Pattern says which names it lets in, "edge-*"; empty: any.
	Pattern string
	// Author is who asks.
	Author string
}

func (r TokenRequest) check() error {
	if r.TTL < 0 || r.TTL > MaxTokenLifetime || r.TTL > 0 && r.TTL < time.Second {
		return fmt.Errorf("%w: a token is good for 1s to %s, or, with 0, for ever", ErrInvalid, MaxTokenLifetime)
	}
	if err := store.CheckTokenPattern(r.Pattern); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return nil
}

// CreateToken makes a token. The token itself is in what is returned and nowhere else.
func (c *Control) CreateToken(ctx context.Context, r TokenRequest) (string, store.Token, error) {
	if err := r.check(); err != nil {
		return "", store.Token{}, err
	}
	token, record, err := c.authority.NewToken(r.Kind)
	if err != nil {
		return "", store.Token{}, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	stored := store.Token{
		ID: record.ID, Kind: record.Kind.String(), Hash: record.Hash, Created: record.Created,
		MaxUses: r.Uses, Pattern: r.Pattern, Author: r.Author,
	}
	if r.TTL > 0 {
		stored.Expires = record.Created.Add(r.TTL)
	}
	audit.Describe(ctx, "%s token %s, %s", stored.Kind, stored.ID, limits(stored))
	if err := c.store.PutToken(ctx, stored); err != nil {
		return "", store.Token{}, err
	}
	c.options.Logger.Info("made a token", "id", stored.ID, "kind", stored.Kind, "author", r.Author)
	return token, stored, nil
}

// limits says in words what bounds a token.
func limits(t store.Token) string {
	text := "for any name"
	if t.Pattern != "" {
		text = fmt.Sprintf("for names like %s", t.Pattern)
	}
	if t.MaxUses > 0 {
		text += fmt.Sprintf(", %d uses", t.MaxUses)
	}
	if t.Expires.IsZero() {
		return text + ", never expires"
	}
	return text + ", until " + t.Expires.UTC().Format(time.RFC3339)
}

// Tokens gives all tokens, in the order of their ids.
func (c *Control) Tokens() []store.Token { return c.store.Tokens() }

// TokenIsValid says whether a token would let somebody in now.
func (c *Control) TokenIsValid(t store.Token) bool {
	err := t.Admits(t.Kind, "", c.options.Now())
	return err == nil || errors.Is(err, store.ErrTokenName)
}

// RevokeToken has a token let nobody in from now on. It gives what it was, and which of this control's files holds it;
// empty: none. The file is made anew at the next start: then there is always one that works. It fails with
// [store.ErrTokenGone].
func (c *Control) RevokeToken(ctx context.Context, id string) (revoked store.Token, file string, err error) {
	audit.Describe(ctx, "token %.80q", id)
	revoked, known := c.store.Token(id)
	if !known {
		return store.Token{}, "", fmt.Errorf("token %.80q: %w", id, store.ErrTokenGone)
	}
	audit.Describe(ctx, "%s token %s", revoked.Kind, id)
	if err := c.store.RemoveToken(ctx, id); err != nil {
		return store.Token{}, "", err
	}
	c.options.Logger.Info("revoked a token", "id", id, "kind", revoked.Kind)
	for name := range tokenFiles {
		path := filepath.Join(c.options.DataDir, name)
		if data, err := os.ReadFile(path); err == nil && identity.TokenID(string(data)) == id {
			file = path
		}
	}
	return revoked, file, nil
}

// token gives what is known of a token, for [identity.CheckToken].
func (c *Control) token(id string) (identity.TokenRecord, bool) {
	stored, ok := c.store.Token(id)
	if !ok {
		return identity.TokenRecord{}, false
	}
	kind, err := identity.ParseTokenKind(stored.Kind)
	return identity.TokenRecord{ID: stored.ID, Kind: kind, Hash: stored.Hash, Created: stored.Created}, err == nil
}

// redeem lets somebody in by a token whose secret was checked: it counts the use and, where the token is for nodes,
// registers the node. What the store would refuse is refused before, where this control knows it: a token that lets
// nobody in must not cost a write.
func (c *Control) redeem(ctx context.Context, token string, kind identity.TokenKind, n store.Node) error {
	id := identity.TokenID(token)
	known, ok := c.store.Node(n.Name)
	again := ok && known.KeyHash == n.KeyHash && known.Token == id // its answer got lost
	if stored, ok := c.store.Token(id); ok && !again {
		if err := stored.Admits(kind.String(), n.Name, n.Enrolled); err != nil {
			return err
		}
	}
	return c.store.UseToken(ctx, id, kind.String(), n, store.RequestID{})
}

// redeemOnce is redeem for a control, which is no node: that it asks again, since its way in failed further on, its request
// says. It may be let in by the use that was counted then, as long as the token is good for its name.
func (c *Control) redeemOnce(ctx context.Context, token string, n store.Node, asked []byte) error {
	wish, err := store.ParseRequestID(asked)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	id := identity.TokenID(token)
	stored, ok := c.store.Token(id)
	if !ok {
		return fmt.Errorf("token %.80q: %w", id, store.ErrTokenGone)
	}
	var request store.RequestID
	if wish != (store.RequestID{}) {
		// Not what was asked with: an operator chooses the request id of an apply, and knows of no token.
		sum := sha256.Sum256(slices.Concat([]byte("join"), []byte(id), stored.Hash[:], wish[:]))
		copy(request[:], sum[:])
		if _, again := c.store.Result(request); again {
			stored.MaxUses = 0
			return stored.Admits(identity.TokenControl.String(), n.Name, n.Enrolled)
		}
	}
	if err := stored.Admits(identity.TokenControl.String(), n.Name, n.Enrolled); err != nil {
		return err
	}
	return c.store.UseToken(ctx, id, identity.TokenControl.String(), n, request)
}

// makeTokens makes the token files that are missing or hold no token that works. A token is registered before its file
// appears, so that a file always holds one that works.
func (c *Control) makeTokens(ctx context.Context) error {
	for file, kind := range tokenFiles {
		if err := c.makeToken(ctx, filepath.Join(c.options.DataDir, file), kind); err != nil {
			return err
		}
	}
	return nil
}

func (c *Control) makeToken(ctx context.Context, path string, kind identity.TokenKind) error {
	data, err := os.ReadFile(path)
	there := err == nil
	if !there && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("look for the token: %w", err)
	}
	current := strings.TrimSpace(string(data))
	wrong := identity.CheckToken(current, kind, c.token)
	if there && wrong == nil {
		return nil
	}
	ctx, _ = audit.Begin(ctx, c.options.Name, identity.RoleControl.String(), "", "Start")
	token, _, err := c.CreateToken(ctx, TokenRequest{Kind: kind, Author: "control " + c.options.Name})
	if err != nil {
		return fmt.Errorf("register the token of %s: %w", path, err)
	}
	if there {
		c.tellStale(path, identity.TokenID(current), wrong)
	}
	return identity.WriteSecret(path, []byte(token+"\n"))
}

// tellStale says why a token file is made anew, and sets it aside where its token was not simply revoked.
func (c *Control) tellStale(path, id string, wrong error) {
	_, known := c.store.Token(id)
	switch {
	case !errors.Is(wrong, identity.ErrTokenUnknown):
		c.setAside(path, wrong.Error())
	case known:
		c.setAside(path, "its secret is not that of token "+id)
	default:
		c.options.Logger.Info("the token in a file of the data directory is not known any more; the file is made anew", "file", path, "id", id)
	}
}
