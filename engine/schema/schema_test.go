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

// A manifest the engine runs must not be underlined in an editor, nor refused by a cluster: every one in this repository that has no errors fits
// the schema, and the CRD of its kind.
func TestManifestsFit(t *testing.T) {
	everything := compile(t, "")
	crds := map[string]*jsonschema.Schema{}
	for _, kind := range manifest.Kinds() {
		crds[kind] = compileCRD(t, kind)
	}
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
			doc = written(doc)
			if err := everything.Validate(plain(t, doc)); err != nil {
				t.Errorf("%s, document %d: %v", file, n, err)
			}
			if m, ok := doc.(map[string]any); ok {
				if kind, _ := m["kind"].(string); crds[kind] != nil {
					if err := crds[kind].Validate(plain(t, doc)); err != nil {
						t.Errorf("%s, document %d does not fit its CRD: %v", file, n, err)
					}
				}
			}
		}
	}
	if fitting < 100 {
		t.Errorf("only %d documents were looked at", fitting)
	}
}

// compileCRD makes a validator of the schema in a CRD.
func compileCRD(t *testing.T, kind string) *jsonschema.Schema {
	t.Helper()
	version := parseCRD(t, kind).Spec.Versions[0]
	c := jsonschema.NewCompiler()
	if err := c.AddResource("crd.json", plain(t, version.Schema.OpenAPIV3Schema)); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile("crd.json")
	if err != nil {
		t.Fatalf("%s: %v", kind, err)
	}
	return s
}

// crd is what a CRD says, but for its schema as it is written.
type crd struct {
	Spec struct {
		Scope string
		Names struct {
			Kind, Plural, Singular string
			ShortNames             []string `yaml:"shortNames"`
		}
		Versions []struct {
			Name            string
			Served, Storage bool
			Subresources    map[string]any
			Columns         []struct {
				Name, Type string
				JSONPath   string `yaml:"jsonPath"`
			} `yaml:"additionalPrinterColumns"`
			Schema struct {
				OpenAPIV3Schema any `yaml:"openAPIV3Schema"`
			}
		}
	}
}

func parseCRD(t *testing.T, kind string) (c crd) {
	t.Helper()
	text, err := CRD(kind)
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(text, &c); err != nil || len(c.Spec.Versions) != 1 {
		t.Fatal(kind, err)
	}
	return c
}

// Whoever used kubectl with the original's kinds goes on doing so, and sees what it showed: counts in the status are texts, such as 2/3, which a column
// of numbers does not show.
func TestCRDNames(t *testing.T) {
	component := "App .metadata.labels.kaspr\\.io/app, Status .status.app.status"
	for _, want := range []struct{ kind, plural, singular, short, columns string }{
		{
			"KasprApp", "kasprapps", "kasprapp", "kapps kapp",
			`Version .status.kasprVersion, Ready .status.conditions[?(@.type=="Ready")].status, Members .status.availableMembers, Rebalancing .status.rebalancingMembers`,
		},
		{"KasprAgent", "kaspragents", "kaspragent", "kagents kagent", component},
		{"KasprTable", "kasprtables", "kasprtable", "ktables ktable", component},
		{"KasprTask", "kasprtasks", "kasprtask", "ktasks ktask", component},
		{"KasprJoin", "kasprjoins", "kasprjoin", "kjoin kj", component + ", Left table .status.leftTable.status, Right table .status.rightTable.status"},
		{"KasprWebView", "kasprwebviews", "kasprwebview", "kwebviews kwebview", component},
	} {
		c := parseCRD(t, want.kind)
		v, names := c.Spec.Versions[0], c.Spec.Names
		var columns []string
		for _, column := range v.Columns {
			if columns = append(columns, column.Name+" "+column.JSONPath); column.Type != "string" {
				t.Errorf("%s: column %s is of type %s", want.kind, column.Name, column.Type)
			}
		}
		if c.Spec.Scope != "Namespaced" || names.Kind != want.kind || names.Plural != want.plural || names.Singular != want.singular ||
			strings.Join(names.ShortNames, " ") != want.short || strings.Join(columns, ", ") != want.columns {
			t.Errorf("%s: %+v, columns %q", want.kind, names, columns)
		}
		if _, status := v.Subresources["status"]; !status || v.Name != "v1alpha1" || !v.Served || !v.Storage {
			t.Errorf("%s: %+v", want.kind, v)
		}
	}
}

