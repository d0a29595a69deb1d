package engine

import (
	"flag"
	"os"
	"strings"
	"testing"

	"kaspr.io/kaspr/engine/manifest"
	"kaspr.io/kaspr/state"
)

//go:generate go test . -run TestCheckOptions -rewrite

var rewrite = flag.Bool("rewrite", false, "rewrite the expected text in testdata")

// An option that a store refuses is reported at its place, before anything runs. testdata/options.golden has the
// problems of one app.
func TestCheckOptions(t *testing.T) {
	content, err := os.ReadFile("testdata/options.yaml")
	if err != nil {
		t.Fatal(err)
	}
	set, problems := manifest.Parse("options.yaml", content)
	if problems.Fatal() {
		t.Fatal(problems)
	}
	var out strings.Builder
	for _, e := range CheckOptions(set, "shop") {
		out.WriteString(e.Error() + "\n")
	}
	if *rewrite {
		if err := os.WriteFile("testdata/options.golden", []byte(out.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile("testdata/options.golden")
	if err != nil {
		t.Fatal(err)
	}
	if out.String() != string(want) {
		t.Errorf("got\n%swant\n%s", out.String(), want)
	}
	docs, err := os.ReadFile("../docs/tables.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range state.TableOptionNames() {
		if row := "| `" + o[0] + "` | " + o[1] + " |\n"; !strings.Contains(string(docs), row) {
			t.Errorf("docs/tables.md lacks %s", row)
		}
	}
	if all := CheckOptions(set, ""); len(all) != 4 {
		t.Errorf("of all apps: %v", all)
	}
}
