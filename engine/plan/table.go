package plan

import (
	"maps"
	"regexp"
	"strconv"
	"strings"

	"kaspr.io/kaspr/engine/manifest"
	"kaspr.io/kaspr/wasmhost/abi"
)

// Table is one KasprTable, resolved.
type Table struct {
	Name  string
	Label string // table "users", for messages
	Pos   manifest.Pos
	// Changelog is created when it does not exist. Its Partitions are 0 when the manifest leaves them open: then they are
	// those of the topics whose agents declare the table (Partitions).
	Changelog Topic
	// Writes takes writes to other partitions than the record's to their owners; its name is empty when there are none.
	Writes  Topic
	Guest   abi.Table         // what guests see of it
	Options map[string]string // of RocksDB, as state.Options.Tables takes them
}

// TableUse is a table an agent's code may touch.
type TableUse struct {
	Table int // index into Plan.Tables
	// Declared: an operation names it. Otherwise the code reaches it, if at all, through app.tables.
	Declared bool
	Pos      manifest.Pos // where it is declared
}

// WritesTopic is the name of the topic that takes writes of a table to other partitions.
func WritesTopic(appID, table string) string { return appID + "-" + table + "-writes" }

// ChangelogTopic is the name of a table's changelog.
func ChangelogTopic(appID, table string) string { return appID + "-" + table + "-changelog" }

func (b *builder) table(m *manifest.Table) Table {
	t := Table{
		Name: m.Name.V, Label: m.Label(), Pos: m.Pos,
		Changelog: Topic{
			Name: ChangelogTopic(b.info.ID, m.Name.V), Partitions: int32(m.Partitions.V), Replicas: int16(b.cfg.Topics.ReplicationFactor),
			Config: map[string]string{"cleanup.policy": "compact"}, For: m.Label() + ", changelog", Pos: m.Pos,
		},
		Options: manifest.Texts(m.Options),
	}
	maps.Copy(t.Changelog.Config, manifest.Texts(m.ExtraTopicConfigs))
	if problem := manifest.TopicNameProblem(t.Changelog.Name); problem != "" {
		b.fail(m.Name.Pos, manifest.NameTooLong, t.Label+": its changelog "+strconv.Quote(t.Changelog.Name)+" "+problem, "shorten the names it is made of: the app's and the table's")
	}
	t.Guest = abi.Table{
		Name: t.Name, Help: m.Description.V, Changelog: t.Changelog.Name,
		KeySerializer: m.KeySerializer.Or("json"), ValueSerializer: m.ValueSerializer.Or("json"),
		Global: m.Global.V, TTL: m.TTL.V.Milliseconds(), PartitionByKey: m.PartitionBy.V == manifest.ByKey,
		Default: code(m.DefaultSelector, m.Label()+", defaultSelector"),
	}
	if w := m.Window; w != nil {
		g := &abi.Window{RelativeTo: w.RelativeTo.Or("stream"), Selector: code(w.RelativeToSelector, m.Label()+", relativeToSelector")}
		switch {
		case w.Tumbling != nil:
			g.Size, g.Expires = w.Tumbling.Size.V.Milliseconds(), w.Tumbling.Expires.V.Milliseconds()
			g.Step = g.Size
		case w.Hopping != nil: // neither has been reported
			g.Size, g.Step, g.Expires = w.Hopping.Size.V.Milliseconds(), w.Hopping.Step.V.Milliseconds(), w.Hopping.Expires.V.Milliseconds()
		}
		if g.Selector != nil {
			g.RelativeTo = "custom"
		}
		t.Guest.Window = g
	}
	return t
}

// mentionsTables finds code that may use app.tables. It errs on the safe side: who only mentions the word is scheduled together
// with the tables' other agents, and nothing else.
var mentionsTables = regexp.MustCompile(`\btables\b`)

// mentionsPartitions finds code that may write to a partition of its choice: update_for_partition and the like.
var mentionsPartitions = regexp.MustCompile(`_for_partition\b`)

