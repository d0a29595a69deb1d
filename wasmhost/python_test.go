package wasmhost_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"kaspr.io/kaspr/engine/record"
	"kaspr.io/kaspr/pyguest"
	"kaspr.io/kaspr/wasmhost"
	"kaspr.io/kaspr/wasmhost/abi"
)

// TestMain shares one Runtime of the real guest: it costs seconds where nothing is cached.
func TestMain(m *testing.M) {
	code := m.Run()
	if python.r != nil {
		if err := python.r.Close(); err != nil {
			fmt.Println(err)
			code = 1
		}
	}
	os.Exit(code)
}

var python struct {
	once sync.Once
	r    *wasmhost.Runtime
	err  error
}

// cacheDir keeps compiled guests between runs of the tests.
func cacheDir() string {
	dir, err := os.UserCacheDir()
	if err != nil {
		dir = os.TempDir()
	}
	return filepath.Join(dir, "kaspr", "test-wasm")
}

func pythonRuntime(t testing.TB) *wasmhost.Runtime {
	t.Helper()
	python.once.Do(func() {
		python.r, python.err = wasmhost.New(context.Background(), wasmhost.Config{
			Module: pyguest.Module(), Stdlib: pyguest.Stdlib(), CacheDir: cacheDir(),
		})
	})
	if python.err != nil {
		t.Fatal(python.err)
	}
	return python.r
}

// host collects what guests log and send.
type host struct {
	t      testing.TB
	mu     sync.Mutex
	logs   []string
	sent   []record.Output
	ack    time.Duration // how long an answer to Send takes
	refuse string        // value of messages that are refused
}

func (h *host) Log(level int, text string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.logs = append(h.logs, fmt.Sprint(level, " ", text))
}

func (h *host) Send(_ context.Context, out record.Output, done func([]byte, error)) {
	h.mu.Lock()
	h.sent = append(h.sent, out)
	answer := []byte(fmt.Sprintf(`{"topic":%q,"partition":0,"offset":%d,"timestamp":0,"timestamp_type":0}`, out.Topic, len(h.sent)))
	h.mu.Unlock()
	var err error
	if h.refuse != "" && string(out.Value) == h.refuse {
		err = errors.New("refused")
	}
	if h.ack > 0 {
		time.AfterFunc(h.ack, func() { done(answer, err) })
		return
	}
	done(answer, err)
}

func (h *host) Encode(dst []byte, _ *abi.EncodeRequest) ([]byte, error) {
	return dst, errors.New("no schemas here")
}

func (h *host) Prepare(context.Context, *abi.EncodeRequest) error { return nil }

func (h *host) IsLeader() bool { return false }

func (h *host) EnsureTopic(context.Context, abi.TopicRequest) error { return nil }

// agent is a program of one map operation over JSON values, with one output.
func agent(init, operation string) *abi.Program {
	p := &abi.Program{
		Kind: "KasprAgent", Name: "test", App: abi.AppInfo{Name: "app", ID: "app-app", Conf: map[string]any{}}, Env: map[string]string{},
		Input:   abi.Input{KeySerializer: "raw", ValueSerializer: "json"},
		Ops:     []abi.Operation{{Name: "enrich", Map: &abi.Code{Python: operation, File: "agents/orders.yaml", Line: 40, Where: `operation "enrich", map`}}},
		Outputs: []abi.Output{{Topic: "out", KeySerializer: "raw", ValueSerializer: "json"}},
	}
	if init != "" {
		p.Init = &abi.Code{Python: init, File: "agents/orders.yaml", Line: 10, Where: "init"}
	}
	return p
}

