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
