// Package engine runs a Plan: records from Kafka through the agents' Python, and what comes of them back to Kafka.
//
// datapath.go is the way of a record; app.go the life of an app around it: start, rebalance, commit, stop.
package engine

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"runtime"
	"slices"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"kaspr.io/kaspr/engine/broker"
	"kaspr.io/kaspr/engine/config"
	"kaspr.io/kaspr/engine/manifest"
	"kaspr.io/kaspr/engine/plan"
	"kaspr.io/kaspr/engine/record"
	"kaspr.io/kaspr/engine/registry"
	apphttp "kaspr.io/kaspr/http"
	"kaspr.io/kaspr/state"
	"kaspr.io/kaspr/wasmhost"
	"kaspr.io/kaspr/wasmhost/abi"
)

// App is one process of an app: one member of its consumer group.
type App struct {
	cfg  config.Config
	plan *plan.Plan
	log  *slog.Logger
	opts Options

	process *Process // that it runs in; nil: in none

	agents   []*agent
	views    []*view
	member   *broker.Member
	producer *broker.Producer
	admin    *broker.Admin
	commits  *committer
	outbox   *outbox            // nil without views, and until Run has begun
	registry *registry.Registry // of schemas; nil: there is none
	intake   *intake
	tables   *tables // nil until Run knows their partitions
	tail     *broker.Tail
	stores   *state.Dir // nil without tables, or when they are elsewhere (Options.Stores)
	instance string     // names this process among those of the app, and those that will use its stores
	start    string     // names this run of it
	counts   []int32    // partitions of the tables, by the plan's index
	// batchBytes is the largest batch that topics of tables take, of those of which it is known (learnRowBytes).
	batchBytes map[string]int
	own        []int32   // partitions of the app's own topics, by the plan's index
	schedule   *schedule // the message scheduler; nil: it is not enabled

	mu      sync.Mutex
	readers map[string][]*agent             // guarded by mu; agents by topic
	feeds   map[record.Partition][]laneFeed // guarded by mu; of assigned partitions
	local   []laneFeed                      // guarded by mu, and the same from the start on; of tasks that run in every process
	failed  error                           // guarded by mu; why the app stops
	until   time.Time                       // guarded by mu; end of the stop's time, zero while running
	lanes   []*lane                         // guarded by mu
	refetch []refetch                       // guarded by mu; what the poll loop is to fetch anew
	inputs  map[string]int32                // guarded by mu; partitions of topics that were compared with the tables'
	stop    context.CancelFunc              // ends polling and begins the stop

	preparing sync.WaitGroup         // of assigned partitions
	placement atomic.Pointer[owners] // of table partitions, as last told; nil before
	peers     *apphttp.Peers
	secret    string         // with which other processes of the app may read tables here
	viewsEnd  chan struct{}  // closed when no view answers any more
	placing   sync.WaitGroup // of requests' changes, where others are asked
	led       atomic.Bool    // the first assignment made this process the leader, and it still is
	stalls    atomic.Int64   // partitions found standing still
	failures  failures       // the last records that failed
	tracer    *tracer        // nil: no spans are made
	seen      observed
}

type laneFeed struct {
	lane *lane
	feed *feed
}

// Options are for embedding and tests; a plain run needs none.
type Options struct {
	// Delivered is told of every output the broker acknowledged.
	Delivered func(broker.Delivered)
	// Stores are where tables are kept; nil: in the state directory. They are not closed.
	Stores state.Opener
	// ReplicasMax lowers the replicas of topics the app creates, for a cluster smaller than the one meant; 0: as asked.
	ReplicasMax int16
	// Listen is where the HTTP server listens, as host:port; empty: there is none.
	Listen string
	// ListenAdmin is where the admin server listens; empty: there is none.
	ListenAdmin string
	// Version is the engine's, as /status tells it.
	Version string
}

// New loads every agent's code into the sandbox and returns the app ready to Run. Problems of the code are all
// reported at once, as wasmhost.LoadError values joined. Close it when it is not run.
func New(ctx context.Context, cfg config.Config, p *plan.Plan, rt *wasmhost.Runtime, log *slog.Logger, opts Options) (*App, error) {
	a := &App{
		cfg: cfg, plan: p, log: log.With("app", p.App.ID), opts: opts,
		intake:  newIntake(cfg.QueueRecordsMax),
		readers: map[string][]*agent{}, feeds: map[record.Partition][]laneFeed{}, instance: rand.Text(), start: rand.Text(), viewsEnd: make(chan struct{}), secret: rand.Text(),
	}
	trust, err := broker.TLS{CAFile: cfg.Web.PeerCAFile}.Config()
	if err != nil {
		return nil, fmt.Errorf("webTlsCaFile: %w", err)
	}
	a.peers = apphttp.NewPeers(trust)
	if err := a.openRegistry(); err != nil {
		return nil, err
	}
	if cfg.Tracing == config.TracingExport {
		if a.tracer, err = newTracer(ctx, a); err != nil {
			a.Close()
			return nil, fmt.Errorf("tracing: %w", err)
		}
	}
	var problems error
	for i := range p.Agents {
		ag := newAgent(a, &p.Agents[i])
		switch {
		case ag.plan.Writer:
			ag.component = "KasprTable/" + p.Tables[ag.plan.Tables[0].Table].Name
			ag.runs(writer{})
		case ag.plan.Seat:
			ag.component = "KasprApp/leader"
			ag.runs(seat{})
		case ag.plan.Join != nil:
			ag.component = "KasprJoin/" + ag.plan.Join.Name
			ag.runs(&joinPart{JoinPart: ag.plan.Join, agent: ag})
		case ag.plan.Schedule != "":
			a.hostSchedule(ag)
		}
		if ag.plan.Program.Kind == "" {
			a.agents = append(a.agents, ag)
			continue
		}
		began := time.Now()
		var tables wasmhost.Tables = agentTables{ag}
		if ag.plan.Task != nil {
			tables = taskTables(a, ag.plan.Task)
		}
		snapshot, err := rt.Load(ctx, &ag.plan.Program, wasmhost.Options{
			Host: ag, Tables: tables, Logger: ag.log, Deadline: cfg.Sandbox.Deadline, LoadDeadline: cfg.Sandbox.LoadDeadline, MemoryMax: cfg.Sandbox.MemoryMax,
		})
		if err != nil {
			problems = errors.Join(problems, loadProblem(ag.plan.Pos, ag.plan.Label, err))
			continue
		}
		slots := cfg.Workers
		if ag.plan.Task != nil {
			slots = 1
		}
		code := wasmhost.NewComponent(snapshot, slots)
		if part, ok := ag.code.(*joinPart); ok {
			part.extractor = code
		} else if p := ag.plan.Task; p != nil {
			ag.runs(newTask(ag, p, code))
		} else {
			ag.runs(code)
		}
		ag.log.Debug("code loaded", "took", time.Since(began).Round(time.Millisecond))
		a.agents = append(a.agents, ag)
	}
	for i := range p.Views {
		v := newView(a, &p.Views[i])
		snapshot, err := rt.Load(ctx, &v.plan.Program, wasmhost.Options{
			Host: v, Tables: v.reads(), Logger: v.log, Deadline: cfg.Web.Deadline, LoadDeadline: cfg.Sandbox.LoadDeadline, MemoryMax: cfg.Sandbox.MemoryMax,
		})
		if err != nil {
			problems = errors.Join(problems, loadProblem(v.plan.Pos, v.plan.Label, err))
			continue
		}
		v.code = wasmhost.NewComponent(snapshot, cfg.Web.Instances)
		a.views = append(a.views, v)
	}
	if problems != nil {
		a.Close()
		return nil, problems
	}
	return a, nil
}

