package engine

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"kaspr.io/kaspr/engine/config"
	"kaspr.io/kaspr/engine/enginetest"
	"kaspr.io/kaspr/engine/plan"
	"kaspr.io/kaspr/engine/record"
	apphttp "kaspr.io/kaspr/http"
)

// A process that is not able to do all of its work must not be called ready, and must say what it waits for.
func TestReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := testLane(t, nil, plan.Agent{}, limits{}, true)
		x := newTablesFixture(t)
		b.app.tables = x.tables
		b.app.agents = []*agent{b.agent}
		b.app.plan.Tables = []plan.Table{{Name: "users", Changelog: plan.Topic{Name: "users-log"}}, {Name: "rates", Changelog: plan.Topic{Name: "rates-log"}}}
		synctest.Wait() // for the copies of rates, which is global
		want := func(ready bool, parts ...string) {
			t.Helper()
			ok, detail := observer{b.app}.Ready()
			text, err := json.Marshal(detail)
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range parts {
				if !strings.Contains(string(text), p) {
					t.Errorf("no %s in %s", p, text)
				}
			}
			if ok != ready {
				t.Errorf("ready %v: %s", ok, text)
			}
		}
		tells := func(rebalancing, recovering bool, agent agentState) {
			t.Helper()
			s := observer{b.app}.tell()
			if s.Rebalancing != rebalancing || s.Recovering != recovering || s.Agents[0].State != agent {
				t.Errorf("%s: rebalancing %v, recovering %v, agent %s; want %v, %v, %s", s.State, s.Rebalancing, s.Recovering, s.Agents[0].State, rebalancing, recovering, agent)
			}
		}
		want(false, `"state":"starting"`, `"tables":[]`)
		b.app.seen.running.Store(true)
		want(false, `"state":"joining"`)
		tells(true, false, agentIdle)
		b.app.Assigned(nil)
		want(true, `"state":"running"`, `"ready":true`) // nothing is assigned, and nothing waits
		tells(false, false, agentIdle)

		// Its table is behind, and the broker slow.
		x.append("users-log", 2, "a=1", "b=2", "c=3")
		x.logs.change(func() { x.logs.silent = true })
		x.Acquire(2, []int{users}, nil)
		p := record.Partition{Topic: "in", Number: 2}
		f := b.assign(b.agent, p)
		b.app.feeds[p] = []laneFeed{{b.lane, f}}
		b.position(f, 0)
		time.Sleep(x.tuning.stalledAfter + time.Second)
		want(false, `"state":"restoring"`, `1 of 1 assigned partitions`, `"table":"users","partition":2,"role":"active"`, `"left":3`, `"stalls":1`, `the broker returns no records`)
		tells(true, true, agentWaiting) // until its records are processed again
		value := gathered(t, b.app)
		for series, n := range map[string]float64{
			"kaspr_health": 2, "kaspr_total_rebalances_recovering": 1, "kaspr_table_restore_records_left": 3, "kaspr_table_restore_stalls_total": 1,
		} {
			if got, ok := value[series]; !ok || got != n {
				t.Errorf("%s is %v (%v), want %v", series, got, ok, n)
			}
		}

		x.logs.change(func() { x.logs.silent = false })
		x.ready(2, users)
		b.begin(f, nil)
		want(true, `"phase":"active"`, `"left":0`)
		tells(false, false, agentRunning)
		ends := map[string]map[int32]int64{"in": {2: 9}}
		b.app.seen.ends.Store(&ends)
		b.put(f, records(2, 0, 4), 4)
		value = gathered(t, b.app)
		for series, n := range map[string]float64{
			"kaspr_health": 0, "kaspr_table_restore_records_left": 0, "kaspr_table_key_count": 3, "kaspr_topic_partition_lag": 9,
			"kaspr_topic_partition_position": 0, "kaspr_messages_received_per_topics_partition": 3, "kaspr_active_messages": 4,
		} {
			if got, ok := value[series]; !ok || got != n {
				t.Errorf("%s is %v (%v), want %v", series, got, ok, n)
			}
		}

		x.Follow([]standby{{users, 1}})
		synctest.Wait()
		if got, want := fmt.Sprint(observer{b.app}.tell().Assignment), "{map[in:[2] users-log:[2]] map[rates-log:[0 1] users-log:[1]]}"; got != want {
			t.Errorf("the assignment is %s, want %s", got, want)
		}

		b.app.Lost(nil)
		want(false, `"state":"joining"`)
		delete(b.app.feeds, p)
		for series := range gathered(t, b.app) {
			if strings.Contains(series, "topic_partition_") || strings.Contains(series, "topics_partition") {
				t.Errorf("%s is still told of a partition that left", series)
			}
		}
		b.app.Assigned(nil)
		want(true)
		b.app.until = time.Now()
		want(false, `"state":"stopping"`)
	})
}

// An agent that has the name of a table's writes must not make its series ambiguous, which would end them all.
func TestAgentNamedAsWrites(t *testing.T) {
	b := testLane(t, nil, plan.Agent{}, limits{}, true)
	b.app.tables = newTables(nil, nil, "", nil, b.app.log, nil)
	for _, p := range []plan.Agent{{Name: "users-writes"}, {Name: "users-writes", Writer: true}} {
		ag := newAgent(b.app, &p)
		if p.Writer {
			ag.component = "KasprTable/users"
		}
		ag.stats.Records.Add(5)
		b.app.agents = append(b.app.agents, ag)
	}
	b.app.seen.running.Store(true)
	value := gathered(t, b.app)
	if value["kaspr_agent_records_total"] != 10 || value["kaspr_messages_received_total"] != 5 {
		t.Errorf("%v records, %v of agents; want 10 and 5", value["kaspr_agent_records_total"], value["kaspr_messages_received_total"])
	}
}

