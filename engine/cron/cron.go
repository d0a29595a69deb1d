// Package cron reads cron expressions and tells when they are due.
package cron

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	parser "github.com/robfig/cron/v3"
)

// Schedule is a cron expression in a time zone.
type Schedule struct{ spec *parser.SpecSchedule }

// aliases are the words that stand for an expression.
var aliases = []string{"@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly"}

var fields = parser.NewParser(parser.Second | parser.Minute | parser.Hour | parser.Dom | parser.Month | parser.Dow | parser.Descriptor)

// Parse reads minute, hour, day of the month, month, day of the week and, optionally, second, in this order: numbers,
// names (MON, JAN), lists, ranges, steps. Sunday is 0 or 7. A day counts when it fits the day of the month or that of the
// week, if both are restricted. An expression that is never due is an error.
func Parse(text string, zone *time.Location) (Schedule, error) {
	expression, err := normal(text)
	if err != nil {
		return Schedule{}, err
	}
	parsed, err := fields.Parse(expression)
	if err != nil {
		return Schedule{}, err
	}
	spec, ok := parsed.(*parser.SpecSchedule)
	if !ok {
		return Schedule{}, errors.New("it is not a cron expression")
	}
	spec.Location = zone
	s := Schedule{spec}
	// The search ends after five years; beginning before a leap year it finds 29 February.
	if s.Next(time.Date(2024, 1, 1, 0, 0, 0, 0, zone)).IsZero() {
		return Schedule{}, errors.New("it is never due")
	}
	return s, nil
}

// Next is the first time after the given one, in the schedule's zone. It is zero when there is none in the next five years.
// A time of day that a change of clocks skips is not made up; one that comes twice counts twice.
func (s Schedule) Next(after time.Time) time.Time {
	return s.spec.Next(after.In(s.spec.Location))
}

// normal is an expression as the parser takes it: seconds first.
func normal(text string) (string, error) {
	words := strings.Fields(text)
	if len(words) == 1 && strings.HasPrefix(words[0], "@") {
		if !slices.Contains(aliases, words[0]) {
			return "", fmt.Errorf("%s is not one of %s", words[0], strings.Join(aliases, ", "))
		}
		return words[0], nil
	}
	second := "0"
	switch len(words) {
	case 5:
	case 6:
		second, words = words[5], words[:5]
	default:
		return "", fmt.Errorf("it has %d fields, not five (minute hour day month weekday), or six with seconds last", len(words))
	}
	if strings.Contains(words[0], "=") {
		return "", errors.New("the time zone has a member of its own")
	}
	words[4] = sundays(words[4])
	return second + " " + strings.Join(words, " "), nil
}

// sundays writes Sunday as 0 where it is 7, which the parser does not know.
func sundays(weekdays string) string {
	var items []string
	for _, item := range strings.Split(weekdays, ",") {
		span, step, stepped := strings.Cut(item, "/")
		first, last, isRange := strings.Cut(span, "-")
		switch {
		case span == "7":
			item = "0"
		case isRange && last == "7" && !stepped:
			item = first + "-6,0"
			if first == "7" {
				item = "0"
			}
		case isRange && last == "7":
			if spread, ok := stepTo7(first, step); ok {
				item = spread
			}
		}
		items = append(items, item)
	}
	return strings.Join(items, ",")
}

// stepTo7 writes out a stepped range that ends with Sunday.
func stepTo7(first, step string) (string, bool) {
	from, err1 := strconv.Atoi(first)
	by, err2 := strconv.Atoi(step)
	if err1 != nil || err2 != nil || from < 0 || from > 7 || by < 1 {
		return "", false
	}
	var days []string
	for day := from; day <= 7; day += by {
		days = append(days, strconv.Itoa(day%7))
	}
	return strings.Join(days, ","), true
}
