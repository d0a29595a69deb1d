//go:build peers && integration

package peers

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"kaspr.io/kaspr/bench/workload"
	"kaspr.io/kaspr/engine/enginetest/child"
)

// system is one way to do the work.
type system struct {
	name      string
	workloads string // "w1 w2"
	part      int    // it gets this part of the records: a slow one is not measured for longer than the others
	latency   bool   // it has a guarantee whose latency is worth comparing
	command   func(context.Context, *runOf) (*exec.Cmd, error)
}

// Kafka Streams' commit interval under exactly_once_v2 is 100 ms by default, as ours.
var systems = []system{
	{"kaspr", "w1 w2", 1, true, kaspr("exactly_once")},
	{"kaspr-at-least-once", "w1 w2", 1, true, kaspr("at_least_once")},
	{"kafka-streams", "w1 w2", 1, true, kafkaStreams("at_least_once")},
	{"kafka-streams-exactly-once", "w1 w2", 1, true, kafkaStreams("exactly_once_v2")},
	{"bare-stdlib-json", "w1 w2", 1, false, python("bare", nil, "bare.py")},
	{"bare-orjson", "w1 w2", 1, false, python("bare", []string{"JSON=orjson", "FQB=5"}, "bare.py")},
	{"quix", "w1 w2", 2, false, python("quix", nil, "quix_app.py")},
	{"quix-exactly-once", "w2", 2, false, python("quix", []string{"GUARANTEE=exactly-once"}, "quix_app.py")},
	{"bytewax", "w1 w2", 2, false, python("bytewax", nil, "-m", "bytewax.run", "bytewax_flow.py")},
	{"faust-streaming", "w1 w2", 20, false, python("faust", nil, "faust_app.py", "worker", "-l", "info")},
}

// kaspr runs the engine with its default settings but for the guarantee.
func kaspr(guarantee string) func(context.Context, *runOf) (*exec.Cmd, error) {
	return func(ctx context.Context, r *runOf) (*exec.Cmd, error) {
		text := workload.W1
		if r.workload == "w2" {
			text = workload.W2
		}
		return kasprApp(guarantee, text)(ctx, r)
	}
}

// variant is Kaspr with environment variables, to be compared with what it is without: settings, limits of Go's runtime, another build.
func variant(environ string) system {
	return system{name: "kaspr " + environ, workloads: "w1 w2", part: 1, latency: true, command: func(ctx context.Context, r *runOf) (*exec.Cmd, error) {
		cmd, err := kaspr("exactly_once")(ctx, r)
		if err != nil {
			return nil, err
		}
		cmd.Env = strings.Fields(environ)
		for _, e := range cmd.Env {
			if binary, ok := strings.CutPrefix(e, "KASPR_BINARY="); ok {
				cmd.Path = binary
			}
		}
		return cmd, nil
	}}
}

// kasprApp is kaspr with other manifests.
func kasprApp(guarantee, text string) func(context.Context, *runOf) (*exec.Cmd, error) {
	return func(ctx context.Context, r *runOf) (*exec.Cmd, error) {
		text := strings.NewReplacer("{name: in}", "{name: "+r.input+"}", "name: out\n", "name: "+r.output+"\n").Replace(text)
		manifest := filepath.Join(r.dir, "app.yaml")
		if err := os.WriteFile(manifest, []byte(text), 0o600); err != nil {
			return nil, err
		}
		settings := fmt.Sprintf("definitionsDir: %s\nappName: %s\nkafkaBootstrapServers: %s\ntableDir: %s\nprocessingGuarantee: %s\ntopicReplicationFactor: 1\nwebPort: 0\n",
			manifest, r.id, r.env.broker.Addr(), filepath.Join(r.dir, "state"), guarantee)
		config := filepath.Join(r.dir, "kaspr.yaml")
		if err := os.WriteFile(config, []byte(settings), 0o600); err != nil {
			return nil, err
		}
		return r.env.command(ctx, nil, r.env.kaspr, "run", "--config", config), nil
	}
}

func kafkaStreams(guarantee string) func(context.Context, *runOf) (*exec.Cmd, error) {
	return func(ctx context.Context, r *runOf) (*exec.Cmd, error) {
		classes := filepath.Join(r.env.dir, "classes")
		path := classes + ":" + filepath.Join(r.env.jars, "*")
		if _, err := os.Stat(classes); err != nil {
			if out, err := exec.CommandContext(ctx, "javac", "-nowarn", "-cp", path, "-d", classes, filepath.Join("kstreams", "Peer.java")).CombinedOutput(); err != nil {
				return nil, fmt.Errorf("javac: %w\n%s", err, out)
			}
		}
		return r.env.command(ctx, []string{"GUARANTEE=" + guarantee}, "java", "-Xmx512m", "-cp", path, "Peer"), nil
	}
}

// python runs a worker in a virtual environment of its own, which the first run makes in the cache folder.
func python(venv string, environ []string, args ...string) func(context.Context, *runOf) (*exec.Cmd, error) {
	return func(ctx context.Context, r *runOf) (*exec.Cmd, error) {
		workers, err := filepath.Abs("workers")
		if err != nil {
			return nil, err
		}
		requirements := filepath.Join(workers, venv+".requirements.txt")
		pins, err := os.ReadFile(requirements)
		if err != nil {
			return nil, err
		}
		sum := sha256.Sum256(pins)
		cache, err := child.CacheDir("peers")
		if err != nil {
			return nil, err
		}
		dir := filepath.Join(cache, venv+"-"+hex.EncodeToString(sum[:6]))
		if _, err := os.Stat(filepath.Join(dir, "complete")); err != nil {
			for _, cmd := range [][]string{
				{"python3", "-m", "venv", "--clear", dir},
				{filepath.Join(dir, "bin", "pip"), "install", "-q", "--no-deps", "-r", requirements},
			} {
				if out, err := exec.CommandContext(ctx, cmd[0], cmd[1:]...).CombinedOutput(); err != nil {
					return nil, fmt.Errorf("%s: %w\n%s", strings.Join(cmd, " "), err, out)
				}
			}
			if err := os.WriteFile(filepath.Join(dir, "complete"), nil, 0o600); err != nil {
				return nil, err
			}
		}
		cmd := r.env.command(ctx, environ, append([]string{filepath.Join(dir, "bin", "python")}, args...)...)
		cmd.Dir = workers
		return cmd, nil
	}
}
