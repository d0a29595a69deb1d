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
