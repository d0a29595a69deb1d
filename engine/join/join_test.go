package join

import (
	"bytes"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"kaspr.io/kaspr/engine/record"
	"kaspr.io/kaspr/wasmhost/abi"
)

// memory is one partition of a side's table.
type memory map[string][]byte

func (m memory) Get(key []byte) ([]byte, error) { return m[string(key)], nil }

func (m memory) Scan(prefix, after []byte, each func(key, value []byte) bool) error {
	var keys []string
	for k := range m {
		if strings.HasPrefix(k, string(prefix)) && (after == nil || k > string(after)) {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	for _, k := range keys {
		if !each([]byte(k), m[k]) {
			break
		}
	}
	return nil
}

// world is a join with its topics as queues, served in whatever order the test says.
type world struct {
	t             *testing.T
	j             Join
	lefts, rights []memory          // tables of the sides, by partition
	queues        [][]record.Record // see queue
	foreign       func(v []byte) []byte
	results       []result
}

type result struct {
	key                   string // left key; "-": none
	change                byte
	left, right, rightKey string // "-": None
}

func (r result) String() string {
	return fmt.Sprintf("%s: (%s, %s) of %s, %s", r.key, r.left, r.right, r.rightKey, []string{"", "left", "right"}[r.change])
}

const (
	leftPartitions  = 3
	tablePartitions = 2 // of the right table
	rightPartitions = 4 // of the right topic
)

// Queues, by their first partition.
const (
	leftLog  = 0
	rightLog = leftLog + leftPartitions
	asked    = rightLog + tablePartitions
	answers  = asked + rightPartitions
	queues   = answers + leftPartitions
)

func newWorld(t *testing.T, j Join) *world {
	j.RightTopic, j.AnswerTopic, j.Channel = "right", "answers", "channel"
	w := &world{t: t, j: j, queues: make([][]record.Record, queues)}
	for range leftPartitions {
		w.lefts = append(w.lefts, memory{})
	}
	for range rightPartitions {
		w.rights = append(w.rights, memory{})
	}
	// A value is its foreign key, "/" and more; without a key before it there is none.
	w.foreign = func(v []byte) []byte {
		key, _, _ := bytes.Cut(v, []byte("/"))
		if len(key) == 0 {
			return nil
		}
		return key
	}
	return w
}

func (w *world) put(queue int, key, value string) {
	r := record.Record{Key: []byte(key)}
	if value != "" {
		r.Value = []byte(value)
	}
	w.queues[queue] = append(w.queues[queue], r)
}

// serve takes up to n records of a queue.
func (w *world) serve(queue, n int) {
	w.t.Helper()
	n = min(n, len(w.queues[queue]))
	recs := slices.Clone(w.queues[queue][:n])
	w.queues[queue] = w.queues[queue][n:]
	var res record.Result
	var err error
	var table memory
	number := func(first int) int32 {
		for i := range recs {
			recs[i].Partition = int32(queue - first)
		}
		return int32(queue - first)
	}
	switch {
	case queue >= answers:
		table = w.lefts[number(answers)]
		res, err = w.j.Answers(table, recs)
	case queue >= asked:
		table = w.rights[number(asked)]
		res, err = w.j.Right(table, recs)
	case queue >= rightLog:
		number(rightLog)
		res = w.j.Rows(recs)
	default:
		table = w.lefts[number(leftLog)]
		res, err = w.j.Left(table, recs, func(i int) ([]byte, bool) { return w.foreign(recs[i].Value), true })
	}
	if err != nil || len(res.Failures) > 0 || res.Done != len(recs) {
		w.t.Fatalf("queue %d: %v, %v, %d of %d", queue, err, res.Failures, res.Done, len(recs))
	}
	for _, c := range res.Changes {
		if c.Value == nil {
			delete(table, string(c.Key))
		} else {
			table[string(c.Key)] = c.Value
		}
	}
	for _, o := range res.Outputs {
		w.route(o)
	}
}

func (w *world) route(o record.Output) {
	w.t.Helper()
	r := record.Record{Key: o.Key, Value: o.Value}
	switch o.Topic {
	case "right":
		n := o.Partition
		if n == record.PartitionByKey {
			n = 0
			for _, b := range o.Key {
				n = (n + int32(b)) % rightPartitions
			}
		}
		w.queues[asked+n] = append(w.queues[asked+n], r)
	case "answers":
		w.queues[answers+o.Partition] = append(w.queues[answers+o.Partition], r)
	case "channel":
		w.results = append(w.results, resultOf(w.t, o))
	default:
		w.t.Fatalf("output to %q", o.Topic)
	}
}

func resultOf(t *testing.T, o record.Output) result {
	t.Helper()
	v := o.Value
	r := result{key: "-", change: v[1]}
	if v[0] != abi.ChannelJoined {
		t.Fatalf("a result of kind %d", v[0])
	}
	if o.Key != nil {
		r.key = string(o.Key[1:])
	}
	v = v[2:]
	for _, to := range []*string{&r.left, &r.right, &r.rightKey} {
		n := int32(binary.LittleEndian.Uint32(v))
		v = v[4:]
		if *to = "-"; n >= 0 {
			*to, v = string(v[1:n]), v[n:]
		}
	}
	return r
}

// drain serves everything, queue by queue.
func (w *world) drain() {
	w.t.Helper()
	for busy := true; busy; {
		busy = false
		for q := range w.queues {
			for len(w.queues[q]) > 0 {
				w.serve(q, 2)
				busy = true
			}
		}
	}
}

// take is the results since the last call.
func (w *world) take() string {
	var lines []string
	for _, r := range w.results {
		lines = append(lines, r.String())
	}
	w.results = nil
	return strings.Join(lines, "; ")
}

// What a change of a row sends must be what join.md 3 says, and what the extensions promise.
func TestResults(t *testing.T) {
	inner, left := Join{Unchanged: true}, Join{Unchanged: true, KeepLeft: true}
	outer := Join{Unchanged: true, KeepLeft: true, KeepRight: true}
	with := func(j Join, retractions, unchanged bool) Join {
		j.Retractions, j.Unchanged = retractions, unchanged
		return j
	}
	joins := []struct {
		name string
		Join
	}{{"inner", inner}, {"left", left}, {"outer", outer}, {"inner-", with(inner, true, false)}, {"left-", with(left, true, false)}, {"outer-", with(outer, true, false)}}
	type change struct {
		left       bool
		key, value string    // no value: deleted
		want       [6]string // by join
	}
	same := func(text string) [6]string { return [6]string{text, text, text, text, text, text} }
	cases := map[string][]change{
		"left row first": {
			{true, "l", "a/1", [6]string{"", "l: (a/1, -) of a, left", "l: (a/1, -) of a, left", "", "l: (a/1, -) of a, left", "l: (a/1, -) of a, left"}},
			{false, "a", "A", same("l: (a/1, A) of a, right")},
			{true, "l", "a/1", [6]string{"l: (a/1, A) of a, left", "l: (a/1, A) of a, left", "l: (a/1, A) of a, left", "", "", ""}},
			{true, "l", "a/2", same("l: (a/2, A) of a, left")},
			{false, "a", "A", [6]string{"l: (a/2, A) of a, right", "l: (a/2, A) of a, right", "l: (a/2, A) of a, right", "", "", ""}},
		},
		"right row first": {
			{false, "a", "A", [6]string{"", "", "-: (-, A) of a, right", "", "", "-: (-, A) of a, right"}},
			{true, "l", "a/1", same("l: (a/1, A) of a, left")},
			{true, "m", "a/2", same("m: (a/2, A) of a, left")},
			{false, "a", "AA", same("l: (a/1, AA) of a, right; m: (a/2, AA) of a, right")},
			{false, "b", "B", [6]string{"", "", "-: (-, B) of b, right", "", "", "-: (-, B) of b, right"}},
			{false, "b", "", [6]string{"", "", "", "", "", "-: (-, -) of b, right"}},
		},
		"foreign key changes": {
			{false, "a", "A", [6]string{"", "", "-: (-, A) of a, right", "", "", "-: (-, A) of a, right"}},
			{false, "b", "B", [6]string{"", "", "-: (-, B) of b, right", "", "", "-: (-, B) of b, right"}},
			{true, "l", "a/1", same("l: (a/1, A) of a, left")},
			{true, "l", "b/1", [6]string{"l: (b/1, B) of b, left", "l: (b/1, B) of b, left", "-: (-, A) of a, left; l: (b/1, B) of b, left", "l: (b/1, B) of b, left", "l: (b/1, B) of b, left", "-: (-, A) of a, left; l: (b/1, B) of b, left"}},
			{false, "a", "AA", [6]string{"", "", "-: (-, AA) of a, right", "", "", "-: (-, AA) of a, right"}},
			{true, "l", "c/1", [6]string{
				"", "l: (c/1, -) of c, left", "-: (-, B) of b, left; l: (c/1, -) of c, left",
				"l: (c/1, -) of c, left", "l: (c/1, -) of c, left", "-: (-, B) of b, left; l: (c/1, -) of c, left",
			}},
		},
		"no foreign key": {
			{true, "l", "/1", [6]string{"", "l: (/1, -) of -, left", "l: (/1, -) of -, left", "", "l: (/1, -) of -, left", "l: (/1, -) of -, left"}},
			{false, "a", "A", [6]string{"", "", "-: (-, A) of a, right", "", "", "-: (-, A) of a, right"}},
			{true, "l", "a/1", same("l: (a/1, A) of a, left")},
			{true, "l", "/2", [6]string{
				"", "l: (/2, -) of -, left", "l: (/2, -) of -, left; -: (-, A) of a, left",
				"l: (/2, -) of -, left", "l: (/2, -) of -, left", "l: (/2, -) of -, left; -: (-, A) of a, left",
			}},
			{true, "l", "", [6]string{"", "", "", "", "l: (-, -) of -, left", "l: (-, -) of -, left"}},
		},
		"deletes": {
			{false, "a", "A", [6]string{"", "", "-: (-, A) of a, right", "", "", "-: (-, A) of a, right"}},
			{true, "l", "a/1", same("l: (a/1, A) of a, left")},
			{false, "a", "", [6]string{"", "l: (a/1, -) of a, right", "l: (a/1, -) of a, right", "l: (a/1, -) of a, right", "l: (a/1, -) of a, right", "l: (a/1, -) of a, right"}},
			{false, "a", "", same("")}, // there was none
			{false, "a", "A", same("l: (a/1, A) of a, right")},
			{true, "l", "", [6]string{"", "", "-: (-, A) of a, left", "l: (-, A) of a, left", "l: (-, A) of a, left", "-: (-, A) of a, left; l: (-, A) of a, left"}},
			{true, "l", "", same("")},
			{false, "a", "AA", [6]string{"", "", "-: (-, AA) of a, right", "", "", "-: (-, AA) of a, right"}},
		},
	}
	for name, changes := range cases {
		for i, j := range joins {
			t.Run(name+"/"+j.name, func(t *testing.T) {
				w := newWorld(t, j.Join)
				for n, c := range changes {
					if c.left {
						w.put(leftLog+1, c.key, c.value)
					} else {
						w.put(rightLog+1, c.key, c.value)
					}
					w.drain()
					if got := w.take(); got != c.want[i] {
						t.Errorf("change %d: %q, want %q", n+1, got, c.want[i])
					}
				}
			})
		}
	}
}

// A foreign key that cannot be told must leave the row's old result and subscription as they are.
func TestUnknownForeignKey(t *testing.T) {
	w := newWorld(t, Join{Unchanged: true, KeepLeft: true})
	w.put(rightLog, "a", "A")
	w.put(leftLog, "l", "a/1")
	w.drain()
	w.take()
	res, err := w.j.Left(w.lefts[0], []record.Record{{Key: []byte("l"), Value: []byte("b/2")}}, func(int) ([]byte, bool) { return nil, false })
	if err != nil || len(res.Outputs)+len(res.Changes) > 0 || res.Done != 1 {
		t.Errorf("%+v, %v", res, err)
	}
	w.put(rightLog, "a", "AA")
	w.drain()
	if got := w.take(); got != "l: (a/1, AA) of a, right" {
		t.Error(got)
	}
}

// An answer to what a left row was before must not be a result: neither once more, nor with a row it does not refer to any more.
func TestStaleAnswers(t *testing.T) {
	for name, change := range map[string]func(w *world){
		"value":     func(w *world) { w.put(leftLog, "l", "a/2") },
		"extractor": func(w *world) { w.foreign = func([]byte) []byte { return []byte("b") }; w.put(leftLog, "l", "a/1") },
	} {
		w := newWorld(t, Join{Unchanged: true})
		w.put(rightLog, "a", "A")
		w.put(rightLog, "b", "B")
		w.drain()
		w.put(leftLog, "l", "a/1")
		w.serve(leftLog, 1)
		w.put(rightLog, "a", "AA") // its subscriber is told of that, too
		for _, q := range []int{asked, asked + 1, asked + 2, asked + 3, rightLog, asked, asked + 1, asked + 2, asked + 3} {
			w.serve(q, 1)
		}
		change(w)
		w.serve(leftLog, 1)
		w.drain()
		want := map[string]string{"value": "l: (a/2, AA) of a, left", "extractor": "l: (a/1, B) of b, left"}[name]
		if got := w.take(); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}

// A right row whose last subscribers leave while they are being told must not look as if it never had one.
func TestFanOutEnds(t *testing.T) {
	w := newWorld(t, Join{KeepLeft: true, KeepRight: true})
	w.rights[1][string(rowKey([]byte("a")))] = []byte("A")
	w.queues[asked+1] = []record.Record{{Key: []byte("a"), Value: request{kind: kindContinue, after: subscriber([]byte("a"), 0, []byte("l"))}.encode()}}
	w.drain()
	if got := w.take(); got != "" {
		t.Error(got)
	}
}

// A right row with more subscribers than a step may answer must reach all of them all the same, each once.
func TestFanOut(t *testing.T) {
	j := Join{RightTopic: "right", AnswerTopic: "answers"}
	table := memory{}
	for i := range 25 {
		table[string(subscriber([]byte("a"), int32(i%3), fmt.Appendf(nil, "l%02d", i)))] = make([]byte, hashSize)
	}
	table[string(subscriber([]byte("aa"), 0, []byte("other")))] = make([]byte, hashSize)
	told := map[string]int{}
	next := record.Record{Partition: 2, Key: []byte("a"), Value: request{kind: kindRow, row: []byte("A")}.encode()}
	for steps := 1; ; steps++ {
		s := newStep(table, 1)
		s.fanOutMax = 10
		if err := j.right(s, &next); err != nil {
			t.Fatal(err)
		}
		for _, c := range s.result.Changes {
			table[string(c.Key)] = c.Value
		}
		next.Value = nil
		for _, o := range s.result.Outputs {
			if o.Topic == "right" {
				if o.Partition != 2 {
					t.Errorf("goes on in partition %d", o.Partition)
				}
				next.Value = o.Value
				continue
			}
			a, err := answerOf(o.Key)
			if err != nil {
				t.Fatal(err)
			}
			if string(o.Value) != "A" {
				t.Errorf("%s is told %q", a.left, o.Value)
			}
			told[string(a.left)]++
		}
		if next.Value == nil {
			if steps != 3 {
				t.Errorf("%d steps for 25 subscribers, 10 at a time", steps)
			}
			break
		}
	}
	if len(told) != 25 || told["other"] != 0 {
		t.Errorf("%d told: %v", len(told), told)
	}
	for l, n := range told {
		if n != 1 {
			t.Errorf("%s told %d times", l, n)
		}
	}
}

var seed = flag.Uint64("seed", 0, "seed of TestRandom; 0: several")

// Whatever comes first, and however much at a time, the last result of each left row must be that of what both rows are.
func TestRandom(t *testing.T) {
	seeds := []uint64{*seed}
	if *seed == 0 {
		seeds = nil
		for range 300 {
			seeds = append(seeds, rand.Uint64())
		}
	}
	for _, s := range seeds {
		rng := rand.New(rand.NewPCG(s, 1))
		j := Join{KeepLeft: rng.IntN(2) == 0, Retractions: rng.IntN(2) == 0, Unchanged: rng.IntN(2) == 0}
		j.KeepRight = j.KeepLeft && rng.IntN(2) == 0
		if problem := random(t, rng, j); problem != "" {
			t.Fatalf("%s\n%+v: go test ./engine/join -run TestRandom -seed %d", problem, j, s)
		}
	}
}

func random(t *testing.T, rng *rand.Rand, j Join) string {
	w := newWorld(t, j)
	lefts, rights := map[string]string{}, map[string]string{}
	for range 400 {
		switch rng.IntN(8) {
		case 0:
			key := fmt.Sprint("l", rng.IntN(6))
			value := fmt.Sprintf("%s/%d", []string{"", "a", "b", "c", "d"}[rng.IntN(5)], rng.IntN(3))
			if rng.IntN(4) == 0 {
				value = ""
			}
			lefts[key] = value
			w.put(leftLog+int(key[1])%leftPartitions, key, value)
		case 1:
			key := string("abcd"[rng.IntN(4)])
			value := fmt.Sprint("R", rng.IntN(3))
			if rng.IntN(4) == 0 {
				value = ""
			}
			rights[key] = value
			w.put(rightLog+int(key[0])%tablePartitions, key, value)
		default:
			w.serve(rng.IntN(queues), 1+rng.IntN(5))
		}
	}
	w.drain()
	last, lastRight := map[string]result{}, map[string]result{}
	for _, r := range w.results {
		if r.key == "-" {
			lastRight[r.rightKey] = r
		} else {
			last[r.key] = r
		}
	}
	or := func(v string) string {
		if v == "" {
			return "-"
		}
		return v
	}
	referred := map[string]bool{}
	for key, value := range lefts {
		got, sent := last[key]
		if value == "" {
			if j.Retractions && sent && got.left != "-" && (j.KeepLeft || got.right != "-") { // an inner result ends with either side
				return fmt.Sprintf("%s is gone, its last result is %s", key, got)
			}
			continue
		}
		foreign := string(w.foreign([]byte(value)))
		referred[foreign] = true
		right := or(rights[foreign])
		switch {
		case right != "-" || j.KeepLeft:
			if got.left != value || got.right != right {
				return fmt.Sprintf("%s is (%s, %s), its last result %s", key, value, right, got)
			}
		case j.Retractions && sent && got.left != "-" && got.right != "-":
			return fmt.Sprintf("%s has no right row, its last result is %s", key, got)
		}
	}
	for key, value := range rights {
		got, sent := lastRight[key]
		switch {
		case !j.KeepRight:
			if sent {
				return fmt.Sprintf("a right row alone: %s", got)
			}
		case value != "" && !referred[key]:
			if got.right != value {
				return fmt.Sprintf("%s is %s and alone, its last result %s", key, value, got)
			}
		}
	}
	for q := range w.queues {
		if len(w.queues[q]) > 0 {
			return "not drained"
		}
	}
	n := 0
	for _, m := range w.rights {
		for k := range m {
			if k[0] == 's' {
				n++
			}
		}
	}
	want := 0
	for _, value := range lefts {
		if value != "" && w.foreign([]byte(value)) != nil {
			want++
		}
	}
	if n != want {
		return fmt.Sprintf("%d subscriptions for %d rows", n, want)
	}
	return ""
}

// Whatever stands in a join's topics and tables, it must end in an error of the record.
func FuzzBytes(f *testing.F) {
	f.Add([]byte("a"), request{kind: kindSubscribe, partition: 3, left: []byte("l")}.encode(), []byte{0, 0, 0, 1})
	f.Add([]byte("a"), request{kind: kindRow, row: []byte("A")}.encode(), []byte("l"))
	f.Add([]byte("a"), request{kind: kindRetract, left: []byte("l")}.encode(), []byte{})
	f.Add(answer{kind: answerRight, key: []byte("a"), left: []byte("l")}.encode(), []byte("A"), (&leftRow{key: []byte("a"), value: []byte("v")}).encode())
	f.Fuzz(func(t *testing.T, key, value, stored []byte) {
		table := memory{"l": stored, string(key): stored, string(rowKey(key)): stored, string(subscribers(key)) + string(stored): value}
		j := Join{KeepLeft: true, KeepRight: true, Retractions: true}
		recs := []record.Record{{Key: key, Value: value}, {Key: value, Value: key}, {Key: key}}
		for _, f := range []func() (record.Result, error){
			func() (record.Result, error) { return j.Right(table, recs) },
			func() (record.Result, error) { return j.Answers(table, recs) },
			func() (record.Result, error) {
				return j.Left(table, recs, func(i int) ([]byte, bool) { return recs[i].Key, true })
			},
		} {
			if res, err := f(); err != nil || res.Done != len(recs) {
				t.Errorf("%+v, %v", res, err)
			}
		}
	})
}

// A table that cannot be read must stop the batch: its records are no failures.
func TestTableFails(t *testing.T) {
	j := Join{}
	recs := []record.Record{{Key: []byte("a"), Value: request{kind: kindRow, row: []byte("A")}.encode()}}
	if _, err := j.Right(broken{}, recs); !errors.Is(err, errBroken) {
		t.Errorf("right: %v", err)
	}
	if _, err := j.Left(broken{}, recs, func(int) ([]byte, bool) { return nil, true }); !errors.Is(err, errBroken) {
		t.Errorf("left: %v", err)
	}
	recs[0].Key = answer{kind: answerLeft}.encode()
	if _, err := j.Answers(broken{}, recs); !errors.Is(err, errBroken) {
		t.Errorf("answers: %v", err)
	}
}

var errBroken = errors.New("broken")

type broken struct{}

func (broken) Get([]byte) ([]byte, error)                             { return nil, errBroken }
func (broken) Scan(_, _ []byte, _ func(key, value []byte) bool) error { return errBroken }
