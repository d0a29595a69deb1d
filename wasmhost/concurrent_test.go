package wasmhost_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"kaspr.io/kaspr/engine/record"
	"kaspr.io/kaspr/wasmhost"
	"kaspr.io/kaspr/wasmhost/abi"
)

// keyed is records with a key and a JSON value each: "key value", "" as the key is Kafka's null.
func keyed(concurrency int, lines ...string) *record.Batch {
	b := &record.Batch{Concurrency: concurrency}
	for i, line := range lines {
		key, value, _ := strings.Cut(line, " ")
		r := record.Record{Topic: "in", Offset: int64(i), Value: []byte(value), Attempt: 1}
		if key != "" {
			r.Key = []byte(key)
		}
		b.Records = append(b.Records, r)
	}
	return b
}

func different(concurrency int, values ...string) *record.Batch {
	for i := range values {
		values[i] = fmt.Sprint("k", i, " ", values[i])
	}
	return keyed(concurrency, values...)
}

func run(t *testing.T, c *wasmhost.Component, b *record.Batch) record.Result {
	t.Helper()
	res, err := c.Call(context.Background(), 0, b)
	if err != nil {
		t.Fatal(err)
	}
	return res
}

// said is a result as text: the values of outputs by topic, "!" and the type of failures, in record order.
func said(res record.Result) string {
	var parts []string
	failures := res.Failures
	add := func(before int32) {
		for len(failures) > 0 && failures[0].Record < before {
			parts, failures = append(parts, fmt.Sprintf("%d!%s", failures[0].Record, failures[0].Type)), failures[1:]
		}
	}
	for _, o := range res.Outputs {
		add(o.Record)
		parts = append(parts, fmt.Sprintf("%d:%s=%s", o.Record, o.Topic, o.Value))
	}
	add(1 << 30)
	return strings.Join(parts, " ")
}

func repeated(n int, value func(i int) string) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = value(i)
	}
	return out
}

// Records whose code sleeps do so together, no more of them than the limit says, and what they make comes in their order.
func TestConcurrentSleep(t *testing.T) {
	c := load(t, agent("import asyncio\nnow = most = 0", `
async def f(v):
    global now, most
    now += 1
    most = max(most, now)
    await asyncio.sleep(0.2 - v / 1000)
    now -= 1
    return [v, most]
`), wasmhost.Options{})
	began := time.Now()
	res := run(t, c, different(10, repeated(40, func(i int) string { return fmt.Sprint(i) })...))
	if took := time.Since(began); took > 4*time.Second { // one after the other it is 7.2 s
		t.Errorf("took %v", took)
	}
	if len(res.Outputs) != 40 {
		t.Fatal(said(res))
	}
	for i, o := range res.Outputs {
		var got []int
		if err := json.Unmarshal(o.Value, &got); err != nil || got[0] != i || got[1] > 10 || (i == 39 && got[1] != 10) {
			t.Errorf("output %d: %s", i, o.Value)
		}
	}
}

// Records of one key run one after the other; those without a key run beside each other.
func TestConcurrentKeys(t *testing.T) {
	c := load(t, agent("import asyncio\nrunning = []", `
async def f(key):
    beside = len(running), key in running
    running.append(key)
    await asyncio.sleep(0.01)
    running.remove(key)
    return beside
`), wasmhost.Options{})
	for _, test := range []struct{ keys, beside, one string }{
		{"a a a", "0,false 0,false 0,false", ""},
		{"a b c a", "0,false 1,false 2,false", "false"}, // how many run beside the last one is a matter of time
		{"- - -", "0,false 1,true 2,true", ""},
	} {
		for _, concurrency := range []int{1, 8} {
			var lines []string
			for key := range strings.SplitSeq(test.keys, " ") {
				lines = append(lines, fmt.Sprintf("%s %q", strings.TrimPrefix(key, "-"), key))
			}
			var want, got []string
			for i, w := range strings.Fields(test.beside) {
				if concurrency == 1 {
					w = "0,false"
				}
				want = append(want, fmt.Sprintf("%d:out=[%s]", i, w))
			}
			got = strings.Fields(said(run(t, c, keyed(concurrency, lines...))))
			if !slices.Equal(got[:len(want)], want) || len(got) != len(lines) || !strings.Contains(got[len(got)-1], test.one) {
				t.Errorf("%s, at most %d at once: %v", test.keys, concurrency, got)
			}
		}
	}
}

