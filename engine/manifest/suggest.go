package manifest

import (
	"slices"
	"strings"
)

// Suggest is the candidate the user most likely meant by word, or "" when none is near.
func Suggest(word string, candidates []string) string {
	best, bestDistance := "", tolerance(word)+1
	for _, c := range candidates {
		if strings.EqualFold(word, c) {
			return c
		}
		if d := distance(strings.ToLower(word), strings.ToLower(c), bestDistance); d < bestDistance {
			best, bestDistance = c, d
		}
	}
	return best
}

// tolerance is how many edits a word of this length may be away from what was meant.
func tolerance(word string) int {
	switch n := len([]rune(word)); {
	case n < 3:
		return 0
	case n < 5:
		return 1
	case n < 9:
		return 2
	default:
		return 3
	}
}

// distance counts insertions, deletions, replacements and swaps of neighbours between a and b (optimal string
// alignment); anything at or above limit may be returned as limit.
func distance(a, b string, limit int) int {
	s, t := []rune(a), []rune(b)
	if len(s)-len(t) >= limit || len(t)-len(s) >= limit {
		return limit
	}
	before, previous, current := make([]int, len(t)+1), make([]int, len(t)+1), make([]int, len(t)+1)
	for j := range previous {
		previous[j] = j
	}
	for i := 1; i <= len(s); i++ {
		current[0] = i
		for j := 1; j <= len(t); j++ {
			cost := 1
			if s[i-1] == t[j-1] {
				cost = 0
			}
			current[j] = min(previous[j]+1, current[j-1]+1, previous[j-1]+cost)
			if i > 1 && j > 1 && s[i-1] == t[j-2] && s[i-2] == t[j-1] {
				current[j] = min(current[j], before[j-2]+1)
			}
		}
		before, previous, current = previous, current, before
	}
	return previous[len(t)]
}

// didYouMean is the hint for a word that is not among the candidates: the nearest one, else all of a short list.
func didYouMean(word string, candidates []string) string {
	if s := Suggest(word, candidates); s != "" {
		return `did you mean "` + s + `"?`
	}
	known := slices.Compact(slices.Clone(candidates))
	if len(known) > 0 && len(known) <= 12 {
		return "known: " + strings.Join(known, ", ")
	}
	return ""
}
