// Package regrtest runs CPython's own regression tests inside the guest, and compares with expected.txt.
//
//	go test ./pyguest/tests/regrtest                       the tests marked short
//	go test ./pyguest/tests/regrtest -full                 all of them (make test-guest)
//	go test ./pyguest/tests/regrtest -full -run '//test_re$'   one module
//	… -full -rewrite                                       update the counts; new failures need a reason by hand
package regrtest

import (
	"archive/zip"
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
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

var (
	full    = flag.Bool("full", false, "run every module of expected.txt, not only what is marked short")
	rewrite = flag.Bool("rewrite", false, "write the outcome to expected.txt (with -full)")
	slow    = flag.Int("slow", 0, "with -v: list so many of a module's slowest tests")
	show    = flag.String("show", "", "print the outcome of tests whose name contains this")
	limit   = flag.Duration("limit", 10*time.Minute, "longest run of one module")
)

//go:embed driver.py
var driver []byte

//go:embed files.py
var files []byte

const (
	expectedFile = "expected.txt"
	mark         = "\x1eregrtest " // MARK of driver.py
	memoryMax    = 1 << 30
)

// TestRegression would break for users whose Python code gives another result in the guest than anywhere else.
func TestRegression(t *testing.T) {
	want, err := readExpected(expectedFile)
	if err != nil {
		t.Fatal(err)
	}
	if !*full {
		want.modules = slices.DeleteFunc(want.modules, func(m *module) bool { return m.short == nil })
	}
	r := newRuntime(t, library(t, want.modules))
	var table struct {
		sync.Mutex
		lines []string
	}
	begin := time.Now()
	t.Run("module", func(t *testing.T) {
		for _, m := range want.modules {
			t.Run(m.name, func(t *testing.T) {
				t.Parallel()
				only := m.short
				if *full || slices.Equal(only, []string{"*"}) {
					only = nil
				}
				var omit []string
				for _, l := range m.omit {
					omit = append(omit, l.pattern)
				}
				got, err := run(t.Context(), r, fmt.Sprintf("run(%s, %s, %s, %s, %s)",
					literal("test."+m.name), literal(only), literal(omit), literal(m.resources), literal(m.stubs)))
				line := fmt.Sprintf("%-40s %5d passed %4d skipped %3d failed %3d omitted %6.1f s", m.name,
					got.count("pass"), got.count("skip"), got.count("fail"), got.count("omit"), got.elapsed.Seconds())
				table.Lock()
				table.lines = append(table.lines, line)
				table.Unlock()
				for _, o := range got.outcomes {
					if *show != "" && strings.Contains(o.ID, *show) {
						t.Logf("%s: %s %s", o.ID, o.Status, o.Why)
					}
				}
				for _, o := range got.slowest(*slow) {
					t.Logf("%6d ms %s", o.Millis, o.ID)
				}
				if err != nil {
					t.Fatal(err)
				}
				if *rewrite {
					m.update(got)
					return
				}
				for _, text := range m.compare(got, only == nil) {
					t.Error(text)
				}
			})
		}
	})
	slices.Sort(table.lines)
	t.Logf("%d modules in %.0f s\n%s", len(table.lines), time.Since(begin).Seconds(), strings.Join(table.lines, "\n"))
	if *rewrite {
		if !*full {
			t.Fatal("-rewrite without -full")
		}
		if err := want.write(expectedFile); err != nil {
			t.Fatal(err)
		}
	}
}

// TestImports would break for users who import a module of the standard library that the build lost.
func TestImports(t *testing.T) {
	text, err := os.ReadFile("../modules.txt")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for line := range strings.Lines(string(text)) {
		if line, _, _ = strings.Cut(line, "#"); strings.TrimSpace(line) != "" {
			names = append(names, strings.TrimSpace(line))
		}
	}
	got, err := run(t.Context(), newRuntime(t, library(t, nil)), "imports("+literal(names)+")")
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range got.outcomes {
		if o.Status != "pass" {
			t.Errorf("import %s: %s", o.ID, o.Why)
		}
	}
	if got.count("pass") != len(names) {
		t.Errorf("%d modules of %d were imported", got.count("pass"), len(names))
	}
}

// outcome is one line of the driver.
type outcome struct {
	Event  string `json:"event"` // begin, end, done
	ID     string `json:"id"`
	Status string `json:"status"` // pass, fail, skip, omit
	Why    string `json:"why"`
	Millis int    `json:"ms"`
}

// report is what one program told. It is the Host of its instance.
type report struct {
	outcomes []outcome
	running  string   // test in progress
	done     bool     // the driver came to its end
	other    []string // last lines that were not the driver's
	elapsed  time.Duration
	err      error
}

func (r *report) Log(_ int, text string) {
	text, ours := strings.CutPrefix(text, mark)
	if !ours {
		r.other = append(r.other[max(0, len(r.other)-40):], text)
		return
	}
	var o outcome
	if err := json.Unmarshal([]byte(text), &o); err != nil {
		r.err = fmt.Errorf("the driver's line %q: %w", text, err)
	}
	switch o.Event {
	case "begin":
		r.running = o.ID
	case "end":
		r.running = ""
		r.outcomes = append(r.outcomes, o)
	case "done":
		r.done = true
	}
}

func (r *report) Send(_ context.Context, _ record.Output, done func([]byte, error)) {
	done(nil, errors.New("there is no broker"))
}

func (r *report) Encode(dst []byte, _ *abi.EncodeRequest) ([]byte, error) {
	return dst, errors.New("no schemas here")
}

func (r *report) Prepare(context.Context, *abi.EncodeRequest) error { return nil }

func (r *report) IsLeader() bool { return false }

func (r *report) EnsureTopic(context.Context, abi.TopicRequest) error {
	return errors.New("there is no broker")
}

func (r *report) count(status string) int {
	n := 0
	for _, o := range r.outcomes {
		if o.Status == status {
			n++
		}
	}
	return n
}

func (r *report) skipped() map[string]int {
	out := map[string]int{}
	for _, o := range r.outcomes {
		if o.Status == "skip" {
			out[strings.Join(strings.Fields(o.Why), " ")]++
		}
	}
	return out
}

func (r *report) slowest(n int) []outcome {
	list := slices.Clone(r.outcomes)
	slices.SortStableFunc(list, func(a, b outcome) int { return b.Millis - a.Millis })
	return list[:min(n, len(list))]
}

// run calls the driver in an instance of its own. The report is never nil.
func run(ctx context.Context, r *wasmhost.Runtime, call string) (*report, error) {
	got := &report{}
	begin := time.Now()
	snapshot, err := r.Load(ctx, &abi.Program{
		Kind: "KasprAgent", Name: "regrtest",
		Init: &abi.Code{Python: "import kaspr_regrtest\nkaspr_regrtest." + call, File: "regrtest.yaml", Line: 1, Where: "init"},
	}, wasmhost.Options{Host: got, LoadDeadline: *limit, MemoryMax: memoryMax})
	got.elapsed = time.Since(begin)
	if err == nil {
		err = snapshot.Close()
	}
	var load *wasmhost.LoadError
	var ended *wasmhost.CallError
	switch {
	case errors.As(err, &load):
		err = fmt.Errorf("%w\n%s", err, load.Problems[0].Traceback)
	case errors.As(err, &ended):
		err = fmt.Errorf("%w\n%s", err, ended.Traceback)
	case err == nil && !got.done:
		err = errors.New("the driver did not come to its end")
	case err == nil:
		err = got.err
	}
	if err != nil {
		err = fmt.Errorf("during %q: %w\nlast lines:\n%s", got.running, err, strings.Join(got.other, "\n"))
	}
	return got, err
}

// literal writes a string or a list of them as Python does.
func literal[T string | []string](value T) string {
	text, err := json.Marshal(value)
	if err != nil {
		panic(err)
	}
	if string(text) == "null" {
		return "()"
	}
	return string(text)
}

func newRuntime(t *testing.T, stdlib []byte) *wasmhost.Runtime {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	r, err := wasmhost.New(t.Context(), wasmhost.Config{
		Module: pyguest.Module(), Stdlib: stdlib, CacheDir: filepath.Join(cache, "kaspr", "compiled"),
		Defaults: wasmhost.Options{MemoryMax: memoryMax},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// library is the guest's library with the driver and what the modules need of CPython's test folder. The tests are
// compiled in the guest, which tests the compiler.
func library(t *testing.T, modules []*module) []byte {
	t.Helper()
	var out bytes.Buffer
	w := zip.NewWriter(&out)
	in, err := zip.NewReader(bytes.NewReader(pyguest.Stdlib()), int64(len(pyguest.Stdlib())))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range in.File {
		if err := w.Copy(f); err != nil {
			t.Fatal(err)
		}
	}
	add := func(name string, data []byte) {
		f, err := w.CreateHeader(&zip.FileHeader{Name: name, Method: zip.Store})
		if err == nil {
			_, err = f.Write(data)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	add("kaspr_regrtest.py", driver)
	add("kaspr_regrtest_files.py", files)
	if len(modules) > 0 {
		addTests(t, modules, add)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// addTests adds Lib/test without the packages of tests that are not asked for.
func addTests(t *testing.T, modules []*module, add func(name string, data []byte)) {
	t.Helper()
	// With this the tests see that tzdata is installed.
	add("tzdata-0.dist-info/METADATA", []byte("Metadata-Version: 2.1\nName: tzdata\nVersion: 0\n"))
	wanted := map[string]bool{}
	for _, m := range modules {
		top, _, _ := strings.Cut(m.name, ".")
		wanted[top] = true
	}
	printed, err := exec.CommandContext(t.Context(), "../../build.sh", "--print", "cpython-src").Output()
	if err != nil {
		t.Fatalf("ask for CPython's sources: %v", err)
	}
	root := filepath.Join(strings.TrimSpace(string(printed)), "Lib")
	if _, err := os.Stat(filepath.Join(root, "test")); err != nil && !*full {
		t.Skip("CPython's sources are not in the cache; make pyguest puts them there")
	}
	err = fs.WalkDir(os.DirFS(root), "test", func(name string, d fs.DirEntry, err error) error {
		base := d.Name()
		switch {
		case err != nil:
			return err
		case d.IsDir() && (base == "__pycache__" || !*full && filepath.Dir(name) == "test" && strings.HasPrefix(base, "test_") && !wanted[base]):
			return fs.SkipDir
		case d.IsDir():
			add(name+"/", nil)
			return nil
		}
		f, err := os.Open(filepath.Join(root, name))
		if err != nil {
			return err
		}
		defer f.Close()
		data, err := io.ReadAll(f)
		if err == nil && name == "test/test_zoneinfo/data/zoneinfo_data.json" {
			data, err = unpackZones(t, data)
		}
		if err == nil {
			add(name, data)
		}
		return err
	})
	if err != nil {
		t.Fatalf("read CPython's tests: %v", err)
	}
}

// unpackZones uses the machine's Python: neither Go nor the guest's own build python know xz.
func unpackZones(t *testing.T, data []byte) ([]byte, error) {
	cmd := exec.CommandContext(t.Context(), "python3", "zones.py")
	cmd.Stdin = bytes.NewReader(data)
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("zones.py: %w", err)
	}
	return out, nil
}
