package engine

import (
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"kaspr.io/kaspr/engine/record"
	"kaspr.io/kaspr/wasmhost"
)

// series are the app's metrics, read from its counters when they are asked for: nothing is counted twice, and series of a partition
// end with its assignment. docs/operations.md tells what each means; a test holds it against this list.
//
// What is counted by agent is counted when it is committed, but for guest_*, which counts calls as they are made.
type series struct{ app *App }

var described []*prometheus.Desc

// metric declares a series. Names are the original's where it has one; labels are beside app_name and worker_name.
func metric(name, help string, labels ...string) *prometheus.Desc {
	d := prometheus.NewDesc("kaspr_"+name, help, labels, nil)
	described = append(described, d)
	return d
}

var (
	mAppInfo = metric("app_info", "Start of the app, in seconds since 1970.", "group_id", "kaspr_version", "kms_enabled")
	mHealth  = metric("health", "-1 starting, 0 all assigned partitions are worked on, 1 joining the group, 2 restoring tables, 3 stopping.")

	mReceived = metric("messages_received_total", "Records the agents processed.")
	mActive   = metric("active_messages", "Records fetched whose results are not committed yet.")
	mSent     = metric("total_sent_messages_total", "Outputs of agents, tasks and web views, dead letters included.")

	mEvents       = metric("total_events_total", "The same by another name of the original.")
	mActiveEvents = metric("total_active_events", "The same as active_messages.")
	mStreamEvents = metric("total_events_per_stream_total", "Records processed, by what they are read from.", "stream")
	mTopicRead    = metric("messages_received_per_topic_total", "Records processed, by topic.", "topic")
	mTopicSent    = metric("topic_messages_sent_total", "Records sent, changelogs' included, by topic.", "topic")
	mLasted       = metric("events_runtime_ms", "Time of a record from its arrival to its commit, in milliseconds.", "agent")
	mSends        = metric("producer_send_latency", "Time from a send to its acknowledgement, in milliseconds.")
	mSendsFailed  = metric("producer_error_send_latency", "Time from a send to its refusal, in milliseconds.")
	mSendErrors   = metric("total_error_messages_sent_total", "Outputs the broker refused.")

	mRecords = metric("agent_records_total", "Records an agent processed, failed ones included.", "agent")
	mOutputs = metric("agent_outputs_total", "Outputs of an agent, without dead letters.", "agent")
	mCalls   = metric("agent_batches_total", "Batches an agent processed.", "agent")
	mFailed  = metric("agent_failed_records_total", "Records that failed for good.", "agent", "kind")
	mDead    = metric("agent_dead_letters_total", "Records sent to the dead-letter topic.", "agent")
	mSkipped = metric("agent_skipped_records_total", "Failed records left out by onError skip.", "agent")
	mRetried = metric("agent_retries_total", "Further attempts of failed records.", "agent")

	mFailedAt  = metric("operation_failed_records_total", "Records that failed for good, by where.", "agent", "operation")
	mPlaceTime = metric("operation_seconds_total", "Time Python ran, by where: an estimate from samples.", "agent", "operation")
	mCallTime  = metric("guest_call_latency", "Time of a call in the sandbox, in milliseconds.", "agent")
	mBatch     = metric("guest_batch_records", "Records of a call.", "agent")

	mRebalancing = metric("total_rebalances", "1 while partitions are handed over.")
	mAssigning   = metric("assign_latency", "Time until the positions of newly assigned partitions were known, in milliseconds.")
	mRebalance   = metric("rebalance_done_consumer_latency", "Time of a rebalance until the assignment, in milliseconds.")
	mRebalanced  = metric("rebalance_done_latency", "Time of a rebalance until every partition was worked on, in milliseconds.")

	mTaskRuns     = metric("task_runs_total", "Runs of a task, failed ones included; of one on the leader those of all leaders, told by the leader.", "task")
	mTaskFailures = metric("task_failures_total", "Runs that failed.", "task")
	mTaskSkipped  = metric("task_skipped_runs_total", "Runs that were due while one was going, and were skipped.", "task")
	mTaskMissed   = metric("task_missed_runs_total", "Runs that were due while no worker was there, and were not made up.", "task")
	mTaskTook     = metric("task_last_run_seconds", "How long the last run took.", "task")
	mTaskSuccess  = metric("task_last_success_timestamp_seconds", "End of the last run that did not fail, in seconds since 1970.", "task")
	mTaskNext     = metric("task_next_run_timestamp_seconds", "Begin of the next run, in seconds since 1970.", "task")
	mLeader       = metric("leader", "1 in the process that leads the app.")

	mAssigns   = metric("assignment_operations_total", "Assignments of partitions by the group.", "operation")
	mRead      = metric("messages_received_per_topics_partition", "Last offset read of a partition.", "topic", "partition")
	mEnd       = metric("topic_partition_end_offset", "End of a partition, a few seconds ago.", "topic", "partition")
	mPosition  = metric("topic_partition_position", "Next offset to process.", "topic", "partition", "agent")
	mCommitted = metric("topic_partition_offset_committed", "Offset below which everything is committed.", "topic", "partition")
	mCommited  = metric("topic_partition_offset_commited", "The same by the original's name.", "topic", "partition")
	mLag       = metric("topic_partition_lag", "Offsets between a partition's end and what an agent processed.", "topic", "partition", "agent")
	mStalls    = metric("partition_stalls_total", "Times an assigned partition was found standing still although it had records.")

	mCommits    = metric("commits_total", "Commits of outputs, tables and offsets.")
	mRollbacks  = metric("rollbacks_total", "Times uncommitted work was dropped and processed again.")
	mReopened   = metric("producer_sessions_reopened_total", "Times the producer began a new session after a failure.")
	mCommitTime = metric("consumer_commit_latency", "Time of a commit, in milliseconds.")

	mRegistryWait = metric("schema_registry_waiting_seconds", "How long the schema registry's answers have been missing; 0 when they are not.")
	mRegistryAsk  = metric("schema_registry_requests_total", "Requests to the schema registry.")

	mGuestCalls    = metric("guest_calls_total", "Calls into the sandbox.", "agent")
	mGuestRecords  = metric("guest_records_total", "Records given to the sandbox, repeated ones included.", "agent")
	mGuestSeconds  = metric("guest_seconds_total", "Time Python ran.", "agent")
	mGuestRestores = metric("guest_restores_total", "Instances made from the snapshot.", "agent")
	mGuestRestore  = metric("guest_restore_seconds_total", "Time that took.", "agent")
	mGuestLimits   = metric("guest_limit_hits_total", "Records or instances ended by a limit: deadline, memory, trap.", "agent", "limit")
	mGuestRetries  = metric("guest_isolated_records_total", "Records run again alone in a new instance.", "agent")
	mInstances     = metric("guest_instances", "Live instances.", "agent")
	mSlotMemory    = metric("guest_instance_memory_bytes", "Memory of one live instance.", "agent", "instance")
	mGuestMemory   = metric("guest_memory_bytes", "Memory of the live instances; what one has not written it shares with the others.", "agent")

	mViewRequests = metric("view_requests_total", "Requests a web view took.", "view")
	mViewFailed   = metric("view_failed_requests_total", "Requests whose code failed.", "view", "kind")
	mViewRefused  = metric("view_refused_requests_total", "Requests answered with 503: queue (no room), timeout, not-ready (a table cannot be read).", "view", "reason")
	mViewTime     = metric("view_latency", "Time from a request's arrival to its response, in milliseconds.", "view")

	mSpans        = metric("trace_spans_exported_total", "Spans the collector took.")
	mSpansDropped = metric("trace_spans_dropped_total", "Spans that were lost: queue (no room), collector (it did not take them).", "reason")

	mLeft     = metric("table_restore_records_left", "Changelog records left to read, at most.", "table", "partition", "role")
	mRate     = metric("table_restore_records_per_second", "Changelog records read a second while restoring.", "table", "partition", "role")
	mPhase    = metric("table_partition_phase", "1 for what happens to the partition: waiting, restoring, active, copy, failed.", "table", "partition", "phase")
	mTStalls  = metric("table_restore_stalls_total", "Times a restore made no progress and began anew.", "table", "partition")
	mRecover  = metric("total_rebalances_recovering", "1 while a table partition is being restored.")
	mKeyCount = metric("table_key_count", "Keys of the partitions that are active here; an estimate.", "table")
	mTableOps = metric("table_operations_total", "Keys that code read from stores, keys that commits set and deleted.", "table", "operation")

	mStoreDisk       = metric("store_disk_bytes", "Table files on disk.", "table", "partition")
	mStoreMemory     = metric("store_memtable_bytes", "Changes that are in memory only.", "table", "partition")
	mStoreCompaction = metric("store_compaction_pending_bytes", "Compaction work left.", "table", "partition")
	mStoreDelayed    = metric("store_writes_delayed", "1 while RocksDB slows writes down.", "table", "partition")
	mStoreUnflushed  = metric("store_unflushed_offsets", "Changelog offsets that a restart would read again.", "table", "partition")

	mProcessor  = metric("cpu_utilization_percent", "Use of processors by the process since the last look; 100 is one of them.")
	mProcesor   = metric("cpu_utiliztion_percent", "The same by the original's name.")
	mResident   = metric("resident_memory_total", "Bytes of memory of the process.")
	mMemory     = metric("virtual_memory_total", "Bytes of memory of the machine.")
	mMemoryUsed = metric("virtual_memory_used", "Bytes of it that are not available.")
	mMemoryUse  = metric("virtual_memory_utilization", "Percent of it.")
	mSwap       = metric("swap_memory_total", "Bytes of swap of the machine.")
	mSwapUsed   = metric("swap_memory_used", "Bytes of it in use.")
	mSwapUse    = metric("swap_memory_utilization", "Percent of it.")

	mDiskTotal = metric("disk_space_total", "Bytes of the volume of tableDir.")
	mDiskFree  = metric("disk_space_free", "Bytes free for us on it.")
	mDiskUsed  = metric("disk_space_used", "Bytes used on it.")
)

