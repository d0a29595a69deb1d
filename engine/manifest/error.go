package manifest

import (
	"cmp"
	"slices"
	"strings"
)

// Level says whether a problem keeps the app from starting.
type Level uint8

const (
	LevelError Level = iota
	LevelWarning
)

// String is the word printed between place and ID.
func (l Level) String() string {
	if l == LevelWarning {
		return "warning"
	}
	return "error"
}

// Error is one problem, in the user's coordinates. It prints as
//
//	file:line:column: error M012: operation "enrich" is not defined (did you mean "enriched"?)
type Error struct {
	Pos
	ID    string // stable; listed in docs/manifest-errors.md
	Level Level
	Text  string
	Hint  string // what to do about it; may be empty
}

func (e Error) Error() string {
	s := e.Level.String() + " " + e.ID + ": " + e.Text
	if e.Hint != "" {
		s += " (" + e.Hint + ")"
	}
	if at := e.Pos; at != (Pos{}) {
		s = at.String() + ": " + s
	}
	return s
}

// Errors is a list of problems as one error, one line each.
type Errors []Error

func (list Errors) Error() string {
	lines := make([]string, len(list))
	for i, e := range list {
		lines[i] = e.Error()
	}
	return strings.Join(lines, "\n")
}

// Fatal tells whether any problem is an error, not just a warning.
func (list Errors) Fatal() bool {
	for _, e := range list {
		if e.Level == LevelError {
			return true
		}
	}
	return false
}

// Sorted is the list in the order of the files read and of their lines; what stands in no file comes first.
func (list Errors) Sorted(files []string) Errors {
	sorted := slices.Clone(list)
	less := order(files)
	slices.SortStableFunc(sorted, func(a, b Error) int { return less(a.Pos, b.Pos) })
	return sorted
}

// order compares places by the order of the files, then by line.
func order(files []string) func(a, b Pos) int {
	rank := make(map[string]int, len(files))
	for i, file := range files {
		rank[file] = i + 1
	}
	return func(a, b Pos) int {
		return cmp.Or(cmp.Compare(rank[a.File], rank[b.File]), cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	}
}
