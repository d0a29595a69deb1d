package plan

import (
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"kaspr.io/kaspr/engine/config"
	"kaspr.io/kaspr/engine/manifest"
)

//go:generate go test . -run TestGolden -rewrite

var rewrite = flag.Bool("rewrite", false, "rewrite the expected text in testdata")

// What the engine runs is exactly what the manifests and settings say. testdata/NAME.yaml begins with comments that
// hold settings ("# set key=value"), variables ("# env NAME=value") and partitions of topics that exist ("# exists
// TOPIC=N"); NAME.golden is the problems and the plan.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal("no testdata", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".yaml"), func(t *testing.T) {
			content, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var out strings.Builder
			p, cfg, problems := planOf(t, filepath.Base(file), string(content))
			for _, e := range problems {
				fmt.Fprintln(&out, e)
			}
			if p != nil {
				show(t, &out, p)
				showTables(&out, p, cfg, string(content))
			}
			golden := strings.TrimSuffix(file, ".yaml") + ".golden"
			if *rewrite {
				if err := os.WriteFile(golden, []byte(out.String()), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if out.String() != string(want) {
				t.Errorf("%s differs (go test -rewrite writes it anew)\n--- got\n%s--- want\n%s", golden, out.String(), want)
			}
		})
	}
}

// showTables shows a plan's tables and what becomes of their partitions.
func showTables(out *strings.Builder, p *Plan, cfg config.Config, content string) {
	if len(p.Tables)+len(p.Own) == 0 {
		return
	}
	exist := map[string]int32{}
	for line := range strings.Lines(content) {
		var n int32
		if rest, ok := strings.CutPrefix(line, "# exists "); ok {
			topic, count, _ := strings.Cut(strings.TrimSpace(rest), "=")
			if _, err := fmt.Sscan(count, &n); err != nil {
				fmt.Fprintf(out, "exists %s: %v\n", rest, err)
			}
			exist[topic] = n
		}
	}
	counts, own, problems := p.Partitions(cfg, exist)
	for i, t := range p.Tables {
		text, _ := json.Marshal(t.Guest)
		fmt.Fprintf(out, "%s: %d partitions, changelog %s, %d replicas, %v, options %v\n  %s\n", t.Label, counts[i], t.Changelog.Name,
			t.Changelog.Replicas, t.Changelog.Config, t.Options, text)
		if t.Writes.Name != "" {
			fmt.Fprintf(out, "  writes %s, %d replicas, %v\n", t.Writes.Name, t.Writes.Replicas, t.Writes.Config)
		}
	}
	for i, o := range p.Own {
		fmt.Fprintf(out, "%s: %d partitions, topic %s, %d replicas, %v\n", o.For, own[i], o.Name, o.Replicas, o.Config)
	}
	for _, a := range p.Agents {
		fmt.Fprintf(out, "%s: group %d, tables %v\n", a.Label, a.Group, a.Tables)
	}
	for _, e := range problems {
		fmt.Fprintln(out, e)
	}
}

// planOf reads a manifest with the settings in its first lines and plans the app.
func planOf(t *testing.T, name, content string) (*Plan, config.Config, manifest.Errors) {
	t.Helper()
	src := config.Sources{Flags: map[string]string{}}
	for line := range strings.Lines(content) {
		if rest, ok := strings.CutPrefix(line, "# set "); ok {
			key, value, _ := strings.Cut(strings.TrimSpace(rest), "=")
			src.Flags[key] = value
		}
		if rest, ok := strings.CutPrefix(line, "# env "); ok {
			src.Environ = append(src.Environ, strings.TrimSpace(rest))
		}
	}
	set, problems := manifest.Parse(name, []byte(content))
	layers := config.Read(src)
	app, more := set.ChooseApp(layers.Early().App)
	if more.Fatal() {
		return nil, config.Config{}, append(problems, more...)
	}
	cfg, more := layers.Config(app)
	problems = append(problems, more...)
	if problems.Fatal() {
		return nil, cfg, problems
	}
	p, more := New(set, cfg)
	if p == nil != more.Fatal() {
		t.Errorf("a plan and errors, or neither: %v", more)
	}
	again, _ := New(set, cfg)
	if p != nil && !reflect.DeepEqual(withoutPatterns(*p), withoutPatterns(*again)) {
		t.Error("planning twice gives two plans")
	}
	return p, cfg, append(problems, more...)
}

func withoutPatterns(p Plan) Plan {
	p.Agents = slices.Clone(p.Agents)
	for i := range p.Agents {
		p.Agents[i].Pattern = nil
	}
	return p
}

