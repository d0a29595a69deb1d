package engine

import (
	"testing"
	"time"

	"kaspr.io/kaspr/state"
)

// A broker refuses records from more than an hour ahead, and the app would stop: lifetimes are rounded up by hours.
func TestEntryIsNotAheadOfTheClock(t *testing.T) {
	const ttl = 7 * 24 * time.Hour
	s := &share{ttl: ttl.Milliseconds()}
	now := time.Now()
	for _, ahead := range []time.Duration{0, time.Minute, 150 * time.Minute} {
		e := s.entryOf(&state.Change{Key: []byte("k"), Expires: now.Add(ttl + ahead).UnixMilli()})
		if got := time.UnixMilli(e.Timestamp).Sub(now); got > 40*time.Minute || ahead < aheadMax && got.Round(time.Second) != ahead {
			t.Errorf("%s ahead became %s", ahead, got)
		}
	}
}
