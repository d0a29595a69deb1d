//go:build integration

package cli

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"kaspr.io/kaspr/engine/enginetest"
	"kaspr.io/kaspr/engine/enginetest/child"
	"kaspr.io/kaspr/engine/enginetest/realkafka"
)

// TestMain lets the test binary be the engine: with childEnv set it is `kaspr ARGS`, so that processes can be killed.
func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		childMain()
	}
	os.Exit(realkafka.Run(m))
}

// kafka is one test's view of the shared broker.
type kafka struct {
	t      *testing.T
	broker *realkafka.Broker
	cl     *kgo.Client
	adm    *kadm.Client
}

func newKafka(t *testing.T, b *realkafka.Broker) *kafka {
	t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(b.Addr()), kgo.RecordPartitioner(kgo.StickyKeyPartitioner(nil)),
		kgo.MetadataMinAge(100*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.Close)
	return &kafka{t, b, cl, kadm.NewClient(cl)}
}

func (k *kafka) topic(name string, partitions int32) {
	k.t.Helper()
	if _, err := k.adm.CreateTopic(k.t.Context(), partitions, 1, nil, name); err != nil {
		k.t.Fatal(err)
	}
}

// produce sends records n from..to keyed k0..k99, with their number as JSON.
func (k *kafka) produce(topic string, from, to int) {
	k.t.Helper()
	for i := from; i < to; i++ {
		k.cl.Produce(k.t.Context(), &kgo.Record{Topic: topic, Key: fmt.Appendf(nil, "k%d", i%100), Value: fmt.Appendf(nil, `{"n":%d}`, i)},
			func(_ *kgo.Record, err error) {
				if err != nil {
					k.t.Error(err)
				}
			})
	}
	if err := k.cl.Flush(k.t.Context()); err != nil {
		k.t.Fatal(err)
	}
}

// outputs reads the topics from their start until done says so of what was read, or the time is over.
func (k *kafka) outputs(limit time.Duration, done func([]*kgo.Record) bool, topics ...string) []*kgo.Record {
	k.t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(k.broker.Addr()), kgo.ConsumeTopics(topics...), kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.MetadataMaxAge(time.Second), kgo.MetadataMinAge(100*time.Millisecond))
	if err != nil {
		k.t.Fatal(err)
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(k.t.Context(), limit)
	defer cancel()
	var got []*kgo.Record
	for ctx.Err() == nil && !done(got) {
		poll, cancel := context.WithTimeout(ctx, 500*time.Millisecond) // done may wait for nothing to come
		cl.PollFetches(poll).EachRecord(func(r *kgo.Record) { got = append(got, r) })
		cancel()
	}
	return got
}

// numbers are the values of the outputs, each once, and how many came more than once.
func numbers(t *testing.T, rs []*kgo.Record) (seen map[int]bool, twice int) {
	t.Helper()
	seen = map[int]bool{}
	for _, r := range rs {
		n, err := strconv.Atoi(strings.Trim(string(r.Value), `{"n:}`))
		if err != nil {
			t.Fatalf("output %q: %v", r.Value, err)
		}
		if seen[n] {
			twice++
		}
		seen[n] = true
	}
	return seen, twice
}

func count(n int) func([]*kgo.Record) bool {
	return func(rs []*kgo.Record) bool {
		seen := map[string]bool{}
		for _, r := range rs {
			seen[string(r.Value)] = true
		}
		return len(seen) >= n
	}
}

// nothingBehind is done two seconds after n records have come, or when there are more. The time is not that of the reader's start, which
// takes as long on a busy machine.
func nothingBehind(n int) func([]*kgo.Record) bool {
	var since time.Time
	return func(rs []*kgo.Record) bool {
		if len(rs) >= n && since.IsZero() {
			since = time.Now()
		}
		return len(rs) > n || len(rs) == n && time.Since(since) > 2*time.Second
	}
}

// inKeyOrder fails when outputs of one key came in another order than their first inputs.
func inKeyOrder(t *testing.T, rs []*kgo.Record) {
	t.Helper()
	last := map[string]int{}
	seen := map[int]bool{}
	for _, r := range rs {
		n, _ := strconv.Atoi(strings.Trim(string(r.Value), `{"n:}`))
		if seen[n] {
			continue // a repetition after a crash
		}
		seen[n] = true
		if before, ok := last[string(r.Key)]; ok && before > n {
			t.Fatalf("key %s: output %d after %d", r.Key, n, before)
		}
		last[string(r.Key)] = n
	}
}

