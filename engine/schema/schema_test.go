package schema

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"go.yaml.in/yaml/v3"

	"kaspr.io/kaspr/engine/manifest"
)

var rewrite = flag.Bool("rewrite", false, "write the generated files anew")

const root = "../.."

// Editors and clusters read these files; they must say what the readers do.
func TestGenerated(t *testing.T) {
	everything, err := JSON("")
	if err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{"schemas/kaspr.schema.json": everything, "docs/fields.md": []byte(document(t))}
	for _, kind := range manifest.Kinds() {
		crd, err := CRD(kind)
		if err != nil {
			t.Fatal(err)
		}
		files["schemas/crds/"+group+"_"+strings.ToLower(kind)+"s.yaml"] = append([]byte("# Made by make generate; do not edit.\n"), crd...)
	}
	for file, text := range files {
		file = filepath.Join(root, file)
		if *rewrite {
			if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, text, 0o644); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if want, err := os.ReadFile(file); err != nil || !bytes.Equal(text, want) {
			t.Errorf("%s is not what the readers say: go generate ./engine/schema (%v)", file, err)
		}
	}
}

// compile makes a validator of a schema of ours.
func compile(t *testing.T, kind string) *jsonschema.Schema {
	t.Helper()
	text, err := JSON(kind)
	if err != nil {
		t.Fatal(err)
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("kaspr.json", doc); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile("kaspr.json")
	if err != nil {
		t.Fatalf("%s: %v", kind, err)
	}
	return s
}

// plain is a YAML value as JSON has it.
func plain(t *testing.T, v any) any {
	t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	return doc
}

// A manifest the engine runs must not be underlined in an editor: every one in this repository that has no errors fits
// the schema.
func TestManifestsFit(t *testing.T) {
	everything := compile(t, "")
	var files []string
	for _, pattern := range []string{"examples/*/*.yaml", "testdata/conformance/*/*.y*ml", "engine/manifest/testdata/ok-*.yaml", "engine/plan/testdata/*.yaml"} {
		found, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil || len(found) == 0 {
			t.Fatalf("%s: no files, %v", pattern, err)
		}
		files = append(files, found...)
	}
	fitting := 0
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if _, problems := manifest.Parse(file, content); problems.Fatal() || slices.Contains(apart, filepath.Base(file)) {
			continue
		}
		decoder := yaml.NewDecoder(bytes.NewReader(content))
		for n := 1; ; n++ {
			var doc any
			if err := decoder.Decode(&doc); err != nil {
				break
			}
			if doc == nil {
				continue
			}
			fitting++
			if err := everything.Validate(plain(t, written(doc))); err != nil {
				t.Errorf("%s, document %d: %v", file, n, err)
			}
		}
	}
	if fitting < 100 {
		t.Errorf("only %d documents were looked at", fitting)
	}
}

// apart are files about what a schema cannot know: forms of YAML, and settings there are not.
var apart = []string{"ok-yaml.yaml", "ok-app.yaml"}

// written leaves out members that are null: they count as not written, in Kubernetes and here.
func written(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for name, value := range v {
			if value == nil {
				delete(v, name)
			} else {
				v[name] = written(value)
			}
		}
	case []any:
		for i := range v {
			v[i] = written(v[i])
		}
	}
	return v
}

// full is a value with every member there can be; odd, if there, is the place that gets one member more.
func full(n *manifest.Node, at string, odd string) any {
	switch {
	case len(n.Enum) > 0:
		return n.Enum[0]
	case n.Items != nil:
		return []any{full(n.Items, at+"[]", odd)}
	case slices.Contains(n.Types, "object"):
		m := map[string]any{}
		if n.Values != nil && n.Key != configKey {
			m["some"] = "text"
		}
		for _, member := range n.Members {
			if member.Instead == "" {
				m[member.Name] = full(member.Value, at+"."+member.Name, odd)
			}
		}
		if at == odd {
			m["quiteUnknown"] = 1
		}
		return m
	case slices.Contains(n.Types, "string"):
		switch n.Key[strings.LastIndexByte(n.Key, '.')+1:] {
		case "cron":
			return "* * * * *"
		case "timezone":
			return "UTC"
		}
		if slices.Contains(n.Types, "integer") {
			return "30s"
		}
		return "name"
	case slices.Contains(n.Types, "boolean"):
		return true
	case n.Minimum != nil:
		return *n.Minimum
	}
	return "anything"
}

