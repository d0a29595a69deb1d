package manifest

import "strconv"

// Pos is a place in a file. Line and Column count from 1; Line 0 means the file as a whole.
type Pos struct {
	File   string
	Line   int
	Column int
}

// String is file:line:column, as editors and terminals understand it.
func (p Pos) String() string {
	if p.Line == 0 {
		return p.File
	}
	s := p.File + ":" + strconv.Itoa(p.Line)
	if p.Column > 0 {
		s += ":" + strconv.Itoa(p.Column)
	}
	return s
}

// Value is one scalar of a manifest and where it stands. The zero Value is a member that was not written.
type Value[T any] struct {
	V   T
	Pos Pos
}

// At makes a Value that stands at p, for tests and for defaults that borrow a place.
func At[T any](v T, p Pos) Value[T] { return Value[T]{V: v, Pos: p} }

// Set tells whether the member was written.
func (v Value[T]) Set() bool { return v.Pos != Pos{} }

// Or is the value, or the default for a member that was not written.
func (v Value[T]) Or(otherwise T) T {
	if v.Set() {
		return v.V
	}
	return otherwise
}

// Entry is one member of a free map from text to text.
type Entry struct {
	Key   Value[string]
	Value Value[string]
}

// Texts is the map the entries stand for.
func Texts(entries []Entry) map[string]string {
	if len(entries) == 0 {
		return nil
	}
	m := make(map[string]string, len(entries))
	for _, e := range entries {
		m[e.Key.V] = e.Value.V
	}
	return m
}
