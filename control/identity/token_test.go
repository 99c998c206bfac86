package identity

import (
	"errors"
	"strings"
	"testing"
)

// book is the records that a control remembers.
func book(records ...TokenRecord) func(string) (TokenRecord, bool) {
	return func(id string) (TokenRecord, bool) {
		for _, r := range records {
			if r.ID == id {
				return r, true
			}
		}
		return TokenRecord{}, false
	}
}

func TestTokenIsTakenByWhoMadeIt(t *testing.T) {
	a := open(t, t.TempDir())
	for _, kind := range []TokenKind{TokenJoin, TokenControl} {
		token, record, err := a.NewToken(kind)
		if err != nil {
			t.Fatal(err)
		}
		if err := CheckToken(token, kind, book(record)); err != nil {
			t.Errorf("%s: %v", kind, err)
		}
		if strings.Contains(token, string(record.Hash[:])) || len(strings.Fields(token)) != 1 {
			t.Errorf("the token is %q", token)
		}
		back, err := ParseTokenKind(kind.String())
		if err != nil || back != kind {
			t.Errorf("%s is read as %v, %v", kind, back, err)
		}
	}
	if _, _, err := a.NewToken(0); err == nil {
		t.Error("a token of no kind was made")
	}
	if _, err := ParseTokenKind(""); err == nil {
		t.Error("the empty kind was read")
	}
}

func TestTokenOfTheOtherKindIsRefused(t *testing.T) {
	a := open(t, t.TempDir())
	join, record, _ := a.NewToken(TokenJoin)
	if err := CheckToken(join, TokenControl, book(record)); !errors.Is(err, ErrTokenKind) {
		t.Errorf("got %v", err)
	}
	// The prefix is the bearer's to change; the record is not.
	if err := CheckToken("psc1"+join[4:], TokenControl, book(record)); !errors.Is(err, ErrTokenKind) {
		t.Errorf("got %v", err)
	}
}

func TestUnknownTokenIsRefused(t *testing.T) {
	a := open(t, t.TempDir())
	token, record, _ := a.NewToken(TokenJoin)
	other, otherRecord, _ := a.NewToken(TokenJoin)
	parts, otherParts := strings.Split(token, "."), strings.Split(other, ".")
	mixed := strings.Join([]string{parts[0], parts[1], otherParts[2], parts[3]}, ".")
	zero := TokenRecord{ID: parts[1], Kind: TokenJoin}
	for name, err := range map[string]error{
		"no record":      CheckToken(token, TokenJoin, book()),
		"another record": CheckToken(token, TokenJoin, book(otherRecord)),
		"another secret": CheckToken(mixed, TokenJoin, book(record, otherRecord)),
		"empty record":   CheckToken(token, TokenJoin, book(zero)),
	} {
		if !errors.Is(err, ErrTokenUnknown) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestMalformedTokenIsRefused(t *testing.T) {
	a := open(t, t.TempDir())
	token, record, _ := a.NewToken(TokenJoin)
	parts := strings.Split(token, ".")
	for _, bad := range []string{
		"", ".", "...", token + ".", token + "\n", " " + token, token[:len(token)-1], "psx1" + token[4:],
		strings.Join([]string{parts[0], "", parts[2], parts[3]}, "."),
		strings.Join([]string{parts[0], parts[1], parts[2] + "=", parts[3]}, "."),
		strings.Join([]string{parts[0], parts[1], parts[2][:40], parts[3]}, "."),
		strings.Repeat("a", 1<<20),
	} {
		if err := CheckToken(bad, TokenJoin, book(record)); !errors.Is(err, ErrTokenMalformed) {
			t.Errorf("%.80q: got %v", bad, err)
		}
	}
}

func FuzzCheckToken(f *testing.F) {
	a := open(f, f.TempDir())
	token, record, _ := a.NewToken(TokenJoin)
	f.Add(token)
	f.Add("psc1.a.b.c")
	secret := strings.Split(token, ".")[2]
	f.Fuzz(func(t *testing.T, s string) {
		if err := CheckToken(s, TokenJoin, book(record)); err == nil && !strings.Contains(s, secret) {
			t.Fatalf("%q was taken", s)
		}
	})
}
