package flame

import (
	"encoding/xml"
	"errors"
	"io"
	"math"
	"strings"
	"testing"
)

const script = `
	    7f0000001000 [12/9000]kaspr-python.wasm._PyEval_EvalFrameDefault:::::L7 (/tmp/perf-77.map)
	    7f0000000800 [12/9000]kaspr-python.wasm._PyEval_EvalFrameDefault:::::L3 (/tmp/perf-77.map)
	    7f0000000400 entry_preamble::type=v_v (/tmp/perf-77.map)
	          400100 github.com/tetratelabs/wazero/internal/engine/wazevo.entrypoint (/bin/kaspr)
	          400200 kaspr.io/kaspr/engine.(*lane).step (/bin/kaspr)
	          400300 runtime.goexit.abi0 (/bin/kaspr)

	    7f0000000800 [13/9000]list<append> (/tmp/perf-77.map)
	    7f0000000400 entry_preamble::type=v_v (/tmp/perf-77.map)
	          400100 github.com/tetratelabs/wazero/internal/engine/wazevo.entrypoint (/bin/kaspr)
	          400200 kaspr.io/kaspr/engine.(*lane).step (/bin/kaspr)
	          400300 runtime.goexit.abi0 (/bin/kaspr)

	ffffffff81000000 entry_SYSCALL_64_after_hwframe ([kernel.kallsyms])
	ffffffff81000001 do_syscall_64 ([kernel.kallsyms])
	          400400 runtime.futex.abi0 (/bin/kaspr)
	          400500 runtime.mcall (/bin/kaspr)

	    7f1000000000 rocksdb::DB::Get(rocksdb::Slice const&) (/usr/lib/librocksdb.so.7.8.3)
	          400600 kst_write (/bin/kaspr)
	               0 [unknown] ([unknown])
`

// What is wrong in the picture is wrong in docs/performance.md.
func TestParse(t *testing.T) {
	root, err := Parse(strings.NewReader(script))
	if err != nil {
		t.Fatal(err)
	}
	var got strings.Builder
	var list func(n *Node, indent string)
	list = func(n *Node, indent string) {
		got.WriteString(indent + n.Name + " " + string(n.Kind) + " " + strings.Repeat("*", n.Samples) + "\n")
		for _, c := range n.Children {
			list(c, indent+" ")
		}
	}
	for _, c := range root.Children {
		list(c, "")
	}
	if want := `engine.(*lane).step e **
 wazevo.entrypoint g **
  guest p **
   _PyEval_EvalFrameDefault p *
   list<append> p *
Go's runtime g *
 runtime.futex.abi0 g *
  kernel s *
kst_write r *
 librocksdb r *
`; got.String() != want {
		t.Errorf("stacks\n%swant\n%s", got.String(), want)
	}
	for k, want := range map[Kind]float64{Guest: 0.5, Kernel: 0.25, Native: 0.25, Engine: 0, Runtime: 0} {
		if got := root.Shares()[k]; math.Abs(got-want) > 1e-9 {
			t.Errorf("share of %c is %v, want %v", k, got, want)
		}
	}
	for _, wrong := range []string{"", "\n\n", "\t12 f\n"} {
		if _, err := Parse(strings.NewReader(wrong)); err == nil {
			t.Errorf("%q is taken for a profile", wrong)
		}
	}
}

// A picture that is no XML is not shown at all, and a large one not in the repository.
func TestSVG(t *testing.T) {
	root := &Node{}
	for i := range 3000 {
		root.Add([]Frame{{"all", Engine}, {strings.Repeat("f&<", 1+i%700), Guest}, {strings.Repeat("g", i%900), Native}})
	}
	s := SVG(root, "W1 & <more>", 60_000)
	if len(s) > 60_000 {
		t.Errorf("%d bytes", len(s))
	}
	if !strings.Contains(s, "<title>all 100.0%</title>") || !strings.Contains(s, `width="1200.0"`) {
		t.Error("the frame of all samples is not there, or not as wide as the picture")
	}
	for d := xml.NewDecoder(strings.NewReader(s)); ; {
		_, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}
