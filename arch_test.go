package main

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "kaspr.io/kaspr"

// onlyIn maps a dependency to the packages (and their children) that may import it: what the rest of the code sees of
// it is ours, so that it can be replaced, and faked in tests, in one place.
var onlyIn = map[string][]string{
	"github.com/tetratelabs/wazero":      {"wasmhost"},
	"github.com/twmb/franz-go/pkg/kfake": {"engine/dev"},
	"github.com/twmb/franz-go":           {"engine/broker", "engine/dev", "bench"},
	"github.com/twmb/franz-go/pkg/sr":    {"engine/registry"},
	"github.com/bufbuild/protocompile":   {"engine/registry"},
	"google.golang.org/protobuf":         {"engine/registry"},
	"github.com/knadh/koanf":             {"engine/config"},
	"go.yaml.in/yaml":                    {"engine/manifest", "engine/config", "engine/schema"},
	"github.com/spf13/cobra":             {"engine/cli"},
	"github.com/fsnotify/fsnotify":       {"engine/cli"},
	"github.com/valyala/fasthttp":        {"http"},
	"github.com/prometheus":              {"http", "engine"},
	"go.opentelemetry.io":                {"engine"},
	"github.com/linxGnu/grocksdb":        {"state"},
	"github.com/robfig/cron":             {"engine/cron"},
}

// layers are our packages from the top down; a package imports only from layers below its own.
var layers = [][]string{
	{""},
	{"engine/cli"},
	{"engine/dev"},
	{"engine"},
	{"engine/plan", "engine/schema", "engine/broker", "http", "scheduler", "state"},
	{"engine/config"},
	{"engine/manifest", "engine/join", "engine/registry", "wasmhost", "pyguest"},
	{"wasmhost/abi"},
	{"engine/record", "engine/cron"},
}

// A dependency that leaks, or an import that points up, makes the next change touch everything.
func TestImports(t *testing.T) {
	out, err := exec.Command("go", "list", "-json=ImportPath,Imports", "./...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	level := map[string]int{}
	for i, names := range layers {
		for _, n := range names {
			level[strings.TrimSuffix(module+"/"+n, "/")] = i
		}
	}
	dec := json.NewDecoder(strings.NewReader(string(out)))
	for {
		var p struct {
			ImportPath string
			Imports    []string
		}
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		own := strings.TrimPrefix(strings.TrimPrefix(p.ImportPath, module), "/")
		for _, imp := range p.Imports {
			for dep, owners := range onlyIn {
				if imp != dep && !strings.HasPrefix(imp, dep+"/") {
					continue
				}
				if more := longest(imp); more != dep {
					continue // a more specific rule decides
				}
				if !slices.ContainsFunc(owners, func(o string) bool { return own == o || o != "engine" && strings.HasPrefix(own, o+"/") }) {
					t.Errorf("%s imports %s, which only %v may", p.ImportPath, imp, owners)
				}
			}
			from, ok1 := level[p.ImportPath]
			to, ok2 := level[imp]
			if ok1 && ok2 && to <= from {
				t.Errorf("%s imports %s, which is not below it (see layers)", p.ImportPath, imp)
			}
			if strings.HasPrefix(imp, module+"/bench") || strings.HasPrefix(imp, module+"/engine/enginetest") {
				if !strings.HasPrefix(own, "bench") && !strings.HasPrefix(own, "engine/enginetest") {
					t.Errorf("%s imports %s, which is for tests and benchmarks", p.ImportPath, imp)
				}
			}
		}
	}
}

// longest is the most specific rule for an import.
func longest(imp string) string {
	best := ""
	for dep := range onlyIn {
		if (imp == dep || strings.HasPrefix(imp, dep+"/")) && len(dep) > len(best) {
			best = dep
		}
	}
	return best
}
