package engine

import (
	"context"
	"errors"
	"net"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"kaspr.io/kaspr/engine/config"
	"kaspr.io/kaspr/engine/plan"
	"kaspr.io/kaspr/engine/record"
	apphttp "kaspr.io/kaspr/http"
)

// observed is what only those who watch the app need: the HTTP server and what it tells beside the app's own state.
//
// Requests come at any time. What Run makes on its way is read only once running is set, which is after the last of it.
type observed struct {
	web         *apphttp.Server        // nil: none
	admin       *apphttp.AdminServer   // nil: none
	address     atomic.Pointer[string] // of web, for those who may ask before it is there
	began       time.Time
	running     atomic.Bool
	closing     atomic.Bool  // views take no more requests
	asking      atomic.Int64 // requests that views are to answer
	joined      atomic.Bool  // the group has given this member its partitions, and has not put it out since
	worked      atomic.Bool  // all that was assigned was worked on, once: tasks may run
	assignments atomic.Int64 // times the group did
	rebalances  rebalances
	processor   processor
	ends        atomic.Pointer[map[string]map[int32]int64] // of the assigned partitions' topics, as last asked
}

// listen starts the HTTP server, if there is to be one.
func (a *App) listen(ctx context.Context) error {
	a.seen.began = time.Now()
	if err := a.listenWeb(ctx); err != nil {
		return err
	}
	if err := a.listenAdmin(ctx); err != nil {
		a.unlisten()
		return err
	}
	return nil
}

func (a *App) listenWeb(ctx context.Context) error {
	if a.opts.Listen == "" {
		return nil
	}
	metrics := prometheus.NewRegistry()
	labeled := prometheus.WrapRegistererWith(prometheus.Labels{"app_name": a.plan.App.ID, "worker_name": worker(a.cfg.Web.Host)}, metrics)
	labeled.MustRegister(&series{a})
	metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	var waiting func(apphttp.ScheduleQuery) (int, any)
	if a.schedule != nil && a.cfg.Scheduler.Web {
		waiting = a.schedule.Schedule
	}
	web, err := apphttp.Listen(ctx, apphttp.Options{
		Schedule: waiting,
		Addr:     a.opts.Listen, MetricsBase: a.cfg.Web.MetricsBasePath, App: observer{a}, Registry: metrics, Own: labeled, Log: a.log,
		BasePath: plan.BasePath(a.cfg.Web.BasePath), Views: a.routes(), Peer: a.answerTraced, PeerSecret: a.secret, Token: a.cfg.Web.Token, BodyMax: int(a.cfg.Web.BodyBytesMax), Connections: a.cfg.Web.ConnectionsMax,
		TLS: tlsFiles(a.cfg.Web.TLS), OpenAPI: a.plan.OpenAPI(a.cfg, a.opts.Version),
	})
	if err != nil {
		return err
	}
	a.seen.web = web
	address := web.Addr()
	a.seen.address.Store(&address)
	a.log.Info("HTTP server listens", "address", address)
	return nil
}

func (a *App) listenAdmin(ctx context.Context) error {
	if a.opts.ListenAdmin == "" {
		return nil
	}
	o := apphttp.AdminOptions{
		Addr: a.opts.ListenAdmin, Token: a.cfg.Web.AdminToken, TLS: tlsFiles(a.cfg.Web.AdminTLS), Admin: administration{observer{a}},
		Console: newConsole(a), ConsoleFor: a.cfg.Web.Console, Log: a.log,
	}
	admin, err := apphttp.ListenAdmin(ctx, o)
	if errors.Is(err, syscall.EADDRINUSE) && o.Addr == config.AdminListenDefault {
		a.log.Warn("another process has the admin server's default port: it gets a free one; adminListen names another", "port", o.Addr)
		o.Addr = "127.0.0.1:0"
		admin, err = apphttp.ListenAdmin(ctx, o)
	}
	if err != nil {
		return err
	}
	a.seen.admin = admin
	a.log.Info("admin server listens", "address", admin.Addr())
	return nil
}

func tlsFiles(t config.ListenerTLS) apphttp.TLSFiles {
	return apphttp.TLSFiles{Cert: t.CertFile, Key: t.KeyFile, ClientCA: t.ClientCAFile}
}

// worker names this process in metrics: what others know it by, or the machine.
func worker(host string) string {
	if host != "" {
		return host
	}
	name, err := os.Hostname()
	if err != nil {
		return "unknown"
	}
	return name
}

// webStop is how long requests under way may take when the app has stopped.
const webStop = 2 * time.Second

