package wasmhost

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"kaspr.io/kaspr/engine/record"
	"kaspr.io/kaspr/wasmhost/abi"
)

//go:generate testdata/build.sh

// testGuest speaks the ABI without Python: what a record does is said by its value (testdata/guest.c).
//
//go:embed testdata/guest.wasm
var testGuest []byte

// fakeHost remembers what guests asked for.
type fakeHost struct {
	mu     sync.Mutex
	logs   []string
	sent   []record.Output
	topics []abi.TopicRequest
	leads  bool
	send   func(ctx context.Context, out record.Output) ([]byte, error)
}

func (h *fakeHost) Log(level int, text string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.logs = append(h.logs, fmt.Sprint(level, " ", text))
}

func (h *fakeHost) Send(ctx context.Context, out record.Output, done func([]byte, error)) {
	h.mu.Lock()
	h.sent = append(h.sent, out)
	h.mu.Unlock()
	if h.send != nil {
		done(h.send(ctx, out))
		return
	}
	done([]byte(`{"offset":7}`), nil)
}

func (h *fakeHost) Encode(dst []byte, _ *abi.EncodeRequest) ([]byte, error) {
	return dst, errors.New("no schemas here")
}

func (h *fakeHost) Prepare(context.Context, *abi.EncodeRequest) error { return nil }

func (h *fakeHost) IsLeader() bool { return h.leads }

func (h *fakeHost) EnsureTopic(_ context.Context, topic abi.TopicRequest) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.topics = append(h.topics, topic)
	if topic.Name == "forbidden" {
		return errors.New("not allowed")
	}
	return nil
}

const testDeadline = 200 * time.Millisecond

func testOptions() Options {
	return Options{Deadline: testDeadline, LoadDeadline: testDeadline, MemoryMax: 16 << 20, Host: &fakeHost{}}
}

// newTestRuntime makes a Runtime of the test guest that is closed with the test.
func newTestRuntime(t testing.TB, cfg Config) *Runtime {
	t.Helper()
	cfg.Module = testGuest
	cfg.Stdlib = []byte("not a zip")
	cfg.Defaults = cfg.Defaults.withDefaults(testOptions())
	r, err := New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

func testProgram(python string) *abi.Program {
	return &abi.Program{
		Kind: "KasprAgent", Name: "test", Init: &abi.Code{Python: python, File: "agents/orders.yaml", Line: 40},
		Ops:     []abi.Operation{{Name: "enrich", Map: &abi.Code{Python: "def enrich(value):\n    pass\n    while True:\n        pass", File: "agents/orders.yaml", Line: 40}}},
		Outputs: []abi.Output{{Topic: "out"}},
	}
}

func newTestSnapshot(t testing.TB, r *Runtime, o Options) *Snapshot {
	t.Helper()
	s, err := r.Load(t.Context(), testProgram(""), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func newTestInstance(t testing.TB, s *Snapshot) *Instance {
	t.Helper()
	in, err := s.NewInstance(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := in.Close(); err != nil {
			t.Error(err)
		}
	})
	return in
}

func newTestComponent(t testing.TB, o Options) (*Component, *Runtime) {
	t.Helper()
	r := newTestRuntime(t, Config{})
	s, err := r.Load(t.Context(), testProgram(""), o)
	if err != nil {
		t.Fatal(err)
	}
	c := NewComponent(s, 2)
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c, r
}

// batch makes a batch of the values; the keys are their indexes.
func batch(values ...string) *record.Batch {
	b := &record.Batch{}
	for i, v := range values {
		b.Records = append(b.Records, record.Record{Topic: "in", Offset: int64(i), Key: []byte(fmt.Sprint(i)), Value: []byte(v)})
	}
	return b
}

// show writes a result in one line: outputs as record:value, failures as record!kind, in order of their records.
func show(res record.Result) string {
	var parts []string
	outputs, failures := res.Outputs, res.Failures
	for i := range int32(res.Done) + 1 {
		for len(outputs) > 0 && outputs[0].Record == i {
			parts = append(parts, fmt.Sprintf("%d:%s", i, outputs[0].Value))
			outputs = outputs[1:]
		}
		for len(failures) > 0 && failures[0].Record == i {
			parts = append(parts, fmt.Sprintf("%d!%v", i, failures[0].Kind))
			failures = failures[1:]
		}
	}
	if len(outputs)+len(failures) > 0 {
		parts = append(parts, "OUT OF ORDER")
	}
	return strings.Join(append(parts, fmt.Sprint("done=", res.Done)), " ")
}

// within runs f, which must take at least least and at most most. Other load on the machine may stretch a run: of three
// one must be in time.
func within(t *testing.T, least, most time.Duration, f func()) {
	t.Helper()
	var took time.Duration
	for range 3 {
		begin := time.Now()
		f()
		if took = time.Since(begin); took < least {
			t.Errorf("took only %v", took)
		}
		if took <= most || t.Failed() {
			return
		}
	}
	t.Errorf("took %v, at most %v is right", took, most)
}

// resources counts what must not outlive a Close.
type resources struct{ goroutines, threads, mappings, files int }

func countResources(t testing.TB) resources {
	t.Helper()
	list := func(dir string) int {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	// The compiled code's mappings go with finalizers; the guests' memories are told by their image, their spill or by being reserved.
	mappings := strings.Count(string(maps), "kaspr-image") + strings.Count(string(maps), "kaspr-spill")
	for line := range strings.Lines(string(maps)) {
		var from, to uint64
		var mode string
		if n, _ := fmt.Sscanf(line, "%x-%x %s", &from, &to, &mode); n == 3 && mode == "---p" && to-from >= 8<<20 && strings.Contains(line, " 00:00 0") {
			mappings++
		}
	}
	return resources{runtime.NumGoroutine(), tickerThreads(t), mappings, list("/proc/self/fd")}
}

// tickerThreads counts threads that do not belong to Go: it starts with a name of its own.
func tickerThreads(t testing.TB) int {
	t.Helper()
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, task := range tasks {
		if name, err := os.ReadFile("/proc/self/task/" + task.Name() + "/comm"); err == nil && strings.TrimSpace(string(name)) == "kaspr-ticker" {
			n++
		}
	}
	return n
}
