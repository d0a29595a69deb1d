//go:build integration

package realkafka

import (
	"bytes"
	"context"
	"crypto/rand"
	_ "embed"
	"encoding/base64"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"kaspr.io/kaspr/engine/enginetest/child"
)

//go:embed pom.xml
var pom []byte

//go:embed jars.sha256
var jarSums []byte

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
	child.Server // in its folder: data, configuration, keys, log
	libs         string
	heap         string
	fast         bool
	address      map[string]string // by listener name
}

const plaintext = "PLAINTEXT"

// New starts a broker for one test. It is gone when the test ends; when the test failed, the end of its log is shown.
func New(t testing.TB, opts Options) *Broker {
	t.Helper()
	b, err := Start(t.Context(), opts)
	if err != nil {
		t.Fatalf("start Kafka: %v", err)
	}
	b.CloseAfter(t)
	return b
}

// Start starts a broker and waits until it serves requests.
func Start(ctx context.Context, opts Options) (*Broker, error) {
	libs, err := child.Jars(ctx, pom, jarSums)
	if err != nil {
		return nil, err
	}
	dir, err := child.NewDir("kafka")
	if err != nil {
		return nil, err
	}
	b := &Broker{libs: libs, heap: opts.Heap, fast: opts.Optimise}
	b.Server = child.Server{Dir: dir, Name: "kafka", Ready: b.ready, Command: func() *exec.Cmd {
		return b.java(context.WithoutCancel(ctx), "kafka.Kafka", b.config()) // it outlives ctx: it ends by Stop, Kill or Close
	}}
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
	ports, err := child.FreePorts(len(listeners))
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
		"log.dirs":                                         b.File("data"),
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
	if err := os.RemoveAll(b.File("data")); err != nil {
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
	cmd.Dir = b.Path
	return cmd
}

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

// ready is the broker's own word, and that it can be reached.
func (b *Broker) ready(log string) bool {
	if !strings.Contains(log, "Kafka Server started") {
		return false
	}
	conn, err := net.DialTimeout("tcp", b.Addr(), time.Second)
	if err != nil {
		return false
	}
	_ = conn.Close()
	return true
}

func (b *Broker) config() string { return b.File("server.properties") }
