package manifest

import (
	"slices"
	"strings"
	"testing"
	"time"
)

// Components are built in one order whatever the order of files: a join before its tables must not stop a worker.
func TestOrdered(t *testing.T) {
	documents := []string{
		"kind: KasprAgent\nmetadata: {name: last, labels: {kaspr.io/app: a}}\nspec: {input: {channel: {name: c}}, " + someProcessors + "}\n",
		"kind: KasprAgent\nmetadata: {name: joined, labels: {kaspr.io/app: a}}\nspec: {input: {channel: {name: j-channel}}, output: {channels: [{name: c}]}, " + someProcessors + "}\n",
		"kind: KasprJoin\nmetadata: {name: j, labels: {kaspr.io/app: a}}\nspec: {leftTable: l, rightTable: r, extractor: {python: 'def e(v): return v'}}\n",
		"kind: KasprTable\nmetadata: {name: r, labels: {kaspr.io/app: a}}\nspec: {name: r}\n",
		"kind: KasprTable\nmetadata: {name: l, labels: {kaspr.io/app: a}}\nspec: {name: l}\n",
		"kind: KasprTable\nmetadata: {name: l, labels: {kaspr.io/app: b}}\nspec: {name: l}\n",
	}
	for _, reversed := range []bool{false, true} {
		if reversed {
			slices.Reverse(documents)
		}
		set, problems := Parse("f.yaml", []byte("---\napiVersion: kaspr.io/v1alpha1\n"+strings.Join(documents, "---\napiVersion: kaspr.io/v1alpha1\n")))
		if problems.Fatal() {
			t.Fatal(problems)
		}
		var got []string
		for _, m := range set.Ordered("a") {
			got = append(got, m.Name.V)
		}
		want := []string{"l", "r", "j", "joined", "last"}
		if !slices.Equal(got, want) {
			t.Errorf("reversed %v: %q, want %q", reversed, got, want)
		}
	}
}

const someProcessors = `processors: {pipeline: [m], operations: [{name: m, map: {python: "def m(v): return v"}}]}`

// A definition file belongs to whichever app runs: its references and names meet those of labelled components.
func TestDefinitionsMeetLabels(t *testing.T) {
	const labelled = "apiVersion: kaspr.io/v1alpha1\nkind: KasprTable\nmetadata: {name: users, labels: {kaspr.io/app: a}}\nspec: {name: users}\n---\n"
	definition := func(table string) string {
		return labelled + "agents: [{name: d, input: {topic: {name: x}}, processors: {pipeline: [m], operations: [{name: m, tables: [{name: " + table + ", param_name: u}], map: {python: 'def m(v, u): return v'}}]}}]\n"
	}
	if _, problems := Parse("f.yaml", []byte(definition("users"))); len(problems) > 0 {
		t.Errorf("a table of an app: %v", problems)
	}
	if _, problems := Parse("f.yaml", []byte(definition("user"))); len(problems) != 1 || problems[0].ID != Undefined || !strings.Contains(problems[0].Hint, "users") {
		t.Errorf("a table there is not: %v", problems)
	}
	if _, problems := Parse("f.yaml", []byte(labelled+"tables: [{name: users}]\n")); len(problems) != 1 || problems[0].ID != DuplicateName {
		t.Errorf("one name twice: %v", problems)
	}
}

// A request must reach the view whose path its author meant, with the parameters cut as written.
func TestRoute(t *testing.T) {
	for _, c := range []struct {
		path, request string
		want          string // parameters, or none
	}{
		{"/orders", "/orders", "ok"},
		{"orders", "/orders", "ok"},
		{"/orders", "/orders/", "none"},
		{"/orders/{id}", "/orders/7", "ok id=7"},
		{"/orders/{id}", "/orders/7/8", "none"},
		{"/orders/{id}", "/orders/", "none"},
		{"/a.b/{x}", "/aXb/1", "none"},
		{`/{day:\d{4}-\d{2}}/{name:.+}.txt`, "/2026-05/a/b.txt", "ok day=2026-05 name=a/b"},
		{`/{day:\d{4}-\d{2}}/{name:.+}.txt`, "/26-05/a/b.txt", "none"},
		{`/{a}-{b}`, "/x-y-z", "ok a=x-y b=z"},
	} {
		r, err := ParseRoute(c.path)
		if err != nil {
			t.Errorf("%s: %v", c.path, err)
			continue
		}
		got := "none"
		if m := r.Match.FindStringSubmatch(c.request); m != nil {
			got = "ok"
			for _, name := range r.Params {
				got += " " + name + "=" + m[r.Match.SubexpIndex(name)]
			}
		}
		if got != c.want {
			t.Errorf("%s on %s: %s, want %s", c.request, c.path, got, c.want)
		}
		if (r.Text == "") == (len(r.Params) == 0) {
			t.Errorf("%s: text %q, parameters %q", c.path, r.Text, r.Params)
		}
	}
}

// A directory of many manifests that all refer to each other is checked in moments, and the report can be read.
func TestManyReferences(t *testing.T) {
	var b strings.Builder
	b.WriteString("agents:\n")
	for range 1000 {
		b.WriteString("  - {name: a, input: {channel: {name: c}}, output: {channels: [{name: c}]}, " + strings.Replace(someProcessors, "map:", "tables: [{name: x, param_name: x}], map:", 1) + "}\n")
	}
	start := time.Now()
	_, problems := Parse("f.yaml", []byte(b.String()))
	if took := time.Since(start); took > time.Minute {
		t.Errorf("checking took %v", took)
	}
	count := map[string]int{}
	for _, p := range problems {
		count[p.ID]++
		if len(p.Text) > 1000 {
			t.Errorf("a message of %d bytes", len(p.Text))
		}
	}
	if count[Cycle] != circlesMax || count[DuplicateName] != 999 || count[Undefined] != 1000 {
		t.Errorf("problems: %v", count)
	}
}