// What code sees and sends after it has waited is its own record's, in its tasks too, and asyncio's tools work in each record.
func TestConcurrentContext(t *testing.T) {
	c := load(t, agent("import asyncio\nfrom contextvars import ContextVar\nmine = ContextVar('mine')", `
async def f(v):
    async def part(v, n):
        await asyncio.sleep(0.001 * ((v * 7 + n * 3) % 5))
        await context["app"].send("parts", value=[v, n, context["event"].message.offset, mine.get()])
        return context["event"].value
    mine.set(v)
    await asyncio.sleep(0.001 * (v % 3))
    got = await asyncio.gather(part(v, 0), part(v, 1))
    try:
        await asyncio.wait_for(asyncio.Event().wait(), 0.002)
    except TimeoutError:
        got.append("late")
    try:
        async with asyncio.timeout(0.001):
            await asyncio.sleep(10)
    except TimeoutError:
        got.append("out of time")
    async with asyncio.TaskGroup() as group:
        task = group.create_task(part(v, 2))
    asyncio.create_task(context["app"].send("parts", value=[v, 3, context["event"].message.offset, mine.get()]))
    yield got + [task.result(), mine.get()]
    await asyncio.sleep(0.001)
    yield context["event"].message.offset
`), wasmhost.Options{})
	res := run(t, c, different(64, repeated(30, func(i int) string { return fmt.Sprint(i) })...))
	byRecord := map[int32][]string{}
	for i, o := range res.Outputs {
		if i > 0 && o.Record < res.Outputs[i-1].Record {
			t.Error("outputs of records are not in order")
		}
		byRecord[o.Record] = append(byRecord[o.Record], string(o.Value))
	}
	for v := range int32(30) {
		want := []string{
			fmt.Sprintf("[%d,0,%[1]d,%[1]d]", v), fmt.Sprintf("[%d,1,%[1]d,%[1]d]", v), fmt.Sprintf("[%d,2,%[1]d,%[1]d]", v),
			fmt.Sprintf("[%d,3,%[1]d,%[1]d]", v), fmt.Sprintf(`[%d,%[1]d,"late","out of time",%[1]d,%[1]d]`, v), fmt.Sprint(v),
		}
		got := byRecord[v]
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("record %d: %v", v, got)
		}
	}
	if len(res.Failures) > 0 {
		t.Error(res.Failures[0])
	}
}

// A record that fails takes nothing from the others, whenever it does and however.
func TestConcurrentFailures(t *testing.T) {
	const code = `
async def f(v):
    await context["app"].send("sent", value=v)
    if v == "at once":
        raise KeyError(v)
    await asyncio.sleep(0.01)
    if v == "later":
        raise KeyError(v)
    if v == "loop":
        while True: pass
    if v == "wait":
        while True: await asyncio.sleep(0.01)
    if v == "spin":
        while True: await asyncio.sleep(0)
    if v == "stuck":
        await asyncio.Event().wait()
    if v == "stubborn":
        while True:
            try:
                await asyncio.sleep(0.01)
            except BaseException:
                pass
    if v == "exit":
        import os
        os._exit(3)
    if v == "leave":
        raise SystemExit
    return v
`
	for _, test := range []struct{ value, failure string }{
		{"at once", "KeyError"},
		{"later", "KeyError"},
		{"loop", "DeadlineExceeded"},
		{"wait", "DeadlineExceeded"},
		{"spin", "DeadlineExceeded"},
		{"stuck", "Stuck"},
		{"stubborn", "DeadlineExceeded"},
		{"exit", "Trap"},
		{"leave", "SystemExit"},
	} {
		t.Run(test.value, func(t *testing.T) {
			c := load(t, agent("import asyncio", code), wasmhost.Options{Deadline: 300 * time.Millisecond})
			for _, at := range []int{0, 2, 4} {
				list := []string{`"a"`, `"b"`, `"c"`, `"d"`, `"e"`}
				list[at] = fmt.Sprintf("%q", test.value)
				var want []string
				for i, v := range list {
					if i == at {
						want = append(want, fmt.Sprintf("%d!%s", i, test.failure))
					} else {
						want = append(want, fmt.Sprintf("%d:sent=%s %[1]d:out=%[2]s", i, v))
					}
				}
				began := time.Now()
				res := run(t, c, different(8, list...))
				got := said(res)
				if test.value == "exit" {
					got = strings.ReplaceAll(got, "!SystemExit", "!Trap")
				}
				if got != strings.Join(want, " ") {
					t.Errorf("at %d: %s", at, got)
				}
				if took := time.Since(began); took > 4*time.Second {
					t.Errorf("at %d: took %v", at, took)
				}
				if len(res.Failures) == 1 && res.Failures[0].Operation == "" {
					t.Errorf("at %d: %+v", at, res.Failures[0])
				}
			}
		})
	}
}