// Describe and Collect are prometheus.Collector's.
func (s *series) Describe(to chan<- *prometheus.Desc) {
	for _, d := range described {
		to <- d
	}
}

func (s *series) Collect(to chan<- prometheus.Metric) {
	c := collection(to)
	a := s.app
	scheduling := "0"
	if a.schedule != nil {
		scheduling = "1"
	}
	c.gauge(mAppInfo, float64(a.seen.began.Unix()), a.plan.App.ID, a.opts.Version, scheduling)
	c.machine(&a.seen.processor)
	if !a.seen.running.Load() {
		c.gauge(mHealth, health[stateStarting])
		return
	}
	feeds := a.feedStates()
	state, _ := a.state(feeds)
	c.gauge(mHealth, health[state])
	c.counter(mAssigns, a.seen.assignments.Load(), "completed")
	c.rebalances(&a.seen.rebalances)
	c.counter(mStalls, a.stalls.Load())
	c.agents(a.agents)
	sent := map[string]int64{}
	for _, v := range a.views {
		c.view(v)
		v.stats.Sent.addTo(sent)
	}
	c.sent(a.agents, sent)
	c.topics(a.agents, &a.commits.stats, sent)
	c.schedule(a.schedule)
	c.tasks(a.taskStatuses(), a.isLeader())
	c.feeds(feeds)
	c.commits(&a.commits.stats)
	c.tables(a.tables, &a.commits.stats)
	if a.registry != nil {
		c.gauge(mRegistryWait, a.registry.Waiting().Seconds())
		c.counter(mRegistryAsk, a.registry.Requests())
	}
	if a.tracer != nil {
		c.counter(mSpans, a.tracer.queue.exported.Load())
		c.counter(mSpansDropped, a.tracer.queue.full.Load(), "queue")
		c.counter(mSpansDropped, a.tracer.queue.failed.Load(), "collector")
	}
	if a.stores != nil {
		c.disk(a.cfg.TableDir)
	}
}

