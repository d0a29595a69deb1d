package plan

import (
	"fmt"
	"slices"
	"time"

	"kaspr.io/kaspr/engine/manifest"
	"kaspr.io/kaspr/wasmhost/abi"
)

// Action is what finally happens to a failed record.
type Action string

const (
	DeadLetter Action = manifest.DeadLetter
	Skip       Action = manifest.Skip
	Stop       Action = manifest.Stop
)

// Policy is a failure policy with every default filled in.
type Policy struct {
	Attempts        int           // calls a record gets before Action, at least 1
	InitialBackoff  time.Duration // before the second attempt
	MaxBackoff      time.Duration
	Multiplier      float64
	Action          Action
	DeadLetterTopic string       // with DeadLetter
	RetryTopic      string       // where the scheduler brings a record for its next attempt; empty: it waits in its place
	RequestTopic    string       // of the scheduler, with RetryTopic
	Pos             manifest.Pos // of the onError it comes from; zero for the built-in default
}

// Defaults of a retry.
const (
	retryAttempts   = 5
	retryInitial    = 100 * time.Millisecond
	retryMax        = 10 * time.Second
	retryMultiplier = 2.0
)

// Blocks tells whether a record that is tried again holds up those behind it.
func (p Policy) Blocks() bool { return p.Attempts > 1 && p.RetryTopic == "" }

// Backoff is the pause before the given attempt (2 is the first repeat).
func (p Policy) Backoff(attempt int) time.Duration {
	pause := float64(p.InitialBackoff)
	for i := 2; i < attempt && pause < float64(p.MaxBackoff); i++ {
		pause *= p.Multiplier
	}
	if pause >= float64(p.MaxBackoff) {
		return p.MaxBackoff
	}
	return time.Duration(pause)
}

// DeadLetterTopic is the name a dead-letter topic has when the manifest gives none.
func DeadLetterTopic(appID, agent string) string { return appID + "-" + agent + "-dead-letter" }

// policy resolves a component's onError, else its app's, else the built-in one: dead letters where topics may be created,
// else stop. No failure is ever passed over without being asked for.
func (b *builder) policy(a *Agent, name manifest.Value[string], e *manifest.OnError) Policy {
	if e == nil {
		e = b.app.OnError
	}
	p := Policy{Attempts: 1, InitialBackoff: retryInitial, MaxBackoff: retryMax, Multiplier: retryMultiplier, Action: Stop}
	if b.cfg.Topics.AllowDeclare || e != nil && e.Topic.Set() {
		p.Action = DeadLetter
	}
	topic := manifest.Value[string]{V: DeadLetterTopic(b.info.ID, name.V), Pos: name.Pos}
	if e != nil {
		p.Pos = e.Pos
		if e.Topic.Set() {
			topic = e.Topic
		}
		switch {
		case e.Policy.V != manifest.Retry:
			p.Action = Action(e.Policy.V)
		case e.Then.Set():
			p.Action = Action(e.Then.V)
		}
		if e.Policy.V == manifest.Retry {
			b.retry(&p, e.Retry)
			if r := e.Retry; r != nil && r.Later.V {
				b.retryLater(a, name, &p, r.Later.Pos)
			}
		}
	}
	if p.Action != DeadLetter {
		return p
	}
	p.DeadLetterTopic = topic.V
	switch {
	case manifest.TopicNameProblem(topic.V) != "":
		b.fail(topic.Pos, manifest.NameTooLong, fmt.Sprintf("%s: its dead-letter topic %q %s", a.Label, topic.V, manifest.TopicNameProblem(topic.V)), "give onError.topic a shorter name")
	case slices.Contains(a.Topics, topic.V), a.Pattern != nil && a.Pattern.MatchString(topic.V) && !b.internal(topic.V):
		b.fail(topic.Pos, manifest.DeadLetterLoop, fmt.Sprintf("%s: its dead-letter topic %q is one of its inputs", a.Label, topic.V), "a record that always fails would go round for ever")
	case !b.cfg.Topics.AllowDeclare:
		b.warn(topic.Pos, manifest.NotDeclared, fmt.Sprintf("%s: its dead-letter topic %q is not created: topicAllowDeclare is false", a.Label, topic.V), "make sure that it exists")
	}
	return p
}

// RetryTopic is where records come back for another attempt of an agent.
func RetryTopic(appID, agent string) string { return appID + "-" + agent + "-retry" }

// retryLater makes the scheduler bring failed records back, by a topic of the agent's own. What depends on a record's partition or its
// neighbours is not possible then.
func (b *builder) retryLater(a *Agent, name manifest.Value[string], p *Policy, at manifest.Pos) {
	refuse := func(why, hint string) {
		b.fail(at, manifest.NotSupported, a.Label+": retry.later is not possible with "+why, hint)
	}
	switch {
	case !b.cfg.Scheduler.Enabled:
		b.fail(at, manifest.Contradiction, a.Label+": retry.later needs the message scheduler, which is off", "set schedulerEnabled: true in the app's config")
		return
	case a.Take != nil:
		refuse("take: a list is no record", "leave later out, or take")
		return
	case len(a.Tables) > 0:
		refuse("tables: the record may come back in another partition", "leave later out: the partition waits")
		return
	case len(a.Topics) == 0 || a.Program.Kind != manifest.KindAgent || a.Program.Input.KeySerializer == abi.Channel:
		refuse("an input that is no named topic", "leave later out: the partition waits")
		return
	}
	p.RequestTopic = ScheduleTopic(b.info.ID, "requests")
	p.RetryTopic = b.own(RetryTopic(b.info.ID, name.V), a.Topics[0], a.Label+", retries", at)
	a.Topics = append(slices.Clone(a.Topics), p.RetryTopic)
}

func (b *builder) retry(p *Policy, r *manifest.RetryOptions) {
	p.Attempts = retryAttempts
	if r == nil {
		return
	}
	p.Attempts = r.MaxAttempts.Or(retryAttempts)
	p.InitialBackoff = r.InitialBackoff.Or(min(retryInitial, r.MaxBackoff.Or(retryInitial)))
	p.MaxBackoff = r.MaxBackoff.Or(max(retryMax, p.InitialBackoff))
	p.Multiplier = r.Multiplier.Or(retryMultiplier)
}