// What is wrong should be refused when it is applied, not found when a worker starts; and what the engine takes must be let in.
func TestCRDsRefuse(t *testing.T) {
	const code = `{python: "def f(v): return v"}`
	const processors = `processors: {pipeline: [m], operations: [{name: m, map: ` + code + `}]}`
	schemas := map[string]*jsonschema.Schema{}
	for _, c := range []struct{ name, kind, spec, want string }{
		{"replicas", "KasprApp", `{replicas: -1}`, "/spec/replicas"},
		{"login", "KasprApp", `{authentication: {type: kerberos}}`, "/spec/authentication/type"},
		{"no type of login", "KasprApp", `{authentication: {}}`, "/spec/authentication"},
		{"probe", "KasprApp", `{livenessProbe: {periodSeconds: 0}}`, "/spec/livenessProbe/periodSeconds"},
		{"retries", "KasprApp", `{pythonPackages: {packages: [x], installPolicy: {timeout: 59}}}`, "/spec/pythonPackages/installPolicy/timeout"},
		{"settings", "KasprApp", `{config: {topicPartitions: 6, schedulerTopicPartitions: "6", stream_buffer_maxsize: 1, schedulerEnabled: true}, quiteUnknown: 1}`, ""},
		{"storage", "KasprApp", `{storage: {size: 1Gi}}`, ""},
		{"topic and channel", "KasprAgent", `{input: {topic: {name: t}, channel: {name: c}}, ` + processors + `}`, "/spec/input"},
		{"no input", "KasprAgent", `{input: {declare: true}, ` + processors + `}`, "/spec/input"},
		{"name and pattern", "KasprAgent", `{input: {topic: {name: t, pattern: t.*}}, ` + processors + `}`, "/spec/input/topic"},
		{"neither name nor pattern", "KasprAgent", `{input: {topic: {partitions: 1}}, ` + processors + `}`, "/spec/input/topic"},
		{"two names", "KasprAgent", `{input: {topic: {name: t}}, output: {topics: [{name: t, nameSelector: ` + code + `}]}, ` + processors + `}`, "/spec/output/topics/0"},
		{"no pipeline", "KasprAgent", `{input: {topic: {name: t}}, processors: {operations: []}}`, "/spec/processors"},
		{"codec", "KasprAgent", `{input: {topic: {name: t, keySerializer: xml}}, ` + processors + `}`, "/spec/input/topic/keySerializer"},
		{"take without a time", "KasprAgent", `{input: {topic: {name: t}, take: {max: 5}}, ` + processors + `}`, "/spec/input/take"},
		{"no duration", "KasprAgent", `{input: {topic: {name: t}, take: {max: 5, within: soon}}, ` + processors + `}`, "/spec/input/take/within"},
		{"durations", "KasprAgent", `{input: {topic: {name: t}, take: {max: 5, within: 1m30s}}, ` + processors + `}`, ""},
		{"options of topics", "KasprAgent", `{input: {topic: {name: t, config: {retention.ms: 5, cleanup.policy: compact}}}, ` + processors + `}`, ""},
		{"seconds", "KasprTable", `{window: {tumbling: {size: 30, expires: "60"}}}`, ""},
		{"pickled table", "KasprTable", `{keySerializer: pickle}`, "/spec/keySerializer"},
		{"cron and interval", "KasprTask", `{schedule: {cron: "* * * * *", interval: 5s}, ` + processors + `}`, "/spec/schedule"},
		{"no schedule", "KasprTask", `{schedule: {}, ` + processors + `}`, "/spec/schedule"},
		{"no tables", "KasprJoin", `{extractor: ` + code + `}`, "/spec"},
		{"type of join", "KasprJoin", `{leftTable: a, rightTable: b, type: right, extractor: ` + code + `}`, "/spec/type"},
		{"method", "KasprWebView", `{request: {method: FETCH, path: /a}, ` + processors + `}`, "/spec/request/method"},
		{"headers", "KasprWebView", `{request: {method: GET, path: /a}, response: {headers: {x-a: b, x-c: 5}}, ` + processors + `}`, ""},
	} {
		if schemas[c.kind] == nil {
			schemas[c.kind] = compileCRD(t, c.kind)
		}
		var doc any
		if err := yaml.Unmarshal([]byte("{apiVersion: kaspr.io/v1alpha1, kind: "+c.kind+", metadata: {name: n}, spec: "+c.spec+"}"), &doc); err != nil {
			t.Fatal(c.name, err)
		}
		err := schemas[c.kind].Validate(plain(t, doc))
		if (err == nil) != (c.want == "") || !strings.Contains(fmt.Sprint(err), "at '"+c.want+"'") && c.want != "" {
			t.Errorf("%s: %v, want a complaint about %q", c.name, err, c.want)
		}
	}
}

// What the operator takes for granted is filled in, and what cannot be changed is kept as it is.
func TestCRDsKeep(t *testing.T) {
	spec := structural(manifest.Describe(manifest.KindApp)).Properties.get("spec").Properties
	storage, config := spec.get("storage").Properties, spec.get("config")
	if spec.get("replicas").Default != 1 || storage.get("type").Default != "persistent-claim" {
		t.Errorf("defaults %v, %v", spec.get("replicas").Default, storage.get("type").Default)
	}
	for name, n := range map[string]*node{
		"storage.class": storage.get("class"), "topicPartitions": config.Properties.get("topicPartitions"), "schedulerTopicPartitions": config.Properties.get("schedulerTopicPartitions"),
	} {
		if n == nil || len(n.Validations) != 1 || n.Validations[0].Rule != "self == oldSelf" || n.Validations[0].Message == "" {
			t.Errorf("%s can be changed: %+v", name, n)
		}
	}
	if !config.Preserve {
		t.Error("settings are dropped")
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
