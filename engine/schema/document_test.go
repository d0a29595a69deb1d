package schema

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"kaspr.io/kaspr/engine/config"
	"kaspr.io/kaspr/engine/manifest"
)

// document is docs/fields.md: every member of every kind, and what the public reference's fields are here.
func document(t *testing.T) string {
	t.Helper()
	var out strings.Builder
	out.WriteString(documentHead)
	w := &tables{out: &out, done: map[string]bool{}}
	for _, kind := range append(manifest.Kinds(), Definitions) {
		n := sketch(kind)
		fmt.Fprintf(&out, "\n## %s\n\n%s", title(kind), tableHead)
		if spec := n.Find("spec"); spec != nil {
			w.rows(spec, "spec.", "")
		} else {
			w.rows(n, "", "")
		}
		w.later(n)
	}
	out.WriteString("\n## metadata\n\n" + tableHead)
	w.rows(manifest.Describe(manifest.KindAgent).Find("metadata"), "metadata.", "")
	for len(w.shared) > 0 {
		n := w.shared[0]
		w.shared = w.shared[1:]
		fmt.Fprintf(&out, "\n## %s\n\n%s", n.Key, tableHead)
		w.rows(n, "", "")
	}
	out.WriteString(referenceHead)
	for _, line := range references(t) {
		fmt.Fprintf(&out, "| %s | %s | %s |\n", line.field, line.member, line.status)
	}
	return out.String()
}

const documentHead = `# Members of manifests

Made from engine/manifest by ` + "`go generate ./engine/schema`" + `; do not edit. How manifests are written and checked: [manifests.md](manifests.md).

A * marks what must be there. Below an object's name its members follow, with their path. "No effect" means accepted and not
used, "refused" that the app does not start with it. Any member that is not listed is an error.
`

const tableHead = "| Member | Value | Status | What it is for |\n|---|---|---|---|\n"

const referenceHead = `
## The public reference

Every field of the public reference of v1alpha1, and what it is here.

| Field | Member here | Status |
|---|---|---|
`

// tables writes rows; shared values get a table of their own after all kinds.
type tables struct {
	out    *strings.Builder
	done   map[string]bool
	shared []*manifest.Node
}

func (w *tables) later(root *manifest.Node) {
	root.Walk(func(n *manifest.Node) {
		if n.Shared && n.Key != "metadata" && !w.done[n.Key] {
			w.done[n.Key] = true
			w.shared = append(w.shared, n)
		}
	})
}

// rows writes the members of n. A reason that is said of what is above, why, is not said again.
func (w *tables) rows(n *manifest.Node, path, why string) {
	for _, m := range n.Members {
		name := path + m.Name
		if m.Instead != "" {
			fmt.Fprintf(w.out, "| `%s` |  | accepted, with a warning | Written `%s`. |\n", name, m.Instead)
			continue
		}
		f, _ := manifest.FieldOf(n.Key + "." + m.Name)
		status, mark := statusText(f), ""
		if f.Why != "" && f.Why == why {
			status = string(f.Status)
		}
		if m.Required {
			mark = " *"
		}
		fmt.Fprintf(w.out, "| `%s`%s | %s | %s | %s |\n", name, mark, valueText(m.Value), status, strings.ReplaceAll(f.Doc, "|", `\|`))
		below := m.Value
		if below.Items != nil && !below.Items.Shared && !strings.HasSuffix(below.Items.Key, ".spec") {
			w.rows(below.Items, name+"[].", f.Why)
		}
		if !below.Shared {
			w.rows(below, name+".", f.Why)
		}
	}
}

func statusText(f manifest.Field) string {
	if f.Why == "" {
		return "done"
	}
	return string(f.Status) + ": " + f.Why
}

