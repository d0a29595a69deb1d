package plan

import (
	"slices"
	"strconv"
	"strings"

	"kaspr.io/kaspr/engine/manifest"
	"kaspr.io/kaspr/wasmhost/abi"
)

// Own is a topic through which the app's agents send to each other: a channel, or between the sides of a join. It is the app that
// makes it, and nobody else should write to it, unless it is public: then the app only makes it. Partitions are 0 where they follow
// from others.
type Own struct {
	Topic
	Public bool
	// Like is the topic that has as many partitions; empty: as many as the largest input of the agents that send to it, or as the settings
	// say when only tasks do.
	Like string
}

// Internal is the topics through which the app's agents send to each other and that are nobody else's: those of Own that are not public,
// and what takes writes of tables to other partitions.
func (p *Plan) Internal() map[string]bool {
	topics := map[string]bool{}
	for i := range p.Tables {
		if name := p.Tables[i].Writes.Name; name != "" {
			topics[name] = true
		}
	}
	for i := range p.Own {
		if own := &p.Own[i]; !own.Public {
			topics[own.Name] = true
		}
	}
	return topics
}

// ChannelTopic is the name of the topic behind a channel.
func ChannelTopic(appID, channel string) string { return appID + "-channel-" + channel }

// internalConfig is the configuration of topics that are Internal. What is not read yet is kept however long the app stands still, and
// however old the record that it was made of is; what was read the app deletes itself.
func internalConfig() map[string]string {
	return map[string]string{"cleanup.policy": "delete", "retention.ms": "-1"}
}

// own notes a topic of the app's own, once.
func (b *builder) own(name, like, wantedBy string, at manifest.Pos) string {
	if !slices.ContainsFunc(b.owned, func(o Own) bool { return o.Name == name }) {
		b.owned = append(b.owned, Own{Like: like, Topic: Topic{
			Name: name, Replicas: int16(b.cfg.Topics.ReplicationFactor), For: wantedBy, Pos: at,
			Config: internalConfig(),
		}})
		b.topicName(b.owned[len(b.owned)-1].Topic, at)
	}
	return name
}

// topicName finds what Kafka would refuse about the name of a topic that the engine makes.
func (b *builder) topicName(t Topic, at manifest.Pos) {
	if problem := manifest.TopicNameProblem(t.Name); problem != "" {
		b.fail(at, manifest.NameTooLong, t.For+": its topic "+strconv.Quote(t.Name)+" "+problem, "choose other names for what it is made of: the app's and its own")
	}
}

// distinct finds topics of the engine's own making that would be one, such as the changelog of a table "x-join-left" and that of a
// join "x".
func (p *Plan) distinct() manifest.Errors {
	var problems manifest.Errors
	seen := map[string]Topic{}
	add := func(t Topic) {
		first, again := seen[t.Name]
		if again && t.Name != "" && first.For != t.For { // a name used twice has been reported
			problems = append(problems, manifest.Error{
				Pos: t.Pos, ID: manifest.TopicConflict,
				Text: t.For + " and " + first.For + " would both be topic " + strconv.Quote(t.Name), Hint: "rename one of them; the other is at " + first.Pos.String(),
			})
		}
		seen[t.Name] = t
	}
	for i := range p.Tables {
		add(p.Tables[i].Changelog)
		add(p.Tables[i].Writes)
	}
	for i := range p.Own {
		add(p.Own[i].Topic)
	}
	for i := range p.Agents {
		a := &p.Agents[i]
		if t := (Topic{Name: a.OnError.DeadLetterTopic, For: a.Label + ", dead letters", Pos: a.Pos}); a.OnError.Action == DeadLetter {
			if first, again := seen[t.Name]; !again || first.For != t.For && !strings.HasSuffix(first.For, ", dead letters") {
				add(t) // agents may share a dead-letter topic
			}
		}
	}
	return problems
}

// channel makes an agent, or a task, send every result to a channel. A run of a task is no record: there is nothing to carry on.
func (b *builder) channel(a *Agent, m *manifest.ChannelOutput) abi.Output {
	where := "channel " + strconv.Quote(m.Name.V)
	o := abi.Output{
		Topic: b.own(ChannelTopic(b.info.ID, m.Name.V), "", where, m.Name.Pos), KeySerializer: abi.Channel, ValueSerializer: abi.Channel,
		Carry: a.Task == nil, Label: where,
		KeySelector:     code(m.KeySelector, where+", keySelector"),
		ValueSelector:   code(m.ValueSelector, where+", valueSelector"),
		HeadersSelector: code(m.HeadersSelector, where+", headersSelector"),
		Predicate:       code(m.Predicate, where+", predicate"),
	}
	if !slices.Contains(a.Channels, o.Topic) {
		a.Channels = append(a.Channels, o.Topic)
	}
	return o
}
