package plan

import (
	"strconv"

	"kaspr.io/kaspr/engine/manifest"
	"kaspr.io/kaspr/engine/registry"
	"kaspr.io/kaspr/wasmhost/abi"
)

// SchedulePart is what an agent does for the message scheduler; empty: nothing.
type SchedulePart string

// An agent reads the requests and sends each as an action to the partition of its id, but takes those in itself that are there; another
// reads the actions, keeps the messages in a table of its own, and sends them when it is time.
const (
	Distribute SchedulePart = "requests"
	Deliver    SchedulePart = "actions"
)

// ScheduleTable is the name of the table of messages that wait. A KasprTable cannot have it beside the scheduler.
const ScheduleTable = "schedule"

// ScheduleTopic is the name of a topic of the scheduler: requests, actions, rejections, results.
func ScheduleTopic(appID, what string) string { return appID + "-schedule-" + what }

// scheduled makes an output a request to the scheduler.
func (b *builder) scheduled(o *abi.Output, m *manifest.Output, where string) {
	if !b.cfg.Scheduler.Enabled {
		b.fail(m.Schedule.Pos, manifest.Contradiction, where+": schedule needs the message scheduler, which is off", "set schedulerEnabled: true in the app's config")
		return
	}
	if registry.Has(o.KeySerializer) || registry.Has(o.ValueSerializer) {
		b.fail(m.Schedule.Pos, manifest.NotSupported, where+": messages with schemas cannot be scheduled by an output yet", "encode the value in a valueSelector and send it raw")
	}
	o.Schedule = &abi.Scheduled{
		Topic: o.Topic, NameSelector: o.NameSelector, Replace: m.Schedule.Replace.V,
		DeliverAt: code(m.Schedule.DeliverAt, where+", schedule.deliverAt"),
		Delay:     code(m.Schedule.Delay, where+", schedule.delay"),
		RequestID: code(m.Schedule.RequestID, where+", schedule.requestId"),
	}
	o.Label = where
	o.Topic, o.NameSelector = ScheduleTopic(b.info.ID, "requests"), nil
}

// schedule makes the message scheduler's agents, table and topics, if it is enabled.
func (b *builder) schedule() []Agent {
	s := b.cfg.Scheduler
	if !s.Enabled {
		return nil
	}
	at := b.app.Pos
	// Clients write the requests and read the rejections: the broker's own settings hold for them, and nothing is deleted.
	public := func(what string, partitions int) string {
		name := b.own(ScheduleTopic(b.info.ID, what), "", "scheduler, "+what, at)
		own := &b.owned[len(b.owned)-1]
		own.Public, own.Config, own.Partitions = true, nil, int32(partitions)
		return name
	}
	requests := public("requests", s.TopicPartitions)
	actions := b.own(ScheduleTopic(b.info.ID, "actions"), requests, "scheduler, actions", at)
	public("rejections", b.cfg.Topics.Partitions)
	if s.Results {
		public("results", b.cfg.Topics.Partitions)
	}
	for i := range b.tables {
		if t := &b.tables[i]; t.Name == ScheduleTable {
			b.fail(t.Pos, manifest.DuplicateName, t.Label+" has the name of the message scheduler's table", "rename it, or set schedulerEnabled to false")
		}
	}
	changelog := ChangelogTopic(b.info.ID, ScheduleTable)
	table := Table{
		Name: ScheduleTable, Label: "table " + strconv.Quote(ScheduleTable) + " of the scheduler", Pos: at,
		Changelog: Topic{
			Name: changelog, Replicas: int16(b.cfg.Topics.ReplicationFactor), Config: map[string]string{"cleanup.policy": "compact"},
			For: "scheduler, changelog", Pos: at,
		},
		Guest: abi.Table{Name: ScheduleTable, Changelog: changelog, KeySerializer: "raw", ValueSerializer: "raw"},
	}
	b.tables = append(b.tables, table)
	policy := Policy{Attempts: 1, Action: Stop} // what can be wrong with a request is a rejection; one that cannot go its way must not be lost
	return []Agent{{
		Name: "scheduler-" + string(Distribute), Label: "scheduler, requests", Pos: at, Schedule: Distribute, Topics: []string{requests}, OnError: policy,
		// As `kaspr dev --input` is to read values of the requests.
		Program:  abi.Program{Input: abi.Input{KeySerializer: b.cfg.KeySerializer, ValueSerializer: b.cfg.ValueSerializer}},
		Channels: []string{actions},
		Tables:   []TableUse{{Table: len(b.tables) - 1, Pos: at}}, // not declared: topics of the original may have other counts
	}, {
		Name: "scheduler-" + string(Deliver), Label: "scheduler, actions", Pos: at, Schedule: Deliver, Topics: []string{actions}, OnError: policy,
		Tables: []TableUse{{Table: len(b.tables) - 1, Declared: true, Pos: at}},
	}}
}
