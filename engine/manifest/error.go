package manifest

import "strings"

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
	if at := e.Pos.String(); at != "" {
		return at + ": " + s
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
