package main

import (
	"os"
	"path/filepath"
	"regexp"
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