// relay is an app that copies in to out, key and all, a little slowly.
func relay(name, in, out string) string {
	return fmt.Sprintf(`
apiVersion: kaspr.io/v1alpha1
kind: KasprAgent
metadata: {name: relay, labels: {kaspr.io/app: %s}}
spec:
  input: {topic: {%s}}
  processors:
    pipeline: [same]
    operations:
      - name: same
        map:
          python: |
            def same(value):
                for _ in range(200): pass
                return value
  output:
    topics:
      - name: %s
        keySelector: {python: "def key(value): return context['event'].key"}
`, name, in, out)
}

// process is one engine process.
type process struct {
	*child.Process
	t   *testing.T
	log *enginetest.Buffer
}

// engine starts `kaspr run` on a manifest with the settings, as a process of its own.
func (k *kafka) engine(manifest string, settings map[string]string) *process {
	k.t.Helper()
	dir := k.t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "app.yaml"), []byte(manifest), 0o600); err != nil {
		k.t.Fatal(err)
	}
	all := map[string]string{
		"definitionsDir": dir, "dataDir": dir, "kafkaBootstrapServers": k.broker.Addr(), "topicReplicationFactor": "1", "topicPartitions": "1",
		"brokerSessionTimeout": "6s", "brokerHeartbeatInterval": "1s", "logLevel": "info",
		"webPort": "0", // many of them run on one machine
	}
	for key, v := range settings {
		all[key] = v
	}
	var file strings.Builder
	for key, v := range all {
		fmt.Fprintf(&file, "%s: %q\n", key, v)
	}
	path := filepath.Join(dir, "settings.conf")
	if err := os.WriteFile(path, []byte(file.String()), 0o600); err != nil {
		k.t.Fatal(err)
	}
	p := &process{t: k.t, log: &enginetest.Buffer{}}
	cmd := exec.Command(os.Args[0], "run", "--config", path)
	cmd.Env = append(os.Environ(), childEnv+"=1")
	cmd.Stdout, cmd.Stderr = p.log, p.log
	var err error
	if p.Process, err = child.Start(cmd); err != nil {
		k.t.Fatal(err)
	}
	k.t.Cleanup(func() {
		_ = p.Cmd.Process.Kill()
		<-p.Done
		if k.t.Failed() {
			k.t.Logf("engine %d:\n%s", p.Cmd.Process.Pid, p.log)
		}
	})
	return p
}

// waitLog waits for a text in the process's log.
func (p *process) waitLog(text string) {
	p.t.Helper()
	for began := time.Now(); time.Since(began) < time.Minute; time.Sleep(20 * time.Millisecond) {
		if strings.Contains(p.log.String(), text) {
			return
		}
		select {
		case <-p.Done:
			p.t.Fatalf("the engine ended (%v) before it logged %q", p.Err, text)
		default:
		}
	}
	p.t.Fatalf("no %q in the log after a minute", text)
}

// stop sends SIGTERM and returns the exit code.
func (p *process) stop() int {
	p.t.Helper()
	_ = p.Cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.Done:
	case <-time.After(45 * time.Second):
		p.t.Fatal("the engine did not stop within 45 s of SIGTERM")
	}
	return p.Cmd.ProcessState.ExitCode()
}

// A record must not be lost, nor repeated, when a second process joins the group and the first one leaves it gracefully.
func TestTwoProcessesRebalance(t *testing.T) {
	k := newKafka(t, realkafka.Shared(t))
	k.topic("re-in", 6)
	k.topic("re-out", 6)
	const n = 60_000
	app := relay("rebalance", "name: re-in", "re-out")
	a := k.engine(app, nil)
	a.waitLog("partitions assigned")
	k.produce("re-in", 0, n/3)
	b := k.engine(app, nil)
	k.produce("re-in", n/3, 2*n/3)
	b.waitLog("partitions assigned")
	k.produce("re-in", 2*n/3, n)
	if code := a.stop(); code != 0 {
		t.Errorf("exit code %d after SIGTERM", code)
	}
	got := k.outputs(2*time.Minute, count(n), "re-out")
	seen, twice := numbers(t, got)
	if len(seen) != n {
		t.Fatalf("%d of %d records came out", len(seen), n)
	}
	if twice > 0 {
		t.Errorf("%d records came out twice although nothing crashed", twice)
	}
	inKeyOrder(t, got)
	if code := b.stop(); code != 0 {
		t.Errorf("exit code %d after SIGTERM", code)
	}
	k.committed("rebalance-app", "re-in")
}