// Every record has its own deadline: the sleep of one is not charged to another, and records that wait too long end together.
func TestConcurrentDeadlines(t *testing.T) {
	c := load(t, agent("import asyncio", "async def f(v):\n    await asyncio.sleep(v)\n    return v"), wasmhost.Options{Deadline: time.Second})
	res := run(t, c, different(8, repeated(40, func(int) string { return "0.4" })...)) // 2 s in all
	if len(res.Outputs) != 40 {
		t.Error(said(res))
	}
	began := time.Now()
	res = run(t, c, different(64, repeated(20, func(int) string { return "9" })...))
	if len(res.Failures) != 20 || time.Since(began) > 5*time.Second {
		t.Errorf("after %v: %s", time.Since(began), said(res))
	}
}

// A deadline in the middle of the event loop may take a callback with it that another record waits for: that one must not fail for it.
func TestConcurrentLostCallback(t *testing.T) {
	c := load(t, agent(`
import asyncio
from kaspr import DeadlineExceeded
class Late:
    @property
    def _cancelled(self):
        raise DeadlineExceeded
`, `
async def f(v):
    loop = asyncio.get_running_loop()
    if v == 1 and loop._ready:
        loop._ready.popleft() # what the record before waits for
        task = loop.create_task(asyncio.sleep(0))
        loop._ready.append(Late())
    wake = loop.create_future()
    loop.call_soon(wake.set_result, v)
    return await wake
`), wasmhost.Options{})
	if got := said(run(t, c, different(8, "0", "1", "2"))); got != "0:out=0 1:out=1 2:out=2" {
		t.Error(got)
	}
}

// After a failure that is to end the call nothing counts of the records behind it, and everything of those before it.
func TestConcurrentStopOnFailure(t *testing.T) {
	p := agent("import asyncio\nseen = []", `
async def f(v, t):
    t["k"] = v
    seen.append(v)
    await asyncio.sleep(0.03 if v < 3 else 0.001)
    if v == 3:
        raise KeyError(v)
    await context["app"].send("sent", value=v)
    return v
`)
	p.Tables = []abi.Table{{Name: "t", KeySerializer: "json", ValueSerializer: "json"}}
	p.Ops[0].Tables = []abi.TableRef{{Name: "t", ParamName: "t"}}
	p.Ops[0].Map.Python = strings.Replace(p.Ops[0].Map.Python, `t["k"]`, `t[v]`, 1)
	c := load(t, p, wasmhost.Options{Tables: memoryTables{}})
	b := different(8, "0", "1", "2", "3", "4", "5")
	b.StopOnFailure = true
	res := run(t, c, b)
	if got := said(res); got != "0:sent=0 0:out=0 1:sent=1 1:out=1 2:sent=2 2:out=2 3!KeyError" || res.Done != 4 {
		t.Errorf("%d done: %s", res.Done, got)
	}
	var changed []string
	for _, ch := range res.Changes {
		changed = append(changed, string(ch.Key))
	}
	if !slices.Equal(changed, []string{"0", "1", "2"}) {
		t.Error(changed)
	}
}

