package state

import (
	"bytes"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestExchangesComeBack(t *testing.T) {
	want := []Told{
		{Message: []byte("first"), Age: 1500 * time.Millisecond},
		{Message: bytes.Repeat([]byte("m"), maxTold)},
		{Message: []byte{}, Age: maxAge},
	}
	var b []byte
	for _, told := range want {
		b = AppendTold(b, told)
	}
	if got, err := DecodeTold(b); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%v came back as %v, %v", want, got, err)
	}
}

func TestAgesOutOfBoundsAreBrought(t *testing.T) {
	b := AppendTold(AppendTold(nil, Told{Age: -time.Second}), Told{Age: 10 * maxAge})
	if got, err := DecodeTold(b); err != nil || got[0].Age != 0 || got[1].Age != maxAge {
		t.Errorf("%v, %v", got, err)
	}
}

func TestExchangesThatAreNoneAreRefused(t *testing.T) {
	good := AppendTold(nil, Told{Message: []byte("message")})
	for want, b := range map[string][]byte{
		"empty":                           nil,
		"version: 1":                      {1},
		"cut off":                         good[:len(good)-1],
		"age of a message: it is cut":     {toldVersion, 0x80},
		"age of a message: it is more":    bytes.Join([][]byte{{toldVersion}, bytes.Repeat([]byte{0xff}, 11)}, nil),
		"length of a message: it is cut":  {toldVersion, 1},
		"length of a message: it is more": {toldVersion, 1, 0xff, 0x7f},
	} {
		if got, err := DecodeTold(b); err == nil || got != nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, %v", want, got, err)
		}
	}
}

func FuzzDecodeTold(f *testing.F) {
	f.Add(AppendTold(AppendTold(nil, Told{Message: []byte("message"), Age: time.Second}), Told{}))
	f.Add([]byte{toldVersion, 0x80, 1, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		told, err := DecodeTold(b)
		if err != nil || len(told) == 0 {
			return
		}
		var again []byte
		for _, told := range told {
			again = AppendTold(again, told)
		}
		if twice, err := DecodeTold(again); err != nil || !reflect.DeepEqual(told, twice) || len(again) > len(b) {
			t.Errorf("%x is read as %x: %v", b, again, err)
		}
	})
}