var health = map[appState]float64{stateStarting: -1, stateRunning: 0, stateJoining: 1, stateRestoring: 2, stateStopping: 3}

// collection is what one request for metrics gets.
type collection chan<- prometheus.Metric

func (c collection) counter(d *prometheus.Desc, n int64, labels ...string) {
	c <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), labels...)
}

func (c collection) seconds(d *prometheus.Desc, t time.Duration, labels ...string) {
	c <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, t.Seconds(), labels...)
}

func (c collection) gauge(d *prometheus.Desc, v float64, labels ...string) {
	c <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
}

func (c collection) agents(agents []*agent) {
	var received int64
	for _, ag := range agents {
		name, n := ag.shown(), &ag.stats
		if ag.ofManifest() && ag.plan.Task == nil {
			received += n.Records.Load()
		}
		c.counter(mRecords, n.Records.Load(), name)
		c.counter(mOutputs, n.Outputs.Load(), name)
		c.counter(mCalls, n.Calls.Load(), name)
		for kind := range n.FailedBy {
			c.counter(mFailed, n.FailedBy[kind].Load(), name, record.FailureKind(kind).String())
		}
		for place, failed := range n.FailedAt.all() {
			c.counter(mFailedAt, failed, name, place)
		}
		c <- n.Lasted.metric(mLasted, name)
		c <- n.Took.metric(mCallTime, name)
		c <- n.Batch.metric(mBatch, name)
		c.counter(mDead, n.DeadLettered.Load(), name)
		c.counter(mSkipped, n.Skipped.Load(), name)
		c.counter(mRetried, n.Retried.Load(), name)
		if code := ag.guest(); code != nil {
			c.guestOf(name, code)
		}
	}
	c.counter(mEvents, received)
	c.counter(mReceived, received)
}

