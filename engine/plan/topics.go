package plan

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"kaspr.io/kaspr/engine/config"
	"kaspr.io/kaspr/engine/manifest"
	"kaspr.io/kaspr/wasmhost/abi"
)

// Topic is one topic to create when it does not exist; an existing one is left as it is.
type Topic struct {
	Name       string
	Partitions int32
	Replicas   int16
	Config     map[string]string
	For        string       // what wants it, such as: agent "orders", input
	Pos        manifest.Pos // of the declaration
}

// topics are the declarations of a plan, by name. Counts stay 0 until all declarations of a topic are known.
type topics map[string]*Topic

// declare notes a topic to create and gives the declaration as the guest takes it: nil when settings forbid it. The
// name is empty when a selector makes it.
func (b *builder) declare(name string, o *manifest.TopicOptions, wantedBy string, at manifest.Pos) *abi.Declaration {
	if !b.cfg.Topics.AllowDeclare {
		b.warn(at, manifest.NotDeclared, wantedBy+": declare has no effect: topicAllowDeclare is false", "")
		return nil
	}
	t := Topic{Name: name, Partitions: int32(o.Partitions.V), Replicas: int16(o.Replicas.V), Config: topicConfig(o), For: wantedBy, Pos: at}
	if name != "" {
		b.merge(t)
	}
	withDefaults(&t, b.cfg)
	return &abi.Declaration{Partitions: t.Partitions, Replicas: t.Replicas, Config: t.Config}
}

// merge puts two declarations of one topic together: what one leaves open the other may say.
func (b *builder) merge(t Topic) {
	if b.topics == nil {
		b.topics = topics{}
	}
	first, again := b.topics[t.Name]
	if !again {
		t.Config = maps.Clone(t.Config) // it grows; the guest's own declaration does not
		b.topics[t.Name] = &t
		return
	}
	conflict := func(what string, here, there any) {
		b.fail(t.Pos, manifest.TopicConflict, fmt.Sprintf("%s: topic %q is declared with %s %v, and with %v by %s", t.For, t.Name, what, here, there, first.For), "declared there at "+first.Pos.String())
	}
	if first.Partitions != 0 && t.Partitions != 0 && first.Partitions != t.Partitions {
		conflict("partitions", t.Partitions, first.Partitions)
	}
	if first.Replicas != 0 && t.Replicas != 0 && first.Replicas != t.Replicas {
		conflict("replicas", t.Replicas, first.Replicas)
	}
	for _, key := range slices.Sorted(maps.Keys(t.Config)) {
		if there, ok := first.Config[key]; ok && there != t.Config[key] {
			conflict("config "+key, strconv.Quote(t.Config[key]), strconv.Quote(there))
		}
	}
	first.Partitions = cmp.Or(first.Partitions, t.Partitions)
	first.Replicas = cmp.Or(first.Replicas, t.Replicas)
	if first.Config == nil && t.Config != nil {
		first.Config = map[string]string{}
	}
	maps.Copy(first.Config, t.Config)
}

// resolve fills in the defaults and puts the topics in the order of their names.
func (t topics) resolve(cfg config.Config) []Topic {
	var list []Topic
	for _, name := range slices.Sorted(maps.Keys(t)) {
		topic := *t[name]
		withDefaults(&topic, cfg)
		list = append(list, topic)
	}
	return list
}

func withDefaults(t *Topic, cfg config.Config) {
	t.Partitions = cmp.Or(t.Partitions, int32(cfg.Topics.Partitions))
	t.Replicas = cmp.Or(t.Replicas, int16(cfg.Topics.ReplicationFactor))
}

// topicConfig is what retention, compacting and deleting stand for, and the manifest's own configs over them. Nil
// leaves everything to the broker.
func topicConfig(o *manifest.TopicOptions) map[string]string {
	c := map[string]string{}
	if o.Retention.V > 0 {
		c["retention.ms"] = strconv.FormatInt(o.Retention.V*1000, 10)
	}
	var policies []string
	if o.Compacting.V {
		policies = append(policies, "compact")
	}
	if o.Deleting.V {
		policies = append(policies, "delete")
	}
	if len(policies) > 0 {
		c["cleanup.policy"] = strings.Join(policies, ",")
	}
	for _, e := range o.Config {
		c[e.Key.V] = e.Value.V
	}
	if len(c) == 0 {
		return nil
	}
	return c
}
