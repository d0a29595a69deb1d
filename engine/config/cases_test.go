package config

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"kaspr.io/kaspr/engine/manifest"
)

var rewrite = flag.Bool("rewrite", false, "rewrite the expected text in testdata and docs")

// What a user gives and what comes of it: each file in testdata has parts "-- NAME --": settings.yaml, app.yaml,
// environment, flags, any other file, and last want: the problems, then every setting that is not its default.
func TestCases(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal("no testdata", err)
	}
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			file := filepath.Join(here, file)
			content, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			t.Chdir(t.TempDir())
			src := Sources{Flags: map[string]string{}}
			var app *manifest.App
			want, head := "", string(content)
			for _, p := range parts(string(content)) {
				switch p.name {
				case "settings.yaml":
					src.File = p.name
				case "app.yaml":
					set, problems := manifest.Parse(p.name, []byte(p.text))
					if problems.Fatal() || len(set.Apps) != 1 {
						t.Fatal(problems)
					}
					app = set.Apps[0]
				case "environment":
					src.Environ = strings.Split(strings.TrimSpace(p.text), "\n")
				case "offline":
					src.Offline = true
				case "flags":
					for _, line := range strings.Split(strings.TrimSpace(p.text), "\n") {
						name, value, _ := strings.Cut(line, "=")
						src.Flags[name] = value
					}
				case "want":
					want, head = p.text, strings.TrimSuffix(string(content), p.text)
				}
				if p.name == ".env" {
					src.Dir = "."
				}
				if strings.Contains(p.name, ".") || strings.Contains(p.name, "/") {
					if err := os.MkdirAll(filepath.Dir(p.name), 0o755); err != nil {
						t.Fatal(err)
					}
					if err := os.WriteFile(p.name, []byte(p.text), 0o644); err != nil {
						t.Fatal(err)
					}
				}
			}
			cfg, problems := Read(src).Config(app)
			var got strings.Builder
			for _, p := range problems {
				fmt.Fprintln(&got, p)
			}
			for _, e := range cfg.Explain() {
				if e.Value != e.Default || e.Source != "default" {
					fmt.Fprintf(&got, "%s = %s (%s)\n", e.Key, e.Value, e.Source)
				}
			}
			if *rewrite {
				if err := os.WriteFile(file, []byte(head+got.String()), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if got.String() != want {
				t.Errorf("%s differs (go test -rewrite writes it anew)\n--- got\n%s--- want\n%s", file, got.String(), want)
			}
		})
	}
}

type part struct{ name, text string }

func parts(content string) []part {
	var list []part
	for line := range strings.Lines(content) {
		if name, ok := strings.CutPrefix(line, "-- "); ok && strings.HasSuffix(name, " --\n") {
			list = append(list, part{name: strings.TrimSuffix(name, " --\n")})
		} else if len(list) > 0 {
			list[len(list)-1].text += line
		}
	}
	return list
}