// ofManifest tells an agent or task that the app's manifests have from those that the engine adds.
func (a *agent) ofManifest() bool {
	return !a.plan.Writer && !a.plan.Seat && a.plan.Schedule == "" && a.plan.Join == nil
}

// sent is what agents, tasks and web views sent together.
func (c collection) sent(agents []*agent, byViews map[string]int64) {
	var sum int64
	for _, n := range byViews {
		sum += n
	}
	for _, ag := range agents {
		if ag.ofManifest() {
			sum += ag.stats.Outputs.Load() + ag.stats.DeadLettered.Load()
		}
	}
	c.counter(mSent, sum)
}

// topics are what is counted by topic and by what agents read.
// Sent already is what web views sent.
func (c collection) topics(agents []*agent, n *CommitStats, sent map[string]int64) {
	read, streams := map[string]int64{}, map[string]int64{}
	for _, ag := range agents {
		ag.stats.Sent.addTo(sent)
		if !ag.plan.Writer && !ag.plan.Seat && ag.plan.Task == nil {
			ag.stats.Received.addTo(read)
			streams[ag.stream()] += ag.stats.Records.Load()
		}
	}
	n.Updated.addTo(sent)
	n.Deleted.addTo(sent)
	for topic, n := range read {
		c.counter(mTopicRead, n, topic)
	}
	for topic, n := range sent {
		c.counter(mTopicSent, n, "topic."+topic)
	}
	for stream, n := range streams {
		c.counter(mStreamEvents, n, stream)
	}
}

// stream is the original's name for what the agent reads.
func (a *agent) stream() string {
	topics := strings.Join(a.plan.Topics, ",")
	if a.plan.Pattern != nil {
		topics = a.plan.Pattern.String()
	}
	return "stream.topic_" + topics + ".events"
}

func (c collection) rebalances(r *rebalances) {
	c.counter(mAssigns, r.Failed.Load(), "error")
	underWay := 0.0
	if r.underWay() {
		underWay = 1
	}
	c.gauge(mRebalancing, underWay)
	c <- r.Assigning.metric(mAssigning)
	c <- r.Assigned.metric(mRebalance)
	c <- r.Done.metric(mRebalanced)
}