func load(t testing.TB, p *abi.Program, o wasmhost.Options) *wasmhost.Component {
	t.Helper()
	if o.Host == nil {
		o.Host = &host{t: t}
	}
	s, err := pythonRuntime(t).Load(context.Background(), p, o)
	if err != nil {
		t.Fatal(err)
	}
	c := wasmhost.NewComponent(s, 4)
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func values(values ...string) *record.Batch {
	b := &record.Batch{}
	for i, v := range values {
		b.Records = append(b.Records, record.Record{Topic: "in", Offset: int64(i), Key: []byte(fmt.Sprint(i)), Value: []byte(v), Attempt: 1})
	}
	return b
}

func show(res record.Result) string {
	var parts []string
	for _, o := range res.Outputs {
		parts = append(parts, fmt.Sprintf("%d:%s", o.Record, o.Value))
	}
	for _, f := range res.Failures {
		parts = append(parts, fmt.Sprintf("%d!%v", f.Record, f.Kind))
	}
	return strings.Join(append(parts, fmt.Sprint("done=", res.Done)), " ")
}

func TestPython(t *testing.T) {
	h := &host{}
	c := load(t, agent("import json, math\nfactor = 2\nprint('init ran')", "def enrich(value):\n    if value == 3:\n        raise KeyError('three')\n    return value * factor"), wasmhost.Options{Host: h})
	res, err := c.Call(t.Context(), 0, values("1", "2", "3", "4", "{"))
	if err != nil || show(res) != "0:2 1:4 3:8 2!code 4!decode-value done=5" {
		t.Fatalf("%s, %v, %+v", show(res), err, res.Failures)
	}
	f := res.Failures[0]
	if f.Type != "KeyError" || f.Message != "'three'" || !strings.Contains(f.Traceback, "agents/orders.yaml:42, in enrich\n        raise KeyError('three')") {
		t.Errorf("%+v", f)
	}
	t.Log(h.logs, "image", c.MemoryBytes()>>20, "MiB")
}

// Code that means harm, by accident or not, ends in a failure that says what it was, within twice its deadline, and
// leaves the records before and behind it unharmed.
func TestHostilePython(t *testing.T) {
	const deadline = 400 * time.Millisecond
	const mib = 1 << 20
	for _, test := range []struct {
		name string
		code string   // body of a function of value; value is 1 for the hostile record
		want []string // kinds it may end in; "ok" is none
	}{
		{"endless loop", "while True: pass", []string{"deadline"}},
		{"swallows everything", "while True:\n    try:\n        while True: pass\n    except BaseException: pass", []string{"deadline"}},
		{"finally", "try:\n    while True: pass\nfinally:\n    while True: pass", []string{"deadline"}},
		{"sum of a range", "return sum(range(10**15))", []string{"deadline"}},
		{"any", "return any(iter(int, 1))", []string{"deadline"}},
		{"in", "return [0] * 10 in iter(int, 1)", []string{"deadline"}},
		{"deque", "import collections, itertools\ncollections.deque(itertools.repeat(1), maxlen=0)", []string{"deadline"}},
		{"regular expression", "import re\nreturn bool(re.match('(a+)+$', 'a' * 40 + 'b'))", []string{"deadline"}},
		{"power", "return 10 ** (10 ** 8) % 7", []string{"deadline"}},
		{"int to text", "import sys\nsys.set_int_max_str_digits(0)\nreturn len(str(7 ** 3000000))", []string{"deadline"}},
		{"sort", "return sorted(range(10**7), key=lambda v: -v)[0]", []string{"deadline", "memory"}},
		{"generator", "while True: yield value", []string{"deadline", "memory"}},
		{"sleep", "import time\ntime.sleep(1000)", []string{"deadline"}},
		{"async sleep", "import asyncio\nasync def f(): await asyncio.sleep(1000)\nreturn f()", []string{"deadline"}},
		{"event never set", "import asyncio\nasync def f(): await asyncio.Event().wait()\nreturn f()", []string{"deadline", "code"}},
		{"destructor", "class A:\n    def __del__(self):\n        while True: pass\nA()\nreturn 1", []string{"deadline", "ok"}},
		{"comparison", "class A:\n    def __eq__(self, other):\n        while True: pass\nreturn A() == A()", []string{"deadline"}},
		{"text of an exception", "class E(Exception):\n    def __str__(self):\n        while True: pass\nraise E()", []string{"deadline", "code"}},
		{"waits for input", "import sys\nreturn sys.stdin.read() or 'empty'", []string{"ok", "code"}},
		{"prints without end", "while True: print('x' * 1000)", []string{"deadline"}},

		{"list", "a = []\nwhile True: a.append(bytes(100000))", []string{"memory"}},
		{"bytearray", "a = bytearray()\nwhile True: a += bytes(1 << 20)", []string{"memory"}},
		{"dict", "d = {}\nwhile True: d[len(d)] = [len(d)]", []string{"memory", "deadline"}},
		{"str", "s = 'x'\nwhile True: s += s", []string{"memory"}},
		{"product", "return len('a' * 10**9)", []string{"memory"}},
		{"swallowed memory errors", "a = []\nwhile True:\n    try:\n        while True: a.append(bytearray(1 << 16))\n    except MemoryError: pass", []string{"deadline", "memory"}},
		{"set", "s = set()\nfor i in iter(int, 1): s.add(object())", []string{"memory", "deadline"}},

		{"recursion", "def f(): return f()\nreturn f()", []string{"code"}},
		{"recursion without limit", "import sys\nsys.setrecursionlimit(10**9)\ndef f(): return f()\nreturn f()", []string{"code", "memory", "trap", "deadline"}},
		{"deep repr", "a = []\nfor _ in range(100000): a = [a]\nreturn len(repr(a))", []string{"code", "memory"}},
		{"deep attribute", "class A:\n    def __getattr__(self, name): return getattr(self, name)\nreturn A().x", []string{"code"}},
		{"deep json", "import json\nreturn json.loads('[' * 200000)", []string{"code"}},
		{"deep result", "a = []\nfor _ in range(100000): a = [a]\nreturn a", []string{"code", "encode"}},
		{"deep syntax", "return eval('(' * 100000 + ')' * 100000)", []string{"code", "memory"}},
		{"deep destructor", "a = []\nfor _ in range(1000000): a = [a]\nreturn 1", []string{"ok", "deadline"}},

		{"exit", "import os\nos._exit(3)", []string{"trap"}},
		{"system exit", "raise SystemExit(1)", []string{"code"}},
		{"sys.exit", "import sys\nsys.exit('done')", []string{"code"}},
		{"keyboard interrupt", "raise KeyboardInterrupt", []string{"code"}},
		{"abort", "import os\nos.abort()", []string{"trap"}},
		{"read a file", "return open('/etc/passwd').read()", []string{"code"}},
		{"read a file above", "return open('/lib/../../etc/passwd').read()", []string{"code"}},
		{"write a file", "open('/lib/x', 'w').write('x')", []string{"code"}},
		{"write the library", "open('/lib/stdlib.zip', 'r+b', buffering=0).write(b'x')", []string{"code"}},
		{"remove the library", "import os\nos.unlink('/lib/stdlib.zip')", []string{"code"}},
		{"list the root", "import os\nreturn os.listdir('/')", []string{"code"}},
		{"socket", "import socket\nsocket.create_connection(('127.0.0.1', 80))", []string{"code"}},
		{"thread", "import threading\nthreading.Thread(target=print).start()", []string{"code"}},
		{"process", "import subprocess\nsubprocess.run(['ls'])", []string{"code"}},
		{"fork", "import os\nos.fork()", []string{"code"}},
		{"ctypes", "import ctypes\nctypes.string_at(0)", []string{"code"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			code := "def enrich(value):\n    if value != 1: return value\n    " + strings.ReplaceAll(test.code, "\n", "\n    ")
			if strings.Contains(test.code, "yield") {
				code = strings.Replace(code, "return value", "yield value; return", 1)
			}
			c := load(t, agent("", code), wasmhost.Options{Deadline: deadline, MemoryMax: 64 * mib})
			var res record.Result
			var err error
			var took time.Duration
			for range 3 { // other load on the machine may stretch a run, but hardly three
				retries := c.Stats().Retries.Load()
				begin := time.Now()
				res, err = c.Call(t.Context(), 0, values("0", "1", "2"))
				// Each try has a deadline of its own.
				took = time.Since(begin) / time.Duration(1+c.Stats().Retries.Load()-retries)
				late := len(res.Failures) > 0 && res.Failures[0].Kind == record.FailureDeadline && !slices.Contains(test.want, "deadline")
				if took <= 2*deadline && !late {
					break
				}
			}
			if took > 2*deadline {
				t.Errorf("took %v", took)
			}
			if err != nil || res.Done != 3 {
				t.Fatalf("%s, %v", show(res), err)
			}
			kind, message := "ok", ""
			if len(res.Failures) > 0 {
				f := res.Failures[0]
				kind, message = f.Kind.String(), fmt.Sprintf("%s: %.100s", f.Type, f.Message)
				if f.Record != 1 || len(res.Failures) > 1 {
					t.Errorf("the wrong record: %s", show(res))
				}
				// A million frames or lists may still be being taken down when time is up: then no code of the user's runs.
				after := test.name == "recursion without limit" || test.name == "deep destructor"
				if kind == "deadline" && !strings.Contains(f.Traceback, "agents/orders.yaml:4") && !after {
					t.Errorf("deadline without a traceback: %+v", f)
				}
			}
			t.Logf("%s after %v: %s", kind, took.Round(time.Millisecond), message)
			if !slices.Contains(test.want, kind) {
				t.Errorf("got %s, want one of %v: %s", kind, test.want, message)
			}
			if first, last := res.Outputs[0], res.Outputs[len(res.Outputs)-1]; string(first.Value) != "0" || string(last.Value) != "2" {
				t.Errorf("the records beside it: %s", show(res))
			}
			if res, err = c.Call(t.Context(), 0, values("5")); err != nil || show(res) != "0:5 done=1" {
				t.Errorf("afterwards: %s, %v", show(res), err)
			}
		})
	}
}

// Many workers at once, each with hostile records among its own: everyone gets his own answers, in order.
func TestPythonWorkers(t *testing.T) {
	c := load(t, agent("import os\nbomb = []", `def enrich(value):
    if value % 50 == 7:
        while True: pass
    if value % 50 == 17:
        while True: bomb.append(bytearray(1 << 20))
    if value % 50 == 27:
        os._exit(1)
    if value % 50 == 37:
        return sum(range(10**15))
    return {"v": value}`), wasmhost.Options{Deadline: 50 * time.Millisecond, MemoryMax: 48 << 20})
	var wg sync.WaitGroup
	for slot := range 4 {
		wg.Go(func() {
			for round := range 3 {
				first := 1000*slot + 100*round
				b := &record.Batch{}
				for i := range 60 {
					b.Records = append(b.Records, record.Record{Topic: "in", Value: fmt.Append(nil, first+i), Attempt: 1})
				}
				res, err := c.Call(t.Context(), slot, b)
				if err != nil || res.Done != 60 {
					t.Errorf("%v, done %d", err, res.Done)
					return
				}
				for _, o := range res.Outputs {
					if want := fmt.Sprintf(`{"v":%d}`, first+int(o.Record)); string(o.Value) != want {
						t.Errorf("slot %d: got %s, want %s", slot, o.Value, want)
					}
				}
				failed := ""
				for _, f := range res.Failures {
					failed += fmt.Sprintf("%d!%v ", f.Record, f.Kind)
				}
				// Where others share the processors a memory bomb may meet its deadline first.
				if want := "7!deadline 17!memory 27!trap 37!deadline 57!deadline "; strings.Replace(failed, "17!deadline", "17!memory", 1) != want || len(res.Outputs) != 55 {
					t.Errorf("slot %d: failed %s, %d outputs", slot, failed, len(res.Outputs))
				}
			}
		})
	}
	wg.Wait()
}

// What is wrong with a program is told with the manifest's lines, and a hostile init ends like a hostile record.
func TestPythonLoad(t *testing.T) {
	r := pythonRuntime(t)
	const operation = "def enrich(value):\n    return value"
	for _, test := range []struct {
		name, init, operation string
		want                  error  // nil: a LoadError
		text                  string // of the error
	}{
		{"syntax", "", "def enrich(value):\n    return value +", nil, "agents/orders.yaml:41"},
		{"no function", "", "x = 1", nil, "agents/orders.yaml:40"},
		{"init raises", "import math\nmath.nonsense", operation, nil, "agents/orders.yaml:11"},
		{"import of nothing", "import nothing", operation, nil, "ModuleNotFoundError"},
		{"endless init", "x = 1\nwhile True: pass", operation, nil, "DeadlineExceeded"},
		{"endless init in C", "sum(range(10**15))", operation, wasmhost.ErrDeadline, "deadline"},
		{"memory bomb", "a = []\nwhile True: a.append(bytearray(100000))", operation, nil, "MemoryError"},
		{"exit", "import os\nos._exit(7)", operation, wasmhost.ErrExit, "exit code 7"},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := agent(test.init, test.operation)
			o := wasmhost.Options{LoadDeadline: 300 * time.Millisecond, MemoryMax: 64 << 20, Host: &host{}}
			if !strings.Contains(test.name, "endless") {
				o.LoadDeadline = time.Minute
			}
			_, err := r.Load(t.Context(), p, o)
			if err == nil || !strings.Contains(err.Error(), test.text) {
				t.Fatalf("got %v, want %q", err, test.text)
			}
			var problems *wasmhost.LoadError
			if test.want == nil && !errors.As(err, &problems) || test.want != nil && !errors.Is(err, test.want) {
				t.Errorf("%T: %v", err, err)
			}
			t.Log(err)
			if err := r.Check(t.Context(), p); (err == nil) != (test.name != "syntax" && test.name != "no function") {
				t.Errorf("check: %v", err)
			}
		})
	}
}