// ids of problems that are about members and their types, which a schema can know.
var formal = []string{manifest.UnknownMember, manifest.MissingMember, manifest.WrongType, manifest.WrongWord, manifest.OutOfRange, manifest.NotAManifest, manifest.UnknownKind}

// The readers take every member of the schema with the type it has there, and refuse one more at any place; so does the
// schema. What is in the one and not in the other would be a trap.
func TestSchemaAndReadersAgree(t *testing.T) {
	for _, kind := range append(manifest.Kinds(), Definitions) {
		n := sketch(kind)
		schema := compile(t, kind)
		parse := func(doc any) (problems manifest.Errors) {
			text, err := yaml.Marshal(doc)
			if err != nil {
				t.Fatal(err)
			}
			_, all := manifest.Parse("f.yaml", text)
			for _, p := range all {
				if slices.Contains(formal, p.ID) {
					problems = append(problems, p)
				}
			}
			return problems
		}
		doc := full(n, "", "none")
		if problems := parse(doc); len(problems) > 0 {
			t.Errorf("%s with every member: %v", kind, problems)
		}
		if text := complaints(schema.Validate(plain(t, doc))); strings.Contains(text, "additional properties") || strings.Contains(text, "got ") {
			t.Errorf("%s with every member: %s", kind, text)
		}
		places := 0
		var visit func(n *manifest.Node, at string)
		visit = func(n *manifest.Node, at string) {
			if n.Items != nil {
				visit(n.Items, at+"[]")
			}
			if !slices.Contains(n.Types, "object") || n.Enum != nil {
				return
			}
			for _, m := range n.Members {
				if m.Instead == "" {
					visit(m.Value, at+"."+m.Name)
				}
			}
			if n.Values != nil {
				return
			}
			places++
			odd := full(sketch(kind), "", at)
			if problems := parse(odd); len(problems) != 1 || problems[0].ID != manifest.UnknownMember {
				t.Errorf("%s, a member too many at %q: the reader says %v", kind, at, problems)
			}
			if err := schema.Validate(plain(t, odd)); !strings.Contains(complaints(err), "quiteUnknown") {
				t.Errorf("%s, a member too many at %q: the schema says %v", kind, at, err)
			}
		}
		visit(n, "")
		if places < 3 {
			t.Errorf("%s: only %d objects", kind, places)
		}
	}
}

func complaints(err error) string {
	if err == nil {
		return ""
	}
	return fmt.Sprintf("%#v", err)
}