// The two agents of the scheduler must not make each other's series ambiguous, which would end them all.
func TestSchedulersAgentsAreTwo(t *testing.T) {
	b := testLane(t, nil, plan.Agent{}, limits{}, true)
	b.app.tables = newTables(nil, nil, "", nil, b.app.log, nil)
	for _, s := range []plan.SchedulePart{plan.Distribute, plan.Deliver} {
		ag := newAgent(b.app, &plan.Agent{Name: "scheduler-" + string(s), Schedule: s})
		ag.component = "scheduler"
		ag.stats.Records.Add(5)
		b.app.agents = append(b.app.agents, ag)
	}
	b.app.seen.running.Store(true)
	if n := gathered(t, b.app)["kaspr_agent_records_total"]; n != 10 {
		t.Errorf("%v records, want 10", n)
	}
}

// gathered is the sum of every series over its labels.
func gathered(t *testing.T, a *App) map[string]float64 {
	t.Helper()
	r := prometheus.NewRegistry()
	r.MustRegister(&series{a})
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	value := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			value[f.GetName()] += m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	return value
}

// Agents that share a partition must not hide how far the slowest of them is.
func TestPartitionSeriesOfTwoAgents(t *testing.T) {
	to := make(chan prometheus.Metric, 100)
	collection(to).feeds([]feedState{
		{Topic: "in", Agent: "a", Position: 7, Committed: 6, Read: 9, End: 20, Lag: 13},
		{Topic: "in", Agent: "b", Position: 3, Committed: 2, Read: 8, End: 20, Lag: 17},
		{Topic: "in", Partition: 1, Agent: "a", Position: -1, Committed: -1, Read: -1, End: -1, Lag: -1},
	})
	close(to)
	committed := 0
	for m := range to {
		var d dto.Metric
		if err := m.Write(&d); err != nil {
			t.Fatal(err)
		}
		if m.Desc() == mCommitted {
			if committed++; d.GetGauge().GetValue() != 2 {
				t.Errorf("committed %v, want 2", d.GetGauge().GetValue())
			}
		}
		if m.Desc() == mRead && d.GetGauge().GetValue() != 8 {
			t.Errorf("last offset read %v, want 8", d.GetGauge().GetValue())
		}
	}
	if committed != 1 {
		t.Errorf("%d series of committed offsets, want one", committed)
	}
}

// A second engine on a machine must run although the first has the admin server's default port; one that was told a port must not take another.
func TestAdminPortTaken(t *testing.T) {
	if ln, err := new(net.ListenConfig).Listen(t.Context(), "tcp", config.AdminListenDefault); err == nil { // else another process has it, which does as well
		defer ln.Close()
	}
	other, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	var said enginetest.Buffer
	a := &App{plan: &plan.Plan{}, log: slog.New(slog.NewTextHandler(&said, nil))}
	a.opts.ListenAdmin = config.AdminListenDefault
	if err := a.listen(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer a.unlisten()
	if at := a.seen.admin.Addr(); at == config.AdminListenDefault || !apphttp.Loopback(at) || !strings.Contains(said.String(), at) {
		t.Errorf("the admin server is at %s; the log says %s", at, said.String())
	}
	told := &App{plan: &plan.Plan{}, log: a.log}
	told.opts.ListenAdmin = other.Addr().String()
	if err := told.listen(t.Context()); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("a port that was asked for and is taken: %v", err)
	}
}

// What web views and tasks send is sent, too: an app of web views alone must not look as if nothing left it.
func TestSentByViewsAndTasks(t *testing.T) {
	b := testLane(t, nil, plan.Agent{}, limits{}, true)
	b.app.tables = newTables(nil, nil, "", nil, b.app.log, nil)
	task := newAgent(b.app, &plan.Agent{Name: "nightly", Task: &plan.Task{}})
	task.stats.Outputs.Add(2)
	task.stats.Sent.add(map[string]int64{"reports": 2})
	b.app.agents = append(b.app.agents, task)
	v := &view{plan: &plan.View{Name: "put"}}
	v.stats.Sent.add(map[string]int64{"in": 3})
	b.app.views = append(b.app.views, v)
	b.app.seen.running.Store(true)
	if value := gathered(t, b.app); value["kaspr_total_sent_messages_total"] != 5 || value["kaspr_topic_messages_sent_total"] != 5 {
		t.Errorf("%v messages were sent, by topic %v; want 5", value["kaspr_total_sent_messages_total"], value["kaspr_topic_messages_sent_total"])
	}
}

// What exceptions say may quote records and tables: strangers at the public port must not read it, operators must.
func TestStatusKeepsTextsOfErrors(t *testing.T) {
	b := testLane(t, nil, plan.Agent{}, limits{}, true)
	ag := newAgent(b.app, &plan.Agent{Name: "orders"})
	b.app.failures.add(ag.shown(), "skip", &record.Record{}, &record.Failure{Kind: record.FailureCode, Type: "KeyError", Message: "jane@example"}, time.Now())
	of := newAgent(b.app, &plan.Agent{Name: "nightly", Task: &plan.Task{}})
	run := newTask(of, of.plan.Task, nil)
	run.shown.Failure = "ValueError: jane@example"
	of.runs(run)
	b.app.agents = append(b.app.agents, ag, of)
	shown := func(status any) string {
		text, err := json.Marshal(status)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	if text := shown(observer{b.app}.Status()); strings.Contains(text, "jane") || !strings.Contains(text, `"type":"KeyError"}`) {
		t.Errorf("strangers are told %s", text)
	}
	if text := shown(administration{observer{b.app}}.Status()); strings.Count(text, "jane@example") != 2 {
		t.Errorf("operators are told %s", text)
	}
}
