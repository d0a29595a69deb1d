// Package dev runs an app on an embedded broker in this process, with input from files and outputs as JSON lines.
package dev

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"kaspr.io/kaspr/engine"
	"kaspr.io/kaspr/engine/broker"
	"kaspr.io/kaspr/engine/config"
	"kaspr.io/kaspr/engine/manifest"
	"kaspr.io/kaspr/engine/plan"
	"kaspr.io/kaspr/engine/record"
	"kaspr.io/kaspr/state/mem"
	"kaspr.io/kaspr/wasmhost"
)

// Input is one --input: records for a topic, from a file or, as "-", from standard input.
type Input struct{ Topic, File string }

// ParseInput reads TOPIC=FILE.
func ParseInput(s string) (Input, error) {
	topic, file, ok := strings.Cut(s, "=")
	if !ok || topic == "" || file == "" {
		return Input{}, fmt.Errorf("--input %q: TOPIC=FILE is wanted, with - for standard input", s)
	}
	return Input{topic, file}, nil
}

// Options are what a dev run does besides running the app.
type Options struct {
	Inputs []Input
	Drain  bool // stop when all input is processed
	Stdin  io.Reader
	Stdout io.Writer // output records, one JSON line each
	Log    *slog.Logger
	HTTP   bool // serve on webPort of the loopback interface
	// Requests is a file of requests to web views, sent when all input is processed, with Drain; their responses are printed.
	Requests string
	Version  string // of the engine
}

// ErrRecordsFailed is returned by a drained run in which records failed for good.
var ErrRecordsFailed = errors.New("records failed")

// Adapt turns an app's settings into those of an embedded run: the broker is ours, and topics have one partition unless
// a setting or the topic itself says otherwise, so that the order of outputs is the order of the input.
func Adapt(cfg config.Config) config.Config {
	cfg.Kafka = config.Kafka{SecurityProtocol: "PLAINTEXT", SessionTimeout: 10 * time.Second, HeartbeatInterval: time.Second}
	cfg.Topics.ReplicationFactor = 1
	for _, s := range cfg.Explain() {
		if s.Key == "topicPartitions" && s.Source == "default" {
			cfg.Topics.Partitions = 1
		}
	}
	for _, s := range cfg.Explain() {
		if s.Key == "schedulerTopicPartitions" && s.Source == "default" {
			cfg.Scheduler.TopicPartitions = cfg.Topics.Partitions
		}
	}
	return cfg
}

// Broker is an embedded Kafka that lives as long as the process needs it, over reloads of the manifests.
type Broker struct {
	cluster *kfake.Cluster
	fed     chan struct{} // closed when the inputs are produced; nil before the first Run that has some
	feedErr error         // of the inputs; read after fed is closed
}

// NewBroker starts an embedded broker on a free loopback port. Nothing is kept on disk.
func NewBroker(partitions int) (*Broker, error) {
	c, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.DefaultNumPartitions(partitions), kfake.AllowAutoTopicCreation(),
		// A reload's member is back at once; nobody else is in the group.
		kfake.BrokerConfigs(map[string]string{"group.initial.rebalance.delay.ms": "0"}))
	if err != nil {
		return nil, fmt.Errorf("start the embedded broker: %w", err)
	}
	return &Broker{cluster: c}, nil
}

// Addrs are the broker's addresses.
func (b *Broker) Addrs() []string { return b.cluster.ListenAddrs() }

// Close stops the broker.
func (b *Broker) Close() { b.cluster.Close() }

