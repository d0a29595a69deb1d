//go:build integration

package realkafka

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"maps"
	mathrand "math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// startTimeout bounds one start of the broker: a cold JVM on a busy machine takes far longer than the usual 3 s.
const startTimeout = 90 * time.Second

// stopTimeout bounds a graceful stop; after it the broker is killed.
const stopTimeout = 30 * time.Second

// Options are what a test wants beside the listener without security that every broker has.
type Options struct {
	Listeners  []Listener
	Users      map[string]string // name to password, for PLAIN and SCRAM
	Properties map[string]string // broker properties; they win over the fixture's own
	Heap       string            // default 512m
	Optimise   bool              // as one runs it in earnest: for measurements
}

// Listener is one more way to reach the broker.
type Listener struct {
	Name       string // upper case
	Protocol   string // PLAINTEXT, SSL, SASL_PLAINTEXT, SASL_SSL
	Mechanisms []string
	ClientCert bool // with SSL or SASL_SSL: only clients with a certificate of the broker's CA
}

// Broker is one running (or stopped, or killed) Kafka. Its addresses and its data stay the same over restarts.
type Broker struct {
	dir     string // data, configuration, keys, log
	lock    *os.File
	libs    string
	heap    string
	fast    bool
	address map[string]string // by listener name
	process *process          // nil while stopped
	starts  int
}

const plaintext = "PLAINTEXT"

// New starts a broker for one test. It is gone when the test ends; when the test failed, the end of its log is shown.
func New(t testing.TB, opts Options) *Broker {
	t.Helper()
	b, err := Start(t.Context(), opts)
	if err != nil {
		t.Fatalf("start Kafka: %v", err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("end of the broker's log:\n%s", b.Log(50))
		}
		b.Close()
	})
	return b
}

// Start starts a broker and waits until it serves requests.
func Start(ctx context.Context, opts Options) (*Broker, error) {
	libs, err := jars(ctx)
	if err != nil {
		return nil, err
	}
	dir, lock, err := newDir()
	if err != nil {
		return nil, err
	}
	b := &Broker{dir: dir, lock: lock, libs: libs, heap: opts.Heap, fast: opts.Optimise}
	if b.heap == "" {
		b.heap = "512m"
	}
	// Somebody else may take a port between our look and the broker's bind.
	for attempt := 1; ; attempt++ {
		err = b.prepare(ctx, opts)
		if err == nil {
			err = b.Restart(ctx)
		}
		if err == nil {
			return b, nil
		}
		if attempt == 3 || !strings.Contains(b.Log(1000), "BindException") {
			err = fmt.Errorf("%w\n%s", err, b.Log(30))
			b.Close()
			return nil, err
		}
	}
}

