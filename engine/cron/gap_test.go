package cron

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
)

// An expression that is due more often than the setting allows, if only once a day, would be let in.
func TestGap(t *testing.T) {
	for expression, want := range map[string]time.Duration{
		"* * * * *":                time.Minute,
		"* * * * * *":              time.Second,
		"* * * * * 0,1":            time.Second,
		"* * * * * 0,59":           time.Second,
		"*/5 * * * *":              5 * time.Minute,
		"*/7 * * * *":              4 * time.Minute, // 56, 0
		"0 0 * * *":                24 * time.Hour,
		"0 0 1 * *":                28 * 24 * time.Hour,
		"0 0 1 1 *":                365 * 24 * time.Hour,
		"0 0 29 2 *":               (4*365 + 1) * 24 * time.Hour,
		"0,59 0,23 * * *":          time.Minute,      // across midnight
		"0,59 0,23 1 * *":          59 * time.Minute, // no two days in a row
		"0,59 0,23 1 * 3":          time.Minute,      // the first may be a Tuesday
		"59 23 31 12 * 59":         365 * 24 * time.Hour,
		"0 9 * * MON-FRI":          24 * time.Hour,
		"0 9 * * MON":              7 * 24 * time.Hour,
		"@monthly":                 28 * 24 * time.Hour,
		"0,30 0,23 28,1 2,3 * 0":   30 * time.Minute,
		"0,59 0,23 28,1 2,3 * 0":   time.Minute, // 28 February, 1 March
		"30 12 * * * 10,20,30,45":  10 * time.Second,
		"10,11 * * * * 0,30,50,59": 0, // by trial
	} {
		s, err := Parse(expression, time.UTC)
		if err != nil {
			t.Fatal(err)
		}
		if want == 0 {
			want = trial(s, 2000)
		}
		if got := s.Gap(); got != want {
			t.Errorf("%s: %s, want %s", expression, got, want)
		}
	}
}

// trial is the smallest distance between a number of times.
func trial(s Schedule, n int) time.Duration {
	at := s.Next(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC))
	least := time.Duration(1<<63 - 1)
	for range n {
		next := s.Next(at)
		least, at = min(least, next.Sub(at)), next
	}
	return least
}

// Gap, which is computed, is what one finds by going through the times.
func TestGapByTrial(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 7))
	field := func(n int) string {
		text := fmt.Sprint(random.IntN(n))
		for range random.IntN(3) {
			text += "," + fmt.Sprint(random.IntN(n))
		}
		return text
	}
	for range 200 {
		expression := fmt.Sprintf("%s %s * * * %s", field(60), field(24), field(60))
		s, err := Parse(expression, time.UTC)
		if err != nil {
			t.Fatal(err)
		}
		if got, want := s.Gap(), trial(s, 3*3*3*2); got != want {
			t.Errorf("%s: %s, want %s", expression, got, want)
		}
	}
}
