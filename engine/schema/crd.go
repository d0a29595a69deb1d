package schema

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"kaspr.io/kaspr/engine/manifest"
)

// resource is how Kubernetes calls a kind, and what it lists of it.
type resource struct {
	kind  string
	short []string
	print []column
}

// column is a text of what is listed: numbers of the status are texts, too, such as 2/3.
type column struct{ name, path string }

// ofComponent is what is listed of every kind but the app: which app it belongs to, and whether the operator has found that.
var ofComponent = []column{{"App", `.metadata.labels.kaspr\.io/app`}, {"Status", ".status.app.status"}}

// resources are the kinds as the original's CRDs name them.
var resources = []resource{
	{manifest.KindApp, []string{"kapps", "kapp"}, []column{
		{"Version", ".status.kasprVersion"},
		{"Ready", `.status.conditions[?(@.type=="Ready")].status`},
		{"Members", ".status.availableMembers"},
		{"Rebalancing", ".status.rebalancingMembers"},
	}},
	{manifest.KindAgent, []string{"kagents", "kagent"}, ofComponent},
	{manifest.KindTable, []string{"ktables", "ktable"}, ofComponent},
	{manifest.KindWebView, []string{"kwebviews", "kwebview"}, ofComponent},
	{manifest.KindTask, []string{"ktasks", "ktask"}, ofComponent},
	{manifest.KindJoin, []string{"kjoin", "kj"}, append(slices.Clone(ofComponent),
		column{"Left table", ".status.leftTable.status"}, column{"Right table", ".status.rightTable.status"})},
}

// What the cluster keeps to, beside the forms that the readers know. Keys are those of manifest.Node.
var (
	// defaults are filled in where nothing is written.
	defaults = map[string]any{
		manifest.KindApp + ".spec.replicas":     1,
		manifest.KindApp + ".spec.storage.type": "persistent-claim",
	}
	// fixed are members that nobody can change, and why.
	fixed = []struct{ key, why string }{
		{manifest.KindApp + ".spec.storage.class", "the storage class of claims cannot be changed"},
		{configKey + ".topicPartitions", "the partitions of topics that exist cannot be changed"},
		{configKey + ".schedulerTopicPartitions", "messages that wait are where their ids hash to"},
	}
)

// durations are the texts that readers take for one: seconds, or digits with units (manifest.ParseDuration, which knows a little more).
const durations = `^([0-9]+|([0-9]+(\.[0-9]+)?(ns|us|µs|ms|s|m|h|d))+)$`

func (r resource) plural() string { return strings.ToLower(r.kind) + "s" }

var group, version, _ = strings.Cut(manifest.APIVersion, "/")

// CRD is the CustomResourceDefinition of a kind, as YAML.
func CRD(kind string) ([]byte, error) {
	i := slices.IndexFunc(resources, func(r resource) bool { return r.kind == kind })
	if i < 0 {
		return nil, fmt.Errorf("there is no kind %q: it is one of %s", kind, strings.Join(manifest.Kinds(), ", "))
	}
	r := resources[i]
	names := object{{"kind", r.kind}, {"listKind", r.kind + "List"}, {"plural", r.plural()}, {"singular", strings.ToLower(r.kind)}, {"shortNames", r.short}}
	var columns []object
	for _, c := range r.print {
		columns = append(columns, object{{"name", c.name}, {"type", "string"}, {"jsonPath", c.path}})
	}
	served := object{
		{"name", version},
		{"served", true},
		{"storage", true},
		{"subresources", object{{"status", object{}}}},
		{"additionalPrinterColumns", columns},
		{"schema", object{{"openAPIV3Schema", structural(manifest.Describe(kind))}}},
	}
	return blockYAML(object{
		{"apiVersion", "apiextensions.k8s.io/v1"},
		{"kind", "CustomResourceDefinition"},
		{"metadata", object{{"name", r.plural() + "." + group}}},
		{"spec", object{
			{"group", group},
			{"scope", "Namespaced"},
			{"names", names},
			{"versions", []object{served}},
		}},
	})
}

