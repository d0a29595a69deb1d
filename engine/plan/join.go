package plan

import (
	"slices"
	"strconv"

	"kaspr.io/kaspr/engine/join"
	"kaspr.io/kaspr/engine/manifest"
	"kaspr.io/kaspr/wasmhost/abi"
)

// JoinPart is what an agent does for a join: the engine runs four of them for each (engine/join tells what goes where).
type JoinPart struct {
	*join.Join
	Name string // metadata.name of the join
	Part string // one of those below
}

// Parts of a join. JoinLeft has a Program, which is the extractor as the key of its one output; the others have no code.
const (
	JoinLeft    = "left"
	JoinRows    = "rows"
	JoinRight   = "right"
	JoinAnswers = "answers"
)

// FromStart tells whether the part reads its topic from the start, although others may have read it before: what is in a changelog
// when the join begins is as good as what comes.
func (p *JoinPart) FromStart() bool { return p != nil && (p.Part == JoinLeft || p.Part == JoinRows) }

// join makes a join's tables and topics, and the agents that run it. The tables come after all others: no code sees them.
func (b *builder) join(m *manifest.Join) []Agent {
	left, right := b.joined(m, m.LeftTable), b.joined(m, m.RightTable)
	if left == nil || right == nil {
		return nil
	}
	lefts, rights := left.Changelog.Name, right.Changelog.Name
	leftGuest, rightGuest := left.Guest, right.Guest // b.tables grows
	name := m.Name.V
	kind := m.Type.Or(manifest.InnerJoin)
	prefix := b.info.ID + "-" + name + "-join-"
	j := &join.Join{
		Lefts:    join.Codecs{JSONKey: leftGuest.KeySerializer == "json", JSONValue: leftGuest.ValueSerializer == "json"},
		Rights:   join.Codecs{JSONKey: rightGuest.KeySerializer == "json", JSONValue: rightGuest.ValueSerializer == "json"},
		KeepLeft: kind != manifest.InnerJoin, KeepRight: kind == manifest.OuterJoin,
		Retractions: m.Retractions.V, Unchanged: m.Unchanged.Or(true),
		RightTopic:  b.own(prefix+"requests", rights, m.Label()+", requests", m.Pos),
		AnswerTopic: b.own(prefix+"answers", lefts, m.Label()+", answers", m.Pos),
		Channel:     b.own(ChannelTopic(b.info.ID, m.Channel()), "", "channel "+strconv.Quote(m.Channel()), m.Pos),
	}
	table := func(side string) TableUse {
		b.tables = append(b.tables, b.joinTable(m, side))
		return TableUse{Table: len(b.tables) - 1, Declared: true, Pos: m.Pos}
	}
	leftTable, rightTable := table("left"), table("right")
	part := func(part, topic string, tables []TableUse, channels ...string) Agent {
		a := Agent{
			Name: name + "/" + part, Label: m.Label(), Pos: m.Pos, Topics: []string{topic}, Channels: channels, Tables: tables,
			Join: &JoinPart{Join: j, Name: name, Part: part},
		}
		a.OnError = b.policy(&a, m.Name, m.OnError)
		return a
	}
	agents := []Agent{
		part(JoinLeft, lefts, []TableUse{leftTable}, j.RightTopic, j.Channel),
		part(JoinRows, rights, nil, j.RightTopic),
		part(JoinRight, j.RightTopic, []TableUse{rightTable}, j.RightTopic, j.AnswerTopic),
		part(JoinAnswers, j.AnswerTopic, []TableUse{leftTable}, j.Channel),
	}
	if j.KeepRight {
		agents[2].Channels = append(agents[2].Channels, j.Channel)
	}
	agents[0].Program = abi.Program{
		Kind: manifest.KindJoin, Name: name, App: b.info, Env: b.env, Ops: []abi.Operation{},
		Input: abi.Input{KeySerializer: "raw", ValueSerializer: leftGuest.ValueSerializer},
		Outputs: []abi.Output{{
			Topic: j.RightTopic, Label: "extractor", KeySelector: code(m.Extractor, "extractor"), NoValue: true,
			KeySerializer: rightGuest.KeySerializer, ValueSerializer: "raw",
		}},
	}
	return agents
}

// joined is a table of a join; nil where it cannot be one.
func (b *builder) joined(m *manifest.Join, name manifest.Value[string]) *Table {
	for i := range b.tables {
		t := &b.tables[i]
		if t.Name != name.V {
			continue
		}
		if t.Guest.Window != nil {
			b.fail(name.Pos, manifest.NotSupported, m.Label()+": "+t.Label+" is windowed, and a join has no windows: it would join each window of a key", "join a table that an agent fills with the newest window's value")
			return nil
		}
		return t
	}
	// One that is not there at all has been reported.
	if slices.ContainsFunc(b.set.Tables, func(t *manifest.Table) bool { return t.Name.V == name.V }) {
		b.fail(name.Pos, manifest.Undefined, m.Label()+": table "+strconv.Quote(name.V)+" is not one of this app", "")
	}
	return nil
}

// joinTable is what one side of a join remembers. It has the partitions of its side's topics.
func (b *builder) joinTable(m *manifest.Join, side string) Table {
	name := m.Name.V + "-join-" + side
	t := Table{
		Name: name, Label: m.Label() + ", " + side + " side", Pos: m.Pos,
		Changelog: Topic{
			Name: ChangelogTopic(b.info.ID, name), Replicas: int16(b.cfg.Topics.ReplicationFactor),
			Config: map[string]string{"cleanup.policy": "compact"}, For: m.Label() + ", " + side + " side, changelog", Pos: m.Pos,
		},
		Options: map[string]string{},
	}
	t.Guest = abi.Table{Name: name, Help: m.Label() + ", " + side + " side", Changelog: t.Changelog.Name, KeySerializer: "raw", ValueSerializer: "raw"}
	b.topicName(t.Changelog, m.Name.Pos)
	return t
}