// prepare chooses ports, writes the configuration and formats the data directory.
func (b *Broker) prepare(ctx context.Context, opts Options) error {
	listeners := append([]Listener{{Name: plaintext, Protocol: plaintext}, {Name: "CONTROLLER", Protocol: plaintext}}, opts.Listeners...)
	ports, err := freePorts(len(listeners))
	if err != nil {
		return err
	}
	b.address = map[string]string{}
	var listen, protocols, advertised []string
	for i, l := range listeners {
		address := fmt.Sprintf("127.0.0.1:%d", ports[i])
		b.address[l.Name] = address
		listen = append(listen, l.Name+"://"+address)
		protocols = append(protocols, l.Name+":"+l.Protocol)
		if l.Name != "CONTROLLER" {
			advertised = append(advertised, l.Name+"://"+address)
		}
	}
	properties := map[string]string{
		"process.roles":                                    "broker,controller",
		"node.id":                                          "1",
		"controller.quorum.voters":                         "1@" + b.address["CONTROLLER"],
		"listeners":                                        strings.Join(listen, ","),
		"advertised.listeners":                             strings.Join(advertised, ","),
		"listener.security.protocol.map":                   strings.Join(protocols, ","),
		"controller.listener.names":                        "CONTROLLER",
		"inter.broker.listener.name":                       plaintext,
		"log.dirs":                                         filepath.Join(b.dir, "data"),
		"auto.create.topics.enable":                        "false",
		"num.partitions":                                   "1",
		"offsets.topic.replication.factor":                 "1",
		"offsets.topic.num.partitions":                     "4",
		"transaction.state.log.replication.factor":         "1",
		"transaction.state.log.min.isr":                    "1",
		"transaction.state.log.num.partitions":             "4",
		"share.coordinator.state.topic.replication.factor": "1",
		"share.coordinator.state.topic.min.isr":            "1",
		// A killed broker may come back only when its old session has ended.
		"broker.session.timeout.ms":        "3000",
		"broker.heartbeat.interval.ms":     "500",
		"group.initial.rebalance.delay.ms": "0",
		"group.min.session.timeout.ms":     "1000",
		"log.segment.bytes":                "16777216",
		"log.cleaner.dedupe.buffer.size":   "16777216",
		"log.index.size.max.bytes":         "1048576",
		"num.network.threads":              "2",
		"num.io.threads":                   "4",
	}
	for _, l := range opts.Listeners {
		if err := b.secure(properties, l, opts.Users); err != nil {
			return err
		}
	}
	maps.Copy(properties, opts.Properties)
	var text bytes.Buffer
	for _, name := range slices.Sorted(maps.Keys(properties)) {
		fmt.Fprintf(&text, "%s=%s\n", name, properties[name])
	}
	if err := os.WriteFile(b.config(), text.Bytes(), 0o600); err != nil {
		return err
	}
	if err := os.RemoveAll(filepath.Join(b.dir, "data")); err != nil {
		return err
	}
	return b.format(ctx, opts)
}

func (b *Broker) format(ctx context.Context, opts Options) error {
	id := make([]byte, 16)
	_, _ = rand.Read(id) // never fails
	id[0] &= 0x7F        // a cluster id that begins with a dash is taken for an option
	args := []string{"kafka.tools.StorageTool", "format", "-t", base64.RawURLEncoding.EncodeToString(id), "-c", b.config()}
	for _, user := range slices.Sorted(maps.Keys(opts.Users)) {
		for _, mechanism := range []string{"SCRAM-SHA-256", "SCRAM-SHA-512"} {
			args = append(args, "--add-scram", fmt.Sprintf("%s=[name=%s,password=%s]", mechanism, user, opts.Users[user]))
		}
	}
	out, err := b.java(ctx, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("format the data directory: %w\n%s", err, out)
	}
	return nil
}

func (b *Broker) java(ctx context.Context, args ...string) *exec.Cmd {
	// The first compiler alone: tests are short, and two cores have better to do than optimise a broker.
	flags := []string{"-Xms64m", "-Xmx" + b.heap, "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"}
	if b.fast {
		flags = []string{"-Xms" + b.heap, "-Xmx" + b.heap, "-XX:+UseG1GC"}
	}
	flags = append(flags, "-Xshare:auto",
		"-Djava.awt.headless=true", "-Dorg.slf4j.simpleLogger.log.kafka.server.KafkaConfig=warn",
		"-Dorg.slf4j.simpleLogger.showDateTime=true",
		"-Dorg.slf4j.simpleLogger.dateTimeFormat=HH:mm:ss.SSS", "-cp", filepath.Join(b.libs, "*"))
	cmd := exec.CommandContext(ctx, "java", append(flags, args...)...)
	cmd.Dir = b.dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	return cmd
}

// PID is the running broker's process.
func (b *Broker) PID() int { return b.process.cmd.Process.Pid }

// Addr is the address of the listener without security: the bootstrap server.
func (b *Broker) Addr() string { return b.address[plaintext] }

// Listen is the address of a listener of Options.
func (b *Broker) Listen(name string) string {
	address, ok := b.address[name]
	if !ok {
		panic("BUG: no listener " + name)
	}
	return address
}

