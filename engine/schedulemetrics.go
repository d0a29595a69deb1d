package engine

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"kaspr.io/kaspr/scheduler"
)

// mSchedule are the scheduler's series, in the order of scheduler.AllSeries. What has a type is told of every partition, the rest of the process.
var mSchedule = func() []*prometheus.Desc {
	var list []*prometheus.Desc
	for i := range scheduler.AllSeries {
		s := &scheduler.AllSeries[i]
		var labels []string
		if s.Type != "" {
			labels = []string{"type", "partition"}
		}
		list = append(list, metric(s.Name, s.Help, labels...))
	}
	return list
}()

// The original's series of what works on a partition. Here that is one thing, which delivers and forgets; it is active where the partition is, and
// series of a partition end when it leaves.
var (
	mDispatcher = metric("kms_dispatcher_info", "When the partition's messages began to be delivered here, in seconds since 1970, as the state ACTIVE; 0 for other states.", "partition", "state")
	mJanitor    = metric("kms_janitor_info", "When the partition's ids began to be forgotten here, in seconds since 1970, as the state ACTIVE; 0 for other states.", "partition", "state")
	mSending    = metric("kms_active_deliveries", "Messages that are sent and not committed yet.", "partition")
	mLooked     = metric("kms_cron_ticker_last_tick", "When the partition was last looked through for what is due, in seconds since 1970. Only with cron entries enabled.", "partition")
)

// partStates are the states of the original's.
var partStates = []string{"ACTIVE", "PAUSED", "REVOKED"}

// seconds are those since 1970; 0 for no time.
func seconds(at time.Time) float64 {
	if at.IsZero() {
		return 0
	}
	return float64(at.UnixMilli()) / 1000
}

func (c collection) schedulePart(x *scheduleState, cron bool) {
	for _, state := range partStates {
		since := 0.0
		if state == "ACTIVE" {
			since = seconds(x.Since)
		}
		c.gauge(mDispatcher, since, number(x.Partition), state)
		c.gauge(mJanitor, since, number(x.Partition), state)
	}
	c.gauge(mSending, float64(x.Sending), number(x.Partition))
	if cron {
		c.gauge(mLooked, seconds(x.Looked), number(x.Partition))
	}
}

func (c collection) schedule(s *schedule) {
	if s == nil {
		return
	}
	states := s.states(time.Now())
	all := s.done() // of partitions that have left, too: a counter must not go down
	var here scheduler.Stats
	for i := range states {
		here.Messages += states[i].Stats.Messages
		here.Crons += states[i].Stats.Crons
		c.schedulePart(&states[i], s.settings.Cron)
	}
	for i, d := range mSchedule {
		switch x := &scheduler.AllSeries[i]; {
		case x.Type != "":
			for j := range states {
				c.gauge(d, x.Value(&states[j].Counts, &states[j].Stats), x.Type, number(states[j].Partition))
			}
		case x.Counter:
			c.counter(d, int64(x.Value(&all, &here)))
		default:
			c.gauge(d, x.Value(&all, &here))
		}
	}
}

// done is what the process did since its start, in all partitions it had.
func (s *schedule) done() (sum scheduler.Counts) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.parts {
		p.mu.Lock()
		sum.Sum(&p.counts)
		p.mu.Unlock()
	}
	return sum
}
