package scheduler

import (
	"testing"

	"kaspr.io/kaspr/state"
	"kaspr.io/kaspr/state/mem"
)

// memory is an empty partition of the table.
func memory(t testing.TB) view {
	t.Helper()
	store, err := mem.New().Open("timetable", 0)
	if err != nil {
		t.Fatal(err)
	}
	return view{state.NewStaged(store)}
}

// lay puts the changes of a step over the table.
func (v view) lay(st Step) Step {
	changes := make([]state.Change, len(st.Changes))
	for i, c := range st.Changes {
		changes[i] = state.Change{Key: c.Key, Value: c.Value}
	}
	v.Stage(changes)
	return st
}
