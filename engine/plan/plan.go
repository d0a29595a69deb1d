// Package plan turns the manifests of one app and its settings into the values the engine runs: programs, topics, policies.
//
// It is pure: the same manifests and settings give the same Plan, with nothing asked of Kafka, Python or the disk.
package plan

import (
	"errors"
	"regexp"
	"time"

	"kaspr.io/kaspr/engine/config"
	"kaspr.io/kaspr/engine/manifest"
	"kaspr.io/kaspr/wasmhost/abi"
)

// Plan is one app, ready to run.
type Plan struct {
	App    App
	Agents []Agent // in file order
	Topics []Topic // to create before the first record, by name; empty when settings forbid creating topics
}

// App is the app of a Plan.
type App struct {
	Name string            // metadata.name, or the name the components' labels agree on
	ID   string            // application id: consumer group and prefix of internal topics
	Env  map[string]string // os.environ of Code
}

// Agent is one KasprAgent, resolved.
type Agent struct {
	Name     string
	Label    string // agent "orders", for messages
	Pos      manifest.Pos
	Topics   []string       // input topics by name; empty with Pattern
	Pattern  *regexp.Regexp // live subscription; matches whole topic names
	Take     *Take
	Isolated bool // isolatedPartitions: accepted, partitions are isolated anyway
	Program  abi.Program
	OnError  Policy
	// OutputTopics are the target topics known beforehand, by name, each once; selectors may name others at any time.
	OutputTopics []string
}

// Take makes one call of up to Max records, or of those that came within Within (0: only when full).
type Take struct {
	Max    int
	Within time.Duration
}

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
	Pos             manifest.Pos // of the onError it comes from; zero for the built-in default
}

// Backoff is the pause before the given attempt (2 is the first repeat).
func (p Policy) Backoff(attempt int) time.Duration {
	pause := float64(p.InitialBackoff)
	for i := 2; i < attempt && pause < float64(p.MaxBackoff); i++ {
		pause *= p.Multiplier
	}
	return min(time.Duration(pause), p.MaxBackoff)
}

// Topic is one topic to create when it does not exist; an existing one is left as it is.
type Topic struct {
	Name       string
	Partitions int32
	Replicas   int16
	Config     map[string]string
	For        string       // what wants it, such as: agent "orders", input
	Pos        manifest.Pos // of the declaration
}

// New makes the Plan of one app: the one cfg names, or the only one there is. All problems are reported, in file order;
// the Plan is nil when one of them is an error.
func New(set *manifest.Set, cfg config.Config) (*Plan, manifest.Errors) {
	return nil, manifest.Errors{{ID: "M000", Text: errors.ErrUnsupported.Error()}}
}
