//go:generate go test . -run "TestGenerated" -rewrite

// Package schema writes what manifests may hold as JSON Schema, as Kubernetes CRDs and as a document.
//
// All three are made of the sketches of engine/manifest, which are made by the readers themselves.
package schema

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"kaspr.io/kaspr/engine/config"
	"kaspr.io/kaspr/engine/manifest"
)

// Definitions is the name of the definition files' schema, beside those of the kinds.
const Definitions = "definitions"

const draft = "http://json-schema.org/draft-07/schema#" // the newest that YAML editors know well

// node is a JSON Schema, its members in the order they are written.
type node struct {
	Schema      string   `json:"$schema,omitempty"`
	Title       string   `json:"title,omitempty"`
	Description string   `json:"description,omitempty"`
	Default     any      `json:"default,omitempty"`
	Deprecated  bool     `json:"deprecated,omitempty"`
	Ref         string   `json:"$ref,omitempty"`
	Type        any      `json:"type,omitempty"` // a word, or several
	Const       any      `json:"const,omitempty"`
	Enum        []string `json:"enum,omitempty"`
	Minimum     *float64 `json:"minimum,omitempty"`
	Maximum     *float64 `json:"maximum,omitempty"`
	Pattern     string   `json:"pattern,omitempty"`
	Items       *node    `json:"items,omitempty"`
	Required    []string `json:"required,omitempty"`
	Properties  members  `json:"properties,omitempty"`
	Others      any      `json:"additionalProperties,omitempty"` // false, or a *node
	AllOf       []*node  `json:"allOf,omitempty"`
	AnyOf       []*node  `json:"anyOf,omitempty"`
	OneOf       []*node  `json:"oneOf,omitempty"`
	Not         *node    `json:"not,omitempty"`
	If          *node    `json:"if,omitempty"`
	Then        *node    `json:"then,omitempty"`
	Definitions members  `json:"definitions,omitempty"`
	Preserve    bool     `json:"x-kubernetes-preserve-unknown-fields,omitempty"`
	IntOrText   bool     `json:"x-kubernetes-int-or-string,omitempty"`

	Validations []validation `json:"x-kubernetes-validations,omitempty"`
}

// validation is a rule that Kubernetes holds a value against, and what it says when it does not fit.
type validation struct {
	Rule    string `json:"rule"`
	Message string `json:"message"`
}

// members are the schemas of an object's members, by name.
type (
	members  = ordered[*node]
	property = entry[*node]
)

// ordered is a JSON object that keeps its order.
type ordered[T any] []entry[T]

type entry[T any] struct {
	name  string
	value T
}