// loadProblem names the component where the error does not name a line by itself.
func loadProblem(at manifest.Pos, label string, err error) error {
	var load *wasmhost.LoadError
	if errors.As(err, &load) {
		return err
	}
	return fmt.Errorf("%s: %s: load: %w", at, label, err)
}

// Turns is how many instances, of all agents together, may run at the same moment: one on each processor. A guest holds
// its thread until the next tick, so Go gets one thread more than that for everything else; the operating system
// shares the processors among them.
func Turns(cfg config.Config) int {
	turns := max(config.Processors, cfg.Workers)
	if runtime.GOMAXPROCS(0) <= turns {
		runtime.GOMAXPROCS(turns + 1)
	}
	return turns
}

// Close frees the instances. It is idempotent; Run calls it.
func (a *App) Close() {
	for _, ag := range a.agents {
		if c := ag.guest(); c != nil {
			if err := c.Close(); err != nil {
				ag.log.Error("close instances", "err", err)
			}
		}
	}
	for _, v := range a.views {
		if err := v.code.Close(); err != nil {
			v.log.Error("close instances", "err", err)
		}
	}
	a.peers.Close()
	if a.tracer != nil {
		a.tracer.close(a.stopsUntil())
	}
	if a.registry != nil {
		a.registry.Close()
	}
	if a.producer != nil {
		a.producer.Close()
	}
	if a.tables != nil {
		if err := a.tables.Close(context.Background()); err != nil {
			a.log.Error("close the tables", "err", err)
		}
	}
	if a.tail != nil {
		a.tail.Close()
	}
	if a.stores != nil {
		if err := a.stores.Close(); err != nil {
			a.log.Error("close the tables", "err", err)
		}
	}
	if a.admin != nil {
		a.admin.Close()
	}
}

// stopsUntil is the end of the stop's time; zero before there is a stop.
func (a *App) stopsUntil() time.Time {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.until
}

// metadataMaxAge is how soon new topics and partitions are noticed.
const metadataMaxAge = 5 * time.Second

// rebalanceTimeout is how long the group waits for this member to hand partitions over. A step under way may take the
// sandbox deadline and half of it again; its outputs have the rest.
const rebalanceTimeout = time.Minute

// pollRecordsMax bounds one poll, so that the intake's limit is overrun by no more than that.
const pollRecordsMax = 10_000

// gather is how long records that come in wait for others, and outputs: at a steady pace every fetch, call and send would else hold only
// what came since the one before, and the broker would spend ten times the time of the work on answering (docs/performance.md).
const gather = 2 * time.Millisecond

// stallAfter is how long a full intake waits before feeds that do not move are set aside.
const stallAfter = 250 * time.Millisecond

