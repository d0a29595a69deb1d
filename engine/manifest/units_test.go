package manifest

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"
)

// A wrong suggestion is worse than none, a missing one costs a search.
func TestSuggest(t *testing.T) {
	words := []string{"keySelector", "valueSelector", "name", "ack", "topic", "partitionSelector", "stop", "skip"}
	for word, want := range map[string]string{
		"keySelektor": "keySelector", "KEYSELECTOR": "keySelector", "keySelectro": "keySelector", "valueselector": "valueSelector",
		"nmae": "name", "nam": "name", "ak": "", "acks": "ack", "topics": "topic", "selector": "", "x": "", "": "", "partitonSelecter": "partitionSelector",
		"skipp": "skip", "stpo": "stop", "banana": "",
	} {
		if got := Suggest(word, words); got != want {
			t.Errorf("Suggest(%q) = %q, want %q", word, got, want)
		}
	}
}

// Both the original's durations and Go's are in manifests.
func TestParseDuration(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"0s": 0, "30s": 30 * time.Second, "5m": 5 * time.Minute, "2h": 2 * time.Hour, "7d": 7 * 24 * time.Hour,
		"1d12h": 36 * time.Hour, "1m30s": 90 * time.Second, "250ms": 250 * time.Millisecond, "1.5s": 1500 * time.Millisecond,
	} {
		if got, ok := ParseDuration(text); !ok || got != want {
			t.Errorf("ParseDuration(%q) = %v, %v, want %v", text, got, ok, want)
		}
	}
	for _, text := range []string{"", "s", "5", "-5s", "5 s", "5x", "d", "1dd", "1d0", "99999999999999999999d", "106752d", "9999999h", "106751d24h"} {
		if got, ok := ParseDuration(text); ok {
			t.Errorf("ParseDuration(%q) = %v, want none", text, got)
		}
	}
}

// Kafka refuses a bad topic name only when the topic is created, at run time.
func TestTopicNames(t *testing.T) {
	for _, good := range []string{"a", "A.b_c-9", strings.Repeat("x", 249), "..."} {
		if p := TopicNameProblem(good); p != "" {
			t.Errorf("%q %s", good, p)
		}
	}
	for _, bad := range []string{"", ".", "..", "a b", "a/b", "é", strings.Repeat("x", 250)} {
		if TopicNameProblem(bad) == "" {
			t.Errorf("%q is accepted", bad)
		}
	}
}

// A name Python cannot parse would fail at the first record.
func TestIdentifiers(t *testing.T) {
	for _, good := range []string{"a", "_", "A9", "größe", "match", "名前", "a·"[:1]} {
		if p := identifierProblem(good); p != "" {
			t.Errorf("%q %s", good, p)
		}
	}
	for _, bad := range []string{"", "9a", "a-b", "a b", "class", "None", "a.b", "‿a"} {
		if identifierProblem(bad) == "" {
			t.Errorf("%q is accepted", bad)
		}
	}
}

// A pattern matches whole names: orders must not take orders-archive in.
func TestTopicPattern(t *testing.T) {
	p, err := TopicPattern("orders|bills-.*")
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{"orders": true, "bills-eu": true, "orders-archive": false, "my-orders": false, "xbills-eu": false} {
		if p.MatchString(name) != want {
			t.Errorf("%q matches: %v", name, !want)
		}
	}
	if _, err := TopicPattern("a)(b"); err == nil {
		t.Error("a pattern that only parses inside our own parentheses is accepted")
	}
}