// Run runs one app on the broker until ctx ends, the app stops, or with Drain all input is processed. The inputs of the
// first Run are produced once and go on over later ones: standard input may stay open while manifests are reloaded.
func Run(ctx context.Context, b *Broker, cfg config.Config, p *plan.Plan, rt *wasmhost.Runtime, o Options) error {
	cfg.Kafka.BootstrapServers = b.Addrs()
	kafka := broker.Options{Brokers: b.Addrs(), ClientID: "kaspr-dev", Log: o.Log}
	admin, err := broker.NewAdmin(kafka)
	if err != nil {
		return err
	}
	defer admin.Close()
	if err := createTopics(ctx, admin, cfg, p, o.Inputs); err != nil {
		return err
	}
	out := &printer{w: bufio.NewWriterSize(o.Stdout, 64<<10), hidden: internal(p)}
	opts := engine.Options{Delivered: out.print, ReplicasMax: 1, Stores: mem.New(), Version: o.Version}
	if o.HTTP && cfg.Web.Port > 0 {
		opts.Listen = net.JoinHostPort("127.0.0.1", strconv.Itoa(cfg.Web.Port))
	} else if o.Requests != "" {
		opts.Listen = "127.0.0.1:0"
	}
	app, err := engine.New(ctx, cfg, p, rt, o.Log, opts)
	if err != nil {
		return err
	}
	warnUnread(app, p, o)
	if b.fed == nil && len(o.Inputs) > 0 {
		b.fed = make(chan struct{})
		go func() { // not waited for at a reload or a stop: a read of standard input cannot be interrupted
			defer close(b.fed)
			if b.feedErr = Feed(b.Addrs(), p, o.Inputs, o.Stdin); b.feedErr != nil && !o.Drain {
				o.Log.Error("produce the input", "err", b.feedErr) // with Drain it is Run's error
			}
		}()
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var feeding sync.WaitGroup
	var drainErr error
	if o.Drain {
		feeding.Go(func() {
			defer cancel()
			if b.fed != nil {
				select {
				case <-b.fed:
					drainErr = b.feedErr
				case <-ctx.Done():
					return
				}
			}
			if drainErr == nil {
				drainErr = drained(ctx, admin, app)
			}
			if drainErr == nil && o.Requests != "" {
				if drainErr = ask(ctx, o.Requests, app, out); drainErr == nil {
					drainErr = drained(ctx, admin, app)
				}
			}
		})
	}
	feeding.Go(func() { out.flushLoop(ctx) })
	runErr := app.Run(ctx)
	if ctx.Err() != nil && errors.Is(runErr, context.Canceled) {
		runErr = nil // told to stop, or drained, before it had begun
	}
	cancel()
	feeding.Wait()
	if errors.Is(drainErr, context.Canceled) {
		drainErr = nil
	}
	if err := errors.Join(runErr, drainErr, out.flush()); err != nil {
		return err
	}
	if n := app.Failed(); o.Drain && n > 0 {
		return fmt.Errorf("%d %w", n, ErrRecordsFailed)
	}
	if n := app.FailedRuns(); o.Drain && n > 0 {
		return fmt.Errorf("%d runs of tasks failed", n)
	}
	return nil
}

// warnUnread tells of inputs that will lie in their topics unread, as those of a misspelt topic. They are no error: topics that a
// pattern must not take in are tried like that.
func warnUnread(app *engine.App, p *plan.Plan, o Options) {
	var read []string
	for _, ag := range p.Agents {
		read = append(read, ag.Topics...)
	}
	for _, in := range o.Inputs {
		if !app.Reads(in.Topic) {
			o.Log.Warn("no agent reads the topic of an --input", "topic", in.Topic, "like", manifest.Suggest(in.Topic, read))
		}
	}
}

// createTopics makes the topics agents read and write, so that nothing waits for a first record to appear.
func createTopics(ctx context.Context, admin *broker.Admin, cfg config.Config, p *plan.Plan, inputs []Input) error {
	made := map[string]bool{}
	ensure := func(name string, partitions int32) error {
		if made[name] {
			return nil
		}
		made[name] = true
		_, err := admin.Ensure(ctx, broker.Topic{Name: name, Partitions: partitions, Replicas: 1})
		return err
	}
	for _, t := range p.Topics {
		made[t.Name] = true
		if _, err := admin.Ensure(ctx, broker.Topic{Name: t.Name, Partitions: t.Partitions, Replicas: 1, Config: t.Config}); err != nil {
			return err
		}
	}
	for i := range p.Own {
		if own := &p.Own[i]; own.Public { // inputs may go there before the app has made it
			if err := ensure(own.Name, own.Partitions); err != nil {
				return err
			}
		}
	}
	for t := range internal(p) {
		made[t] = true // by the app, with the partitions they need
	}
	for _, ag := range p.Agents {
		if ag.Join != nil {
			continue // it reads changelogs, which the app makes, too
		}
		for _, t := range slices.Concat(ag.Topics, ag.OutputTopics) {
			if err := ensure(t, int32(cfg.Topics.Partitions)); err != nil {
				return err
			}
		}
	}
	for _, v := range p.Views {
		for _, t := range v.OutputTopics {
			if err := ensure(t, int32(cfg.Topics.Partitions)); err != nil {
				return err
			}
		}
	}
	for _, in := range inputs {
		if err := ensure(in.Topic, int32(cfg.Topics.Partitions)); err != nil {
			return err
		}
	}
	return nil
}

// Feed produces the inputs, each in its own order, side by side. The plan says how their topics are decoded.
func Feed(brokers []string, p *plan.Plan, inputs []Input, stdin io.Reader) error {
	ctx := context.Background()
	cl, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.RecordPartitioner(broker.ByKeyOrGiven()),
		kgo.MetadataMinAge(50*time.Millisecond), kgo.ProducerBatchMaxBytes(32<<20), kgo.MaxBufferedRecords(50_000))
	if err != nil {
		return err
	}
	defer cl.Close()
	var wg sync.WaitGroup
	errs := make([]error, len(inputs))
	for i, in := range inputs {
		wg.Go(func() { errs[i] = feedOne(ctx, cl, p, in, stdin) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

func feedOne(ctx context.Context, cl *kgo.Client, p *plan.Plan, in Input, stdin io.Reader) error {
	r, name := stdin, "standard input"
	if in.File != "-" {
		f, err := os.Open(in.File)
		if err != nil {
			return fmt.Errorf("--input %s: %w", in.Topic, err)
		}
		defer f.Close()
		r, name = f, in.File
	}
	var mu sync.Mutex
	var refused error // guarded by mu
	err := readLines(r, name, in.Topic, codecsOf(p, in.Topic), func(rec *kgo.Record) error {
		cl.Produce(ctx, rec, func(rec *kgo.Record, err error) {
			if err != nil {
				mu.Lock()
				refused = errors.Join(refused, fmt.Errorf("%s: input for topic %s: %w", name, rec.Topic, err))
				mu.Unlock()
			}
		})
		return ctx.Err()
	})
	if flushed := cl.Flush(ctx); err == nil {
		err = flushed
	}
	mu.Lock()
	defer mu.Unlock()
	return errors.Join(err, refused)
}

// codecsOf are the serializers of the first agent that reads the topic; json values and raw keys where none does.
func codecsOf(p *plan.Plan, topic string) codecs {
	for _, ag := range p.Agents {
		if slices.Contains(ag.Topics, topic) || ag.Pattern != nil && ag.Pattern.MatchString(topic) {
			return codecs{ag.Program.Input.KeySerializer, ag.Program.Input.ValueSerializer}
		}
	}
	return codecs{"raw", "json"}
}

// flushTakesAfter is how long a draining run must stand still before half-full take batches are given to the code.
const flushTakesAfter = 500 * time.Millisecond

// ends is the end of every partition the app reads. It asks the broker for the topics, not the app: the app may not have
// begun yet, and its outputs may have made topics that its patterns will find only later.
func ends(ctx context.Context, admin *broker.Admin, app *engine.App) (map[string]map[int32]int64, error) {
	topics, err := admin.Topics(ctx)
	if err != nil {
		return nil, err
	}
	var read []string
	for t := range topics {
		if app.Reads(t) {
			read = append(read, t)
		}
	}
	return admin.EndOffsets(ctx, read...)
}

// drained returns when every record of every topic the app reads is done, those included that its outputs added.
func drained(ctx context.Context, admin *broker.Admin, app *engine.App) error {
	var before int64 = -1
	moved := time.Now()
	for {
		// In this order: what a task sent, and what was settled, may have scheduled messages, and all may have sent to a topic that is read, too, whose end has
		// it by now. The other way round it could be settled in between, and what it has sent be missed.
		started := app.TasksStarted()
		settled := app.Settled()
		overdue, err := app.Overdue(ctx)
		if err != nil {
			return err
		}
		now, err := ends(ctx, admin, app)
		if err != nil {
			return err
		}
		if started && !overdue && reached(now, settled) {
			return nil
		}
		var sum int64
		for _, offset := range settled {
			sum += offset
		}
		if sum != before {
			before, moved = sum, time.Now()
		} else if time.Since(moved) > flushTakesAfter {
			app.Flush()
			moved = time.Now()
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// internal is the topics whose records are the engine's own business.
func internal(p *plan.Plan) map[string]bool {
	topics := map[string]bool{}
	for i := range p.Tables {
		topics[p.Tables[i].Writes.Name] = true
	}
	for i := range p.Own {
		if !p.Own[i].Public {
			topics[p.Own[i].Name] = true
		}
	}
	return topics
}

// printer writes delivered outputs as lines.
type printer struct {
	hidden map[string]bool // topics that are not shown

	mu  sync.Mutex
	w   *bufio.Writer // guarded by mu
	buf []byte        // guarded by mu
	err error         // guarded by mu
}

func (p *printer) print(d broker.Delivered) {
	if p.hidden[d.Topic] {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.buf = AppendLine(p.buf[:0], d)
	if _, err := p.w.Write(p.buf); err != nil && p.err == nil {
		p.err = fmt.Errorf("write output: %w", err)
	}
}

// value prints something else than an output.
func (p *printer) value(v any) error {
	line, err := json.Marshal(v)
	if err != nil {
		panic("BUG: " + err.Error()) // our own values
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, err := p.w.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("write response: %w", err)
	}
	return nil
}

func (p *printer) flush() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.w.Flush(); err != nil && p.err == nil {
		p.err = fmt.Errorf("write output: %w", err)
	}
	return p.err
}

// flushLoop shows outputs soon after they are there, for whoever watches.
func (p *printer) flushLoop(ctx context.Context) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if p.flush() != nil {
				return // Run reports it
			}
		}
	}
}

// reached reports whether everything below the ends is settled.
func reached(ends map[string]map[int32]int64, settled map[record.Partition]int64) bool {
	for topic, ps := range ends {
		for number, end := range ps {
			if end == 0 {
				continue
			}
			if at, ok := settled[record.Partition{Topic: topic, Number: number}]; !ok || at < end {
				return false
			}
		}
	}
	return true
}
