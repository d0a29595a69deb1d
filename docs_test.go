package main

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var (
	aTest    = regexp.MustCompile("`((?:Test|Benchmark|Fuzz)[A-Z][A-Za-z0-9]*)(…?)")
	itsStart = regexp.MustCompile(`(?m)^func ((?:Test|Benchmark|Fuzz)[A-Z][A-Za-z0-9]*)\(`)
)

// A page that says which test holds a promise must not name one that is gone.
func TestDocsNameTests(t *testing.T) {
	tests := "\n"
	err := filepath.WalkDir(".", func(path string, d os.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		source, err := os.ReadFile(path)
		for _, m := range itsStart.FindAllSubmatch(source, -1) {
			tests += string(m[1]) + "\n"
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	pages, err := filepath.Glob("docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	roots, err := filepath.Glob("*.md")
	if err != nil {
		t.Fatal(err)
	}
	named := 0
	for _, page := range append(pages, roots...) {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range aTest.FindAllStringSubmatch(string(text), -1) {
			name := "\n" + m[1]
			if m[2] == "" { // else all that begin so
				name += "\n"
			}
			if named++; !strings.Contains(tests, name) {
				t.Errorf("%s names %s, which is no test", page, m[1])
			}
		}
	}
	if named == 0 {
		t.Error("no page names a test: this one reads the wrong files")
	}
}

// Code that reaches for what context does not have is sent to the list of what it has: that list must be whole, and must not promise more.
func TestDocsNameMembersOfContext(t *testing.T) {
	read := func(file string) string {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	words := regexp.MustCompile(`[a-z_]+`)
	one := func(file, expression string) []string {
		m := regexp.MustCompile(expression).FindStringSubmatch(read(file))
		if m == nil {
			t.Fatalf("%s has no %s", file, expression)
		}
		return words.FindAllString(strings.ReplaceAll(m[1], " and ", " "), -1)
	}
	const runtime, types = "pyguest/runtime/kaspr_app.py", "pyguest/glue/types.c"
	page := read("docs/code.md")
	_, app, _ := strings.Cut(page, "\n## context[\"app\"]")
	_, events, _ := strings.Cut(page, "\n| Event |")
	events, messages, _ := strings.Cut(events, "\n| Message |")
	messages, _, _ = strings.Cut(messages, "\n## ")
	for _, c := range []struct {
		text, prefix string
		members      []string
	}{
		{app, "app.", one(runtime, `(?s)class App:.*?_supported = \(([^)]*)\)`)},
		{app, "topic.", one(runtime, `(?s)class Topic:.*?_supported = \(([^)]*)\)`)},
		{events, "", one(types, `"(key, value, headers, message, app, [^"]*)"`)},
		{messages, "", one(types, `(?s)"(topic, partition, offset, timestamp, [^;]*?tp)"`)},
	} {
		for _, member := range c.members {
			if !regexp.MustCompile("`[^`]*\\b" + regexp.QuoteMeta(c.prefix+member) + `\b`).MatchString(c.text) {
				t.Errorf("docs/code.md does not tell of %s%s", c.prefix, member)
			}
		}
		if c.prefix == "" {
			continue
		}
		for _, m := range regexp.MustCompile("[`( ]"+regexp.QuoteMeta(c.prefix)+`([a-z_]+)`).FindAllStringSubmatch(c.text, -1) {
			if !slices.Contains(c.members, m[1]) {
				t.Errorf("docs/code.md tells of %s%s, which there is not", c.prefix, m[1])
			}
		}
	}
}