func (a *App) unlisten() {
	ctx, cancel := context.WithTimeout(context.Background(), webStop)
	defer cancel()
	if a.seen.admin != nil {
		if err := a.seen.admin.Close(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
			a.log.Warn("stop the admin server", "err", err)
		}
	}
	if a.seen.web == nil {
		return
	}
	if err := a.seen.web.Close(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		a.log.Warn("stop the HTTP server", "err", err)
	}
}

// Listening is the address of the HTTP server; empty when there is none, or none yet.
func (a *App) Listening() string {
	if address := a.seen.address.Load(); address != nil {
		return *address
	}
	return ""
}

// advertised is where other members reach this one, and with which secret (apphttp.Peers); empty when they do not. The group's members
// learn it of each other through Kafka.
func (a *App) advertised() string {
	if a.seen.web == nil {
		return ""
	}
	_, port, err := net.SplitHostPort(a.seen.web.Addr())
	if err != nil {
		panic("BUG: " + err.Error())
	}
	scheme := "http"
	if a.cfg.Web.TLS.CertFile != "" {
		scheme = "https"
	}
	u := url.URL{Scheme: scheme, User: url.User(a.secret), Host: net.JoinHostPort(worker(a.cfg.Web.Host), port)}
	return u.String()
}

// endsEvery is how often the ends of the assigned partitions are asked for, so that lag is told of partitions, too, that are
// not fetched.
const endsEvery = 5 * time.Second