// Two instances of one image must not draw the same random numbers, and their clocks must go on.
func TestPythonReseeds(t *testing.T) {
	c := load(t, agent("import random, uuid, os, time, tempfile\nstarted = time.time()", `def enrich(value):
    return [random.random(), str(uuid.uuid4()), os.urandom(8).hex(), str(uuid.uuid1()), time.time() - started, hash("x")]`), wasmhost.Options{})
	time.Sleep(20 * time.Millisecond)
	var got [2][]any
	for slot := range got {
		res, err := c.Call(t.Context(), slot, values("1"))
		if err != nil || len(res.Outputs) != 1 {
			t.Fatal(show(res), err)
		}
		if err := json.Unmarshal(res.Outputs[0].Value, &got[slot]); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 4 {
		if got[0][i] == got[1][i] {
			t.Errorf("%d: both %v", i, got[0][i])
		}
	}
	if age := got[0][4].(float64); age < 0.02 || age > 60 {
		t.Errorf("the image is %v s old", age)
	}
}

// An output's text, headers and partition pass both ways as they are.
func TestPythonSendWaits(t *testing.T) {
	h := &host{}
	p := agent("", "def enrich(value):\n    return value")
	p.Ops = append(p.Ops, abi.Operation{Name: "tell", Send: &abi.Output{Topic: "told", KeySerializer: "raw", ValueSerializer: "json", Ack: true}})
	c := load(t, p, wasmhost.Options{Host: h})
	res, err := c.Call(t.Context(), 0, values(`{"a":1}`))
	if err != nil || len(res.Outputs) != 1 || !strings.Contains(string(res.Outputs[0].Value), `"offset":1`) {
		t.Fatalf("%s, %v, %+v", show(res), err, res.Failures)
	}
	if len(h.sent) != 1 || h.sent[0].Topic != "told" || string(h.sent[0].Value) != `{"a":1}` {
		t.Errorf("%+v", h.sent)
	}
}

// While Python spins, in its own loops or in C, the collector is not held up.
func TestPythonDoesNotHoldUpTheCollector(t *testing.T) {
	for _, code := range []string{"while True: pass", "return sum(range(10**15))", "import re\n    return bool(re.match('(a+)+$', 'a' * 40 + 'b'))"} {
		c := load(t, agent("", "def enrich(value):\n    "+code), wasmhost.Options{Deadline: time.Second})
		var wg sync.WaitGroup
		wg.Go(func() {
			if res, err := c.Call(t.Context(), 0, values("1")); err != nil || show(res) != "0!deadline done=1" {
				t.Errorf("%s, %v", show(res), err)
			}
		})
		paused := wasmhost.Collect(900 * time.Millisecond)
		wg.Wait()
		t.Logf("%.30q: longest stop of the world %v", code, paused)
		if paused > 400*time.Millisecond {
			t.Errorf("%q: the world took %v to stop", code, paused)
		}
	}
}

// An instance that ended is taken back to its image: what calls changed is gone, its randomness is its own, and nothing of the
// record that ended it is left.
func TestPythonReset(t *testing.T) {
	c := load(t, agent("import random\nseen = []", `def enrich(value):
    seen.append(value)
    while value == "loop":
        try:
            while True: pass
        except BaseException:
            pass  # so the instance ends
    return [len(seen), random.random()]`), wasmhost.Options{Deadline: 100 * time.Millisecond})
	randoms := map[float64]bool{}
	for round := range 4 {
		res, err := c.Call(t.Context(), 0, values(`"a"`, `"b"`, `"loop"`))
		if err != nil || len(res.Outputs) != 2 || len(res.Failures) != 1 || res.Failures[0].Type != "DeadlineExceeded" {
			t.Fatal(round, show(res), err)
		}
		for i, o := range res.Outputs {
			var got [2]float64
			if err := json.Unmarshal(o.Value, &got); err != nil {
				t.Fatal(err)
			}
			if got[0] != float64(i+1) {
				t.Errorf("round %d: %v records seen, want %d", round, got[0], i+1)
			}
			randoms[got[1]] = true
		}
	}
	if len(randoms) != 8 {
		t.Errorf("%d different random numbers of 8", len(randoms))
	}
	if restores, live := c.Stats().Restores.Load(), c.Stats().Instances.Load(); restores != 5 || live != 1 {
		t.Errorf("%d restores, %d instances live; want 5 and 1", restores, live)
	}
}

// slowLog takes its time for every line, and forgets it.
type slowLog struct{ host }

func (*slowLog) Log(int, string) { time.Sleep(20 * time.Microsecond) }

// One write of a million lines is one host call, in which no tick comes: it must end at the deadline nevertheless.
func TestWriteEndsAtDeadline(t *testing.T) {
	c := load(t, agent("", `
import os
def f(value):
    if value == 0:
        return os.write(1, b"a\n" * 1_000_000)
    return os.write(1, b"a\n" * value)
`), wasmhost.Options{Deadline: 100 * time.Millisecond, Host: &slowLog{host{t: t}}})
	began := time.Now()
	res, err := c.Call(t.Context(), 0, values("5", "0", "7"))
	took := time.Since(began)
	if err != nil || res.Done != 3 || len(res.Outputs) != 2 || string(res.Outputs[0].Value) != "10" || string(res.Outputs[1].Value) != "14" {
		t.Fatalf("%v %+v", err, res)
	}
	if len(res.Failures) != 1 || res.Failures[0].Record != 1 || res.Failures[0].Kind != record.FailureDeadline {
		t.Errorf("%+v", res.Failures)
	}
	if took > 10*time.Second {
		t.Errorf("it took %v", took)
	}
}

// Each open file is memory of the host's: code that opens one after the other is refused more, and the next instance begins without any.
func TestOpenFilesAreBounded(t *testing.T) {
	c := load(t, agent("", `
import os
def f(value):
    n = 0
    try:
        for i in range(value):
            os.open("/lib/stdlib.zip" if i % 2 else "/lib", os.O_RDONLY)
            n += 1
    except OSError as e:
        pass
    if value == 1:
        while True:
            try:
                while True: pass
            except BaseException: pass
    return n
`), wasmhost.Options{Deadline: 100 * time.Millisecond})
	res, err := c.Call(t.Context(), 0, values("10", "100000", "2", "1", "10"))
	if err != nil || res.Done != 5 || len(res.Failures) != 1 || res.Failures[0].Record != 3 {
		t.Fatalf("%v %+v", err, res)
	}
	var got []string
	for _, o := range res.Outputs {
		got = append(got, string(o.Value))
	}
	want := []string{"10", "53", "0", "10"} // 64 with the folder, which is open as long as its instance
	if !slices.Equal(got, want) {
		t.Errorf("%v files were opened, want %v", got, want)
	}
}
