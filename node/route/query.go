package route

import "bytes"

// parameter is the first value of that name in a query, as it came, and whether there is one. Parameters are separated by
// "&", and a name without "=" has an empty value (https://url.spec.whatwg.org/#urlencoded-parsing).
func parameter(query []byte, name string) (value []byte, there bool) {
	for len(query) > 0 {
		var pair []byte
		pair, query, _ = bytes.Cut(query, []byte("&"))
		key, value, _ := bytes.Cut(pair, []byte("="))
		if sameDecoded(key, name) {
			return value, len(pair) > 0
		}
	}
	return nil, false
}

// decodedAt is the character that stands at i of what is left of a query, and how long it is there: "+" is a space, and a "%"
// without two hexadecimal digits after it is itself.
func decodedAt(text []byte, i int) (c byte, length int) {
	switch {
	case text[i] == '+':
		return ' ', 1
	case text[i] == '%' && i+2 < len(text) && isHex(text[i+1]) && isHex(text[i+2]):
		return unhex(text[i+1])<<4 | unhex(text[i+2]), 3
	}
	return text[i], 1
}

// sameDecoded compares text with what it is to stand for.
func sameDecoded(text []byte, plain string) bool {
	i := 0
	for k := range len(plain) {
		if i == len(text) {
			return false
		}
		c, length := decodedAt(text, i)
		if c != plain[k] {
			return false
		}
		i += length
	}
	return i == len(text)
}

// decoded is text itself where it stands for itself, and allocates otherwise.
func decoded(text []byte) []byte {
	if !bytes.ContainsAny(text, "+%") {
		return text
	}
	out := make([]byte, 0, len(text))
	for i := 0; i < len(text); {
		c, length := decodedAt(text, i)
		out = append(out, c)
		i += length
	}
	return out
}
