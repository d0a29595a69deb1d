package plan

import (
	"slices"
	"strings"
	"testing"

	"kaspr.io/kaspr/engine/config"
	"kaspr.io/kaspr/engine/manifest"
)

// docs/fields.md and the schemas say what is refused; an app finds out when it starts. They must agree.
func TestFieldsSayWhatIsRefused(t *testing.T) {
	const head = "apiVersion: kaspr.io/v1alpha1\nmetadata: {name: x, labels: {kaspr.io/app: a}}\n"
	const processors = `processors: {pipeline: [m], operations: [{name: m, map: {python: "def m(v=None): return v"}}]}`
	const table = head + "kind: KasprTable\nspec: {name: x}\n"
	const sender = head + "kind: KasprAgent\nspec: {input: {topic: {name: t}}, output: {channels: [{name: c}]}, " + processors + "}\n"
	for _, c := range []struct{ key, yaml string }{
		{"KasprAgent.spec.input.topic", head + "kind: KasprAgent\nspec: {input: {topic: {name: t}}, " + processors + "}\n"},
		{"KasprAgent.spec.output.channels", sender},
		{"KasprAgent.spec.input.channel", strings.Replace(sender, "name: x", "name: y", 1) + "---\n" + head + "kind: KasprAgent\nspec: {input: {channel: {name: c}}, " + processors + "}\n"},
		{"KasprTable.spec.description", table},
		{"KasprJoin.spec.description", table + "---\n" + head + "kind: KasprJoin\nspec: {leftTable: x, rightTable: x, extractor: {python: 'def e(v): return v'}}\n"},
		{"KasprTask.spec.description", head + "kind: KasprTask\nspec: {" + processors + "}\n"},
		{"KasprWebView.spec.description", head + "kind: KasprWebView\nspec: {request: {method: GET, path: /x}, " + processors + "}\n"},
	} {
		set, problems := manifest.Parse("f.yaml", []byte(c.yaml))
		if problems.Fatal() {
			t.Fatal(problems)
		}
		field, ok := manifest.FieldOf(c.key)
		if !ok {
			t.Fatalf("no field %s", c.key)
		}
		_, problems = New(set, config.Default())
		refused := slices.ContainsFunc(problems, func(p manifest.Error) bool { return p.ID == manifest.NotSupported })
		if refused != (field.Status == manifest.Refused) {
			t.Errorf("%s is %q in engine/manifest/fields.txt; planned, it gives %v", c.key, field.Status, problems)
		}
	}
}
