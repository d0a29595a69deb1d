//go:build peers && integration

package peers

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"kaspr.io/kaspr/bench/workload"
	"kaspr.io/kaspr/engine/enginetest/child"
	"kaspr.io/kaspr/engine/enginetest/realkafka"
)

// result is one run of one system.
type result struct {
	System   string  `json:"system"`
	Workload string  `json:"workload"`
	Records  int     `json:"records"`
	Problem  string  `json:"problem,omitempty"`
	Rate     float64 `json:"recordsPerSecond"`
	CPU      float64 `json:"cpuSecondsPerMillion"` // of the system
	Broker   float64 `json:"brokerCPUSecondsPerMillion"`
	Memory   float64 `json:"residentMiB"` // highest
	Start    float64 `json:"secondsToFirstOutput"`
	Load     float64 `json:"loadAverage"`
}

const inputPartitions = 4

// timeout bounds one run, from its start to its last output.
const timeout = 3 * time.Minute

// environment is what all runs share.
type environment struct {
	broker *realkafka.Broker
	client *kgo.Client
	admin  *kadm.Client
	dir    string
	kaspr  string // the engine
	jars   string // of Kafka Streams
}

// fill produces the backlog of n records, once.
func (e *environment) fill(ctx context.Context, n int) (topic string, err error) {
	topic = fmt.Sprintf("in-%d", n)
	if err := e.create(ctx, topic, inputPartitions, nil); err != nil {
		return "", err
	}
	return topic, e.produce(ctx, func(produce func(*kgo.Record)) {
		workload.Events(n, func(ev workload.Event) { produce(&kgo.Record{Topic: topic, Key: []byte(ev.User), Value: ev.Value}) })
	})
}

func (e *environment) create(ctx context.Context, topic string, partitions int, configs map[string]*string) error {
	made, err := e.admin.CreateTopics(ctx, int32(partitions), 1, configs, topic)
	if err != nil {
		return err
	}
	return made[topic].Err
}

// produce returns when the broker has all records.
func (e *environment) produce(ctx context.Context, all func(produce func(*kgo.Record))) error {
	var failed error
	all(func(r *kgo.Record) {
		e.client.Produce(ctx, r, func(_ *kgo.Record, err error) {
			if err != nil {
				failed = err
			}
		})
	})
	return errors.Join(e.client.Flush(ctx), failed)
}

// sample is a look at a running system.
type sample struct {
	at                  time.Time
	cpu, memory, broker float64
}

func (e *environment) sample(p *process) sample {
	cpu, memory := groupUse(p.group)
	return sample{time.Now(), cpu, memory, processUse(e.broker.PID())}
}

// notInNames is what a topic's name cannot have, and a variant's may.
var notInNames = regexp.MustCompile(`[^a-zA-Z0-9.-]`)

// run measures one system on one workload.
func (e *environment) run(t *testing.T, s system, name, input string, n, count int) (res result) {
	ctx := t.Context()
	res = result{System: s.name, Workload: name, Records: n}
	fail := func(err error) result {
		res.Problem = err.Error()
		return res
	}
	id := fmt.Sprintf("%s-%s-%d", notInNames.ReplaceAllString(s.name, "-"), name, count)
	now := "LogAppendTime"
	r := runOf{env: e, id: id, input: input, output: "out-" + id, workload: name}
	if err := e.create(ctx, r.output, inputPartitions, map[string]*string{"message.timestamp.type": &now}); err != nil {
		return fail(err)
	}
	check := workload.NewCheck(name, n)
	began := time.Now()
	p, err := s.start(ctx, &r)
	if err != nil {
		return fail(err)
	}
	samples, err := e.follow(ctx, p, r.output, check.Want(), began, timeout)
	res.Load = loadAverage()
	p.stop()
	if err != nil {
		text, _ := os.ReadFile(filepath.Join(r.dir, "log"))
		return fail(fmt.Errorf("%w; end of its log: %s", err, text[max(0, len(text)-400):]))
	}
	first, last, err := e.read(ctx, r.output, check.Add)
	if err == nil {
		err = check.Err()
	}
	if err != nil {
		return fail(err)
	}
	window := last.Sub(first)
	res.Rate = float64(n) / window.Seconds()
	res.Start = first.Sub(began).Seconds()
	from, to := nearest(samples, first), nearest(samples, last)
	res.CPU = (to.cpu - from.cpu) / float64(n) * 1e6
	res.Broker = (to.broker - from.broker) / float64(n) * 1e6
	for _, x := range samples {
		res.Memory = max(res.Memory, x.memory)
	}
	return res
}

