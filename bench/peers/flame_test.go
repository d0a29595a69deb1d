//go:build peers && integration

package peers

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"

	"kaspr.io/kaspr/bench/flame"
	"kaspr.io/kaspr/bench/workload"
)

var flames = flag.String("flames", "", "folder for flame-w1.svg and flame-w2.svg (make flame)")

// flameBytesMax is what a picture in the documentation may have.
const flameBytesMax = 200 << 10

// The flame graphs of docs/performance.md: Kaspr with exactly_once, from its first output on. KASPR_BINARY must have a guest with
// names and tell perf where wazero's code is: make flame builds it.
func TestFlame(t *testing.T) {
	if *flames == "" {
		t.Skip("-flames names no folder")
	}
	env := start(t)
	input, err := env.fill(t.Context(), *records)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"w1", "w2"} {
		root, err := env.profile(t, name, input)
		if err != nil {
			t.Fatal(err)
		}
		if root.Shares()[flame.Guest] < 0.2 {
			t.Errorf("%s: the guest has a share of %.2f: perf does not see its code", name, root.Shares()[flame.Guest])
		}
		title := fmt.Sprintf("%s, exactly_once, %d records, %d samples of the engine's processor time, %s", name, *records, root.Samples, commit())
		file := filepath.Join(*flames, "flame-"+name+".svg")
		if err := os.WriteFile(file, []byte(flame.SVG(root, title, flameBytesMax)), 0o644); err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: %s; shares %v", file, title, root.Shares())
	}
}

// profile samples Kaspr on a backlog, from its first output to the last.
func (e *environment) profile(t *testing.T, name, input string) (*flame.Node, error) {
	ctx := t.Context()
	r := runOf{env: e, id: "flame-" + name, input: input, output: "out-flame-" + name, workload: name}
	if err := e.create(ctx, r.output, inputPartitions, nil); err != nil {
		return nil, err
	}
	// Of compiled code that comes from the cache wazero writes no map.
	s := system{name: "kaspr", command: func(ctx context.Context, r *runOf) (*exec.Cmd, error) {
		cmd, err := kaspr("exactly_once")(ctx, r)
		if err == nil {
			cmd.Env = append(cmd.Env, "K_CACHE_DIR="+filepath.Join(r.dir, "compiled"))
		}
		return cmd, err
	}}
	began := time.Now()
	p, err := s.start(ctx, &r)
	if err != nil {
		return nil, err
	}
	defer p.stop()
	pid := p.Cmd.Process.Pid
	defer os.Remove(fmt.Sprintf("/tmp/perf-%d.map", pid))
	outputs := func() (n int64) {
		ends, err := e.admin.ListCommittedOffsets(ctx, r.output)
		if err != nil {
			return 0 // it is asked again
		}
		ends.Each(func(o kadm.ListedOffset) { n += o.Offset })
		return n
	}
	for outputs() == 0 {
		if time.Since(began) > timeout {
			return nil, errors.New("no output")
		}
		time.Sleep(20 * time.Millisecond)
	}
	data := filepath.Join(r.dir, "perf.data")
	var said bytes.Buffer
	perf := exec.CommandContext(ctx, "perf", "record", "-e", "cpu-clock", "-F", "499", "--call-graph", "fp", "-o", data, "-p", strconv.Itoa(pid))
	perf.Stdout, perf.Stderr = &said, &said
	if err := perf.Start(); err != nil {
		return nil, err
	}
	check := workload.NewCheck(name, *records)
	_, err = e.follow(ctx, p, r.output, check.Want(), began, timeout)
	_ = perf.Process.Signal(syscall.SIGINT) // its way to end
	_ = perf.Wait()                         // by the signal it was sent
	if err != nil {
		return nil, err
	}
	if _, _, err := e.read(ctx, r.output, check.Add); err != nil {
		return nil, err
	}
	if err := check.Err(); err != nil {
		return nil, err
	}
	script := exec.CommandContext(ctx, "perf", "script", "-i", data, "-F", "ip,sym,dso")
	script.Stderr = &said
	out, err := script.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := script.Start(); err != nil {
		return nil, err
	}
	root, err := flame.Parse(out)
	if err = errors.Join(err, script.Wait()); err != nil {
		return nil, fmt.Errorf("%w; perf said: %s", err, said.Bytes())
	}
	return root, nil
}
