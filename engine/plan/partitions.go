package plan

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"kaspr.io/kaspr/engine/config"
	"kaspr.io/kaspr/engine/manifest"
)

// Matches tells whether an agent's pattern takes a topic in. It never does so with the app's own topics, or an agent would
// read its own dead letters, nor with Kafka's.
func (p *Plan) Matches(a *Agent, topic string) bool {
	return a.Pattern != nil && a.Pattern.MatchString(topic) && !strings.HasPrefix(topic, "__") && !strings.HasPrefix(topic, p.App.ID+"-")
}

// inputs are the topics an agent reads: those it names, or those that exist and match.
func (p *Plan) inputs(a *Agent, exist map[string]int32) []string {
	if a.Pattern == nil {
		return a.Topics
	}
	return slices.DeleteFunc(slices.Sorted(maps.Keys(exist)), func(topic string) bool { return !p.Matches(a, topic) })
}

// Partitions decides how many partitions each table has, and each of the app's own topics, given the partition counts of the
// topics that exist. What exists keeps its count; otherwise the manifest decides, then the input topics of the agents that
// declare the table, which beats the setting that goes last: it is what lets them be used together.
//
// A record of partition n writes to partition n of a table, so counts that differ are problems: all of them are reported,
// before the first record. A topic that is neither there nor declared has no count yet; see CheckTopic. Tables partitioned by
// their keys are written from any partition, and global ones can be read from any, as most of their agents do; these get as
// many as the largest of the inputs, so that all can write.
func (p *Plan) Partitions(cfg config.Config, exist map[string]int32) (tables, own []int32, problems manifest.Errors) {
	c := counting{plan: p, known: map[string]int32{}, tables: make([]int32, len(p.Tables)), why: make([]string, len(p.Tables)), otherwise: int32(cfg.Topics.Partitions)}
	maps.Copy(c.known, exist)
	for _, t := range p.Topics {
		if _, ok := c.known[t.Name]; !ok && t.Partitions > 0 {
			c.known[t.Name] = t.Partitions
		}
	}
	for i := range p.Tables {
		t := &p.Tables[i]
		have, exists := exist[t.Changelog.Name]
		switch {
		case exists:
			c.table(i, have, "as its changelog "+t.Changelog.Name+" has")
			if t.Changelog.Partitions != 0 && t.Changelog.Partitions != have {
				problems = append(problems, manifest.Error{
					Pos: t.Pos, ID: manifest.PartitionCount,
					Text: fmt.Sprintf("%s: the manifest says %d partitions, its changelog %s has %d", t.Label, t.Changelog.Partitions, t.Changelog.Name, have),
					Hint: "a table's partitions cannot be changed: its keys are where they are",
				})
			}
		case t.Changelog.Partitions != 0:
			c.table(i, t.Changelog.Partitions, "as its manifest says")
		}
	}
	for c.certain() || c.likely() {
	}
	for i := range p.Agents {
		for _, topic := range p.inputs(&p.Agents[i], c.known) {
			if n, ok := c.known[topic]; ok {
				problems = append(problems, p.mismatches(&p.Agents[i], topic, n, c.tables, c.why)...)
			}
		}
	}
	for i := range p.Own {
		own = append(own, c.known[p.Own[i].Name])
	}
	return c.tables, own, problems
}

// counting is the counts as far as they are decided. The others follow from each other: a table's from its agents' inputs, a
// channel's from those of the agents that send to it, that of what is between the sides of a join from its tables'.
type counting struct {
	plan      *Plan
	known     map[string]int32 // by topic
	tables    []int32          // by index; 0: not decided
	why       []string
	otherwise int32 // where nothing says more
}

func (c *counting) table(i int, n int32, why string) {
	c.tables[i], c.why[i] = n, why
	c.known[c.plan.Tables[i].Changelog.Name] = n
}

// certain decides what follows from counts that are all known; false: nothing does.
func (c *counting) certain() (progress bool) {
	for i := range c.tables {
		if n, why, sure := c.plan.asInputs(i, c.known); c.tables[i] == 0 && sure {
			c.table(i, n, why)
			progress = true
		}
	}
	for i := range c.plan.Own {
		o := &c.plan.Own[i]
		if n, sure := c.plan.asSenders(o, c.known); c.known[o.Name] == 0 && sure {
			c.known[o.Name] = n
			progress = true
		}
	}
	return progress
}