// Run consumes until ctx ends or a policy or a fault stops the app; then it drains, commits and leaves the group, all
// within the shutdown timeout. The error says why it stopped, nil after ctx.
func (a *App) Run(ctx context.Context) error {
	defer a.Close()
	ctx, a.stop = context.WithCancel(ctx)
	defer a.stop()
	if err := a.listen(ctx); err != nil {
		return err
	}
	defer a.unlisten()
	opts, err := a.brokerOptions()
	if err != nil {
		return err
	}
	if a.admin, err = broker.NewAdmin(opts); err != nil {
		return err
	}
	if err := a.reachCluster(ctx); err != nil {
		return err
	}
	for _, t := range a.plan.Topics {
		if err := a.ensure(ctx, broker.Topic{Name: t.Name, Partitions: t.Partitions, Replicas: t.Replicas, Config: t.Config}); err != nil {
			return fmt.Errorf("%s: %s: %w", t.Pos, t.For, err)
		}
	}
	if a.registry != nil {
		if err := a.prepareSchemas(ctx); err != nil {
			return err
		}
	}
	if err := a.openTables(ctx); err != nil {
		return err
	}
	topics, err := a.subscriptions(ctx)
	if err != nil {
		return err
	}
	opts.Gather, opts.BatchBytes = gather, a.batchBytes
	opts.Copartition, opts.Standbys = a.copartition, a.cfg.StandbyReplicas
	opts.UserData, opts.OnAssignment = a.memberState, a.placed
	joining := opts
	left := a.leftBehind(ctx, &joining)
	if a.member, err = broker.Join(joining, topics, a); err != nil {
		return err
	}
	// hard outlives ctx: what runs and what is being sent at a stop still ends well, within the timeout.
	hard, kill := context.WithCancel(context.Background())
	defer kill()
	if err := a.startCommitter(ctx, hard, opts); err != nil {
		a.leave(time.Now())
		return err
	}
	stopViews, err := a.startViews(ctx, hard, opts)
	if err != nil {
		a.leave(time.Now())
		return err
	}
	defer stopViews()
	a.replace(ctx, left)
	lanes := a.startLanes()
	a.startTasks()
	a.seen.joined.Store(len(topics) == 0) // then there is nothing to be given
	a.seen.rebalances.begin(time.Now())
	a.seen.running.Store(true)
	a.member.Start()
	a.log.Info("started", "agents", len(a.agents), "workers", a.cfg.Workers, "topics", topics, "guarantee", a.cfg.ProcessingGuarantee)
	var running, others sync.WaitGroup
	for _, l := range lanes {
		running.Go(func() {
			if err := l.run(ctx, hard); err != nil {
				a.fail(err)
			}
		})
	}
	others.Go(func() { a.commits.loop(ctx, a.cfg.CommitInterval) })
	others.Go(func() { a.discoverLoop(ctx) })
	others.Go(func() { a.beginTasks(ctx) })
	others.Go(func() { a.watchLoop(ctx, watchEvery) })
	others.Go(func() { a.endsLoop(ctx) })
	others.Go(func() { a.purgeLoop(ctx) })
	others.Go(func() { a.tables.cleanupLoop(ctx, a.cfg.Store.CleanupDelay, a.member.Holds) })
	if a.schedule != nil && a.cfg.Scheduler.DebugStatsEnabled {
		others.Go(func() { a.schedule.statsLoop(ctx) })
	}
	a.pollLoop(ctx)

	// The stop. Nothing is polled any more; steps under way end, and what they made is committed.
	until := time.Now().Add(a.cfg.ShutdownTimeout)
	a.mu.Lock()
	a.until = until
	a.mu.Unlock()
	timer := time.AfterFunc(a.cfg.ShutdownTimeout, kill)
	defer timer.Stop()
	stopViews()
	running.Wait()
	others.Wait()
	if err := a.commits.commit(hard); err != nil {
		a.log.Warn("stopped before everything was committed; the records behind it will be read again", "err", err)
	}
	a.leave(until)
	kill()
	a.preparing.Wait()
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.failed != nil {
		a.log.Error("stopped", "err", a.failed)
	} else {
		a.log.Info("stopped")
	}
	return a.failed
}

// How long a stop tries to tell the group that it leaves: leaveLeast even if all of shutdownTimeout is over, since others wait for the
// partitions; but no broker that is there takes longer than leaveMost.
const (
	leaveLeast = time.Second
	leaveMost  = 5 * time.Second
)

func (a *App) leave(until time.Time) {
	ctx, cancel := context.WithTimeout(context.Background(), min(max(leaveLeast, time.Until(until)), leaveMost))
	defer cancel()
	a.member.Close(ctx)
}

// openTables decides the partitions of the tables and of the app's own topics, makes these and the changelogs, and opens where
// tables are kept.
func (a *App) openTables(ctx context.Context) error {
	exist := map[string]int32{}
	if len(a.plan.Tables)+len(a.plan.Own) > 0 {
		var err error
		if exist, err = a.admin.Topics(ctx); err != nil {
			return err
		}
	}
	counts, own, problems := a.plan.Partitions(a.cfg, exist)
	if len(problems) > 0 {
		return problems
	}
	a.counts, a.own, a.inputs = counts, own, exist
	var missing error
	need := func(t plan.Topic, partitions int32) error {
		if t.Name == "" {
			return nil
		}
		topic := broker.Topic{Name: t.Name, Partitions: partitions, Replicas: t.Replicas, Config: t.Config}
		if _, ok := exist[t.Name]; ok {
			a.logDrift(ctx, topic) // one that is not compacted forgets
			return nil
		}
		if !a.cfg.Topics.AllowDeclare {
			options := ""
			if policy := t.Config["cleanup.policy"]; policy != "" {
				options = " and cleanup.policy=" + policy
			}
			missing = errors.Join(missing, fmt.Errorf("%s: %s: topic %s does not exist, and topicAllowDeclare is false: create it with %d partitions%s",
				t.Pos, t.For, t.Name, partitions, options))
			return nil
		}
		if err := a.ensure(ctx, topic); err != nil {
			return fmt.Errorf("%s: %s: %w", t.Pos, t.For, err)
		}
		return nil
	}
	for i := range a.plan.Tables {
		t := &a.plan.Tables[i]
		if err := errors.Join(need(t.Changelog, counts[i]), need(t.Writes, counts[i])); err != nil {
			return err
		}
	}
	for i := range a.plan.Own {
		if err := need(a.plan.Own[i].Topic, own[i]); err != nil {
			return err
		}
	}
	if missing != nil {
		return missing
	}
	a.learnRowBytes(ctx)
	if a.schedule != nil {
		a.schedule.begin()
	}
	stores := a.opts.Stores
	if stores == nil && len(a.plan.Tables) > 0 {
		var err error
		if a.stores, err = openStores(a.cfg, a.plan, a.log); err != nil {
			return err
		}
		if a.instance, err = instanceOf(a.cfg.TableDir); err != nil {
			return err
		}
		stores = a.stores
	}
	return a.startTables(stores, counts)
}

// learnRowBytes finds out what the tables' topics take. Without the right to ask, they are taken to take what brokers do by default; a
// changelog that refuses a write all the same stops the app (committer.writeChangelogs).
func (a *App) learnRowBytes(ctx context.Context) {
	var topics []string
	for i := range a.plan.Tables {
		t := &a.plan.Tables[i]
		topics = append(topics, t.Changelog.Name)
		if t.Writes.Name != "" {
			topics = append(topics, t.Writes.Name)
		}
	}
	if len(topics) == 0 {
		return
	}
	var err error
	if a.batchBytes, err = a.admin.MessageBytes(ctx, topics...); err != nil {
		a.log.Info("cannot find out how large the rows of tables may be: max.message.bytes of their changelogs should not be below 1048588", "err", err)
	}
	for i := range a.plan.Tables {
		if most := a.rowBytes(i); most < abi.ChangeBytesMax {
			t := &a.plan.Tables[i]
			a.log.Warn("rows of a table can be no larger than its changelog takes", "table", t.Name, "topic", t.Changelog.Name,
				"max.message.bytes", a.batchBytes[t.Changelog.Name], "row", most)
		}
	}
}