// Which app runs must never be a guess.
func TestChooseApp(t *testing.T) {
	app := func(name string) string {
		return "---\napiVersion: kaspr.io/v1alpha1\nkind: KasprApp\nmetadata: {name: " + name + "}\nspec: {replicas: 1}\n"
	}
	agent := func(name, app string) string {
		return "---\n" + strings.Replace(fmt.Sprintf(someAgent, name), "app: shop", "app: "+app, 1)
	}
	definition := "---\nagents: [{name: d, input: {topic: {name: x}}, processors: {pipeline: [m], operations: [{name: m, map: {python: 'def m(v): return v'}}]}}]\n"
	for _, c := range []struct {
		name, yaml, ask string
		want            string // the app, or the ID of the problem
	}{
		{"the only one", app("shop") + agent("a", "shop"), "", "shop"},
		{"by name", app("shop") + app("bank"), "bank", "bank"},
		{"several", app("shop") + app("bank"), "", WhichApp},
		{"unknown", app("shop"), "shpo", UnknownApp},
		{"no KasprApp, one label", agent("a", "shop") + agent("b", "shop"), "", "shop"},
		{"no KasprApp, two labels", agent("a", "shop") + agent("b", "bank"), "", WhichApp},
		{"no KasprApp, by label", agent("a", "shop") + agent("b", "bank"), "bank", "bank"},
		{"definitions only", definition, "", ""},
		{"definitions only, by name", definition, "shop", "shop"},
		{"nothing", "", "", NothingToRun},
	} {
		set, problems := Parse("f.yaml", []byte(c.yaml))
		if problems.Fatal() {
			t.Fatal(c.name, problems)
		}
		chosen, problems := set.ChooseApp(c.ask)
		switch {
		case len(problems) == 1:
			if problems[0].ID != c.want {
				t.Errorf("%s: %v, want %s", c.name, problems, c.want)
			}
		case chosen == nil || chosen.Name.V != c.want:
			t.Errorf("%s: %+v, want %q", c.name, chosen, c.want)
		case len(set.Apps) > 0 && !chosen.Replicas.Set():
			t.Errorf("%s: not the KasprApp of the manifests", c.name)
		}
	}
}

// The original's operator writes members that nobody has written as null or as an empty mapping; both are the same here.
func TestDefinitionMembersThatAreEmpty(t *testing.T) {
	content, err := os.ReadFile("testdata/ok-definition.yaml")
	if err != nil {
		t.Fatal(err)
	}
	want, warnings := Parse("f.yaml", content)
	if warnings.Fatal() || bytes.Count(content, []byte(": null")) < 15 {
		t.Fatal(warnings)
	}
	got, problems := Parse("f.yaml", bytes.ReplaceAll(content, []byte(": null"), []byte(": {}  ")))
	if !reflect.DeepEqual(problems, warnings) || !reflect.DeepEqual(got, want) {
		t.Errorf("%v, %+v, want %+v", problems, got, want)
	}
}

// Problems are read from top to bottom, file after file, in the order the files were given.
func TestSorted(t *testing.T) {
	at := func(file string, line, column int) Error { return Error{Pos: Pos{file, line, column}} }
	got := Errors{at("b", 1, 1), at("a", 2, 1), at("", 0, 0), at("a", 1, 9), at("b", 0, 0), at("environment K_X", 0, 0)}.Sorted([]string{"b", "a"})
	want := "  environment K_X b b:1:1 a:1:9 a:2:1"
	var text strings.Builder
	for _, e := range got {
		fmt.Fprint(&text, " ", e.Pos)
	}
	if text.String() != want {
		t.Errorf("sorted: %q, want %q", text.String(), want)
	}
}

var anID = regexp.MustCompile(`\b[MC]\d\d\d\b`)

// Every ID is documented, means one thing, and some file in testdata shows it.
func TestCatalog(t *testing.T) {
	shown := map[string]bool{}
	for _, dir := range []string{"testdata", "../plan/testdata", "../testdata"} {
		files, _ := filepath.Glob(filepath.Join(dir, "*.golden"))
		for _, file := range files {
			content, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			for _, id := range anID.FindAllString(string(content), -1) {
				shown[id] = true
			}
		}
	}
	seen, text := map[string]bool{}, strings.Builder{}
	text.WriteString(docHead)
	for _, e := range catalog {
		if seen[e.ID] {
			t.Errorf("%s stands twice in the catalog", e.ID)
		}
		seen[e.ID] = true
		if !shown[e.ID] {
			t.Errorf("no golden file shows %s: %s", e.ID, e.What)
		}
		fmt.Fprintf(&text, "| %s | %s | %s | %s |\n", e.ID, e.Level, e.What, e.Do)
	}
	source, err := os.ReadFile("catalog.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range anID.FindAllString(string(source), -1) {
		if !seen[id] {
			t.Errorf("%s is not in the catalog", id)
		}
	}
	compare(t, "../../docs/manifest-errors.md", text.String())
}

const docHead = `# Problems in manifests

Made from engine/manifest/catalog.go by ` + "`go generate ./engine/manifest`" + `; do not edit. Every message names its ID after the place:
` + "`file:line:column: error M012: text (hint)`" + `. Problems with settings (C…) are in settings.md.

| ID | Level | What is wrong | What to do |
|---|---|---|---|
`