// A table is used as if records ran one after the other, whatever keys they and its entries have.
func TestConcurrentTables(t *testing.T) {
	for _, test := range []struct{ name, code string }{
		{"own entries", "n = t.get(v['k'], 0)\n    await asyncio.sleep(0.001)\n    t[v['k']] = n + 1\n    return n"},
		{"one entry", "n = t.get('all', 0)\n    await asyncio.sleep(0.001)\n    t['all'] = n + 1\n    return n"},
		{"one entry, later ones first", "await asyncio.sleep(0.02 - v['n'] / 1000)\n    t['all'] = n = t.get('all', 0) + 1\n    return n"},
		{"scan", "seen = len(list(t.keys()))\n    await asyncio.sleep(0.001)\n    t[v['n']] = seen\n    return seen"},
		{"written by some", "await asyncio.sleep(0.001 * (v['n'] % 3))\n    if v['n'] % 4 == 0:\n        t['all'] = v['n']\n    await asyncio.sleep(0.001)\n    return t.get('all', -1)"},
		{"one fails", "t['all'] = v['n']\n    await asyncio.sleep(0.002)\n    if v['n'] == 3: raise KeyError\n    return t['all']"},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := agent("import asyncio", "async def f(v, t):\n    "+test.code+"\n")
			p.Tables = []abi.Table{{Name: "t", KeySerializer: "json", ValueSerializer: "json"}}
			p.Ops[0].Tables = []abi.TableRef{{Name: "t", ParamName: "t"}}
			lines := repeated(12, func(i int) string { return fmt.Sprintf(`%s {"n": %d, "k": %d}`, "abcdefg"[i%7:i%7+1], i, i%7) })
			var results []record.Result
			for _, concurrency := range []int{1, 8} {
				res := run(t, load(t, p, wasmhost.Options{Tables: memoryTables{}}), keyed(concurrency, lines...))
				res.Elapsed, res.Waited = 0, 0
				results = append(results, res)
			}
			if !reflect.DeepEqual(results[0], results[1]) {
				t.Errorf("one after the other:\n%s\n%v\nat once:\n%s\n%v", said(results[0]), results[0].Changes, said(results[1]), results[1].Changes)
			}
		})
	}
}

// Messages that are sent and waited for are waited for together, and each record gets the answer to its own.
func TestConcurrentAcks(t *testing.T) {
	p := agent("", "def f(v): return v")
	p.Ops = append(p.Ops,
		abi.Operation{Name: "send", Send: &abi.Output{
			Topic: "acked", KeySerializer: "raw", ValueSerializer: "json", Ack: true,
			Predicate: &abi.Code{Python: "def check(v): return v != 7 or 1 / 0", File: "a.yaml", Line: 1, Where: "predicate"},
		}},
		abi.Operation{Name: "answer", Map: &abi.Code{Python: "def g(m): return [m['offset'], context['event'].value]", File: "a.yaml", Line: 9, Where: "answer"}})
	h := &host{t: t, ack: 50 * time.Millisecond}
	c := load(t, p, wasmhost.Options{Host: h})
	began := time.Now()
	res := run(t, c, different(64, repeated(50, func(i int) string { return fmt.Sprint(i) })...))
	if took := time.Since(began); took > time.Second {
		t.Errorf("took %v", took) // one after the other 2.5 s
	}
	if len(h.sent) != 49 || len(res.Outputs) != 49 || len(res.Failures) != 1 || res.Failures[0].Record != 7 || res.Repeated {
		t.Fatal(len(h.sent), said(res))
	}
	for i, o := range res.Outputs {
		var got [2]int
		if err := json.Unmarshal(o.Value, &got); err != nil || string(h.sent[got[0]-1].Value) != fmt.Sprint(got[1]) || int(o.Record) != got[1] {
			t.Errorf("output %d: %s", i, o.Value)
		}
	}
}

// A host that refuses a message fails the record that sent it, and only that.
func TestConcurrentRefusedSend(t *testing.T) {
	p := agent("", "def f(v): return v")
	p.Ops = append(p.Ops, abi.Operation{Name: "send", Send: &abi.Output{Topic: "acked", KeySerializer: "raw", ValueSerializer: "json", Ack: true}},
		abi.Operation{Name: "answer", Map: &abi.Code{Python: "def g(m): return context['event'].value", File: "a.yaml", Line: 9, Where: "answer"}})
	c := load(t, p, wasmhost.Options{Host: &host{t: t, ack: time.Millisecond, refuse: "2"}})
	res := run(t, c, different(8, "0", "1", "2", "3"))
	if got := said(res); got != "0:out=0 1:out=1 2!SendError 3:out=3" || res.Failures[0].Kind != record.FailureSend {
		t.Error(got, res.Failures)
	}
}

