package cron

import (
	"time"
)

// Gap is the smallest distance between two times, on a clock that nobody changes.
func (s Schedule) Gap() time.Duration {
	seconds := bits(s.spec.Second, 60)
	var minutes []int // of the day
	for _, h := range bits(s.spec.Hour, 24) {
		for _, m := range bits(s.spec.Minute, 60) {
			minutes = append(minutes, h*60+m)
		}
	}
	const day = 24 * 60 * 60
	first, last := seconds[0], seconds[len(seconds)-1]
	least := (minutes[0]-minutes[len(minutes)-1])*60 + first - last + day*s.days()
	for i := 1; i < len(seconds); i++ {
		least = min(least, seconds[i]-seconds[i-1])
	}
	for i := 1; i < len(minutes); i++ {
		least = min(least, (minutes[i]-minutes[i-1])*60+first-last)
	}
	return time.Duration(least) * time.Second
}

// days is the smallest distance between two days that count. After 28 years the calendar repeats.
func (s Schedule) days() int {
	least, last := 28*366, -1
	at := time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)
	for day := 0; day < 2*28*366 && least > 1; day++ {
		if s.onDay(at) {
			if last >= 0 {
				least = min(least, day-last)
			}
			last = day
		}
		at = at.AddDate(0, 0, 1)
	}
	return least
}

func (s Schedule) onDay(at time.Time) bool {
	const star = 1 << 63
	if s.spec.Month&(1<<uint(at.Month())) == 0 {
		return false
	}
	byDate, byWeek := s.spec.Dom&(1<<uint(at.Day())) != 0, s.spec.Dow&(1<<uint(at.Weekday())) != 0
	if s.spec.Dom&star != 0 || s.spec.Dow&star != 0 {
		return byDate && byWeek
	}
	return byDate || byWeek
}

// bits lists the numbers below n that a field allows.
func bits(field uint64, n int) (list []int) {
	for i := range n {
		if field&(1<<uint(i)) != 0 {
			list = append(list, i)
		}
	}
	return list
}
