package config

import (
	"strings"
)

// nearest gives the candidate that the writer most likely meant by word, the first of several that are as near. It is
// empty where none is near: at most a third of the letters may differ, and never more than three.
func nearest(word string, candidates []string) string {
	const longest = 64 // no key is longer, and the distance costs the product of both lengths
	if len(word) > longest {
		return ""
	}
	word = fold(word)
	best, bestDistance := "", max(1, min(3, len(word)/3))+1
	for _, candidate := range candidates {
		if d := distance(word, fold(candidate)); d < bestDistance {
			best, bestDistance = candidate, d
		}
	}
	return best
}

// fold removes the differences that do not count as letters: case, and how words are joined.
func fold(word string) string {
	return strings.Map(func(c rune) rune {
		if c == '-' || c == '_' || c == ' ' {
			return -1
		}
		return c
	}, strings.ToLower(word))
}

// distance counts the insertions, deletions, replacements and swaps of neighbours that make b of a (optimal string
// alignment).
func distance(a, b string) int {
	before, last, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			substitution := last[j-1]
			if a[i-1] != b[j-1] {
				substitution++
			}
			row[j] = min(last[j]+1, row[j-1]+1, substitution)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, last, row = last, row, before
	}
	return last[len(b)]
}

// oneOf gives "prefix, exact or regex".
func oneOf(words []string) string {
	if len(words) < 2 {
		return strings.Join(words, "")
	}
	return strings.Join(words[:len(words)-1], ", ") + " or " + words[len(words)-1]
}
