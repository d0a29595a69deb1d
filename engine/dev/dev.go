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
	"maps"
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

// App is one of the apps of a run.
type App struct {
	Config config.Config
	Plan   *plan.Plan
}

// Run runs apps on the broker until ctx ends, they have stopped, or with Drain all input is processed. The inputs of the
// first Run are produced once and go on over later ones: standard input may stay open while manifests are reloaded.
func Run(ctx context.Context, b *Broker, apps []App, rt *wasmhost.Runtime, o Options) error {
	kafka := broker.Options{Brokers: b.Addrs(), ClientID: "kaspr-dev", Log: o.Log}
	admin, err := broker.NewAdmin(kafka)
	if err != nil {
		return err
	}
	defer admin.Close()
	if err := createTopics(ctx, admin, apps, o.Inputs); err != nil {
		return err
	}
	out := &printer{w: bufio.NewWriterSize(o.Stdout, 64<<10), hidden: map[string]bool{}}
	var plans []*plan.Plan
	for _, a := range apps {
		maps.Copy(out.hidden, a.Plan.Internal())
		plans = append(plans, a.Plan)
	}
	loaded, err := load(ctx, b, apps, rt, out, o)
	process := engine.NewProcess(loaded...)
	if err != nil {
		process.Close()
		return err
	}
	warnUnread(loaded, plans, o)
	if b.fed == nil && len(o.Inputs) > 0 {
		b.fed = make(chan struct{})
		go func() { // not waited for at a reload or a stop: a read of standard input cannot be interrupted
			defer close(b.fed)
			if b.feedErr = Feed(b.Addrs(), plans, o.Inputs, o.Stdin); b.feedErr != nil && !o.Drain {
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
				drainErr = drained(ctx, admin, process)
			}
			if drainErr == nil && o.Requests != "" {
				if drainErr = ask(ctx, o.Requests, apps, loaded, out); drainErr == nil {
					drainErr = drained(ctx, admin, process)
				}
			}
		})
	}
	feeding.Go(func() { out.flushLoop(ctx) })
	runErr := process.Run(ctx)
	cancel()
	feeding.Wait()
	if errors.Is(drainErr, context.Canceled) {
		drainErr = nil
	}
	if err := errors.Join(runErr, drainErr, out.flush()); err != nil || !o.Drain {
		return err
	}
	var records, runs int64
	for _, a := range loaded {
		records += a.Failed()
		runs += a.FailedRuns()
	}
	if records > 0 {
		return fmt.Errorf("%d %w", records, ErrRecordsFailed)
	}
	if runs > 0 {
		return fmt.Errorf("%d runs of tasks failed", runs)
	}
	return nil
}

// load loads the code of all apps, whose problems are told all at once.
func load(ctx context.Context, b *Broker, apps []App, rt *wasmhost.Runtime, out *printer, o Options) (loaded []*engine.App, problems error) {
	for _, a := range apps {
		opts := engine.Options{Delivered: out.print, ReplicasMax: 1, Stores: mem.New(), Version: o.Version}
		if o.HTTP && a.Config.Web.Port > 0 {
			opts.Listen, opts.ListenAdmin = net.JoinHostPort("127.0.0.1", strconv.Itoa(a.Config.Web.Port)), a.Config.Web.AdminAddress()
		} else if o.Requests != "" {
			opts.Listen = "127.0.0.1:0"
		}
		if o.Requests != "" {
			a.Config.Web.TLS = config.ListenerTLS{} // they come from this process
		}
		a.Config.Kafka.BootstrapServers = b.Addrs()
		made, err := engine.New(ctx, a.Config, a.Plan, rt, o.Log, opts)
		if err != nil {
			problems = errors.Join(problems, err)
			continue
		}
		loaded = append(loaded, made)
	}
	return loaded, problems
}

// warnUnread tells of inputs that will lie in their topics unread, as those of a misspelt topic. They are no error: topics that a
// pattern must not take in are tried like that.
func warnUnread(apps []*engine.App, plans []*plan.Plan, o Options) {
	var read []string
	for _, p := range plans {
		for _, ag := range p.Agents {
			read = append(read, ag.Topics...)
		}
	}
	for _, in := range o.Inputs {
		if !slices.ContainsFunc(apps, func(a *engine.App) bool { return a.Reads(in.Topic) }) {
			o.Log.Warn("no agent reads the topic of an --input", "topic", in.Topic, "like", manifest.Suggest(in.Topic, read))
		}
	}
}