// rowBytes is the largest write of a table, key and value: with some room for what Kafka adds, as ChangeBytesMax has it.
func (a *App) rowBytes(table int) int {
	most, known := a.batchBytes[a.plan.Tables[table].Changelog.Name]
	if !known {
		return abi.ChangeBytesMax
	}
	return min(max(0, most-1<<10), abi.ChangeBytesMax)
}

// wrap keeps the partitions of records on their way to topics of the app's own inside of these, where an input was given more since
// they were made. What came from one partition still goes to one.
func (a *App) wrap(topics []string, outs []record.Output) {
	if a.schedule != nil {
		a.schedule.route(outs)
	}
	if len(topics) == 0 {
		return
	}
	for i := range outs {
		o := &outs[i]
		if o.Partition < 0 || !slices.Contains(topics, o.Topic) {
			continue
		}
		at := slices.IndexFunc(a.plan.Own, func(own plan.Own) bool { return own.Name == o.Topic })
		o.Partition %= a.own[at]
	}
}

// startTables begins to keep the tables' partitions, as they are acquired.
func (a *App) startTables(stores state.Opener, counts []int32) error {
	opts, err := a.brokerOptions()
	if err != nil {
		return err
	}
	if len(a.plan.Tables) > 0 {
		if a.tail, err = broker.NewTail(opts); err != nil {
			return err
		}
	}
	a.tables = newTables(stores, brokerLogs{a.admin, a.tail}, a.plan.App.ID, a.plan.Tables, a.log, a.tablesReady)
	a.tables.Start(counts)
	for _, ag := range a.agents {
		ag.view = a.tables.view(ag.tables)
	}
	return nil
}

// startCommitter opens the producer and, with exactly_once, its first transaction.
func (a *App) startCommitter(ctx, hard context.Context, opts broker.Options) error {
	c := &committer{
		exactlyOnce: a.cfg.ProcessingGuarantee == config.ExactlyOnce,
		member:      a.member, group: a.member, sending: hard,
		feeds: a.assigned, lanes: a.allLanes, shareFailed: a.shareFailed, fail: a.fail, released: a.signal, log: a.log,
		running: make(chan struct{}, 1), committed: map[record.Partition]broker.Position{},
		now: make(chan struct{}, 1), every: int64(a.cfg.CommitEvery),
	}
	id := ""
	if c.exactlyOnce {
		id = a.transactionalID()
	}
	var err error
	if a.producer, err = broker.NewProducer(opts, id); err != nil {
		return err
	}
	c.producer = a.producer
	if c.exactlyOnce {
		if err := a.takeOver(ctx, a.producer); err != nil {
			return err
		}
	}
	c.current = newEpoch(hard, !c.exactlyOnce)
	a.commits = c
	if !c.exactlyOnce {
		return nil
	}
	if err := c.lock(ctx); err != nil {
		return err
	}
	defer c.unlock()
	return c.begin(ctx)
}

// takeOver makes a producer the only one of its transactional id. A broker that goes away meanwhile is waited for, as at the start.
func (a *App) takeOver(ctx context.Context, p *broker.Producer) error {
	return persist(ctx, func() error { return p.Init(ctx) }, broker.Answered, func(err error, pause time.Duration) {
		a.log.Warn("no broker gives a producer session yet", "err", err, "again", pause)
	})
}

// transactionalID names this process to the broker's transactions. A process that comes back under the same name ends at once
// what the one before left open; otherwise readers wait for the transaction timeout.
func (a *App) transactionalID() string {
	instance := a.cfg.Kafka.GroupInstanceID
	if instance == "" {
		instance = a.instance
	}
	return a.plan.App.ID + "-" + instance
}

// leftBehind names this process to the group, and finds the members that processes before it left there under that name: one
// that was killed counts as a member until its session is over, and all that time nobody works on its partitions. Nobody else has
// the name, because nobody else has the state directory.
func (a *App) leftBehind(ctx context.Context, opts *broker.Options) []string {
	if a.instance == "" || opts.InstanceID != "" {
		return nil
	}
	opts.ClientID = a.transactionalID()
	left, err := a.admin.Left(ctx, opts.Group, opts.ClientID)
	if err != nil {
		a.log.Warn("look for members that this process left in the group; their partitions wait until their session is over", "err", err)
	}
	return left
}

// replace takes members that are dead out of the group, after this process has asked to join: a group that was empty for a moment
// would first wait for others.
func (a *App) replace(ctx context.Context, left []string) {
	if len(left) == 0 {
		return
	}
	if err := a.admin.Expel(ctx, a.plan.App.ID, left); err != nil {
		a.log.Warn("their partitions wait until their session is over", "err", err)
		return
	}
	a.log.Info("took the place of a process that ended without leaving the group", "members", left)
}

// startLanes makes the lanes: one for each group of agents and each slot.
func (a *App) startLanes() []*lane {
	lim := limits{a.cfg.Batch.RecordsMax, a.cfg.Batch.BytesMax, a.cfg.Batch.Linger, a.cfg.Batch.ConcurrencyMax}
	groups := map[int][]*lane{}
	var all []*lane
	for _, ag := range a.agents {
		lanes := groups[ag.group]
		if lanes == nil {
			for slot := range a.cfg.Workers {
				lanes = append(lanes, newLane(slot, a.commits, a.intake, lim))
			}
			groups[ag.group] = lanes
			all = append(all, lanes...)
		}
		ag.lanes = lanes
	}
	a.mu.Lock()
	a.lanes = all
	a.mu.Unlock()
	return all
}

func (a *App) allLanes() []*lane {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.lanes
}

// signal wakes every lane.
func (a *App) signal() {
	for _, l := range a.allLanes() {
		l.signal()
	}
}