// mentionsLeader finds code that may ask app.is_leader.
var mentionsLeader = regexp.MustCompile(`\bis_leader\b`)

// writers are the agents without code that apply the writes other partitions sent.
func (b *builder) writers() []Agent {
	var list []Agent
	for i := range b.tables {
		t := &b.tables[i]
		if t.Writes.Name == "" {
			continue
		}
		list = append(list, Agent{
			Name: t.Name + "-writes", Label: t.Label + ", writes", Pos: t.Pos, Topics: []string{t.Writes.Name}, Writer: true,
			Tables: []TableUse{{Table: i, Declared: true, Pos: t.Pos}}, OnError: Policy{Attempts: 1, Action: Skip},
		})
	}
	return list
}

// use gives an agent the tables its code may touch: those its operations name, or all if its code mentions app.tables.
func (b *builder) use(a *Agent, p *manifest.Processors) {
	declared := map[string]manifest.Pos{}
	for _, name := range p.Pipeline {
		op := p.Operation(name.V)
		if op == nil {
			continue
		}
		for _, ref := range op.Tables {
			if _, again := declared[ref.Name.V]; !again {
				declared[ref.Name.V] = ref.Pos
			}
		}
	}
	text := sources(&a.Program)
	b.asksLeader = b.asksLeader || mentionsLeader.MatchString(text)
	all, explicit := mentionsTables.MatchString(text), mentionsPartitions.MatchString(text)
	for i := range b.tables {
		t := &b.tables[i]
		pos, ok := declared[t.Name]
		if !ok && !all {
			continue
		}
		if explicit || t.Guest.PartitionByKey {
			b.written(t)
		}
		a.Tables = append(a.Tables, TableUse{Table: i, Declared: ok, Pos: pos})
		a.Program.Tables = append(a.Program.Tables, t.Guest)
	}
}

// written gives a table the topic that takes writes which come from elsewhere than its own partition.
func (b *builder) written(t *Table) {
	t.Writes = Topic{
		Name: WritesTopic(b.info.ID, t.Name), Replicas: t.Changelog.Replicas,
		Config: internalConfig(), For: t.Label + ", writes", Pos: t.Pos,
	}
}

// sources is all Python of a program.
func sources(p *abi.Program) string {
	var text strings.Builder
	add := func(blocks ...*abi.Code) {
		for _, c := range blocks {
			if c != nil {
				text.WriteString(c.Python)
				text.WriteByte('\n')
			}
		}
	}
	add(p.Init)
	for i := range p.Ops {
		add(p.Ops[i].Map, p.Ops[i].Filter)
		if p.Ops[i].Send != nil {
			add(p.Ops[i].Send.Codes()...)
		}
	}
	for i := range p.Outputs {
		add(p.Outputs[i].Codes()...)
	}
	if v := p.View; v != nil {
		for _, s := range []abi.Selector{v.StatusSelector, v.HeadersSelector, v.BodySelector} {
			add(s.OnSuccess, s.OnError)
		}
	}
	return text.String()
}

// group numbers the agents' groups: agents that may touch the same table, directly or by way of others, are one group.
func group(agents []Agent) {
	parent := make([]int, len(agents))
	for i := range parent {
		parent[i] = i
	}
	find := func(i int) int {
		for parent[i] != i {
			i = parent[i]
		}
		return i
	}
	first := map[int]int{} // agent by table
	for i := range agents {
		for _, u := range agents[i].Tables {
			if j, ok := first[u.Table]; ok {
				a, b := find(i), find(j)
				parent[max(a, b)] = min(a, b)
			} else {
				first[u.Table] = i
			}
		}
	}
	numbers := map[int]int{}
	for i := range agents {
		root := find(i)
		if _, ok := numbers[root]; !ok {
			numbers[root] = len(numbers)
		}
		agents[i].Group = numbers[root]
	}
}