func show(t *testing.T, out *strings.Builder, p *Plan) {
	t.Helper()
	fmt.Fprintf(out, "app %q, id %q\n", p.App.Name, p.App.ID)
	for _, name := range slices.Sorted(maps.Keys(p.App.Env)) {
		fmt.Fprintf(out, "  %s=%q\n", name, p.App.Env[name])
	}
	for _, topic := range p.Topics {
		fmt.Fprintf(out, "topic %s: %d partitions, %d replicas, %v, for %s at %s\n", topic.Name, topic.Partitions, topic.Replicas, topic.Config, topic.For, topic.Pos)
	}
	for _, a := range p.Agents {
		fmt.Fprintf(out, "%s at %s\n", a.Label, a.Pos)
		if a.Pattern != nil {
			fmt.Fprintf(out, "  pattern %s\n", a.Pattern)
		}
		fmt.Fprintf(out, "  topics %q, isolated %v\n", a.Topics, a.Isolated)
		if a.Take != nil {
			fmt.Fprintf(out, "  take %d within %v\n", a.Take.Max, a.Take.Within)
		}
		fmt.Fprintf(out, "  outputs %q", a.OutputTopics)
		if len(a.Channels) > 0 {
			fmt.Fprintf(out, ", channels %q", a.Channels)
		}
		out.WriteByte('\n')
		e := a.OnError
		fmt.Fprintf(out, "  on error: %d attempts, then %s %s", e.Attempts, e.Action, e.DeadLetterTopic)
		if e.Attempts > 1 {
			fmt.Fprintf(out, "; back-off %v to %v times %v", e.InitialBackoff, e.MaxBackoff, e.Multiplier)
		}
		fmt.Fprintf(out, "; from %q\n", e.Pos)
		program := a.Program
		if program.Kind == "" {
			continue // it has none
		}
		if program.App.Conf["id"] != p.App.ID || program.App.ID != p.App.ID || !reflect.DeepEqual(program.Env, p.App.Env) {
			t.Errorf("%s: its program is told of another app", a.Label)
		}
		program.App.Conf, program.Env = nil, nil // the same for all
		text, err := json.Marshal(program)
		if len(program.Outputs) > 0 {
			text, err = json.MarshalIndent(program, "  ", "  ")
		}
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(out, "  %s\n", text)
		for _, s := range a.Schemas {
			fmt.Fprintf(out, "  schema %+v, for %s at %s\n", s.Target, s.For, s.Pos)
		}
	}
}

// A back-off that grows past its bound, or overflows, would stall a partition for ever.
func TestBackoff(t *testing.T) {
	p := Policy{InitialBackoff: 200 * time.Millisecond, MaxBackoff: 5 * time.Second, Multiplier: 2}
	for attempt, want := range map[int]time.Duration{
		2: 200 * time.Millisecond, 3: 400 * time.Millisecond, 6: 3200 * time.Millisecond, 7: 5 * time.Second, 1000: 5 * time.Second,
	} {
		if got := p.Backoff(attempt); got != want {
			t.Errorf("before attempt %d: %v, want %v", attempt, got, want)
		}
	}
	if got := (Policy{InitialBackoff: time.Second, MaxBackoff: 1 << 62, Multiplier: 100}).Backoff(1000); got != 1<<62 {
		t.Errorf("huge bound: %v", got)
	}
	if got := (Policy{InitialBackoff: time.Second, MaxBackoff: 0}).Backoff(2); got != 0 {
		t.Errorf("no back-off: %v", got)
	}
}

// A topic that a pattern finds later, or that is made after the start, must not be read into partitions a table lacks.
func TestCheckTopic(t *testing.T) {
	content, err := os.ReadFile("testdata/tables.yaml")
	if err != nil {
		t.Fatal(err)
	}
	p, _, problems := planOf(t, "tables.yaml", string(content))
	if problems.Fatal() {
		t.Fatal(problems)
	}
	counts := []int32{4, 6, 6} // counts, kept, windows
	for _, c := range []struct {
		topic      string
		partitions int32
		want       []string
	}{
		{"orders", 6, []string{`agent "one": its input orders has 6 partitions, table "counts" has 4`}},
		{"orders", 5, []string{
			`agent "one": its input orders has 5 partitions, table "counts" has 4`,
			`agent "three": its input orders has 5 partitions, table "windows" has 6`,
		}},
		{"bill.late", 5, []string{`agent "five": its input bill.late has 5 partitions, table "windows" has 6`}},
		{"bill.late", 6, nil},
		{"shop-app-bill.x", 5, nil}, // the app's own
		{"notes", 5, nil},           // of an agent that only may touch tables
		{"elsewhere", 5, nil},
	} {
		var got []string
		for _, e := range p.CheckTopic(c.topic, c.partitions, counts) {
			got = append(got, e.Text)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s with %d partitions: %q, want %q", c.topic, c.partitions, got, c.want)
		}
	}
}