// assigned is the feeds of all assigned partitions, and those of tasks.
func (a *App) assigned() []laneFeed {
	a.mu.Lock()
	defer a.mu.Unlock()
	all := slices.Clone(a.local)
	for _, feeds := range a.feeds {
		all = append(all, feeds...)
	}
	return all
}

// fail stops the app with a reason; the first one counts.
func (a *App) fail(err error) {
	a.mu.Lock()
	if a.failed == nil {
		a.failed = err
	}
	a.mu.Unlock()
	a.stop()
}

// persist does what needs the cluster, again and again, until it succeeds, its error says that no attempt will, or ctx ends. again
// is told of every failure that another attempt follows, and of the pause until then.
func persist(ctx context.Context, do func() error, hopeless func(error) bool, again func(err error, pause time.Duration)) error {
	for pause := 100 * time.Millisecond; ; pause = min(2*pause, 5*time.Second) {
		err := do()
		if err == nil || ctx.Err() != nil || hopeless(err) {
			return err
		}
		again(err, pause)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
}

// reachCluster waits for a broker. A cluster that is not up yet is not an error; the log says what is waited for.
func (a *App) reachCluster(ctx context.Context) error {
	ping := func() error {
		attempt, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		return a.admin.Ping(attempt)
	}
	err := persist(ctx, ping, broker.Refused, func(err error, pause time.Duration) {
		a.log.Warn("no broker reached yet", "brokers", a.cfg.Kafka.BootstrapServers, "err", err, "again", pause)
	})
	if err != nil && ctx.Err() == nil {
		return fmt.Errorf("connect to %s: %w", strings.Join(a.cfg.Kafka.BootstrapServers, ","), err)
	}
	return ctx.Err()
}

func (a *App) ensure(ctx context.Context, t broker.Topic) error {
	if m := a.opts.ReplicasMax; m > 0 && t.Replicas > m {
		t.Replicas = m
	}
	created, err := a.admin.Ensure(ctx, t)
	if created {
		a.log.Info("topic created", "topic", t.Name, "partitions", t.Partitions, "replicas", t.Replicas)
	}
	if created || err != nil {
		return err
	}
	a.logDrift(ctx, t)
	return nil
}

// logDrift logs what about an existing topic is not as declared.
func (a *App) logDrift(ctx context.Context, t broker.Topic) {
	drift, err := a.admin.Drift(ctx, t)
	if err != nil { // it is only for the log, and may need a right that producing does not
		a.log.Debug("cannot compare a topic with its declaration", "topic", t.Name, "err", err)
	}
	for _, d := range drift {
		a.log.Warn("a topic is not as declared; it is left as it is", "topic", t.Name, "option", d.Option, "declared", d.Declared, "is", d.Is)
	}
}

// subscriptions is every topic the agents read by now: those they name and those their patterns match.
func (a *App) subscriptions(ctx context.Context) ([]string, error) {
	var known map[string]int32
	for _, ag := range a.agents {
		if ag.plan.Pattern != nil && known == nil {
			var err error
			if known, err = a.admin.Topics(ctx); err != nil {
				return nil, err
			}
		}
	}
	return a.subscribe(known), nil
}

// subscribe adds the agents' named topics and those of known that a pattern matches, and returns what is new.
func (a *App) subscribe(known map[string]int32) []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	var added []string
	for _, ag := range a.agents {
		topics := slices.Clone(ag.plan.Topics)
		for t := range known {
			if a.plan.Matches(ag.plan, t) {
				topics = append(topics, t)
			}
		}
		for _, t := range topics {
			if slices.Contains(a.readers[t], ag) {
				continue
			}
			if len(a.readers[t]) == 0 {
				added = append(added, t)
			}
			a.readers[t] = append(a.readers[t], ag)
		}
	}
	sort.Strings(added)
	return added
}

// discoverLoop looks for topics that patterns match from now on.
func (a *App) discoverLoop(ctx context.Context) {
	if !slices.ContainsFunc(a.agents, func(ag *agent) bool { return ag.plan.Pattern != nil }) {
		return
	}
	tick := time.NewTicker(metadataMaxAge)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		known, err := a.admin.Topics(ctx)
		if err != nil {
			if ctx.Err() == nil {
				a.log.Warn("look for topics of patterns", "err", err)
			}
			continue
		}
		if added := a.subscribe(known); len(added) > 0 {
			a.log.Info("new topics match a pattern", "topics", added)
			a.member.AddTopics(added...)
		}
	}
}

// pollLoop hands fetched records to the lanes while the intake has room.
func (a *App) pollLoop(ctx context.Context) {
	for ctx.Err() == nil {
		polling, done := a.intake.polling(ctx) // before the look at paused feeds: one that drains after it ends the poll
		a.resumeMoving()
		a.fetchAnew()
		if a.intake.wait(ctx, stallAfter) {
			err := a.member.Poll(polling, pollRecordsMax, a.put)
			if err != nil && ctx.Err() == nil {
				a.fail(err)
			}
		} else {
			a.pauseStalled()
		}
		done()
	}
}

func (a *App) put(f broker.Fetched) {
	a.mu.Lock()
	feeds := a.feeds[f.Partition]
	a.mu.Unlock()
	for _, lf := range feeds {
		lf.lane.put(lf.feed, f.Records, f.Next)
	}
}

// pauseStalled sets feeds aside that hold a good part of the intake and have not moved since it was last looked at: a
// retry's pause or a slow agent must not keep others from their records.
func (a *App) pauseStalled() {
	a.eachFeed(func(p record.Partition, l *lane, f *feed) {
		stalled := !f.paused && f.moved == f.seen && f.queued > a.cfg.QueueRecordsMax/2
		f.seen = f.moved
		if stalled {
			n := f.queued
			l.count(f, -n)
			f.paused = true
			f.queued = n
			a.member.Pause([]record.Partition{p})
		}
	})
}

// resumeMoving takes paused feeds back that have drained.
func (a *App) resumeMoving() {
	a.eachFeed(func(p record.Partition, l *lane, f *feed) {
		if f.paused && a.intake.drained(f.queued) {
			n := f.queued
			f.paused, f.queued = false, 0
			l.count(f, n)
			a.member.Resume([]record.Partition{p})
		}
	})
}

