package manifest

import (
	"time"

	"go.yaml.in/yaml/v3"
)

// What to do with a failed record.
const (
	DeadLetter = "dead-letter"
	Skip       = "skip"
	Retry      = "retry"
	Stop       = "stop"
)

// attemptsMax bounds retries: one record blocks its partition while it is retried.
const attemptsMax = 1000

// OnError is the failure policy of an agent or a join, or of an app for those that have none: an extension of ours. It is written as one
// word, or as an object.
type OnError struct {
	Pos    Pos
	Policy Value[string] // dead-letter, skip, retry, stop
	Topic  Value[string] // dead-letter topic
	Retry  *RetryOptions
	Then   Value[string] // after the last retry: dead-letter, skip, stop
}

// RetryOptions are the attempts a failed record gets.
type RetryOptions struct {
	Pos            Pos
	MaxAttempts    Value[int] // the first one included
	InitialBackoff Value[time.Duration]
	MaxBackoff     Value[time.Duration]
	Multiplier     Value[float64]
	Later          Value[bool] // the scheduler brings the record back; those behind it go on
}

func (c cursor) onError(dst **OnError) {
	e := &OnError{Pos: c.at}
	policies := []string{DeadLetter, Skip, Retry, Stop}
	if c.node.Kind == yaml.ScalarNode {
		if c.word(&e.Policy, policies...); e.Policy.Set() {
			*dst = e
		}
		return
	}
	if c.sketching {
		c.sketch.Also = &Node{Types: []string{"string"}, Enum: policies}
	}
	there := c.of("OnError").object(
		must("policy", func(c cursor) { c.word(&e.Policy, policies...) }),
		may("topic", func(c cursor) { c.topic(&e.Topic) }),
		may("retry", func(c cursor) { c.retry(&e.Retry) }),
		may("then", func(c cursor) { c.word(&e.Then, DeadLetter, Skip, Stop) }),
	)
	if there == nil || !e.Policy.Set() {
		return
	}
	*dst = e
	if e.Policy.V != Retry {
		if e.Retry != nil {
			c.failAt(e.Retry.Pos, Contradiction, "retry needs policy: retry", "say with then what follows the last attempt")
		}
		if e.Then.Set() {
			c.failAt(e.Then.Pos, Contradiction, "then needs policy: retry", "")
		}
	}
	last := e.Policy.V
	if last == Retry {
		last = e.Then.Or(DeadLetter)
	}
	if e.Topic.Set() && last != DeadLetter {
		c.failAt(e.Topic.Pos, Contradiction, "topic needs a dead-letter policy, not "+last, "")
	}
}

func (c cursor) retry(dst **RetryOptions) {
	r := &RetryOptions{Pos: c.at}
	if c.object(
		may("maxAttempts", func(c cursor) { whole(c, &r.MaxAttempts, 1, attemptsMax) }),
		may("initialBackoff", func(c cursor) { c.duration(&r.InitialBackoff) }),
		may("maxBackoff", func(c cursor) { c.duration(&r.MaxBackoff) }),
		may("multiplier", func(c cursor) { c.float(&r.Multiplier, 1, 100) }),
		may("later", func(c cursor) { c.boolean(&r.Later) }),
	) == nil {
		return
	}
	if r.InitialBackoff.Set() && r.MaxBackoff.Set() && r.InitialBackoff.V > r.MaxBackoff.V {
		c.failAt(r.MaxBackoff.Pos, OutOfRange, c.name()+".maxBackoff must not be shorter than initialBackoff", "")
	}
	*dst = r
}
