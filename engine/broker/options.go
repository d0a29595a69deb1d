package broker

import (
	"context"
	"crypto/tls"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl"

	"kaspr.io/kaspr/engine/record"
)

// Options is how to reach the cluster and who this process is in the app's consumer group.
type Options struct {
	Brokers  []string // host:port
	ClientID string
	TLS      *tls.Config    // nil: plain text
	SASL     sasl.Mechanism // nil: no authentication

	Group             string // the application id
	InstanceID        string // static membership (KIP-345); empty: a dynamic member
	SessionTimeout    time.Duration
	HeartbeatInterval time.Duration
	RequestTimeout    time.Duration
	// RebalanceTimeout bounds how long a revocation may take to drain.
	RebalanceTimeout time.Duration
	// MetadataMaxAge is how soon new topics, and partitions of known ones, are seen.
	MetadataMaxAge time.Duration

	// Copartition tells what belongs together, whenever this member leads a rebalance; nil: nothing does. It should name
	// every topic that belongs to a set before the member subscribes to it: subscriptions it does not know assign singly.
	Copartition func() []Copartition
	// Standbys is how many members keep a copy of a table partition beside its owner, as far as there are so many.
	Standbys int
	// UserData tells the group about this member; it is called at each join, from Join on, and must not block. nil: nothing.
	UserData func() MemberState
	// OnAssignment is told, at each new assignment, what the leader decided: after Handler.Revoked of what is lost by it, and
	// before Handler.Assigned of what is new. Calls are one at a time with those of the Handler. nil: nobody.
	OnAssignment func(Placement)

	// Gather is how long what comes in and what is sent wait for more of it, to be one request. What comes in after a time without
	// anything does not wait, nor does SendSync.
	Gather time.Duration
	// BatchBytes is the largest batch of records that topics take, of those that may take less than batchBytesMax.
	BatchBytes map[string]int
	// StopOnLoss makes records that the broker lost while they were being read an error of Poll, instead of a line in the log.
	StopOnLoss bool
	// TransactionTimeout is after what time without a commit the broker aborts a transaction, also that of a process which died.
	TransactionTimeout time.Duration
	// FetchPartitionBytes is how much is fetched of one partition at a time.
	FetchPartitionBytes int32

	Log *slog.Logger
	// Delivered is told of every acknowledged output, in partition order, with transactions once they are committed; nil for
	// nobody. It must not block for long.
	Delivered func(Delivered)
}

// Delivered is one output the broker has acknowledged.
type Delivered struct {
	Topic      string
	Partition  int32
	Offset     int64
	Key, Value []byte
	Headers    []record.Header
}

// clientOptions are the settings every client of the process shares.
func (o Options) clientOptions() []kgo.Opt {
	opts := []kgo.Opt{
		kgo.SeedBrokers(o.Brokers...),
		kgo.ClientID(o.ClientID),
		kgo.WithLogger(newKafkaLog(o.Log)),
		kgo.MetadataMinAge(100 * time.Millisecond),
	}
	if o.MetadataMaxAge > 0 {
		opts = append(opts, kgo.MetadataMaxAge(o.MetadataMaxAge))
	}
	if o.TLS != nil {
		opts = append(opts, kgo.DialTLSConfig(o.TLS))
	}
	if o.SASL != nil {
		opts = append(opts, kgo.SASL(o.SASL))
	}
	if o.RequestTimeout > 0 {
		opts = append(opts, kgo.RequestTimeoutOverhead(o.RequestTimeout))
	}
	return opts
}

// kafkaLog passes the client's log on. Its lines are about one connection or request, so its info is our debug, and while
// a broker is away the same line comes many times a second: each message is shown once in quietTime.
type kafkaLog struct {
	log *slog.Logger

	mu   sync.Mutex
	last map[string]quiet // guarded by mu; by message
}

type quiet struct {
	at     time.Time
	hidden int
}

const quietTime = 10 * time.Second

func newKafkaLog(log *slog.Logger) *kafkaLog { return &kafkaLog{log: log, last: map[string]quiet{}} }

func (l *kafkaLog) Level() kgo.LogLevel {
	ctx := context.Background()
	switch {
	case l.log.Enabled(ctx, slog.LevelDebug):
		return kgo.LogLevelInfo
	case l.log.Enabled(ctx, slog.LevelWarn):
		return kgo.LogLevelWarn
	}
	return kgo.LogLevelError
}

func (l *kafkaLog) Log(level kgo.LogLevel, msg string, keyvals ...any) {
	to := slog.LevelDebug
	switch level {
	case kgo.LogLevelError:
		to = slog.LevelError
	case kgo.LogLevelWarn:
		to = slog.LevelWarn
	}
	if to >= slog.LevelWarn {
		hidden, show := l.allow(msg, time.Now())
		if !show {
			return
		}
		if hidden > 0 {
			keyvals = append(slices.Clone(keyvals), "unlogged", hidden)
		}
	}
	l.log.Log(context.Background(), to, "kafka: "+msg, keyvals...)
}

func (l *kafkaLog) allow(msg string, now time.Time) (hidden int, show bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	q, seen := l.last[msg]
	if seen && now.Sub(q.at) < quietTime {
		q.hidden++
		l.last[msg] = q
		return 0, false
	}
	l.last[msg] = quiet{at: now}
	return q.hidden, true
}