// Settled is the offset of every assigned partition below which all is done and committed; -1 where nothing is.
func (a *App) Settled() map[record.Partition]int64 {
	settled := map[record.Partition]int64{}
	a.eachFeed(func(p record.Partition, _ *lane, f *feed) {
		if at, ok := settled[p]; !ok || f.committed < at {
			settled[p] = f.committed
		}
	})
	return settled
}

// Reads tells whether an agent reads the topic, at once or as soon as its pattern has found it.
func (a *App) Reads(topic string) bool {
	return slices.ContainsFunc(a.agents, func(ag *agent) bool {
		return slices.Contains(ag.plan.Topics, topic) || a.plan.Matches(ag.plan, topic)
	})
}

// Failed is how many records have failed for good so far.
func (a *App) Failed() (n int64) {
	for _, ag := range a.agents {
		n += ag.stats.Failed.Load()
	}
	return n
}

// Flush makes waiting take batches and lingering ones due now, as when no more records are to come.
func (a *App) Flush() {
	a.eachFeed(func(_ record.Partition, l *lane, f *feed) {
		f.flush = f.queued > 0
		l.signal()
	})
}

func (a *App) eachFeed(do func(record.Partition, *lane, *feed)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for p, feeds := range a.feeds {
		for _, lf := range feeds {
			func() {
				lf.lane.mu.Lock()
				defer lf.lane.mu.Unlock() // if do panics, too, since a request's handler survives that
				do(p, lf.lane, lf.feed)
			}()
		}
	}
}

// Assigned, Revoked and Lost follow the group's assignment (broker.Handler).

// Assigned gives each agent a feed for each new partition of its topics, on the lane its number falls to. Its steps begin
// once the group's stored position is known.
func (a *App) Assigned(ps []record.Partition) {
	if a.seen.assignments.Add(1) == 1 && slices.Contains(ps, a.leaderPartition()) {
		a.led.Store(true)
	}
	a.seen.rebalances.assign(time.Now())
	defer a.seen.joined.Store(true) // its feeds are there by then
	if len(ps) == 0 {
		a.worked()
		return
	}
	feeds := a.feedsOf(ps)
	a.log.Info("partitions assigned", "partitions", names(ps))
	a.preparing.Go(func() { a.prepare(ps, feeds) })
}

// feedsOf makes the feeds of newly assigned partitions, and acquires their tables: when it returns all can be revoked.
func (a *App) feedsOf(ps []record.Partition) (feeds []laneFeed) {
	a.mu.Lock()
	for _, p := range ps {
		for _, ag := range a.readers[p.Topic] {
			l := ag.lanes[int(p.Number)%len(ag.lanes)]
			lf := laneFeed{l, l.assign(ag, p)}
			a.feeds[p] = append(a.feeds[p], lf)
			feeds = append(feeds, lf)
		}
	}
	a.resize()
	a.mu.Unlock()
	for _, lf := range feeds {
		if uses := lf.feed.agent.tables; len(uses) > 0 {
			a.tables.Acquire(lf.feed.partition.Number, uses, []record.Partition{lf.feed.partition})
		}
	}
	return feeds
}

// prepare finds out where the agents go on in newly assigned partitions, whose tables are being restored meanwhile.
func (a *App) prepare(ps []record.Partition, feeds []laneFeed) {
	ctx, began := a.commits.sending, time.Now()
	err := persist(ctx, func() error { return a.locate(ctx, ps, feeds) }, func(err error) bool {
		var wrong manifest.Errors
		return broker.Refused(err) || errors.Is(err, errOffsetLost) || errors.As(err, &wrong)
	}, func(err error, pause time.Duration) {
		a.log.Warn("ask for stored positions, will be retried", "err", err, "again", pause)
	})
	switch {
	case err == nil:
		a.seen.rebalances.Assigning.observe(time.Since(began))
		a.begin(feeds)
	case ctx.Err() == nil:
		a.seen.rebalances.Failed.Add(1)
		a.fail(err)
	}
}

// locate gives the feeds of newly assigned partitions their positions.
func (a *App) locate(ctx context.Context, ps []record.Partition, feeds []laneFeed) error {
	at, err := a.member.Committed(ctx, ps)
	if err != nil {
		return err
	}
	lost, err := a.lostPositions(ctx, at)
	if err != nil {
		return err
	}
	if err := a.checkInputs(ctx, ps); err != nil {
		return err
	}
	a.commits.found(at)
	anew, err := a.fromStart(ctx, at, lost, feeds)
	if err != nil {
		return err
	}
	for _, lf := range feeds {
		next := int64(-1)
		start, again := anew[lf.feed.partition]
		if again {
			lf.lane.await(lf.feed)
		}
		if p, ok := at[lf.feed.partition]; ok {
			var named bool
			if next, named = nextOf(p, lf.feed.agent.plan.Name); !named && again && lf.feed.agent.plan.Join.FromStart() {
				next = start
			}
		} else if lf.feed.agent.timed { // it commits before there are records, and a position must prove it
			b, err := a.admin.Bounds(ctx, lf.feed.partition)
			if err != nil {
				return err
			}
			next = b[lf.feed.partition].Start
		}
		if instead, ok := lost[lf.feed.partition]; ok {
			next = instead
		}
		lf.lane.position(lf.feed, next)
	}
	if len(anew) > 0 {
		a.mu.Lock()
		for p, start := range anew {
			a.refetch = append(a.refetch, refetch{p, start, true})
		}
		a.mu.Unlock()
		a.intake.interrupt()
	}
	return nil
}