func (c collection) machine(p *processor) {
	used := p.percent(time.Now())
	c.gauge(mProcessor, used)
	c.gauge(mProcesor, used)
	m := memoryNow()
	c.gauge(mResident, m.Resident)
	c.gauge(mMemory, m.Total)
	c.gauge(mMemoryUsed, m.Total-m.Available)
	c.gauge(mMemoryUse, percent(m.Total-m.Available, m.Total))
	c.gauge(mSwap, m.SwapTotal)
	c.gauge(mSwapUsed, m.SwapTotal-m.SwapFree)
	c.gauge(mSwapUse, percent(m.SwapTotal-m.SwapFree, m.SwapTotal))
}

func (c collection) tasks(tasks []taskStatus, leader bool) {
	leads := 0.0
	if leader {
		leads = 1
	}
	c.gauge(mLeader, leads)
	for _, t := range tasks {
		if !t.Here {
			continue
		}
		c.counter(mTaskRuns, t.Runs, t.Task)
		c.counter(mTaskFailures, t.Failures, t.Task)
		c.counter(mTaskSkipped, t.Skipped, t.Task)
		c.counter(mTaskMissed, t.Missed, t.Task)
		if t.Began != nil {
			c.gauge(mTaskTook, t.Ended.Sub(*t.Began).Seconds(), t.Task)
		}
		for d, at := range map[*prometheus.Desc]*time.Time{mTaskSuccess: t.Success, mTaskNext: t.Next} {
			if at != nil {
				c.gauge(d, float64(at.UnixMilli())/1000, t.Task)
			}
		}
	}
}

// guestOf is what the code of an agent, a task or a web view does in the sandbox.
func (c collection) guestOf(name string, code *wasmhost.Component) {
	c.guest(name, code.Stats())
	for i, bytes := range code.Memory() {
		if bytes > 0 {
			c.gauge(mSlotMemory, float64(bytes), name, strconv.Itoa(i))
		}
	}
	for _, p := range code.Places() {
		c.seconds(mPlaceTime, p.Ran, name, p.Where)
	}
}

func (c collection) guest(agent string, n *wasmhost.Stats) {
	c.counter(mGuestCalls, n.Calls.Load(), agent)
	c.counter(mGuestRecords, n.Records.Load(), agent)
	c.seconds(mGuestSeconds, n.WasmTime(), agent)
	c.counter(mGuestRestores, n.Restores.Load(), agent)
	c.seconds(mGuestRestore, time.Duration(n.RestoreNanos.Load()), agent)
	c.counter(mGuestLimits, n.Deadlines.Load(), agent, "deadline")
	c.counter(mGuestLimits, n.MemoryHits.Load(), agent, "memory")
	c.counter(mGuestLimits, n.Traps.Load(), agent, "trap")
	c.counter(mGuestRetries, n.Retries.Load(), agent)
	c.gauge(mInstances, float64(n.Instances.Load()), agent)
	c.gauge(mGuestMemory, float64(n.MemoryBytes.Load()), agent)
}

func (c collection) view(v *view) {
	name, n := v.plan.Name, &v.stats
	if v.code != nil {
		c.guestOf(v.shown(), v.code)
	}
	c.counter(mViewRequests, n.Requests.Load(), name)
	for kind := range n.FailedBy {
		c.counter(mViewFailed, n.FailedBy[kind].Load(), name, record.FailureKind(kind).String())
	}
	c.counter(mViewRefused, n.Refused.Load(), name, "queue")
	c.counter(mViewRefused, n.Late.Load(), name, "timeout")
	c.counter(mViewRefused, n.NotReady.Load(), name, "not-ready")
	c <- n.Took.metric(mViewTime, name)
}

