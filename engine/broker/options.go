package broker

import (
	"crypto/tls"
	"log/slog"
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

	// ProduceBytesMax is the largest record batch sent, so also the largest message.
	ProduceBytesMax int32
	// FetchPartitionBytes is how much is fetched of one partition at a time.
	FetchPartitionBytes int32

	Log *slog.Logger
	// Delivered is told of every acknowledged output, in partition order; nil for nobody. It must not block for long.
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
		kgo.WithLogger(kafkaLog{o.Log}),
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

// kafkaLog passes the client's log on. Its lines are about one connection or request, so its info is our debug.
type kafkaLog struct{ log *slog.Logger }

func (l kafkaLog) Level() kgo.LogLevel {
	switch {
	case l.log.Enabled(nil, slog.LevelDebug): //nolint:staticcheck // Enabled of our handlers does not use the context
		return kgo.LogLevelInfo
	case l.log.Enabled(nil, slog.LevelWarn): //nolint:staticcheck // as above
		return kgo.LogLevelWarn
	}
	return kgo.LogLevelError
}

func (l kafkaLog) Log(level kgo.LogLevel, msg string, keyvals ...any) {
	to := slog.LevelDebug
	switch level {
	case kgo.LogLevelError:
		to = slog.LevelError
	case kgo.LogLevelWarn:
		to = slog.LevelWarn
	}
	l.log.Log(nil, to, "kafka: "+msg, keyvals...) //nolint:staticcheck // as above
}