// fromStart finds partitions that the group has read, but that an agent which reads from the start has not, and where they start.
func (a *App) fromStart(ctx context.Context, stored map[record.Partition]broker.Position, lost map[record.Partition]int64, feeds []laneFeed) (map[record.Partition]int64, error) {
	var unread []record.Partition
	for _, lf := range feeds {
		p := lf.feed.partition
		at, ok := stored[p]
		if _, gone := lost[p]; !ok || gone || !lf.feed.agent.plan.Join.FromStart() || slices.Contains(unread, p) {
			continue
		}
		if _, named := nextOf(at, lf.feed.agent.plan.Name); !named {
			unread = append(unread, p)
		}
	}
	bounds, err := a.admin.Bounds(ctx, unread...)
	if err != nil {
		return nil, err
	}
	anew := map[record.Partition]int64{}
	for _, p := range unread {
		anew[p] = bounds[p].Start
	}
	return anew, nil
}

// errOffsetLost ends the app when the records behind a stored position are gone and the settings do not say what to do.
var errOffsetLost = errors.New("records that were not processed yet are gone")

// lostPositions finds positions outside of their logs: retention deleted the records before they were processed, or the topic
// was deleted and made anew. It gives the offsets to go on from instead, -1 for the earliest, as onOffsetLost says.
func (a *App) lostPositions(ctx context.Context, at map[record.Partition]broker.Position) (map[record.Partition]int64, error) {
	instead := map[record.Partition]int64{}
	bounds, err := a.admin.Bounds(ctx, slices.Collect(maps.Keys(at))...)
	if err != nil {
		return nil, err
	}
	for p, stored := range at {
		b := bounds[p]
		if stored.Offset >= b.Start && stored.Offset <= b.High {
			continue
		}
		switch a.cfg.OnOffsetLost {
		case config.OffsetEarliest:
			instead[p] = -1
		case config.OffsetLatest:
			instead[p] = b.High
		default:
			return nil, fmt.Errorf("%s/%d: %w: the group's stored offset is %d, the log goes from %d to %d; onOffsetLost earliest or latest goes on without them",
				p.Topic, p.Number, errOffsetLost, stored.Offset, b.Start, b.High)
		}
		a.log.Error("records that were not processed yet are gone (retention, or a topic made anew)", "topic", p.Topic, "partition", p.Number,
			"stored", stored.Offset, "start", b.Start, "end", b.High, "onOffsetLost", a.cfg.OnOffsetLost)
	}
	return instead, nil
}

// checkInputs compares the partitions of topics that were made after the start, or were given more, with those of the tables
// their agents declare.
func (a *App) checkInputs(ctx context.Context, ps []record.Partition) error {
	if len(a.counts) == 0 {
		return nil
	}
	a.mu.Lock()
	known := !slices.ContainsFunc(ps, func(p record.Partition) bool { return p.Number >= a.inputs[p.Topic] })
	a.mu.Unlock()
	if known {
		return nil
	}
	exist, err := a.admin.Topics(ctx)
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	var problems manifest.Errors
	for _, p := range ps {
		if n := exist[p.Topic]; n > a.inputs[p.Topic] {
			problems = append(problems, a.plan.CheckTopic(p.Topic, n, a.counts)...)
			a.inputs[p.Topic] = n
		}
	}
	if len(problems) > 0 {
		return problems
	}
	return nil
}

// begin lets steps of feeds begin whose positions are known and whose tables are restored.
func (a *App) begin(feeds []laneFeed) {
	for _, lf := range feeds {
		if uses := lf.feed.agent.tables; len(uses) > 0 && !a.tables.Ready(lf.feed.partition.Number, uses) {
			continue // tablesReady comes back to it
		}
		lf.lane.begin(lf.feed, a.share)
	}
	a.worked()
}

// worked notes the end of a rebalance, if every assigned partition is worked on.
func (a *App) worked() {
	all := true
	a.eachFeed(func(_ record.Partition, _ *lane, f *feed) { all = all && f.ready })
	if all {
		a.seen.rebalances.worked(time.Now())
	}
}

// copartition is what must be read by one process: the inputs of agents that share tables, and the tables with them.
func (a *App) copartition() []broker.Copartition {
	a.mu.Lock()
	defer a.mu.Unlock()
	sets := map[int]*broker.Copartition{}
	var order []int
	for _, ag := range a.agents {
		if len(ag.plan.Tables) == 0 {
			continue
		}
		set := sets[ag.group]
		if set == nil {
			set = &broker.Copartition{}
			sets[ag.group] = set
			order = append(order, ag.group)
		}
		for topic, readers := range a.readers {
			if slices.Contains(readers, ag) && !slices.Contains(set.Topics, topic) {
				set.Topics = append(set.Topics, topic)
			}
		}
		for _, t := range ag.tables {
			if name := a.plan.Tables[t].Name; !slices.Contains(set.Tables, name) {
				set.Tables = append(set.Tables, name)
			}
		}
	}
	list := make([]broker.Copartition, len(order))
	for i, g := range order {
		sort.Strings(sets[g].Topics)
		list[i] = *sets[g]
	}
	return list
}

// memberState is what the group is told of this process: how far its stores are, so that partitions go where they are warm.
// Global tables are everywhere, and no reason to go anywhere.
func (a *App) memberState() broker.MemberState {
	s := broker.MemberState{Instance: a.instance, Address: a.advertised()}
	for table, numbers := range a.tables.Offsets() {
		if a.plan.Tables[table].Guest.Global {
			continue
		}
		for number, offset := range numbers {
			s.Stores = append(s.Stores, broker.Store{TablePartition: broker.TablePartition{Table: a.plan.Tables[table].Name, Number: number}, Offset: offset})
		}
	}
	return s
}

// placed follows the copies the group's leader has placed here.
func (a *App) placed(p broker.Placement) {
	a.placement.Store(&owners{p, a.instance})
	var follow []standby
	for _, s := range p.Standbys {
		for i := range a.plan.Tables {
			if a.plan.Tables[i].Name == s.Table {
				follow = append(follow, standby{i, s.Number})
			}
		}
	}
	a.tables.Follow(follow)
}