// likely decides one more, with what is known of it.
func (c *counting) likely() bool {
	for i := range c.tables {
		if c.tables[i] == 0 {
			n, why, _ := c.plan.asInputs(i, c.known)
			if n == 0 {
				n, why = c.otherwise, "as topicPartitions says"
			}
			c.table(i, n, why)
			return true
		}
	}
	for i := range c.plan.Own {
		if o := &c.plan.Own[i]; c.known[o.Name] == 0 {
			n, _ := c.plan.asSenders(o, c.known)
			c.known[o.Name] = cmp.Or(n, c.otherwise)
			return true
		}
	}
	return false
}

// asInputs is the least count of the topics that agents which declare the table read, or the greatest for a global table; 0
// when none is known. It is sure when all are.
func (p *Plan) asInputs(table int, known map[string]int32) (count int32, why string, sure bool) {
	global := p.Tables[table].Guest.Global
	sure = true
	for i := range p.Agents {
		a := &p.Agents[i]
		if a.Writer || !slices.ContainsFunc(a.Tables, func(u TableUse) bool { return u.Table == table && u.Declared }) {
			continue
		}
		for _, topic := range p.inputs(a, known) {
			n, ok := known[topic]
			sure = sure && ok
			if better := count == 0 || global && n > count || !global && n < count; ok && better {
				count, why = n, "as "+topic
			}
		}
	}
	return count, why, sure && count > 0
}

// asSenders is the greatest count of the inputs of the agents that send to a topic of the app's own, or that of the topic it is
// like; 0 when none is known. It is sure when all are.
func (p *Plan) asSenders(o *Own, known map[string]int32) (count int32, sure bool) {
	if o.Partitions > 0 {
		return o.Partitions, true
	}
	if o.Like != "" {
		return known[o.Like], known[o.Like] > 0
	}
	sure = true
	for i := range p.Agents {
		a := &p.Agents[i]
		if a.Task != nil || !slices.Contains(a.Channels, o.Name) {
			continue // what a task reads, if anything, is the leader's topic
		}
		for _, topic := range p.inputs(a, known) {
			n, ok := known[topic]
			sure = sure && ok
			count = max(count, n)
		}
	}
	return count, sure && count > 0
}

// CheckTopic finds what is wrong with a topic that was not there when Partitions was asked, counts being its answer.
func (p *Plan) CheckTopic(topic string, partitions int32, counts []int32) manifest.Errors {
	var problems manifest.Errors
	for i := range p.Agents {
		if a := &p.Agents[i]; slices.Contains(a.Topics, topic) || p.Matches(a, topic) {
			problems = append(problems, p.mismatches(a, topic, partitions, counts, nil)...)
		}
	}
	return problems
}

// mismatches are the tables an agent declares that have another count than an input of its, and must not.
func (p *Plan) mismatches(a *Agent, topic string, n int32, counts []int32, why []string) manifest.Errors {
	var problems manifest.Errors
	for _, u := range a.Tables {
		t := &p.Tables[u.Table]
		free := t.Guest.Global || t.Guest.PartitionByKey
		if u.Declared && counts[u.Table] != n && (a.Writer || !free) {
			because, hint := "", "a record's partition is that of its table writes: give both the same number, or the table partitionBy: key"
			if a.Schedule != "" {
				hint = "the partitions of the scheduler's topics cannot be changed: what waits is where it is"
			}
			if a.Writer {
				hint = "delete the topic when the app has read all of it: it is made anew"
			}
			if why != nil {
				because = " (" + why[u.Table] + ")"
			}
			problems = append(problems, manifest.Error{
				Pos: u.Pos, ID: manifest.PartitionCount,
				Text: fmt.Sprintf("%s: its input %s has %d partitions, %s has %d%s", a.Label, topic, n, t.Label, counts[u.Table], because),
				Hint: hint,
			})
		}
	}
	return problems
}
