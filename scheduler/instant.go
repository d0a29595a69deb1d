package scheduler

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// parseInstant reads a date and time of ISO 8601, in milliseconds since the Unix epoch: the extended and the basic form,
// week dates, any character between date and time, a time without minutes or seconds or none at all, an offset or none,
// which is UTC. A fraction of a millisecond counts as a whole one, so that nothing is early.
func parseInstant(text string) (int64, error) {
	p := instant{rest: text}
	year, month, day := p.date()
	var hour, minute, second, nano, offset int
	if p.err == nil && p.rest != "" {
		_, n := utf8.DecodeRuneInString(p.rest)
		p.rest = p.rest[n:]
		hour, minute, second, nano = p.clock()
		offset = p.offset()
	}
	switch {
	case p.err != nil:
		return 0, p.err
	case p.rest != "":
		return 0, fmt.Errorf("%q is left over", p.rest)
	case hour > 23 || minute > 59 || second > 59:
		return 0, errors.New("the time of day does not exist")
	}
	at := time.Date(year, month, day, hour, minute, second, nano, time.UTC)
	at = at.Add(time.Duration(-offset) * time.Second)
	ms := at.UnixMilli()
	if at.Nanosecond()%1e6 != 0 {
		ms++
	}
	return ms, nil
}

// An instant is text that is being read, and the first thing wrong with it.
type instant struct {
	rest string
	err  error
}

func (p *instant) fail(text string) {
	if p.err == nil {
		p.err = errors.New(text)
	}
}

// number takes n digits.
func (p *instant) number(n int) int {
	if len(p.rest) < n || strings.Trim(p.rest[:n], "0123456789") != "" {
		p.fail("it is not a date and time of ISO 8601")
		return 0
	}
	v, _ := strconv.Atoi(p.rest[:n]) // n digits
	p.rest = p.rest[n:]
	return v
}

func (p *instant) skip(c string) bool {
	rest, ok := strings.CutPrefix(p.rest, c)
	p.rest = rest
	return ok
}

func (p *instant) date() (int, time.Month, int) {
	year := p.number(4)
	if year == 0 {
		p.fail("there is no year 0")
	}
	dashes := p.skip("-")
	if p.skip("W") {
		return p.week(year, dashes)
	}
	month := p.number(2)
	if dashes && !p.skip("-") {
		p.fail("the day is missing")
	}
	day := p.number(2)
	at := time.Date(year, time.Month(month), day, 0, 0, 0, 0, time.UTC)
	if y, m, d := at.Date(); y != year || int(m) != month || d != day {
		p.fail("the day does not exist")
	}
	return at.Date()
}

// week is a date as year, week and day of the week, Monday (1) when that is missing.
func (p *instant) week(year int, dashes bool) (int, time.Month, int) {
	week, weekday := p.number(2), 1
	if dashes {
		if p.skip("-") {
			weekday = p.number(1)
		}
	} else if p.rest != "" && '0' <= p.rest[0] && p.rest[0] <= '9' {
		weekday = p.number(1)
	}
	fourth := time.Date(year, 1, 4, 0, 0, 0, 0, time.UTC) // it is in week 1
	monday := fourth.AddDate(0, 0, -(int(fourth.Weekday())+6)%7)
	at := monday.AddDate(0, 0, 7*(week-1)+weekday-1)
	if y, w := at.ISOWeek(); y != year || w != week || weekday < 1 || weekday > 7 {
		p.fail("the week or its day does not exist")
	}
	return at.Date()
}

// clock is a time of day; its form goes for all of it: 12:30:00 or 123000.
func (p *instant) clock() (hour, minute, second, nano int) {
	hour = p.number(2)
	if colons := p.skip(":"); colons || p.digits() {
		minute = p.number(2)
		if colons && p.skip(":") || !colons && p.digits() {
			second = p.number(2)
			if p.skip(".") || p.skip(",") {
				nano = p.fraction()
			}
		}
	}
	return hour, minute, second, nano
}

func (p *instant) digits() bool { return p.rest != "" && '0' <= p.rest[0] && p.rest[0] <= '9' }

// fraction is of a second, in nanoseconds; what is smaller counts as one.
func (p *instant) fraction() int {
	if !p.digits() {
		p.fail("the fraction of a second is missing")
	}
	nano, unit := 0, int(1e8)
	for ; p.digits(); p.rest = p.rest[1:] {
		digit := int(p.rest[0] - '0')
		if unit == 0 && digit > 0 {
			nano |= 1
		}
		nano += digit * unit
		unit /= 10
	}
	return min(nano, 1e9-1)
}

// offset is from UTC, in seconds.
func (p *instant) offset() int {
	sign := 1
	switch {
	case p.rest == "" || p.skip("Z"):
		return 0
	case p.skip("+"):
	case p.skip("-"):
		sign = -1
	default:
		return 0
	}
	hour, minute, second, nano := p.clock()
	if hour > 23 || minute > 59 || second > 59 || nano != 0 {
		p.fail("the offset from UTC does not exist")
	}
	return sign * (hour*3600 + minute*60 + second)
}

// parseSeconds reads seconds since the Unix epoch with up to three decimals, as in actions; in milliseconds.
func parseSeconds(text string) (int64, error) {
	whole, fraction, dot := strings.Cut(text, ".")
	seconds, err := strconv.ParseInt(whole, 10, 64)
	if err != nil || seconds < earliest/1000 || seconds > latest/1000 {
		return 0, errors.New("it is not a number of seconds since 1970")
	}
	ms := seconds * 1000
	if dot {
		if len(fraction) != 3 || strings.Trim(fraction, "0123456789") != "" {
			return 0, errors.New("it has not three decimals")
		}
		n, _ := strconv.ParseInt(fraction, 10, 64) // three digits
		if strings.HasPrefix(whole, "-") {
			n = -n
		}
		ms += n
	}
	return ms, nil
}

// formatSeconds is the other way.
func formatSeconds(ms int64) string {
	text := strconv.FormatInt(ms/1000, 10)
	if ms%1000 == 0 {
		return text
	}
	if ms < 0 && ms > -1000 {
		text = "-0"
	}
	return fmt.Sprintf("%s.%03d", text, max(ms%1000, -(ms%1000)))
}

// Years 1 and 9999, with room for offsets.
var (
	earliest = time.Date(0, 12, 31, 0, 0, 0, 0, time.UTC).UnixMilli()
	latest   = time.Date(10000, 1, 2, 0, 0, 0, 0, time.UTC).UnixMilli()
)
