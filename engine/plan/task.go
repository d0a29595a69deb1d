package plan

import (
	"time"

	"kaspr.io/kaspr/engine/config"
	"kaspr.io/kaspr/engine/cron"
	"kaspr.io/kaspr/engine/manifest"
	"kaspr.io/kaspr/wasmhost/abi"
)

// Task makes an agent one that reads nothing: a KasprTask, whose code is called when it is due.
//
// One that runs on the leader only is an agent of the leader's topic, which has one partition: who owns that is the leader, and
// the group's protocol is its lease. The table TaskTable, partitioned as the topic is, holds what was run.
type Task struct {
	OnLeader bool
	Schedule *Schedule // nil: once, at start
	// Tables are the tables its code may touch, by the same index as Program.Tables. They need not be partitioned as anything of the
	// task's: it reads them wherever they are, and its writes go to their owners.
	Tables []TableUse
}

// Schedule says when a task runs, with every default filled in.
type Schedule struct {
	Interval   time.Duration // from the end of a run to the next; 0: by Cron
	Cron       cron.Schedule
	AtStart    bool // one run at start, before the first that is due
	Jitter     time.Duration
	Queue      bool   // a run that was due while one went follows it; else it is skipped
	MakeUp     bool   // one run makes up for those that were due while no worker was there; else they are skipped
	Expression string // what makes it another schedule when it changes
}

// LeaderTopic is the name of the topic whose owner is the app's leader.
func LeaderTopic(appID string) string { return appID + "-assignor-leader" }

// TaskTable is the table of what the leader ran. No KasprTable can have its name.
const TaskTable = "_tasks"

func (b *builder) task(m *manifest.Task) Agent {
	a := Agent{
		Name: m.Name.V, Label: m.Label(), Pos: m.Pos, OnError: Policy{Attempts: 1, Action: Skip},
		Task: &Task{OnLeader: m.OnLeader.V, Schedule: schedule(m.Schedule)},
		Program: abi.Program{
			Kind: manifest.KindTask, Name: m.Name.V, App: b.info, Env: b.env,
			Init: code(m.Processors.Init, "init"), Ops: []abi.Operation{}, Outputs: []abi.Output{},
			JSONExact: b.cfg.JSONValueStyle == config.JSONOriginal,
		},
	}
	for _, name := range m.Processors.Pipeline {
		if op := m.Processors.Operation(name.V); op != nil {
			a.Program.Ops = append(a.Program.Ops, b.operation(&a, op))
		}
	}
	for i, o := range m.Outputs {
		a.Program.Outputs = append(a.Program.Outputs, b.output(&a, o, outputName(o, i)))
	}
	for _, o := range m.Channels {
		a.Program.Outputs = append(a.Program.Outputs, b.channel(&a, o))
	}
	b.use(&a, &m.Processors)
	a.Task.Tables, a.Tables = a.Tables, nil
	for _, u := range a.Task.Tables {
		b.written(&b.tables[u.Table])
	}
	if s := m.Schedule; s != nil && s.Missed.Set() && !m.OnLeader.V {
		b.warn(s.Missed.Pos, manifest.NoEffect, a.Label+": missed has no effect without onLeader: true", "what a worker missed while it was not there, nothing remembers")
	}
	return a
}

func schedule(m *manifest.Schedule) *Schedule {
	if m == nil {
		return nil
	}
	s := &Schedule{
		Interval: m.Interval.V, AtStart: m.RunAtStart.V, Jitter: m.Jitter.V,
		Queue: m.Overlap.V == manifest.OverlapQueue, MakeUp: m.Missed.V == manifest.MissedOnce,
		Expression: "every " + m.Interval.V.String(),
	}
	if m.Cron.Set() {
		var err error
		if s.Cron, err = cron.Parse(m.Cron.V, m.Zone()); err != nil {
			panic("BUG: a cron expression that was checked is none: " + err.Error())
		}
		s.Expression = m.Cron.V + " " + m.Zone().String()
	}
	return s
}

// onLeader gives the tasks of the leader the table they share, and the topic that makes somebody the leader. Without such tasks, code that
// asks who leads gets an agent that reads the topic.
func (b *builder) onLeader(agents []Agent) []Agent {
	table := -1
	for i := range agents {
		a := &agents[i]
		if a.Task == nil || !a.Task.OnLeader {
			continue
		}
		if table < 0 {
			table = len(b.tables)
			replicas := int16(b.cfg.Topics.ReplicationFactor)
			b.tables = append(b.tables, Table{
				Name: TaskTable, Label: "the table of tasks", Pos: a.Pos,
				Changelog: Topic{
					Name: ChangelogTopic(b.info.ID, TaskTable), Partitions: 1, Replicas: replicas,
					Config: map[string]string{"cleanup.policy": "compact"}, For: "tasks on the leader, changelog", Pos: a.Pos,
				},
				Guest: abi.Table{Name: TaskTable, Changelog: ChangelogTopic(b.info.ID, TaskTable), KeySerializer: "raw", ValueSerializer: "json"},
			})
			b.leaderTopic("tasks on the leader", a.Pos)
		}
		a.Topics = []string{LeaderTopic(b.info.ID)}
		a.Tables = []TableUse{{Table: table, Declared: true, Pos: a.Pos}}
	}
	if table >= 0 || !b.asksLeader {
		return nil
	}
	return []Agent{{
		Name: "leader", Label: "the leader's seat", Pos: b.app.Pos, Seat: true, OnError: Policy{Attempts: 1, Action: Skip},
		Topics: []string{b.leaderTopic("app.is_leader", b.app.Pos)},
	}}
}

func (b *builder) leaderTopic(wantedBy string, at manifest.Pos) string {
	name := b.own(LeaderTopic(b.info.ID), "", wantedBy, at)
	b.owned[len(b.owned)-1].Partitions = 1
	return name
}