// committed fails unless the group has committed the ends of the topic: a graceful stop leaves no lag behind.
func (k *kafka) committed(group, topic string) {
	k.t.Helper()
	lags, err := k.adm.Lag(k.t.Context(), group)
	if err != nil {
		k.t.Fatal(err)
	}
	lag := lags[group]
	if err := lag.Error(); err != nil {
		k.t.Fatal(err)
	}
	for _, l := range lag.Lag[topic] {
		if l.Lag != 0 {
			k.t.Errorf("%s/%d: lag %d after the stop", topic, l.Partition, l.Lag)
		}
	}
}

// A record must not be lost when a process is killed without warning: another one reads it again.
func TestKilledProcessLosesNothing(t *testing.T) {
	k := newKafka(t, realkafka.Shared(t))
	k.topic("kill-in", 4)
	k.topic("kill-out", 4)
	const n = 40_000
	app := relay("kill", "name: kill-in", "kill-out")
	a := k.engine(app, nil)
	b := k.engine(app, nil)
	a.waitLog("partitions assigned")
	b.waitLog("partitions assigned")
	k.produce("kill-in", 0, n/2)
	if err := a.Cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	k.produce("kill-in", n/2, n)
	c := k.engine(app, nil)
	c.waitLog("partitions assigned")
	got := k.outputs(2*time.Minute, count(n), "kill-out")
	seen, twice := numbers(t, got)
	if len(seen) != n {
		t.Fatalf("%d of %d records came out", len(seen), n)
	}
	t.Logf("%d records came out twice (at least once is promised)", twice)
}