// Restart starts a stopped or killed broker again, with its data, at its addresses, and waits until it serves requests.
func (b *Broker) Restart(ctx context.Context) error {
	if b.process != nil {
		panic("BUG: the broker runs")
	}
	b.starts++
	log, err := os.OpenFile(b.logFile(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	from, err := log.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	// The broker outlives ctx: it ends by Stop, Kill or Close.
	cmd := b.java(context.WithoutCancel(ctx), "kafka.Kafka", b.config())
	cmd.Stdout, cmd.Stderr = log, log
	p, err := startProcess(cmd)
	if err != nil {
		return err
	}
	b.process = p
	if err := b.ready(ctx, from); err != nil {
		b.Kill()
		return err
	}
	return nil
}

// ready waits for the broker's own word that it serves, written to its log after the given position.
func (b *Broker) ready(ctx context.Context, from int64) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return fmt.Errorf("kafka is not ready: %w", context.Cause(ctx))
		case <-b.process.done:
			return fmt.Errorf("kafka ended at start: %w", b.process.err)
		case <-tick.C:
		}
		text, err := os.ReadFile(b.logFile())
		if err != nil {
			return err
		}
		if int64(len(text)) < from || !bytes.Contains(text[from:], []byte("Kafka Server started")) {
			continue
		}
		conn, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "tcp", b.Addr())
		if err == nil {
			return conn.Close()
		}
	}
}

// Stop ends the broker as its operator would, with a clean shutdown.
func (b *Broker) Stop() error {
	p := b.process
	if p == nil {
		return nil
	}
	b.process = nil
	_ = p.cmd.Process.Signal(syscall.SIGCONT)
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
		return nil
	case <-time.After(stopTimeout):
		_ = p.cmd.Process.Kill()
		<-p.done
		return errors.New("kafka did not stop by itself and was killed")
	}
}

// Kill ends the broker at once (SIGKILL), as a crash of its machine would, but for what the page cache keeps.
func (b *Broker) Kill() {
	p := b.process
	if p == nil {
		return
	}
	b.process = nil
	_ = p.cmd.Process.Kill()
	<-p.done
}

// Pause freezes the broker (SIGSTOP): connections stay up and nothing is answered, as in a long pause of its JVM.
func (b *Broker) Pause() { b.signal(syscall.SIGSTOP) }

// Resume ends a Pause.
func (b *Broker) Resume() { b.signal(syscall.SIGCONT) }

func (b *Broker) signal(s syscall.Signal) {
	if b.process == nil {
		panic("BUG: the broker does not run")
	}
	_ = b.process.cmd.Process.Signal(s)
}

// Close kills the broker and removes everything it wrote. It may be called twice.
func (b *Broker) Close() {
	b.Kill()
	if b.lock != nil {
		_ = os.RemoveAll(b.dir)
		_ = b.lock.Close()
		b.lock = nil
	}
}

// Log returns the last lines of the broker's log.
func (b *Broker) Log(lines int) string {
	text, _ := os.ReadFile(b.logFile())
	all := strings.Split(strings.TrimRight(string(text), "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

func (b *Broker) config() string  { return filepath.Join(b.dir, "server.properties") }
func (b *Broker) logFile() string { return filepath.Join(b.dir, "broker.log") }

// process is a child that is waited for. done is closed when it has ended, err is set before.
type process struct {
	cmd  *exec.Cmd
	done chan struct{}
	err  error
}

// startProcess starts cmd from a thread that lives as long as the child: Pdeathsig fires when the thread ends, not the
// process.
func startProcess(cmd *exec.Cmd) (*process, error) {
	p := &process{cmd: cmd, done: make(chan struct{})}
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer close(p.done)
		err := cmd.Start()
		started <- err
		if err == nil {
			p.err = cmd.Wait()
			if p.err == nil {
				p.err = errors.New("exit status 0")
			}
		}
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return p, nil
}

// freePorts finds ports nobody listens on, below the range the kernel gives to outgoing connections: a broker that is
// down for a moment must find its own ports free again.
func freePorts(n int) ([]int, error) {
	var ports []int
	for tries := 0; len(ports) < n && tries < 1000; tries++ {
		port := 15000 + mathrand.IntN(15000)
		if slices.Contains(ports, port) {
			continue
		}
		l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port})
		if err != nil {
			continue
		}
		_ = l.Close()
		ports = append(ports, port)
	}
	if len(ports) < n {
		return nil, errors.New("no free ports")
	}
	return ports, nil
}
