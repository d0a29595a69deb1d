package plan

import (
	"maps"
	"slices"
)

// Read is the topics the app's group reads, by name: those that agents name, and those of the ones that exist which their patterns match.
func (p *Plan) Read(exist map[string]int32) []string {
	topics := map[string]bool{}
	for i := range p.Agents {
		for _, topic := range p.inputs(&p.Agents[i], exist) {
			topics[topic] = true
		}
	}
	return slices.Sorted(maps.Keys(topics))
}

// TopicUses is what the app does with each topic it knows of, as texts for people.
func (p *Plan) TopicUses(exist map[string]int32) map[string][]string {
	uses := map[string][]string{}
	add := func(topic, use string) {
		if topic != "" && !slices.Contains(uses[topic], use) {
			uses[topic] = append(uses[topic], use)
		}
	}
	for i := range p.Agents {
		a := &p.Agents[i]
		for _, topic := range p.inputs(a, exist) {
			add(topic, "read by "+a.Label)
		}
		for _, topic := range slices.Concat(a.OutputTopics, a.Channels) {
			add(topic, "written by "+a.Label)
		}
		if a.OnError.Action == DeadLetter {
			add(a.OnError.DeadLetterTopic, "dead letters of "+a.Label)
		}
	}
	for i := range p.Views {
		for _, topic := range p.Views[i].OutputTopics {
			add(topic, "written by "+p.Views[i].Label)
		}
	}
	for i := range p.Tables {
		add(p.Tables[i].Changelog.Name, "changelog of "+p.Tables[i].Label)
		add(p.Tables[i].Writes.Name, "writes of "+p.Tables[i].Label)
	}
	for i := range p.Own {
		add(p.Own[i].Name, p.Own[i].For)
	}
	return uses
}