// A broker that is killed and comes back must cost time, not records.
func TestBrokerCrash(t *testing.T) {
	broker := realkafka.New(t, realkafka.Options{})
	k := newKafka(t, broker)
	k.topic("crash-in", 3)
	k.topic("crash-out", 3)
	const n = 20_000
	a := k.engine(relay("crash", "name: crash-in", "crash-out"), nil)
	a.waitLog("partitions assigned")
	k.produce("crash-in", 0, n/2)
	k.outputs(time.Minute, count(n/10), "crash-out")
	broker.Kill()
	time.Sleep(2 * time.Second)
	if err := broker.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	k.produce("crash-in", n/2, n)
	seen, _ := numbers(t, k.outputs(2*time.Minute, count(n), "crash-out"))
	if len(seen) != n {
		t.Fatalf("%d of %d records came out", len(seen), n)
	}
	if code := a.stop(); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

// A pattern takes in topics that appear while the engine runs.
func TestPatternFindsNewTopics(t *testing.T) {
	k := newKafka(t, realkafka.Shared(t))
	k.topic("sensor-a", 2)
	k.topic("sensors-out", 1)
	k.topic("other-sensor-a", 1)
	a := k.engine(relay("pattern", `pattern: "sensor-.*"`, "sensors-out"), nil)
	k.produce("sensor-a", 0, 10)
	k.produce("other-sensor-a", 900, 910)
	if got := k.outputs(time.Minute, count(10), "sensors-out"); len(got) != 10 {
		t.Fatalf("%d of 10 outputs from the topic that was there", len(got))
	}
	k.topic("sensor-b", 2)
	k.produce("sensor-b", 10, 20)
	got := k.outputs(time.Minute, count(20), "sensors-out")
	seen, _ := numbers(t, got)
	for n := range seen {
		if n >= 900 {
			t.Fatalf("record %d is of a topic the pattern matches only in part", n)
		}
	}
	if len(seen) != 20 {
		t.Fatalf("%d of 20 outputs after a topic appeared", len(seen))
	}
	a.stop()
}

// The policy stop ends the process with an error that names the record, and commits nothing from it on.
func TestStopPolicy(t *testing.T) {
	k := newKafka(t, realkafka.Shared(t))
	k.topic("stop-in", 1)
	k.topic("stop-out", 1)
	app := strings.Replace(relay("halt", "name: stop-in", "stop-out"), "spec:\n", "spec:\n  onError: stop\n", 1)
	app = strings.Replace(app, "for _ in range(200): pass", "if value['n'] == 7: raise ValueError('seven')", 1)
	k.produce("stop-in", 0, 20)
	a := k.engine(app, nil)
	select {
	case <-a.Done:
	case <-time.After(time.Minute):
		t.Fatal("the engine goes on after a failed record")
	}
	if code := a.Cmd.ProcessState.ExitCode(); code != exitFailed {
		t.Errorf("exit code %d", code)
	}
	for _, want := range []string{"stop-in/0@7", "ValueError: seven", "app.yaml:"} {
		if !strings.Contains(a.log.String(), want) {
			t.Errorf("no %q in what it said:\n%s", want, a.log)
		}
	}
	offsets, err := k.adm.FetchOffsets(t.Context(), "halt-app")
	if err != nil {
		t.Fatal(err)
	}
	if o, ok := offsets.Lookup("stop-in", 0); !ok || o.At != 7 {
		t.Errorf("committed %v, want 7", o.At)
	}
}

// Topics are created as declared, those an operation or an output declares too; one that exists is left as it is, and the
// log says what about it is not as declared.
func TestDeclaredTopics(t *testing.T) {
	k := newKafka(t, realkafka.Shared(t))
	k.topic("decl-old", 2)
	const options = "partitions: 5, retention: 3600, compacting: true, deleting: true, replicas: 1, config: {max.message.bytes: \"2000000\"}"
	app := strings.Replace(relay("declare", "name: \"decl-in, decl-old\", "+options, "decl-out"), "input: {topic", "input: {declare: true, topic", 1)
	app = strings.Replace(app, "- name: decl-out\n", "- name: decl-out\n        declare: true\n        partitions: 4\n        compacting: true\n", 1)
	a := k.engine(app, nil)
	a.waitLog("partitions assigned")
	k.produce("decl-in", 0, 5)
	if got := k.outputs(time.Minute, count(5), "decl-out"); len(got) != 5 {
		t.Fatalf("%d of 5 outputs", len(got))
	}
	a.stop()
	topics, err := k.adm.ListTopics(t.Context(), "decl-in", "decl-old", "decl-out")
	if err != nil {
		t.Fatal(err)
	}
	for topic, want := range map[string]int{"decl-in": 5, "decl-old": 2, "decl-out": 4} {
		if got := len(topics[topic].Partitions); got != want {
			t.Errorf("%s has %d partitions, want %d", topic, got, want)
		}
	}
	for topic, want := range map[string]map[string]string{
		"decl-in":  {"retention.ms": "3600000", "cleanup.policy": "compact,delete", "max.message.bytes": "2000000"},
		"decl-old": {"cleanup.policy": "delete"},
		"decl-out": {"cleanup.policy": "compact"},
	} {
		configs, err := k.adm.DescribeTopicConfigs(t.Context(), topic)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range configs[0].Configs {
			if w, ok := want[c.Key]; ok && c.MaybeValue() != w {
				t.Errorf("%s of %s is %q, want %q", c.Key, topic, c.MaybeValue(), w)
			}
		}
	}
	for _, want := range []string{"topic=decl-old option=partitions declared=5 is=2", "topic=decl-old option=cleanup.policy", "topic=decl-old option=retention.ms declared=3600000"} {
		if !strings.Contains(a.log.String(), want) {
			t.Errorf("no %q in the log", want)
		}
	}
	if strings.Contains(a.log.String(), "topic=decl-in option=") {
		t.Error("the log says that a topic just created is not as declared")
	}
}

// On a broker that makes no topics, an output to one that does not exist is its record's failure, and nobody else's.
func TestOutputToNoTopic(t *testing.T) {
	k := newKafka(t, realkafka.Shared(t))
	for _, topic := range []string{"lack-in", "lack-out", "lack-dead"} {
		k.topic(topic, 1)
	}
	app := strings.Replace(relay("lack", "name: lack-in", "lack-out"), "name: lack-out\n",
		"nameSelector: {python: \"def name(v): return 'lack-nowhere' if v['n'] == 2 else 'lack-out'\"}\n", 1)
	app = strings.Replace(app, "  processors:", "  onError: {policy: dead-letter, topic: lack-dead}\n  processors:", 1)
	a := k.engine(app, nil)
	k.produce("lack-in", 0, 5)
	if seen, twice := numbers(t, k.outputs(time.Minute, count(4), "lack-out")); len(seen) != 4 || seen[2] || twice > 0 {
		t.Errorf("outputs %v, %d of them twice", seen, twice)
	}
	dead := k.outputs(time.Minute, count(1), "lack-dead")
	if len(dead) != 1 || string(dead[0].Value) != `{"n":2}` {
		t.Fatalf("dead letters %v", dead)
	}
	said := map[string]string{}
	for _, h := range dead[0].Headers {
		said[h.Key] = string(h.Value)
	}
	if said["kaspr-error-kind"] != "send" || !strings.Contains(said["kaspr-error-message"], "lack-nowhere") {
		t.Errorf("the dead letter says %v", said)
	}
	if code := a.stop(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	k.committed("lack-app", "lack-in")
}

// A stop takes no longer than its limit, although a record never ends; that record is not lost, and what came before it is
// committed.
func TestStopIsBounded(t *testing.T) {
	k := newKafka(t, realkafka.Shared(t))
	k.topic("bound-in", 1)
	k.topic("bound-out", 1)
	app := strings.Replace(relay("bound", "name: bound-in", "bound-out"), "for _ in range(200): pass", "while value['n'] == 5: print('it spins')", 1)
	k.produce("bound-in", 0, 5)
	a := k.engine(app, map[string]string{"sandboxDeadline": "10m", "shutdownTimeout": "2s"})
	if got := k.outputs(time.Minute, count(5), "bound-out"); len(got) != 5 {
		t.Fatalf("%d of 5 outputs", len(got))
	}
	k.produce("bound-in", 5, 6)
	a.waitLog("it spins")
	began := time.Now()
	a.stop()
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("the stop took %v, its limit is 2 s", took)
	}
	offsets, err := k.adm.FetchOffsets(t.Context(), "bound-app")
	if err != nil {
		t.Fatal(err)
	}
	if o, ok := offsets.Lookup("bound-in", 0); !ok || o.At != 5 {
		t.Errorf("committed %v, want 5", o.At)
	}
}

// Every way to log in works against a real broker, with its own CA and with client certificates.
func TestSecureConnections(t *testing.T) {
	broker := realkafka.New(t, realkafka.Options{
		Users: map[string]string{"app": "secret"},
		Listeners: []realkafka.Listener{
			{Name: "TLS", Protocol: "SSL"},
			{Name: "MUTUAL", Protocol: "SSL", ClientCert: true},
			{Name: "SASLPLAIN", Protocol: "SASL_PLAINTEXT", Mechanisms: []string{"PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"}},
			{Name: "SASLTLS", Protocol: "SASL_SSL", Mechanisms: []string{"SCRAM-SHA-512", "OAUTHBEARER"}},
		},
	})
	k := newKafka(t, broker)
	cert, key := broker.ClientFiles()
	password := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(password, []byte("secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	tls := map[string]string{"kafkaAuthCafile": broker.CAFile()}
	for name, c := range map[string]struct {
		listener string
		set      map[string]string
	}{
		"tls":       {"TLS", map[string]string{"kafkaSecurityProtocol": "SSL"}},
		"mutual":    {"MUTUAL", map[string]string{"kafkaSecurityProtocol": "SSL", "kafkaTlsCertFile": cert, "kafkaTlsKeyFile": key}},
		"plain":     {"SASLPLAIN", map[string]string{"kafkaSecurityProtocol": "SASL_PLAINTEXT", "kafkaSaslMechanism": "PLAIN", "kafkaAuthUsername": "app", "kafkaAuthPassword": "secret"}},
		"scram-256": {"SASLPLAIN", map[string]string{"kafkaSecurityProtocol": "SASL_PLAINTEXT", "kafkaSaslMechanism": "SCRAM-SHA-256", "kafkaAuthUsername": "app", "kafkaAuthPassword": "secret"}},
		"scram-512": {"SASLTLS", map[string]string{"kafkaSecurityProtocol": "SASL_SSL", "kafkaSaslMechanism": "SCRAM-SHA-512", "kafkaAuthUsername": "app", "kafkaAuthPasswordFile": password}},
		"oauth":     {"SASLTLS", map[string]string{"kafkaSecurityProtocol": "SASL_SSL", "kafkaSaslMechanism": "OAUTHBEARER", "kafkaOauthToken": realkafka.Token("app", time.Hour)}},
	} {
		t.Run(name, func(t *testing.T) {
			k := &kafka{t, broker, k.cl, k.adm}
			in, out := name+"-in", name+"-out"
			k.topic(in, 1)
			k.topic(out, 1)
			set := map[string]string{"kafkaBootstrapServers": broker.Listen(c.listener)}
			if slices.Contains([]string{"TLS", "MUTUAL", "SASLTLS"}, c.listener) {
				for key, v := range tls {
					set[key] = v
				}
			}
			for key, v := range c.set {
				set[key] = v
			}
			k.produce(in, 0, 5)
			a := k.engine(relay("secure-"+name, "name: "+in, out), set)
			if got := k.outputs(time.Minute, count(5), out); len(got) != 5 {
				t.Fatalf("%d of 5 outputs", len(got))
			}
			a.stop()
		})
	}
	t.Run("wrong password", func(t *testing.T) {
		k := &kafka{t, broker, k.cl, k.adm}
		a := k.engine(relay("intruder", "name: tls-in", "tls-out"), map[string]string{
			"kafkaBootstrapServers": broker.Listen("SASLPLAIN"), "kafkaSecurityProtocol": "SASL_PLAINTEXT",
			"kafkaSaslMechanism": "PLAIN", "kafkaAuthUsername": "app", "kafkaAuthPassword": "wrong",
		})
		select {
		case <-a.Done:
		case <-time.After(30 * time.Second):
			t.Fatal("the engine goes on with a wrong password")
		}
		if !strings.Contains(a.log.String(), "SASL_AUTHENTICATION_FAILED") {
			t.Errorf("it said:\n%s", a.log)
		}
	})
}

// When retention deletes records before they were processed, the app must not go on as if nothing were missing, unless told to.
func TestLostOffset(t *testing.T) {
	k := newKafka(t, realkafka.Shared(t))
	k.topic("lost-in", 1)
	k.topic("lost-out", 1)
	app := relay("lost", "name: lost-in", "lost-out")
	a := k.engine(app, nil)
	k.produce("lost-in", 0, 100)
	if got := k.outputs(time.Minute, count(100), "lost-out"); len(got) != 100 {
		t.Fatalf("%d of 100 records came out", len(got))
	}
	if code := a.stop(); code != 0 {
		t.Fatalf("exit code %d", code)
	}
	k.produce("lost-in", 100, 300)
	if _, err := k.adm.DeleteRecords(t.Context(), kadm.Offsets{"lost-in": {0: {Topic: "lost-in", At: 200}}}); err != nil {
		t.Fatal(err)
	}
	b := k.engine(app, nil)
	select {
	case <-b.Done:
	case <-time.After(time.Minute):
		t.Fatal("the engine goes on without the deleted records")
	}
	if text := b.log.String(); b.Cmd.ProcessState.ExitCode() != 1 || !strings.Contains(text, "stored offset is 100, the log goes from 200 to 300") {
		t.Fatalf("exit code %d\n%s", b.Cmd.ProcessState.ExitCode(), text)
	}
	c := k.engine(app, map[string]string{"onOffsetLost": "earliest"})
	seen, _ := numbers(t, k.outputs(time.Minute, count(200), "lost-out"))
	if len(seen) != 200 || !seen[200] || !seen[299] || seen[150] {
		t.Fatalf("%d records came out in all", len(seen))
	}
	c.waitLog("are gone")
}