func (a *App) endsLoop(ctx context.Context) {
	if a.seen.web == nil && a.seen.admin == nil {
		return
	}
	tick := time.NewTicker(endsEvery)
	defer tick.Stop()
	for {
		asking, cancel := context.WithTimeout(ctx, 2*endsEvery)
		ends, err := a.admin.EndOffsets(asking, a.assignedTopics()...)
		cancel()
		if err == nil {
			a.seen.ends.Store(&ends)
		} else if ctx.Err() == nil {
			a.seen.ends.Store(nil) // no lag rather than an old one
			a.log.Debug("ask for the ends of the partitions", "err", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (a *App) assignedTopics() []string {
	var topics []string
	a.eachFeed(func(p record.Partition, _ *lane, _ *feed) { topics = append(topics, p.Topic) })
	slices.Sort(topics)
	return slices.Compact(topics)
}

// shown is the agent's name to people. A task, or what applies a table's writes, must not be taken for an agent of its name.
func (a *agent) shown() string {
	switch {
	case a.plan.Writer, a.plan.Seat, a.plan.Task != nil:
		return a.component
	case a.plan.Schedule != "": // there are two
		return a.component + "/" + string(a.plan.Schedule)
	}
	return a.plan.Name
}

// feedState is one partition's way to one agent, at one moment. Offsets are -1 where they are not known.
type feedState struct {
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
	Agent     string `json:"agent"`
	Position  int64  `json:"position"`  // next offset to process
	Committed int64  `json:"committed"` // of the position
	Read      int64  `json:"read"`      // offset behind what was fetched
	End       int64  `json:"end"`       // of the partition, a few seconds ago
	Lag       int64  `json:"lag"`       // End - Position; ends of transactions count, too
	Queued    int    `json:"queued"`    // records that wait
	Working   int    `json:"working"`   // records of the step under way
	Pending   int    `json:"pending"`   // records that are processed and wait for the commit
	Ready     bool   `json:"ready"`     // position known, tables restored
}

// feedStates is that of every assigned partition and agent, in order.
func (a *App) feedStates() []feedState {
	var ends map[string]map[int32]int64
	if p := a.seen.ends.Load(); p != nil {
		ends = *p
	}
	list := []feedState{}
	a.eachFeed(func(p record.Partition, _ *lane, f *feed) {
		s := feedState{
			Topic: p.Topic, Partition: p.Number, Agent: f.agent.shown(), Position: f.position(), Committed: f.committed,
			Read: -1, End: -1, Lag: -1, Queued: f.queued, Working: len(f.taken.records), Ready: f.ready,
		}
		for i := range f.done {
			s.Pending += len(f.done[i].records)
		}
		if f.fetched > 0 {
			s.Read = f.fetched
		}
		if end, ok := ends[p.Topic][p.Number]; ok {
			s.End = end
			s.Lag = max(0, end-max(0, s.Position))
		}
		list = append(list, s)
	})
	slices.SortFunc(list, func(a, b feedState) int {
		if n := strings.Compare(a.Topic, b.Topic); n != 0 {
			return n
		}
		if a.Partition != b.Partition {
			return int(a.Partition) - int(b.Partition)
		}
		return strings.Compare(a.Agent, b.Agent)
	})
	return list
}

func number(n int32) string { return strconv.Itoa(int(n)) }

// tableState is one partition of a table that is here, as JSON tells it.
type tableState struct {
	Table     string  `json:"table"`
	Partition int32   `json:"partition"`
	Role      string  `json:"role"`
	Phase     phase   `json:"phase"`
	Offset    int64   `json:"offset"`
	End       int64   `json:"end"`
	Left      int64   `json:"left"`
	Rate      float64 `json:"rate"`
	ETA       float64 `json:"etaSeconds"`
	Stalls    int64   `json:"stalls"`
	Error     string  `json:"error,omitempty"`
}

func (a *App) tableStates() []tableState {
	list := []tableState{}
	for _, x := range a.tables.Progress() {
		s := tableState{
			Table: x.Table, Partition: x.Partition, Role: x.Role, Phase: x.Phase, Offset: x.Offset, End: x.End, Left: x.Left,
			Rate: x.Rate, ETA: x.ETA.Seconds(), Stalls: x.Stalls,
		}
		if x.Err != nil {
			s.Error = x.Err.Error()
		}
		list = append(list, s)
	}
	return list
}

// readiness is the body of /readyz.
type readiness struct {
	Ready  bool         `json:"ready"`
	State  appState     `json:"state"`
	Reason string       `json:"reason,omitempty"` // why not
	Tables []tableState `json:"tables"`
}

// appState is what the app as a whole does.
type appState string

const (
	stateStarting  appState = "starting"  // connects, makes topics
	stateJoining   appState = "joining"   // has no place in the group
	stateRestoring appState = "restoring" // assigned partitions wait: for a stored position, or tables
	stateRunning   appState = "running"
	stateStopping  appState = "stopping"
)

// state is what the app does, and why that is not all of its work.
func (a *App) state(feeds []feedState) (appState, string) {
	if !a.seen.running.Load() {
		return stateStarting, "the app is starting"
	}
	a.mu.Lock()
	stopping := !a.until.IsZero() || a.failed != nil
	a.mu.Unlock()
	if stopping {
		return stateStopping, "the app is stopping"
	}
	if !a.seen.joined.Load() {
		return stateJoining, "the group has not given this member its partitions yet"
	}
	waiting := 0
	for i := range feeds {
		if !feeds[i].Ready {
			waiting++
		}
	}
	if waiting > 0 {
		return stateRestoring, strconv.Itoa(waiting) + " of " + strconv.Itoa(len(feeds)) + " assigned partitions wait for their position or their tables"
	}
	return stateRunning, ""
}

// stateNow is state of this moment.
func (a *App) stateNow() appState {
	var feeds []feedState
	if a.seen.running.Load() {
		feeds = a.feedStates()
	}
	s, _ := a.state(feeds)
	return s
}

// observer is the app as the HTTP server sees it.
type observer struct{ *App }

// Ready is whether every assigned partition is worked on, here and in the other apps of the process.
func (a observer) Ready() (bool, any) {
	r := readiness{Tables: []tableState{}}
	if a.seen.running.Load() {
		r.State, r.Reason = a.state(a.feedStates())
		r.Tables = a.tableStates()
	} else {
		r.State, r.Reason = a.state(nil)
	}
	if r.State == stateRunning && a.process != nil {
		r.Reason = a.process.unready(a.App)
	}
	r.Ready = r.State == stateRunning && r.Reason == ""
	return r.Ready, r
}

// status is the body of /status. The members leader, rebalancing, recovering, assignment and table_metadata are the original's.
type status struct {
	App         string     `json:"app"`
	Version     string     `json:"version"`
	Worker      string     `json:"worker"`
	State       appState   `json:"state"`
	Uptime      float64    `json:"uptimeSeconds"`
	Leader      bool       `json:"leader"`
	Rebalancing bool       `json:"rebalancing"`
	Recovering  bool       `json:"recovering"`
	Assignment  assignment `json:"assignment"`
	Owners      any        `json:"table_metadata"` // what /router/ tells

	Partitions []feedState   `json:"partitions"`
	Tables     []tableState  `json:"tables"`
	Agents     []agentStatus `json:"agents"`
	Tasks      []taskStatus  `json:"tasks"`

	Registry *registryStatus `json:"schemaRegistry,omitempty"`
}

// registryStatus is there with a schema registry. Waiting is how many seconds its answers have been missing, 0 when they are not.
type registryStatus struct {
	Waiting  float64 `json:"waitingSeconds"`
	Requests int64   `json:"requests"`
}

// assignment is partition numbers by topic.
type assignment struct {
	Actives  map[string][]int32 `json:"actives"`
	Standbys map[string][]int32 `json:"standbys"`
}

// agentStatus is what an agent did since the start, as far as it is committed.
type agentStatus struct {
	Agent        string `json:"agent"`
	Records      int64  `json:"records"`
	Outputs      int64  `json:"outputs"`
	Failed       int64  `json:"failed"`
	DeadLettered int64  `json:"deadLettered"`
	Skipped      int64  `json:"skipped"`
	Retried      int64  `json:"retried"`

	Lag       int64       `json:"lag"`   // of its partitions here, as far as their ends are known
	State     agentState  `json:"state"` // of its partitions here
	LastError *agentError `json:"lastError,omitempty"`
}

// agentState is what an agent does in this process.
type agentState string

const (
	agentIdle    agentState = "idle"    // none of its partitions is here
	agentWaiting agentState = "waiting" // one of them waits for its position or its tables
	agentRunning agentState = "running"
)

// Status is apphttp.App's. What exceptions say may quote records and tables, so it is not told to everybody.
func (a observer) Status() any {
	s := a.tell()
	for i := range s.Agents {
		if e := s.Agents[i].LastError; e != nil {
			e.Message = ""
		}
	}
	for i := range s.Tasks {
		s.Tasks[i].Error = ""
	}
	return s
}

// tell is all of the status.
func (a observer) tell() status {
	s := status{
		App: a.plan.App.ID, Version: a.opts.Version, Worker: worker(a.cfg.Web.Host), Uptime: time.Since(a.seen.began).Seconds(),
		Assignment: assignment{map[string][]int32{}, map[string][]int32{}}, Partitions: []feedState{}, Tables: []tableState{}, Agents: []agentStatus{}, Tasks: a.taskStatuses(),
	}
	if a.seen.running.Load() {
		s.Partitions, s.Tables = a.feedStates(), a.tableStates()
	}
	s.State, _ = a.state(s.Partitions)
	s.Leader = a.stands()
	s.Owners, _, _ = administration{a}.Routes("", apphttp.Page{})
	// From the loss of partitions until all that came are worked on: who supervises the process by the original's contract takes one that is
	// rebalancing and not recovering for long to hang.
	s.Rebalancing = s.State == stateJoining || s.State == stateRestoring
	add := func(to map[string][]int32, topic string, n int32) {
		if !slices.Contains(to[topic], n) {
			to[topic] = append(to[topic], n)
		}
	}
	for _, p := range s.Partitions {
		add(s.Assignment.Actives, p.Topic, p.Partition)
	}
	changelogs := map[string]string{}
	for i := range a.plan.Tables {
		changelogs[a.plan.Tables[i].Name] = a.plan.Tables[i].Changelog.Name
	}
	for _, t := range s.Tables {
		to := s.Assignment.Standbys
		if t.Role == roleActive.String() {
			to = s.Assignment.Actives
		}
		add(to, changelogs[t.Table], t.Partition)
		s.Recovering = s.Recovering || t.Phase.recovering()
	}
	if a.registry != nil {
		s.Registry = &registryStatus{a.registry.Waiting().Seconds(), a.registry.Requests()}
	}
	for _, ag := range a.agents {
		if ag.plan.Task != nil {
			continue
		}
		s.Agents = append(s.Agents, ag.status(s.Partitions))
	}
	return s
}

// stands tells whether this process is the one that an operator takes for the leader: the leader of tasks and code, or where nothing wants one,
// whoever has partition 0 of the first topic.
func (a *App) stands() bool {
	var first record.Partition
	for _, ag := range a.agents {
		for _, topic := range ag.plan.Topics {
			if topic == a.leaderPartition().Topic {
				return a.isLeader()
			}
			if first.Topic == "" || topic < first.Topic {
				first.Topic = topic
			}
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.feeds[first]) > 0
}

func (a *agent) status(feeds []feedState) agentStatus {
	n := &a.stats
	s := agentStatus{
		Agent: a.shown(), Records: n.Records.Load(), Outputs: n.Outputs.Load(), Failed: n.Failed.Load(), DeadLettered: n.DeadLettered.Load(),
		Skipped: n.Skipped.Load(), Retried: n.Retried.Load(), State: agentIdle, LastError: a.app.failures.lastOf(a.shown()),
	}
	for i := range feeds {
		if feeds[i].Agent != s.Agent {
			continue
		}
		s.Lag += max(0, feeds[i].Lag)
		if !feeds[i].Ready {
			s.State = agentWaiting
		} else if s.State == agentIdle {
			s.State = agentRunning
		}
	}
	return s
}
