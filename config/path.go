package config

import (
	"errors"
	"fmt"
	"regexp/syntax"
	"strings"
)

const (
	// longestPath is how many bytes the path of a route may have.
	longestPath = 4 << 10
	// longestExpression is how many bytes a regular expression may have.
	longestExpression = 1 << 10
	// largestExpression is how many instructions one regular expression may compile to, and largestExpressions how many
	// all of a document may: a few bytes such as (x{99}){99} can stand for a great many, and every node holds them all.
	largestExpression, largestExpressions = 10_000, 1_000_000
)

// checkPath gives the path of a prefix or exact route in the form that requests are matched in. A path in another form
// would never match, or be taken for one that it is not, and so is an error that says the right form. Only the slash at
// the end of a prefix is taken off without a word: "/api/" and "/api" are one prefix.
func checkPath(text string, prefix bool) (string, error) {
	switch {
	case text == "":
		return "", errors.New(`nothing stands here: write a path that begins with "/"`)
	case len(text) > longestPath:
		return "", fmt.Errorf("the path has %d bytes: write at most %d", len(text), longestPath)
	case text[0] != '/' && strings.Contains(text, "://"):
		return "", fmt.Errorf(`%s is a URL: write its path alone, such as "/api"`, quote(text))
	case strings.HasPrefix(text, "~"):
		return "", fmt.Errorf("%s does not begin with \"/\": for a regular expression write match: regex and the expression as path", quote(text))
	case text[0] != '/':
		return "", fmt.Errorf("%s does not begin with \"/\": write %s", quote(text), quote("/"+text))
	case strings.ContainsAny(text, "?#"):
		return "", fmt.Errorf("%s has more than a path: write %s", quote(text), quote(text[:strings.IndexAny(text, "?#")]))
	}
	normal, err := normalPath(text)
	if err != nil {
		return "", err
	}
	if prefix && len(text) > 1 {
		text = strings.TrimSuffix(text, "/")
		normal = strings.TrimRight(normal, "/")
		if normal == "" {
			normal = "/"
		}
	}
	if normal != text {
		return "", fmt.Errorf("%s is not in the form that requests are matched in: write %s", quote(text), quote(normal))
	}
	return normal, nil
}

// normalPath brings a path into the form that requests are matched in: dot segments resolved (RFC 3986 section 5.2.4),
// percent-encodings undone where they stand for unreserved characters and in upper case otherwise (section 6.2.2), what
// may not stand in a path encoded. Empty segments stay.
func normalPath(text string) (string, error) {
	encoded, err := normalEncoding(text)
	if err != nil {
		return "", err
	}
	var kept []string
	segments := strings.Split(encoded[1:], "/")
	for i, segment := range segments {
		switch segment {
		case ".", "..":
			if segment == ".." {
				if len(kept) == 0 {
					return "", fmt.Errorf(`%s climbs above "/": write it without ".."`, quote(text))
				}
				kept = kept[:len(kept)-1]
			}
			if i == len(segments)-1 {
				kept = append(kept, "")
			}
		default:
			kept = append(kept, segment)
		}
	}
	return "/" + strings.Join(kept, "/"), nil
}

func normalEncoding(text string) (string, error) {
	const upperHex = "0123456789ABCDEF"
	var b strings.Builder
	for i := 0; i < len(text); i++ {
		c := text[i]
		switch {
		case c == '%':
			decoded, ok := unhex(text[i+1:])
			if !ok {
				return "", fmt.Errorf(`%s has a "%%" that is no percent-encoding: write %%25 for a percent sign`, quote(text))
			}
			i += 2
			if isUnreserved(decoded) {
				b.WriteByte(decoded)
			} else {
				b.Write([]byte{'%', upperHex[decoded>>4], upperHex[decoded&0xF]})
			}
		case c < ' ' || c == 0x7F:
			return "", fmt.Errorf("%s has a control character: leave it out", quote(text))
		case isUnreserved(c) || strings.IndexByte("/:@!$&'()*+,;=", c) >= 0:
			b.WriteByte(c)
		default:
			b.Write([]byte{'%', upperHex[c>>4], upperHex[c&0xF]})
		}
	}
	return b.String(), nil
}

// unhex reads two hexadecimal digits.
func unhex(text string) (byte, bool) {
	if len(text) < 2 {
		return 0, false
	}
	var n byte
	for _, c := range []byte(text[:2]) {
		switch {
		case c >= '0' && c <= '9':
			n = n<<4 | (c - '0')
		case c|0x20 >= 'a' && c|0x20 <= 'f':
			n = n<<4 | ((c | 0x20) - 'a' + 10)
		default:
			return 0, false
		}
	}
	return n, true
}

// isUnreserved: RFC 3986 section 2.3.
func isUnreserved(c byte) bool {
	return c >= '0' && c <= '9' || c|0x20 >= 'a' && c|0x20 <= 'z' || strings.IndexByte("-._~", c) >= 0
}

// checkExpression checks a regular expression and gives how many instructions it compiles to, about.
func checkExpression(text string) (int, error) {
	switch {
	case text == "":
		return 0, errors.New(`nothing stands here: write an expression such as "^/v[0-9]+/"`)
	case len(text) > longestExpression:
		return 0, fmt.Errorf("the expression has %d bytes: write at most %d", len(text), longestExpression)
	case strings.ContainsFunc(text, func(c rune) bool { return c < ' ' || c == 0x7F }):
		return 0, fmt.Errorf(`%s has a control character: write it as an escape such as \n`, quote(text))
	}
	parsed, err := syntax.Parse(text, syntax.Perl)
	if err != nil {
		reason := err.Error()
		if e, ok := errors.AsType[*syntax.Error](err); ok {
			reason = fmt.Sprintf("%s in %s", e.Code, quote(e.Expr))
		}
		return 0, fmt.Errorf("%s is not a regular expression (RE2): %s", quote(text), reason)
	}
	size := expressionSize(parsed)
	if size > largestExpression {
		return 0, fmt.Errorf("%s stands for more than %d steps: write smaller repetitions", quote(text), largestExpression)
	}
	return size, nil
}

// expressionSize counts the instructions that an expression compiles to, repetitions written out, without compiling it:
// that alone could take all memory. The parser bounds repetitions so that the sum does not overflow.
func expressionSize(e *syntax.Regexp) int {
	inner := 0
	for _, sub := range e.Sub {
		inner += expressionSize(sub)
	}
	switch e.Op {
	case syntax.OpLiteral:
		return len(e.Rune)
	case syntax.OpRepeat: // Max is -1 where there is none: then the last repetition becomes a loop
		return inner*max(e.Max, e.Min) + 1
	}
	return inner + 1
}