// feeds are sorted by partition. What is of a partition, not of an agent, is the least of its agents'.
func (c collection) feeds(feeds []feedState) {
	active := 0
	for i := range feeds {
		f := &feeds[i]
		n := number(f.Partition)
		active += f.Queued + f.Working + f.Pending
		if f.Position >= 0 {
			c.gauge(mPosition, float64(f.Position), f.Topic, n, f.Agent)
		}
		if f.Lag >= 0 {
			c.gauge(mLag, float64(f.Lag), f.Topic, n, f.Agent)
		}
	}
	c.gauge(mActive, float64(active))
	c.gauge(mActiveEvents, float64(active))
	for len(feeds) > 0 {
		f := feeds[0]
		for feeds = feeds[1:]; len(feeds) > 0 && feeds[0].Topic == f.Topic && feeds[0].Partition == f.Partition; feeds = feeds[1:] {
			f.Committed, f.Read = min(f.Committed, feeds[0].Committed), max(f.Read, feeds[0].Read)
		}
		n := number(f.Partition)
		if f.Read > 0 {
			c.gauge(mRead, float64(f.Read-1), f.Topic, n)
		}
		if f.End >= 0 {
			c.gauge(mEnd, float64(f.End), f.Topic, n)
		}
		if f.Committed >= 0 {
			c.gauge(mCommitted, float64(f.Committed), f.Topic, n)
			c.gauge(mCommited, float64(f.Committed), f.Topic, n)
		}
	}
}

func (c collection) commits(n *CommitStats) {
	c.counter(mCommits, n.Commits.Load())
	c.counter(mRollbacks, n.Rollbacks.Load())
	c.counter(mReopened, n.Reopened.Load())
	c <- n.Took.metric(mCommitTime)
	c <- n.Sends.metric(mSends)
	c <- n.SendsFailed.metric(mSendsFailed)
	c.counter(mSendErrors, int64(n.SendsFailed.count()))
}

func (c collection) tables(t *tables, commits *CommitStats) {
	updated, deleted := commits.Updated.all(), commits.Deleted.all()
	for i := range t.plan {
		table, changelog := "table."+t.plan[i].Name, t.plan[i].Changelog.Name
		c.counter(mTableOps, t.read[i].Load(), table, "keys_retrieved")
		c.counter(mTableOps, updated[changelog], table, "keys_updated")
		c.counter(mTableOps, deleted[changelog], table, "keys_deleted")
	}
	recovering := 0.0
	for _, x := range t.Progress() {
		n := number(x.Partition)
		c.gauge(mLeft, float64(x.Left), x.Table, n, x.Role)
		c.gauge(mRate, x.Rate, x.Table, n, x.Role)
		c.gauge(mPhase, 1, x.Table, n, string(x.Phase))
		c.counter(mTStalls, x.Stalls, x.Table, n)
		if x.Phase.recovering() {
			recovering = 1
		}
	}
	c.gauge(mRecover, recovering)
	keys := map[string]int64{}
	t.each(func(p *tablePart) {
		now := p.now.Load()
		if now == nil {
			return
		}
		table, n, m := t.plan[p.table].Name, number(p.number), now.store.Metrics()
		if now.staged != nil {
			keys[table] += m.Keys
		}
		c.gauge(mStoreDisk, float64(m.DiskBytes), table, n)
		c.gauge(mStoreMemory, float64(m.MemtableBytes), table, n)
		c.gauge(mStoreCompaction, float64(m.CompactionBytes), table, n)
		c.gauge(mStoreUnflushed, float64(m.Offset-m.Durable), table, n)
		delayed := 0.0
		if m.Delayed {
			delayed = 1
		}
		c.gauge(mStoreDelayed, delayed, table, n)
	})
	for table, n := range keys {
		c.gauge(mKeyCount, float64(n), table)
	}
}

func (c collection) disk(dir string) {
	var st syscall.Statfs_t
	if syscall.Statfs(dir, &st) != nil {
		return // stores tell what is wrong with their disk
	}
	block := float64(st.Bsize)
	c.gauge(mDiskTotal, float64(st.Blocks)*block)
	c.gauge(mDiskFree, float64(st.Bavail)*block)
	c.gauge(mDiskUsed, float64(st.Blocks-st.Bfree)*block)
}