// createTopics makes the topics agents read and write, so that nothing waits for a first record to appear. What one app declares is
// made before another one uses it.
func createTopics(ctx context.Context, admin *broker.Admin, apps []App, inputs []Input) error {
	made := map[string]bool{}
	ensure := func(name string, partitions int32) error {
		if made[name] {
			return nil
		}
		made[name] = true
		_, err := admin.Ensure(ctx, broker.Topic{Name: name, Partitions: partitions, Replicas: 1})
		return err
	}
	for _, a := range apps {
		for _, t := range a.Plan.Topics {
			made[t.Name] = true
			if _, err := admin.Ensure(ctx, broker.Topic{Name: t.Name, Partitions: t.Partitions, Replicas: 1, Config: t.Config}); err != nil {
				return err
			}
		}
		for i := range a.Plan.Own {
			if own := &a.Plan.Own[i]; own.Public { // inputs may go there before the app has made it
				if err := ensure(own.Name, own.Partitions); err != nil {
					return err
				}
			}
		}
		for t := range a.Plan.Internal() {
			made[t] = true // by the app, with the partitions they need
		}
	}
	for _, a := range apps {
		partitions := int32(a.Config.Topics.Partitions)
		for _, ag := range a.Plan.Agents {
			if ag.Join != nil {
				continue // it reads changelogs, which the app makes, too
			}
			for _, t := range slices.Concat(ag.Topics, ag.OutputTopics) {
				if err := ensure(t, partitions); err != nil {
					return err
				}
			}
		}
		for _, v := range a.Plan.Views {
			for _, t := range v.OutputTopics {
				if err := ensure(t, partitions); err != nil {
					return err
				}
			}
		}
	}
	for _, in := range inputs {
		if err := ensure(in.Topic, int32(apps[0].Config.Topics.Partitions)); err != nil {
			return err
		}
	}
	return nil
}

// Feed produces the inputs, each in its own order, side by side. The plans say how their topics are decoded.
func Feed(brokers []string, plans []*plan.Plan, inputs []Input, stdin io.Reader) error {
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
		wg.Go(func() { errs[i] = feedOne(ctx, cl, codecsOf(plans, in.Topic), in, stdin) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

func feedOne(ctx context.Context, cl *kgo.Client, as codecs, in Input, stdin io.Reader) error {
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
	err := readLines(r, name, in.Topic, as, func(rec *kgo.Record) error {
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
func codecsOf(plans []*plan.Plan, topic string) codecs {
	for _, p := range plans {
		for _, ag := range p.Agents {
			if slices.Contains(ag.Topics, topic) || ag.Pattern != nil && ag.Pattern.MatchString(topic) {
				return codecs{ag.Program.Input.KeySerializer, ag.Program.Input.ValueSerializer}
			}
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

// drained returns when every record of every topic the apps read is done, those included that their outputs added. Apps that have
// ended do nothing any more.
func drained(ctx context.Context, admin *broker.Admin, process *engine.Process) error {
	var before int64 = -1
	moved := time.Now()
	for {
		apps := process.Running()
		done, sum, err := settled(ctx, admin, apps)
		if err != nil || done {
			return err
		}
		if sum != before {
			before, moved = sum, time.Now()
		} else if time.Since(moved) > flushTakesAfter {
			for _, a := range apps {
				a.Flush()
			}
			moved = time.Now()
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// settled says whether apps have done all there is, and how far they are.
func settled(ctx context.Context, admin *broker.Admin, apps []*engine.App) (done bool, sum int64, err error) {
	// In this order: what a task sent, and what was settled, may have scheduled messages, and all may have sent to a topic that is read, of
	// this app or of another, whose end has it by now. The other way round it could be settled in between, and what it has sent be missed.
	done = true
	positions := make([]map[record.Partition]int64, len(apps))
	for i, a := range apps {
		started := a.TasksStarted()
		positions[i] = a.Settled()
		overdue, err := a.Overdue(ctx)
		if err != nil {
			return false, 0, err
		}
		done = done && started && !overdue
	}
	for i, a := range apps {
		now, err := ends(ctx, admin, a)
		if err != nil {
			return false, 0, err
		}
		done = done && reached(now, positions[i])
		for _, offset := range positions[i] {
			sum += offset
		}
	}
	return done, sum, nil
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
