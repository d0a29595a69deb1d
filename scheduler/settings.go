package scheduler

import (
	"errors"
	"fmt"
	"time"
)

// Settings are the same in every process of an app. Defaults gives them their values; a zero Settings is not valid.
type Settings struct {
	Requests   string // topic that clients write to
	Actions    string // topic of checked requests, by request id
	Rejections string // topic of requests and messages that failed
	Results    string // topic of outcomes; empty: they are not written
	Partitions int32  // of Actions and of the table

	// AtLeastOnce says that the host's steps are no transactions: a request may come again after its step was kept, and an output
	// may be refused after its step was. Intake then remembers how far it has come in each partition of the requests.
	AtLeastOnce bool
	// Replace makes an ADD whose id is pending replace that message; else it is rejected.
	Replace bool
	// RejectPast makes requests for a time that is over rejections; else they are delivered at once.
	RejectPast bool
	Horizon    time.Duration // how far ahead a message may be scheduled; 0: to the end of the year 9999
	RowBytes   int           // largest message, with its key, headers and id
	// Remember is how long ids are remembered after their messages are gone (schedulerJanitorHighwaterOffsetSeconds).
	Remember   time.Duration
	Provenance bool // delivered messages say which request they come from, and when they were due and sent

	BatchMessages int // most messages of one Dispatch, and most ids of one Clean
	BatchBytes    int // most bytes of one Dispatch; a single larger message goes alone

	// Interleave gives half of a batch to messages that have come due within the last second while older ones wait, so that a second
	// with very many messages does not hold up the others. Without it messages leave in the order in which they are due, always.
	Interleave bool

	RetryMax             int           // how often a message that the broker refused for a while is sent again
	RetryFirst, RetryTop time.Duration // pause before the first time; longest pause, doubling up to there

	Cron           bool
	CronMinGap     time.Duration // smallest distance between two firings
	CronGrace      time.Duration // a firing that is later than this was missed (schedulerCronTickIntervalSeconds)
	CronReplayBack time.Duration // missed firings older than this are not made up (the lookback days)
}

// Defaults are the settings of the app with this id.
func Defaults(app string) Settings {
	return Settings{
		Requests:       app + "-schedule-requests",
		Actions:        app + "-schedule-actions",
		Rejections:     app + "-schedule-rejections",
		Partitions:     3,
		RowBytes:       1<<20 - 4<<10,
		Remember:       4 * time.Hour,
		BatchMessages:  1000,
		BatchBytes:     4 << 20,
		RetryMax:       5,
		RetryFirst:     time.Second,
		RetryTop:       time.Minute,
		CronMinGap:     5 * time.Second,
		CronGrace:      30 * time.Second,
		CronReplayBack: 7 * 24 * time.Hour,
	}
}

// Validate names everything that is wrong.
func (s *Settings) Validate() error {
	var wrong []error
	check := func(ok bool, text string, args ...any) {
		if !ok {
			wrong = append(wrong, fmt.Errorf(text, args...))
		}
	}
	for what, topic := range map[string]string{"requests": s.Requests, "actions": s.Actions, "rejections": s.Rejections} {
		check(topicName(topic), "%q is not a name for the topic of %s", topic, what)
	}
	check(s.Results == "" || topicName(s.Results), "%q is not a name for the topic of results", s.Results)
	check(s.Partitions > 0, "there are %d partitions", s.Partitions)
	check(s.RowBytes > 0, "a message may have %d bytes", s.RowBytes)
	check(s.BatchMessages > 0 && s.BatchBytes > 0, "a batch is %d messages of %d bytes", s.BatchMessages, s.BatchBytes)
	check(s.Horizon >= 0 && s.Remember >= 0, "a time is negative")
	check(s.RetryMax >= 0 && s.RetryFirst > 0 && s.RetryTop >= s.RetryFirst, "%d retries from %s up to %s", s.RetryMax, s.RetryFirst, s.RetryTop)
	check(!s.Cron || s.CronMinGap > 0 && s.CronGrace >= 0 && s.CronReplayBack >= 0, "a time of cron entries is negative")
	return errors.Join(wrong...)
}

// topicName tells whether Kafka takes a name for a topic.
func topicName(name string) bool {
	if name == "" || len(name) > 249 || name == "." || name == ".." {
		return false
	}
	for i := range len(name) {
		switch c := name[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '.', c == '_', c == '-':
		default:
			return false
		}
	}
	return true
}
