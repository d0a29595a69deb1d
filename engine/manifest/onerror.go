package manifest

import "time"

// What to do with a failed record.
const (
	DeadLetter = "dead-letter"
	Skip       = "skip"
	Retry      = "retry"
	Stop       = "stop"
)

// OnError is the failure policy of an agent, or of an app for its agents: an extension of ours. It is written as one
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
}