// share takes an active, restored partition of a table into a lane's hands; nil when it is not restored any more.
func (a *App) share(table int, number int32) *share {
	t := &a.plan.Tables[table]
	p := a.tables.part(table, number)
	if p == nil {
		return &share{table: table, label: t.Label, writes: t.Writes.Name, seen: map[*agent]uint64{}}
	}
	_, staged := p.Store()
	if staged == nil {
		return nil
	}
	var span int64
	if w := t.Guest.Window; w != nil && w.RelativeTo != "stream" {
		span = w.Size + w.Expires
	}
	return &share{
		table: table, label: t.Label, changelog: p.changelog, writes: t.Writes.Name, staged: staged, seen: map[*agent]uint64{},
		ttl: t.Guest.TTL, expires: t.Guest.TTL > 0 || t.Guest.Window != nil && t.Guest.Window.Expires > 0, span: span,
	}
}

// tablesReady goes on with the feeds of a partition number, some of whose tables were restored.
func (a *App) tablesReady(number int32) {
	var feeds []laneFeed
	for _, lf := range a.assigned() {
		if number == anyNumber || lf.feed.partition.Number == number {
			feeds = append(feeds, lf)
		}
	}
	a.begin(feeds)
}

// shareFailed takes a share away from its lane until it is restored.
func (a *App) shareFailed(s *share, err error) {
	a.tables.Failed(s.table, s.changelog.Number, err) // first, or a lane could take the same share again
	for _, l := range a.allLanes() {
		l.hold(s)
	}
	a.tablesReady(s.changelog.Number) // it may have been restored meanwhile, while the lane held it still
}

// Revoked finishes the steps under way, commits, and forgets the partitions. It takes no longer than the rebalance timeout
// allows; what did not end by then is thrown away and read again by the new owner.
func (a *App) Revoked(ctx context.Context, ps []record.Partition) {
	if len(ps) == 0 {
		return
	}
	began := time.Now()
	a.seen.rebalances.begin(began)
	until := began.Add(rebalanceTimeout * 3 / 4)
	a.mu.Lock()
	if !a.until.IsZero() && a.until.Before(until) {
		until = a.until
	}
	byLane := a.lanesOf(ps)
	a.mu.Unlock()
	ctx, cancel := context.WithDeadline(ctx, until)
	defer cancel()
	clean := a.commits.handOver(ctx, byLane, until)
	a.release(ps, byLane)
	a.log.Info("partitions revoked", "partitions", names(ps), "took", time.Since(began).Round(time.Millisecond), "clean", clean)
}

// Lost forgets the partitions at once; steps under way throw their results away.
func (a *App) Lost(ps []record.Partition) {
	a.seen.joined.Store(false)
	a.seen.rebalances.begin(time.Now())
	if len(ps) == 0 {
		return
	}
	a.mu.Lock()
	byLane := a.lanesOf(ps)
	a.mu.Unlock()
	a.log.Warn("partitions lost: the group went on without this member", "partitions", names(ps))
	a.commits.drop(a.commits.sending, byLane)
	a.release(ps, byLane)
}

// lanesOf is the feeds of partitions by lane. a.mu is held.
func (a *App) lanesOf(ps []record.Partition) map[*lane][]*feed {
	byLane := map[*lane][]*feed{}
	for _, p := range ps {
		for _, lf := range a.feeds[p] {
			byLane[lf.lane] = append(byLane[lf.lane], lf.feed)
		}
	}
	return byLane
}

// release forgets partitions and their feeds, of which nothing is applied any more.
func (a *App) release(ps []record.Partition, byLane map[*lane][]*feed) {
	if slices.Contains(ps, a.leaderPartition()) {
		a.led.Store(false)
	}
	a.mu.Lock()
	for _, p := range ps {
		delete(a.feeds, p)
	}
	a.resize()
	a.mu.Unlock()
	for l, feeds := range byLane {
		l.remove(feeds)
		l.release()
		for _, f := range feeds {
			if uses := f.agent.tables; len(uses) > 0 {
				a.tables.Release(f.partition.Number, uses)
			}
		}
	}
	a.commits.forget(ps)
	a.member.Resume(ps) // a pause would outlive the assignment
}

// resize gives every feed its room in the intake. a.mu is held.
func (a *App) resize() {
	n := 0
	for _, feeds := range a.feeds {
		n += len(feeds)
	}
	a.intake.resize(n)
}

func names(ps []record.Partition) []string {
	out := make([]string, len(ps))
	for i, p := range ps {
		out[i] = fmt.Sprintf("%s/%d", p.Topic, p.Number)
	}
	sort.Strings(out)
	return out
}

// brokerOptions are the settings as the broker package wants them.
func (a *App) brokerOptions() (broker.Options, error) {
	k := a.cfg.Kafka
	o := broker.Options{
		Brokers: k.BootstrapServers, ClientID: a.plan.App.ID, Group: a.plan.App.ID, InstanceID: k.GroupInstanceID,
		SessionTimeout: k.SessionTimeout, HeartbeatInterval: k.HeartbeatInterval, RequestTimeout: k.RequestTimeout,
		RebalanceTimeout: rebalanceTimeout, MetadataMaxAge: metadataMaxAge, TransactionTimeout: a.cfg.TransactionTimeout,
		StopOnLoss: a.cfg.OnOffsetLost == config.OffsetFail,
		Log:        a.log, Delivered: a.opts.Delivered,
	}
	var err error
	if k.UsesTLS() {
		t := broker.TLS{
			CAFile: k.TLS.CAFile, CAPath: k.TLS.CAPath, CAData: k.TLS.CAData,
			CertFile: k.TLS.CertFile, KeyFile: k.TLS.KeyFile, ServerName: k.TLS.ServerName,
		}
		if o.TLS, err = t.Config(); err != nil {
			return o, err
		}
	}
	if k.UsesSASL() {
		s := k.SASL
		o.SASL, err = broker.Mechanism(s.Mechanism, broker.Login{
			User: s.Username, Password: s.Password, PasswordFile: s.PasswordFile,
			OAuth: broker.OAuth{
				Token: s.OAuth.Token, TokenFile: s.OAuth.TokenFile, Endpoint: s.OAuth.TokenEndpoint,
				ClientID: s.OAuth.ClientID, ClientSecret: s.OAuth.ClientSecret, ClientSecretFile: s.OAuth.ClientSecretFile,
				Scope: s.OAuth.Scope, Extensions: s.OAuth.Extensions,
			},
		})
	}
	return o, err
}