// valueText says in a few words what a value is.
func valueText(n *manifest.Node) string {
	switch {
	case n.Shared && n.Also != nil:
		return "[" + n.Key + "](#" + strings.ToLower(n.Key) + "), or one word"
	case n.Shared:
		return "[" + n.Key + "](#" + strings.ToLower(n.Key) + ")"
	case n.Items != nil && strings.HasSuffix(n.Items.Key, ".spec"):
		return "list"
	case n.Items != nil:
		return "list of " + valueText(n.Items)
	case len(n.Enum) > 0:
		return strings.Join(n.Enum, ", ")
	case n.Values != nil && len(n.Members) == 0:
		return "mapping of names to values"
	case slices.Equal(n.Types, []string{"string", "integer"}):
		return "duration"
	case slices.Contains(n.Types, "object"):
		return "mapping"
	case slices.Contains(n.Types, "string") && len(n.Types) > 1:
		return "quantity"
	case slices.Contains(n.Types, "string"):
		return "text"
	case slices.Contains(n.Types, "boolean"):
		return "boolean"
	case n.Minimum != nil:
		text := map[bool]string{true: "whole number", false: "number"}[n.Types[0] == "integer"]
		if n.Maximum == nil || *n.Maximum >= 1<<31-1 {
			return text + ", at least " + number(*n.Minimum)
		}
		return text + ", " + number(*n.Minimum) + " to " + number(*n.Maximum)
	}
	return "anything"
}

func number(f float64) string { return strconv.FormatFloat(f, 'f', -1, 64) }

// reference is a field of the public reference, and what became of it.
type reference struct{ field, member, status string }

// references reads the list of the public reference's fields; each must be a member, a setting, or refused with a reason.
func references(t *testing.T) []reference {
	t.Helper()
	content, err := os.ReadFile("testdata/reference.txt")
	if err != nil {
		t.Fatal(err)
	}
	var roots []*manifest.Node
	for _, kind := range manifest.Kinds() {
		roots = append(roots, manifest.Describe(kind))
	}
	old := map[string]string{}
	for _, root := range roots {
		root.Walk(func(n *manifest.Node) {
			for _, m := range n.Members {
				if m.Instead != "" {
					old[n.Key+"."+m.Name] = m.Instead
				}
			}
		})
	}
	settings := map[string]config.Described{}
	for _, d := range config.Describe() {
		settings[d.Key] = d
	}
	var list []reference
	for line := range strings.Lines(string(content)) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		field, target, _ := strings.Cut(line, " = ")
		word, rest, _ := strings.Cut(target, " ")
		switch word {
		case "setting":
			d, ok := settings[rest]
			if !ok || !d.App {
				t.Errorf("%s: a KasprApp has no setting %q", field, rest)
			}
			status := "done"
			if d.Unused != "" {
				status = "no effect: " + d.Unused
			}
			list = append(list, reference{field, "[setting](settings.md) `" + rest + "`", status})
		case "old":
			key, name, _ := strings.Cut(rest, ": ")
			if old[key] != name {
				t.Errorf("%s: %s is not accepted as %q", field, key, name)
			}
			list = append(list, reference{field, "`" + name + "`", "accepted, with a warning"})
		case "refused:":
			if rest == "" {
				t.Errorf("%s is refused without a reason", field)
			}
			list = append(list, reference{field, "", "refused: " + rest})
		default:
			f, ok := manifest.FieldOf(target)
			if !ok {
				t.Errorf("%s: there is no member %s", field, target)
			}
			list = append(list, reference{field, "`" + strings.TrimPrefix(target, "KasprApp.spec.config.") + "`", statusText(f)})
		}
	}
	if len(list) != referenceFields {
		t.Errorf("%d fields, but the public reference has %d", len(list), referenceFields)
	}
	return list
}

// referenceFields is how many fields the public reference lists.
const referenceFields = 91

// Nothing of the public reference is passed over: it is implemented, has no effect, or is refused, and the list says which.
func TestReference(t *testing.T) {
	seen := map[string]bool{}
	for _, r := range references(t) {
		if seen[r.field] {
			t.Errorf("%s stands twice", r.field)
		}
		seen[r.field] = true
	}
}