// follow samples a system until readers of committed records see all its output.
func (e *environment) follow(ctx context.Context, p *process, output string, want int, began time.Time, limit time.Duration) ([]sample, error) {
	var samples []sample
	for {
		samples = append(samples, e.sample(p))
		ends, err := e.admin.ListCommittedOffsets(ctx, output)
		var n int64
		ends.Each(func(o kadm.ListedOffset) { n += o.Offset })
		if err == nil && n >= int64(want) {
			high, err := e.admin.ListEndOffsets(ctx, output)
			var h int64
			high.Each(func(o kadm.ListedOffset) { h += o.Offset })
			if err == nil && h == n {
				return samples, nil
			}
		}
		if time.Since(began) > limit {
			return nil, fmt.Errorf("not done after %s: %d of %d outputs", limit, n, want)
		}
		select {
		case <-p.Done:
			return nil, fmt.Errorf("ended by itself: %w", p.Err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// read gives every output that was committed to each.
func (e *environment) read(ctx context.Context, output string, each func(value []byte)) (first, last time.Time, err error) {
	cl, err := kgo.NewClient(kgo.SeedBrokers(e.broker.Addr()), kgo.ConsumeTopics(output), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()))
	if err != nil {
		return first, last, err
	}
	defer cl.Close()
	// A little longer than it takes to get what is wanted: too many is a mistake, too.
	for idle := 0; idle < 3; {
		poll, cancel := context.WithTimeout(ctx, time.Second)
		fetches := cl.PollFetches(poll)
		cancel()
		if fetches.NumRecords() == 0 {
			idle++
			continue
		}
		idle = 0
		fetches.EachRecord(func(r *kgo.Record) {
			if first.IsZero() || r.Timestamp.Before(first) {
				first = r.Timestamp
			}
			if r.Timestamp.After(last) {
				last = r.Timestamp
			}
			each(r.Value)
		})
	}
	if !last.After(first) {
		return first, last, errors.New("no output")
	}
	return first, last, nil
}

// process is a system at work.
type process struct {
	*child.Process
	group int // of processes
}

// start starts a system with a folder and a log of its own.
func (s *system) start(ctx context.Context, r *runOf) (*process, error) {
	if r.name == "" {
		r.name = r.id
	}
	r.dir = filepath.Join(r.env.dir, r.name)
	if err := os.MkdirAll(r.dir, 0o755); err != nil {
		return nil, err
	}
	cmd, err := s.command(ctx, r)
	if err != nil {
		return nil, err
	}
	log, err := os.Create(filepath.Join(r.dir, "log"))
	if err != nil {
		return nil, err
	}
	defer log.Close() // the child has its own
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pgid: r.group}
	cmd.Env = append(os.Environ(), append(cmd.Env, "BROKER="+r.env.broker.Addr(), "IN_TOPIC="+r.input, "OUT_TOPIC="+r.output, "APP_ID="+r.id, "RUN_DIR="+r.dir, "WL="+r.workload)...)
	started, err := child.Start(cmd)
	if err != nil {
		return nil, err
	}
	p := &process{started, r.group}
	if p.group == 0 {
		p.group = cmd.Process.Pid
	}
	return p, nil
}

func (p *process) stop() {
	_ = syscall.Kill(-p.group, syscall.SIGTERM)
	select {
	case <-p.Done:
	case <-time.After(10 * time.Second):
		_ = syscall.Kill(-p.group, syscall.SIGKILL)
		<-p.Done
	}
	_ = syscall.Kill(-p.group, syscall.SIGKILL) // its children
}

func nearest(samples []sample, at time.Time) sample {
	best := samples[0]
	for _, s := range samples {
		if s.at.Sub(at).Abs() < best.at.Sub(at).Abs() {
			best = s
		}
	}
	return best
}

// groupUse is the processor seconds (their ended children's, too) and the resident MiB of a process group (proc(5)).
func groupUse(group int) (cpu, memory float64) {
	files, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, file := range files {
		f := statFields(file)
		if len(f) < 22 || f[2] != strconv.Itoa(group) {
			continue
		}
		for _, i := range []int{11, 12, 13, 14} {
			cpu += number(f[i]) / ticks
		}
		memory += number(f[21]) * float64(os.Getpagesize()) / (1 << 20)
	}
	return cpu, memory
}

func processUse(pid int) float64 {
	f := statFields(fmt.Sprintf("/proc/%d/stat", pid))
	if len(f) < 13 {
		return 0
	}
	return (number(f[11]) + number(f[12])) / ticks
}

// ticks is USER_HZ, in which Linux counts processor time for user space on all its architectures.
const ticks = 100

// statFields are the fields behind the command's name, which may hold spaces.
func statFields(file string) []string {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil // it has ended
	}
	return strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
}

func number(s string) float64 {
	v, _ := strconv.ParseFloat(s, 64)
	return v
}

func loadAverage() float64 {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return 0
	}
	return number(strings.Fields(string(text))[0])
}

// runOf is what a system's command is made of.
type runOf struct {
	env                              *environment
	id, dir, input, output, workload string

	name  string // of this process; empty: the id
	group int    // of processes, which it joins; 0: one of its own
}

func (e *environment) command(ctx context.Context, environ []string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env = environ
	return cmd
}