// When an instance ends, records that had sent something run again, and the caller is told.
func TestConcurrentRepeated(t *testing.T) {
	p := agent("import os", "def f(v): return v")
	p.Ops = append(p.Ops, abi.Operation{Name: "send", Send: &abi.Output{Topic: "acked", KeySerializer: "raw", ValueSerializer: "json", Ack: true}},
		abi.Operation{Name: "end", Map: &abi.Code{Python: "def g(m):\n    if context['event'].value == 2: os._exit(1)\n    return context['event'].value", File: "a.yaml", Line: 9, Where: "end"}})
	for _, concurrency := range []int{1, 8} {
		var logs bytes.Buffer
		c := load(t, p, wasmhost.Options{Host: &host{t: t, ack: time.Millisecond}, Logger: slog.New(slog.NewTextHandler(&logs, nil))})
		res := run(t, c, different(concurrency, "0", "1", "2", "3"))
		if got := said(res); got != "0:out=0 1:out=1 2!SystemExit 3:out=3" || !res.Repeated {
			t.Errorf("at most %d at once: %s, repeated %v\n%s", concurrency, got, res.Repeated, logs.String())
		}
	}
}

// Whatever mixture of waiting, sending, failing and writing records are: at once they make what they make one after the other.
func TestConcurrentEquivalence(t *testing.T) {
	p := agent("import asyncio, os", `
async def f(v, t):
    for what, n in v:
        if what == "sleep":
            await asyncio.sleep(n / 1000)
        elif what == "send":
            await context["app"].send("sent", value=[context["event"].message.offset, n])
        elif what == "both":
            await asyncio.gather(asyncio.sleep(n / 1000), context["app"].send("both", value=n))
        elif what == "yield":
            yield [n, context["event"].message.offset]
        elif what == "fail":
            raise KeyError(n)
        elif what == "exit":
            os._exit(1)
        elif what == "add":
            now = t.get(n, 0)
            await asyncio.sleep(0)
            t[n] = now + 1
            yield now + 1
        elif what == "count":
            yield sum(1 for _ in t.keys())
        elif what == "drop":
            t.pop(n, None)
`)
	p.Tables = []abi.Table{{Name: "t", KeySerializer: "json", ValueSerializer: "json"}}
	p.Ops[0].Tables = []abi.TableRef{{Name: "t", ParamName: "t"}}
	p.Ops = append(p.Ops,
		abi.Operation{Name: "again", Map: &abi.Code{Python: "import asyncio\nasync def g(v):\n    yield v\n    await asyncio.sleep(0.001)\n    yield [v]", File: "b.yaml", Line: 1, Where: "again"}},
		abi.Operation{Name: "keep", Filter: &abi.Code{Python: "import asyncio\nasync def h(v):\n    await asyncio.sleep(0)\n    return v != 3", File: "c.yaml", Line: 1, Where: "keep"}})
	c := load(t, p, wasmhost.Options{Tables: memoryTables{}})
	seed := uint64(time.Now().UnixNano())
	for round := range 60 {
		r := rand.New(rand.NewPCG(seed, uint64(round)))
		shared := round%3 == 0 // entries of several records' keys
		lines := repeated(1+r.IntN(30), func(int) string {
			key := r.IntN(8)
			var steps [][2]any
			for range r.IntN(5) {
				what := []string{"sleep", "sleep", "send", "both", "yield", "yield", "fail", "add", "drop", "count"}[r.IntN(10)]
				n := r.IntN(4)
				if what == "count" && !shared {
					continue
				}
				if (what == "add" || what == "drop") && !shared {
					n = 10 + key
				}
				steps = append(steps, [2]any{what, n})
			}
			text, err := json.Marshal(steps)
			if err != nil || steps == nil {
				text = []byte("[]")
			}
			return fmt.Sprint(key, " ", string(text))
		})
		stop := r.IntN(3) == 0
		var results []record.Result
		for _, concurrency := range []int{1, 2, 16} {
			b := keyed(concurrency, lines...)
			b.StopOnFailure = stop
			run(t, c, keyed(1, `x [["exit", 0]]`)) // an instance remembers that records got into each other's way
			res := run(t, c, b)
			res.Elapsed, res.Waited = 0, 0
			results = append(results, res)
		}
		for i := 1; i < len(results); i++ {
			if !reflect.DeepEqual(results[0], results[i]) {
				t.Fatalf("seed %d, round %d, stop %v:\n%s\none after the other: %s %d\nat once: %s %d\n%v\n%v", seed, round, stop, strings.Join(lines, "\n"),
					said(results[0]), results[0].Done, said(results[i]), results[i].Done, results[0].Changes, results[i].Changes)
			}
		}
	}
}