func (o ordered[T]) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, e := range o {
		if i > 0 {
			b.WriteByte(',')
		}
		name, err := json.Marshal(e.name)
		if err != nil {
			return nil, err
		}
		value, err := json.Marshal(e.value)
		if err != nil {
			return nil, err
		}
		b.Write(name)
		b.WriteByte(':')
		b.Write(value)
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

// get is a member's value; the zero value when there is no such member.
func (o ordered[T]) get(name string) (value T) {
	for _, e := range o {
		if e.name == name {
			return e.value
		}
	}
	return value
}

// JSON is the schema of one kind, of Definitions, or, with no kind, of every document a manifest file may hold.
func JSON(kind string) ([]byte, error) {
	b := &builder{snake: kind == Definitions}
	var root *node
	switch n := sketch(kind); {
	case kind == "":
		root = b.everything()
	case n == nil:
		return nil, fmt.Errorf("there is no kind %q: it is one of %s, %s", kind, strings.Join(manifest.Kinds(), ", "), Definitions)
	default:
		root = b.value(n, n.Key)
		root.Title = title(kind)
	}
	root.Schema, root.Definitions = draft, append(root.Definitions, b.shared...)
	text, err := json.MarshalIndent(root, "", "  ")
	if err != nil {
		return nil, err
	}
	return append(text, '\n'), nil
}

func sketch(kind string) *manifest.Node {
	if kind == Definitions {
		return manifest.DescribeDefinitions()
	}
	return manifest.Describe(kind)
}

func title(kind string) string {
	if kind == Definitions {
		return "Kaspr definition file"
	}
	return kind
}

// builder makes JSON Schemas of sketches; what is shared becomes a definition.
type builder struct {
	shared members
	// snake: members may also be written in snake_case, as in a definition file.
	snake bool
}

// spellings are all names a member may be written under.
func (b *builder) spellings(name string) []string {
	if in := snake(name); b.snake && in != name {
		return []string{in, name}
	}
	return []string{name}
}

func snake(name string) string {
	var b strings.Builder
	for _, r := range name {
		if r >= 'A' && r <= 'Z' {
			b.WriteByte('_')
			r += 'a' - 'A'
		}
		b.WriteRune(r)
	}
	return b.String()
}

// everything is the schema of a document of any kind; one of somebody else's kind may hold anything.
func (b *builder) everything() *node {
	root := &node{Title: "Kaspr manifests", Type: "object"}
	var all members
	for _, kind := range manifest.Kinds() {
		n := sketch(kind)
		all = append(all, property{kind, b.value(n, n.Key)})
		root.AllOf = append(root.AllOf, &node{
			If:   &node{Required: []string{"kind"}, Properties: members{{"kind", &node{Const: kind}}}},
			Then: &node{Ref: "#/definitions/" + kind},
		})
	}
	n := sketch(Definitions)
	b.snake = true
	all = append(all, property{Definitions, b.value(n, n.Key)})
	root.AllOf = append(root.AllOf, &node{
		If:   &node{Not: &node{AnyOf: []*node{{Required: []string{"kind"}}, {Required: []string{"apiVersion"}}}}},
		Then: &node{Ref: "#/definitions/" + Definitions},
	})
	root.Definitions = all
	return root
}

// value is the schema of a sketch that stands at key.
func (b *builder) value(n *manifest.Node, key string) *node {
	s := &node{}
	if n.Shared {
		name := n.Key
		if b.snake {
			name = Definitions + "." + name
		}
		s = &node{Ref: "#/definitions/" + name}
		if b.shared.get(name) == nil {
			i := len(b.shared)
			b.shared = append(b.shared, property{name, &node{}}) // what it holds comes after it
			b.shared[i].value = b.body(n)
		}
	} else {
		s = b.body(n)
	}
	text := description(key)
	switch {
	case text == "":
	case s.Ref != "": // beside a reference other words do not count in draft 7
		s = &node{Description: text, AllOf: []*node{s}}
	default:
		s.Description = text
	}
	return s
}

// description is what a member is for, and whether that is done.
func description(key string) string {
	f, ok := manifest.FieldOf(key)
	if !ok {
		return ""
	}
	if f.Status != manifest.Done {
		return f.Doc + " (" + string(f.Status) + ": " + f.Why + ")"
	}
	return f.Doc
}

func (b *builder) body(n *manifest.Node) *node {
	s := b.form(n)
	if n.Also != nil {
		return &node{AnyOf: []*node{s, b.form(n.Also)}}
	}
	return s
}

func (b *builder) form(n *manifest.Node) *node {
	s := &node{Enum: n.Enum, Minimum: n.Minimum, Maximum: n.Maximum}
	switch len(n.Types) {
	case 0:
	case 1:
		s.Type = n.Types[0]
	default:
		s.Type = n.Types
	}
	if n.NotBlank && n.Enum == nil {
		s.Pattern = `\S`
	}
	if n.Items != nil {
		s.Items = b.value(n.Items, n.Items.Key)
	}
	if slices.Contains(n.Types, "object") {
		b.object(s, n)
	}
	return s
}

func (b *builder) object(s *node, n *manifest.Node) {
	s.Others = false
	if n.Values != nil {
		s.Others = b.form(n.Values)
	}
	for _, m := range n.Members {
		value := &node{Deprecated: true, Description: "Written " + m.Instead + "."}
		if m.Instead == "" {
			value = b.value(m.Value, n.Key+"."+m.Name)
		} else if right := n.Find(m.Instead); right != nil {
			value.AllOf = []*node{b.value(right, "")}
		}
		if n.Key+"."+m.Name == configKey {
			b.config(value)
		}
		for _, name := range b.spellings(m.Name) {
			s.Properties = append(s.Properties, property{name, value})
		}
		if m.Required {
			if len(b.spellings(m.Name)) > 1 {
				s.AllOf = append(s.AllOf, b.there(n, m.Name))
			} else {
				s.Required = append(s.Required, m.Name)
			}
		}
	}
	for _, r := range n.Rules {
		s.AllOf = append(s.AllOf, b.rules(n, r)...)
	}
}

const configKey = manifest.KindApp + ".spec.config"

// config puts the settings in.
func (b *builder) config(s *node) {
	s.Others = false
	for _, d := range config.Describe() {
		if !d.App {
			continue
		}
		text := d.Doc
		if d.Default != "" {
			text += " Default: " + d.Default + "."
		}
		if d.Unused != "" {
			text += " (no effect: " + d.Unused + ")"
		}
		for _, name := range d.Names {
			p := property{name, &node{Description: text, Type: d.Types}}
			if name != d.Key {
				p.value.Deprecated, p.value.Description = true, "Written "+d.Key+"."
			}
			s.Properties = append(s.Properties, p)
		}
	}
}

// there says that a member is there, under any of its names.
func (b *builder) there(n *manifest.Node, name string) *node {
	names := b.spellings(name)
	for _, m := range n.Members {
		if m.Instead == name {
			names = append(names, b.spellings(m.Name)...)
		}
	}
	var any []*node
	for _, name := range names {
		any = append(any, &node{Required: []string{name}})
	}
	if len(any) == 1 {
		return any[0]
	}
	return &node{AnyOf: any}
}

// rules says how many of some members may be there.
func (b *builder) rules(n *manifest.Node, r manifest.Rule) []*node {
	var list []*node
	for _, name := range r.Members {
		list = append(list, b.there(n, name))
	}
	switch {
	case r.Least == 1 && r.Most == 1:
		return []*node{{OneOf: list}}
	case r.Least == 1:
		return []*node{{AnyOf: list}}
	}
	var pairs []*node
	for i, one := range list {
		for _, other := range list[i+1:] {
			pairs = append(pairs, &node{Not: &node{AllOf: []*node{one, other}}})
		}
	}
	return pairs
}
