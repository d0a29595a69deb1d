package cron

import (
	"strings"
	"testing"
	"time"
)

func at(t *testing.T, text string) time.Time {
	t.Helper()
	when, err := time.Parse(time.RFC3339, text)
	if err != nil {
		t.Fatal(err)
	}
	return when
}

// A task or message that comes at another time than its author wrote is worse than one that is refused.
func TestNext(t *testing.T) {
	for _, c := range []struct{ expression, zone, after, want string }{
		{"*/5 * * * *", "UTC", "2026-03-01T10:02:30Z", "2026-03-01T10:05:00Z"},
		{"* * * * *", "UTC", "2026-03-01T10:02:00Z", "2026-03-01T10:03:00Z"},
		{"* * * * * */20", "UTC", "2026-03-01T10:02:30Z", "2026-03-01T10:02:40Z"},
		{"0 9 * * MON-FRI", "UTC", "2026-03-06T10:00:00Z", "2026-03-09T09:00:00Z"},
		{"0 9 * JAN,jul *", "UTC", "2026-03-06T10:00:00Z", "2026-07-01T09:00:00Z"},
		{"0 0 * * 7", "UTC", "2026-03-06T10:00:00Z", "2026-03-08T00:00:00Z"},
		{"0 0 * * 6-7", "UTC", "2026-03-07T10:00:00Z", "2026-03-08T00:00:00Z"},
		{"0 0 * * 1-7/3", "UTC", "2026-03-06T00:00:00Z", "2026-03-08T00:00:00Z"}, // Monday, Thursday, Sunday
		{"0 0 13 * 5", "UTC", "2026-03-10T00:00:00Z", "2026-03-13T00:00:00Z"},
		{"0 0 14 * 5", "UTC", "2026-03-10T00:00:00Z", "2026-03-13T00:00:00Z"}, // either day
		{"0 0 29 2 *", "UTC", "2026-03-10T00:00:00Z", "2028-02-29T00:00:00Z"},
		{"@hourly", "UTC", "2026-03-10T00:00:00Z", "2026-03-10T01:00:00Z"},
		{"30 8 * * *", "Europe/Berlin", "2026-03-28T12:00:00Z", "2026-03-29T06:30:00Z"}, // the clocks change in between
		{"30 2 * * *", "Europe/Berlin", "2026-03-28T12:00:00Z", "2026-03-30T00:30:00Z"}, // 02:30 is skipped that night
		{"30 2 * * *", "Europe/Berlin", "2026-10-25T00:30:00Z", "2026-10-25T01:30:00Z"}, // and comes twice in that one
	} {
		zone, err := time.LoadLocation(c.zone)
		if err != nil {
			t.Fatal(err)
		}
		s, err := Parse(c.expression, zone)
		if err != nil {
			t.Errorf("%s: %v", c.expression, err)
			continue
		}
		if got := s.Next(at(t, c.after)); !got.Equal(at(t, c.want)) {
			t.Errorf("%s in %s after %s: %s, want %s", c.expression, c.zone, c.after, got, c.want)
		}
	}
}

// A week with a step that reaches Sunday by its second name has all its days.
func TestSunday(t *testing.T) {
	for weekdays, want := range map[string]string{
		"7": "0", "1,7": "1,0", "5-7": "5-6,0", "7-7": "0", "1-7/2": "1,3,5,0", "2-7/2": "2,4,6", "0-6": "0-6", "MON-FRI": "MON-FRI", "*/2": "*/2", "1-7/0": "1-7/0",
	} {
		if got := sundays(weekdays); got != want {
			t.Errorf("%s becomes %s, want %s", weekdays, got, want)
		}
	}
}

// What can never be due, or means something else elsewhere, is refused at once.
func TestRefused(t *testing.T) {
	for expression, want := range map[string]string{
		"":                       "0 fields",
		"* * *":                  "3 fields",
		"* * * * * * *":          "7 fields",
		"61 * * * *":             "61",
		"* 24 * * *":             "24",
		"* * 0 * *":              "0",
		"* * * 13 *":             "13",
		"* * * * 8":              "8",
		"x * * * *":              "x",
		"*/0 * * * *":            "step",
		"5-1 * * * *":            "beyond",
		"* * L * *":              "L",
		"0 0 30 2 *":             "never",
		"@every 5m":              "2 fields",
		"@reboot":                "@reboot",
		"@every":                 "@every",
		"TZ=UTC * * * *":         "time zone",
		"CRON_TZ=UTC * * * * 1":  "time zone",
		"* * * * FUNDAY":         "FUNDAY",
		"99999999999999 * * * *": "99999999999999",
	} {
		s, err := Parse(expression, time.UTC)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, %v, want an error with %q", expression, s, err, want)
		}
	}
}

// Whatever a manifest or a message holds, it is refused or is due some day, in order.
func FuzzCron(f *testing.F) {
	for _, seed := range []string{"*/5 * * * *", "0 0 29 2 *", "1-7/2 * * * 1-7/3 7", "@daily", "? ? ? ? ?", "TZ= * * * *"} {
		f.Add(seed)
	}
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	f.Fuzz(func(t *testing.T, text string) {
		s, err := Parse(text, time.UTC)
		if err != nil {
			return
		}
		first := s.Next(start)
		if second := s.Next(first); !first.After(start) || !second.After(first) {
			t.Errorf("%q is due at %s, then at %s", text, first, second)
		}
	})
}
