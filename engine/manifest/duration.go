package manifest

import (
	"math"
	"regexp"
	"strconv"
	"time"
)

var days = regexp.MustCompile(`^([0-9]+)d(.*)$`)

// ParseDuration reads Kaspr's durations, digits with s, m, h or d, and Go's, such as 1m30s or 250ms. Days may lead a
// longer text (1d12h).
func ParseDuration(text string) (time.Duration, bool) {
	var total time.Duration
	if m := days.FindStringSubmatch(text); m != nil {
		n, err := strconv.ParseInt(m[1], 10, 64)
		if err != nil || n > math.MaxInt64/int64(24*time.Hour) {
			return 0, false
		}
		total, text = time.Duration(n)*24*time.Hour, m[2]
		if text == "" {
			return total, true
		}
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 || total > math.MaxInt64-d {
		return 0, false
	}
	if text == "0" && total != 0 {
		return 0, false
	}
	return total + d, true
}
