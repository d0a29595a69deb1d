package scheduler

import "time"

// Stats are what a partition of the table holds. Reading them costs two rows, however many there are.
type Stats struct {
	Messages int64         // that wait, with the next firings of crons
	Crons    int64         // entries that are active or paused
	Next     time.Time     // when the first of them is due; zero: there is none
	Lag      time.Duration // how long the oldest one is overdue
	Low      Location      // all before it has left
}

// Look reads the stats.
func Look(r Reader, now time.Time) (Stats, error) {
	raw, err := r.Get(headKey)
	if err != nil {
		return Stats{}, err
	}
	h, err := decodeHead(raw)
	if err != nil {
		return Stats{}, err
	}
	st := Stats{Messages: h.Count, Crons: h.Crons, Low: h.Low}
	rows, _, wake, err := Due(r, h.Low, now, 1, 1)
	if len(rows) > 0 {
		st.Next = time.UnixMilli(rows[0].At.Due)
		st.Lag = now.Sub(st.Next)
	} else {
		st.Next = wake
	}
	return st, err
}

// Counts add up outcomes. They belong to one goroutine.
type Counts struct {
	Scheduled, PastDue, Replaced, Unchanged, Cancelled, Rejected                         int64
	Delivered, Retried, Expired, Failed                                                  int64
	CronAdded, CronCancelled, CronPaused, CronResumed, Fired, FiringsMissed, FiringsSkip int64
}

// Sum adds the counts of another partition.
func (c *Counts) Sum(o *Counts) {
	for i, n := range o.all() {
		*c.all()[i] += *n
	}
}

func (c *Counts) all() []*int64 {
	return []*int64{
		&c.Scheduled, &c.PastDue, &c.Replaced, &c.Unchanged, &c.Cancelled, &c.Rejected, &c.Delivered, &c.Retried, &c.Expired, &c.Failed,
		&c.CronAdded, &c.CronCancelled, &c.CronPaused, &c.CronResumed, &c.Fired, &c.FiringsMissed, &c.FiringsSkip,
	}
}

// Add counts the outcomes of a step that was committed.
func (c *Counts) Add(outcomes []Outcome) {
	for i := range outcomes {
		o := &outcomes[i]
		switch o.Verdict {
		case Accepted, Replaced:
			c.accepted(o)
		case Unchanged:
			c.Unchanged++
		case Cancelled:
			if o.Verb.cron() {
				c.CronCancelled++
			} else {
				c.Cancelled++
			}
		case Paused:
			c.CronPaused++
		case Resumed:
			c.CronResumed++
		case Rejected:
			c.Rejected++
		case Delivered:
			c.Delivered++
			if o.Fire {
				c.Fired++
			}
			if o.Missed {
				c.FiringsMissed++
			}
		case Retried:
			c.Retried++
		case Expired:
			c.Expired++
		case Failed:
			c.Failed++
		case Skipped:
			c.FiringsMissed += o.Count
			c.FiringsSkip += o.Count
		}
	}
}

func (c *Counts) accepted(o *Outcome) {
	if o.Verb.cron() {
		c.CronAdded++
		return
	}
	c.Scheduled++
	if o.PastDue {
		c.PastDue++
	}
	if o.Verdict == Replaced {
		c.Replaced++
	}
}

// A Series is one number of a partition's for whoever collects metrics; the name is without the prefix kaspr_.
type Series struct {
	Name, Help string
	Counter    bool // else a gauge
	Type       string
	Value      func(c *Counts, st *Stats) float64
}

// AllSeries are the series of the original that tell what is in a partition and what was done there, and those that are new. Those of who works on it
// (kms_dispatcher_info and the like) are the host's.
var AllSeries = []Series{
	gauge("kms_timetable_size", "Messages that wait, with the next firings of crons.", "", func(_ *Counts, st *Stats) float64 { return float64(st.Messages) }),
	gauge("kms_last_location_time", "All that was due before this time has left, in seconds since the Unix epoch; 0 before there was anything.", "D", func(_ *Counts, st *Stats) float64 { return float64(max(0, st.Low.Due)) / 1000 }),
	gauge("kms_last_location_seq", "Sequence number at that time.", "D", func(_ *Counts, st *Stats) float64 { return float64(st.Low.Seq) }),
	gauge("kms_last_location_lag", "How long the oldest message is overdue, in seconds.", "D", func(_ *Counts, st *Stats) float64 { return st.Lag.Seconds() }),
	counter("kms_messages_scheduled_total", "Messages accepted.", func(c *Counts) int64 { return c.Scheduled }),
	counter("kms_messages_delivered_total", "Messages delivered, firings among them.", func(c *Counts) int64 { return c.Delivered }),
	counter("kms_messages_removed_total", "Messages that left without being delivered.", func(c *Counts) int64 { return c.Cancelled + c.Replaced + c.Expired + c.Failed }),
	counter("kms_messages_delivered_instant_total", "Messages that were due when they were accepted.", func(c *Counts) int64 { return c.PastDue }),
	counter("kms_messages_replaced_total", "Messages that took the place of another.", func(c *Counts) int64 { return c.Replaced }),
	counter("kms_messages_replace_noop_total", "Requests that changed nothing.", func(c *Counts) int64 { return c.Unchanged }),
	counter("kms_messages_canceled_total", "Messages cancelled.", func(c *Counts) int64 { return c.Cancelled }),
	counter("kms_messages_rejected_total", "Requests rejected.", func(c *Counts) int64 { return c.Rejected }),
	counter("kms_messages_retried_total", "Times that the broker refused a message for a while.", func(c *Counts) int64 { return c.Retried }),
	counter("kms_messages_expired_total", "Messages that were too late.", func(c *Counts) int64 { return c.Expired }),
	counter("kms_messages_failed_total", "Messages that the broker refused for good.", func(c *Counts) int64 { return c.Failed }),
	gauge("kms_cron_registry_size", "Cron entries that are active or paused.", "", func(_ *Counts, st *Stats) float64 { return float64(st.Crons) }),
	counter("kms_cron_registered_total", "Cron entries added.", func(c *Counts) int64 { return c.CronAdded }),
	counter("kms_cron_canceled_total", "Cron entries cancelled.", func(c *Counts) int64 { return c.CronCancelled }),
	counter("kms_cron_paused_total", "Cron entries paused.", func(c *Counts) int64 { return c.CronPaused }),
	counter("kms_cron_resumed_total", "Cron entries resumed.", func(c *Counts) int64 { return c.CronResumed }),
	counter("kms_cron_fires_materialized_total", "Firings delivered.", func(c *Counts) int64 { return c.Fired }),
	counter("kms_cron_fires_missed_total", "Firings that were missed, made up or not.", func(c *Counts) int64 { return c.FiringsMissed }),
	counter("kms_cron_fires_skipped_total", "Missed firings that were not made up.", func(c *Counts) int64 { return c.FiringsSkip }),
}

func gauge(name, help, kind string, value func(*Counts, *Stats) float64) Series {
	return Series{Name: name, Help: help, Type: kind, Value: value}
}

func counter(name, help string, value func(*Counts) int64) Series {
	return Series{Name: name, Help: help, Counter: true, Value: func(c *Counts, _ *Stats) float64 { return float64(value(c)) }}
}