// A required member that is missing, and members that exclude each other, are found by the schema too.
func TestSchemaRefuses(t *testing.T) {
	everything := compile(t, "")
	for _, c := range []struct{ name, yaml, want string }{
		{"no spec", "{apiVersion: kaspr.io/v1alpha1, kind: KasprJoin, metadata: {name: j, labels: {kaspr.io/app: a}}}", "spec"},
		{"no app", "{apiVersion: kaspr.io/v1alpha1, kind: KasprTable, metadata: {name: t}, spec: {}}", "labels"},
		{"another version", "{apiVersion: kaspr.io/v2, kind: KasprTable, metadata: {name: t, labels: {kaspr.io/app: a}}, spec: {}}", "apiVersion"},
		{"both", "{apiVersion: kaspr.io/v1alpha1, kind: KasprTask, metadata: {name: t, labels: {kaspr.io/app: a}}, spec: {schedule: {cron: x, interval: 5s}, processors: {pipeline: [m]}}}", "oneOf"},
		{"neither", "{apiVersion: kaspr.io/v1alpha1, kind: KasprTask, metadata: {name: t, labels: {kaspr.io/app: a}}, spec: {schedule: {}, processors: {pipeline: [m]}}}", "oneOf"},
		{"a word", "{apiVersion: kaspr.io/v1alpha1, kind: KasprTable, metadata: {name: t, labels: {kaspr.io/app: a}}, spec: {keySerializer: pickle}}", "raw"},
		{"a setting", "{apiVersion: kaspr.io/v1alpha1, kind: KasprApp, metadata: {name: t}, spec: {config: {webPrt: 1}}}", "webPrt"},
		{"an engine's setting", "{apiVersion: kaspr.io/v1alpha1, kind: KasprApp, metadata: {name: t}, spec: {config: {logFormat: json}}}", "logFormat"},
		{"a definition", "{tables: [{key_serialiser: json, name: t}]}", "key_serialiser"},
		{"somebody else's", "{apiVersion: v1, kind: ConfigMap, metadata: {name: t}, data: {}}", ""},
		{"worker names", "{apiVersion: kaspr.io/v1alpha1, kind: KasprApp, metadata: {name: t}, spec: {config: {stream_buffer_maxsize: 8192, topicPartitions: 6}}}", ""},
		{"definitions", "{tables: [{key_serializer: json, name: t, valueSerializer: raw}]}", ""},
	} {
		var doc any
		if err := yaml.Unmarshal([]byte(c.yaml), &doc); err != nil {
			t.Fatal(err)
		}
		err := everything.Validate(plain(t, doc))
		if (err == nil) != (c.want == "") || !strings.Contains(complaints(err), c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}

// Kubernetes refuses a CRD whose schema is not structural, but only when it is installed.
func TestCRDsAreStructural(t *testing.T) {
	for _, kind := range manifest.Kinds() {
		var check func(n *node, at string)
		check = func(n *node, at string) {
			if n == nil {
				return
			}
			if _, one := n.Type.(string); !one && !n.Preserve && !n.IntOrText {
				t.Errorf("%s%s has no type", kind, at)
			}
			if n.Ref != "" || n.Const != nil || n.Definitions != nil || n.Schema != "" || n.If != nil || n.Deprecated {
				t.Errorf("%s%s holds what Kubernetes does not take", kind, at)
			}
			if others, ok := n.Others.(*node); ok && n.Properties != nil {
				t.Errorf("%s%s has properties and others %v", kind, at, others)
			} else if ok {
				check(others, at+".*")
			} else if n.Others != nil {
				t.Errorf("%s%s has additionalProperties %v", kind, at, n.Others)
			}
			if n.Type == "array" && n.Items == nil {
				t.Errorf("%s%s has no items", kind, at)
			}
			for _, list := range [][]*node{n.AllOf, n.AnyOf, n.OneOf} {
				for _, v := range list {
					junctor(t, v, kind+at)
				}
			}
			for _, p := range n.Properties {
				check(p.value, at+"."+p.name)
			}
			check(n.Items, at+"[]")
		}
		check(structural(manifest.Describe(kind)), "")
	}
	if _, err := CRD("Deployment"); err == nil {
		t.Error("a CRD of a kind there is not")
	}
	if _, err := JSON("Deployment"); err == nil {
		t.Error("a schema of a kind there is not")
	}
}

// junctor checks what stands in allOf, anyOf, oneOf and not: there nothing may describe or type a value.
func junctor(t *testing.T, n *node, at string) {
	t.Helper()
	if n == nil {
		return
	}
	if n.Type != nil || n.Description != "" || n.Properties != nil || n.Others != nil || n.Preserve || n.IntOrText {
		t.Errorf("%s: a rule says more than which members there are", at)
	}
	for _, list := range [][]*node{n.AllOf, n.AnyOf, n.OneOf, {n.Not}} {
		for _, v := range list {
			junctor(t, v, at)
		}
	}
}
