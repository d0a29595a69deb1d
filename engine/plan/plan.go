// Package plan turns the manifests of one app and its settings into the values the engine runs: programs, topics, policies.
//
// It is pure: the same manifests and settings give the same Plan, with nothing asked of Kafka, Python or the disk.
package plan

import (
	"regexp"
	"strings"
	"time"

	"kaspr.io/kaspr/engine/config"
	"kaspr.io/kaspr/engine/manifest"
	"kaspr.io/kaspr/wasmhost/abi"
)

// Plan is one app, ready to run.
type Plan struct {
	App    App
	Agents []Agent // in file order; tasks behind them
	Tables []Table // in file order
	Views  []View  // in file order
	// Topics are created before the first record, in the order of their names: declared inputs, and declared outputs
	// whose name is known. Empty when settings forbid creating topics. Dead-letter topics are not among them: they are
	// made for the first dead letter.
	Topics []Topic
	// Own are the topics between the app's agents, in the order of their senders.
	Own []Own
}

// App is the app of a Plan.
type App struct {
	Name string            // metadata.name, or the name the components' labels agree on
	ID   string            // application id: consumer group and prefix of internal topics
	Env  map[string]string // os.environ of Code
}

// Agent is one KasprAgent, resolved.
type Agent struct {
	Name     string
	Label    string // agent "orders", for messages
	Pos      manifest.Pos
	Topics   []string       // input topics by name; empty with Pattern
	Pattern  *regexp.Regexp // live subscription; matches whole topic names
	Take     *Take
	Isolated bool // isolatedPartitions: accepted, partitions are isolated anyway
	Program  abi.Program
	// Tables are the tables its code may touch, by the same index as Program.Tables.
	Tables []TableUse
	// Writer marks an agent without code: it applies the writes that other partitions sent to its one table.
	Writer bool
	// Seat marks an agent without code, of an app whose code asks who leads and that has no tasks on the leader: it reads the leader's topic
	// so that somebody owns it.
	Seat bool
	// Schedule is the part of the message scheduler that an agent without code runs.
	Schedule SchedulePart
	// Join marks an agent that runs a part of a join.
	Join *JoinPart
	// Task makes it a KasprTask; nil: it is none.
	Task *Task
	// Group is the number of the group it belongs to: agents that may touch the same tables.
	Group   int
	OnError Policy
	// Schemas are what outputs say of what they write; abi.Output has their numbers, from 1.
	Schemas []Schema
	// OutputTopics are the target topics known beforehand, by name, each once; selectors may name others at any time.
	OutputTopics []string
	// Channels are the topics among Plan.Own it sends to, each once.
	Channels []string
}

// Take makes one call of up to Max records, or of those that came within Within (0: only when full).
type Take struct {
	Max    int
	Within time.Duration
}

// New makes the Plan of one app: the one cfg names, or the only one there is. All problems are reported, in file order;
// the Plan is nil when one of them is an error.
func New(set *manifest.Set, cfg config.Config) (*Plan, manifest.Errors) {
	app, problems := set.ChooseApp(cfg.App)
	if app == nil {
		return nil, problems
	}
	b := &builder{set: set, cfg: cfg, app: app, problems: problems}
	p := b.plan()
	problems = b.problems.Sorted(set.Files)
	if problems.Fatal() {
		return nil, problems
	}
	return p, problems
}

// builder collects problems while it resolves one app.
type builder struct {
	set      *manifest.Set
	cfg      config.Config
	app      *manifest.App
	info     abi.AppInfo
	env      map[string]string
	topics   topics
	tables   []Table
	owned    []Own
	problems manifest.Errors

	warnedOfRegistry bool
	asksLeader       bool // code may ask who leads
}

func (b *builder) fail(at manifest.Pos, id, text, hint string) {
	b.problems = append(b.problems, manifest.Error{Pos: at, ID: id, Text: text, Hint: hint})
}

func (b *builder) warn(at manifest.Pos, id, text, hint string) {
	b.problems = append(b.problems, manifest.Error{Pos: at, ID: id, Level: manifest.LevelWarning, Text: text, Hint: hint})
}

func (b *builder) plan() *Plan {
	name := b.app.Name.V
	if name == "" {
		name = strings.TrimSuffix(b.cfg.AppName, "-app") // definition files name no app, the operator sets the id
	}
	id := b.cfg.ID(name)
	if name == "" {
		b.fail(manifest.Pos{}, manifest.WhichApp, "the definition files name no app", "set appName (K_APP_NAME)")
	}
	b.env = b.environment()
	b.packages()
	conf := b.cfg.Conf()
	conf["id"], conf["name"], conf["app_name"], conf["app"] = id, id, id, name
	b.info = abi.AppInfo{Name: name, ID: id, Conf: conf}
	p := &Plan{App: App{Name: name, ID: id, Env: b.env}}
	if b.cfg.Definitions {
		b.components(p)
	}
	p.Agents = append(p.Agents, b.schedule()...)
	p.Tables, p.Own = b.tables, b.owned
	b.problems = append(b.problems, p.distinct()...)
	group(p.Agents)
	p.Topics = b.topics.resolve(b.cfg)
	return p
}

// components resolves the app's manifests.
func (b *builder) components(p *Plan) {
	if len(b.set.Ordered(b.app.Name.V)) == 0 && !b.cfg.Scheduler.Enabled && b.app.Name.Set() { // else manifest.LoadAny has said it
		b.warn(b.app.Pos, manifest.EmptyApp, b.app.Label()+" has no components", "a component names its app in the label "+manifest.AppLabel)
	}
	for _, t := range b.set.Tables {
		if t.Of(b.app.Name.V) {
			b.tables = append(b.tables, b.table(t))
		}
	}
	for _, a := range b.set.Agents {
		if a.Of(b.app.Name.V) {
			p.Agents = append(p.Agents, b.agent(a))
		}
	}
	for _, w := range b.set.WebViews {
		if w.Of(b.app.Name.V) {
			p.Views = append(p.Views, b.view(w))
		}
	}
	for _, t := range b.set.Tasks {
		if t.Of(b.app.Name.V) {
			p.Agents = append(p.Agents, b.task(t))
		}
	}
	p.Agents = append(p.Agents, b.writers()...)
	for _, j := range b.set.Joins {
		if j.Of(b.app.Name.V) {
			p.Agents = append(p.Agents, b.join(j)...)
		}
	}
	p.Agents = append(p.Agents, b.onLeader(p.Agents)...)
}
