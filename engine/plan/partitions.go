package plan

import (
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

// Partitions decides how many partitions each table has, given the partition counts of the topics that exist. A changelog
// that exists keeps its count; otherwise the manifest decides, then the input topics of the agents that declare the table,
// which beats the setting that goes last: it is what lets them be used together.
//
// A record of partition n writes to partition n of a table, so counts that differ are problems: all of them are reported,
// before the first record. A topic that is neither there nor declared has no count yet; see CheckTopic. Tables partitioned by
// their keys are written from any partition, and global ones can be read from any, as most of their agents do; these get as
// many as the largest of the inputs, so that all can write.
func (p *Plan) Partitions(cfg config.Config, exist map[string]int32) ([]int32, manifest.Errors) {
	known := maps.Clone(exist)
	if known == nil {
		known = map[string]int32{}
	}
	for _, t := range p.Topics {
		if _, ok := known[t.Name]; !ok && t.Partitions > 0 {
			known[t.Name] = t.Partitions
		}
	}
	counts, why := make([]int32, len(p.Tables)), make([]string, len(p.Tables))
	var problems manifest.Errors
	for i := range p.Tables {
		t := &p.Tables[i]
		have, exists := exist[t.Changelog.Name]
		switch {
		case exists:
			counts[i], why[i] = have, "as its changelog "+t.Changelog.Name+" has"
			if t.Changelog.Partitions != 0 && t.Changelog.Partitions != have {
				problems = append(problems, manifest.Error{
					Pos: t.Pos, ID: manifest.PartitionCount,
					Text: fmt.Sprintf("%s: the manifest says %d partitions, its changelog %s has %d", t.Label, t.Changelog.Partitions, t.Changelog.Name, have),
					Hint: "a table's partitions cannot be changed: its keys are where they are",
				})
			}
		case t.Changelog.Partitions != 0:
			counts[i], why[i] = t.Changelog.Partitions, "as its manifest says"
		default:
			counts[i], why[i] = p.asInputs(i, known)
			if counts[i] == 0 {
				counts[i], why[i] = int32(cfg.Topics.Partitions), "as topicPartitions says"
			}
		}
	}
	for i := range p.Agents {
		for _, topic := range p.inputs(&p.Agents[i], known) {
			if n, ok := known[topic]; ok {
				problems = append(problems, p.mismatches(&p.Agents[i], topic, n, counts, why)...)
			}
		}
	}
	return counts, problems
}

// asInputs is the least count of the topics that agents which declare the table read, or the greatest for a global table; 0
// when none is known.
func (p *Plan) asInputs(table int, known map[string]int32) (count int32, why string) {
	global := p.Tables[table].Guest.Global
	for i := range p.Agents {
		a := &p.Agents[i]
		if !slices.ContainsFunc(a.Tables, func(u TableUse) bool { return u.Table == table && u.Declared }) {
			continue
		}
		for _, topic := range p.inputs(a, known) {
			n, ok := known[topic]
			if better := count == 0 || global && n > count || !global && n < count; ok && better {
				count, why = n, "as "+topic
			}
		}
	}
	return count, why
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