// structural is the schema of a whole kind. Kubernetes demands a type for every value or none at all, and drops what has
// no property; spec keeps what it does not know, so that the engine can say what is wrong with it.
func structural(n *manifest.Node) *node {
	root := &node{Type: "object", Description: n.Key + " of " + manifest.APIVersion + "."}
	for _, m := range n.Members {
		var value *node
		switch m.Name {
		case "apiVersion", "kind":
			value = &node{Type: "string"}
		case "metadata":
			value = &node{Type: "object"}
		case "status":
			value = &node{Type: "object", Preserve: true}
		default:
			value = structuralValue(m.Value, n.Key+"."+m.Name)
			value.Preserve = true
			root.Required = append(root.Required, m.Name)
		}
		root.Properties = append(root.Properties, property{m.Name, value})
	}
	return root
}

func structuralValue(n *manifest.Node, key string) *node {
	s := &node{Description: description(key), Default: defaults[key], Validations: unchanging(key)}
	switch {
	case n.Also != nil && slices.Equal(n.Types, n.Also.Types): // two lists of words
		s.Type, s.Enum = n.Types[0], append(slices.Clone(n.Enum), n.Also.Enum...)
	case n.Also != nil || len(n.Types) == 0:
		s.Preserve = true
	case len(n.Types) > 1:
		if s.IntOrText = true; slices.Equal(n.Types, []string{"string", "integer"}) { // a duration, not a quantity
			s.Pattern = durations
		}
	default:
		s.Type, s.Enum, s.Minimum, s.Maximum = n.Types[0], n.Enum, n.Minimum, n.Maximum
		if n.NotBlank && n.Enum == nil {
			s.Pattern = `\S`
		}
	}
	if n.Items != nil {
		s.Items = structuralValue(n.Items, n.Items.Key)
	}
	if s.Type != "object" {
		return s
	}
	if key == configKey {
		s.Preserve = true
		for _, f := range fixed { // the readers of manifests know no setting by name
			if name, ok := strings.CutPrefix(f.key, configKey+"."); ok {
				s.Properties = append(s.Properties, property{name, &node{IntOrText: true, Validations: unchanging(f.key)}})
			}
		}
		return s
	}
	if n.Values != nil { // text, numbers and booleans, which no type has together
		s.Others = &node{Preserve: true}
		return s
	}
	b := &builder{}
	for _, m := range n.Members {
		value := &node{Preserve: true, Description: "Written " + m.Instead + "."}
		if m.Instead == "" {
			value = structuralValue(m.Value, n.Key+"."+m.Name)
		} else if right := n.Find(m.Instead); right != nil {
			value = structuralValue(right, "")
			value.Description = "Written " + m.Instead + "."
		}
		s.Properties = append(s.Properties, property{m.Name, value})
		if m.Required {
			s.Required = append(s.Required, m.Name)
		}
	}
	for _, r := range n.Rules {
		s.AllOf = append(s.AllOf, b.rules(n, r)...)
	}
	return s
}

// unchanging is the rule that a value stays what it is, if it has to.
func unchanging(key string) []validation {
	for _, f := range fixed {
		if f.key == key {
			return []validation{{Rule: "self == oldSelf", Message: f.why}}
		}
	}
	return nil
}

// object is what a CRD has around its schema.
type object = ordered[any]

// blockYAML writes a value as YAML in block style, its members in order.
func blockYAML(v any) ([]byte, error) {
	text, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(text, &doc); err != nil {
		return nil, err
	}
	unflow(&doc)
	var b bytes.Buffer
	encoder := yaml.NewEncoder(&b)
	encoder.SetIndent(2)
	if err := encoder.Encode(&doc); err != nil {
		return nil, err
	}
	return b.Bytes(), encoder.Close()
}

// unflow takes JSON's brackets and quotes away; empty collections keep theirs, and the encoder quotes what needs it.
func unflow(n *yaml.Node) {
	n.Style = 0
	for _, c := range n.Content {
		unflow(c)
	}
}
