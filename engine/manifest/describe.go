package manifest

import (
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Node says what one value of a manifest may be. Nodes are made by the readers themselves, called on a sketch instead of
// a file, so that a schema made of them can neither lack a member nor have one too many.
type Node struct {
	Key      string   // names the value in fields.txt, such as KasprAgent.spec.input or Code.python
	Shared   bool     // the same wherever this Key stands: a schema may define it once
	Types    []string // object, array, string, integer, number, boolean; empty: anything
	Members  []Member // of an object; any other member is refused
	Rules    []Rule
	Items    *Node // of an array
	Values   *Node // of an object whose members are free
	Enum     []string
	Also     *Node // another form that is accepted
	NotBlank bool  // text must not be empty
	Minimum  *float64
	Maximum  *float64
}

// Member is one member of an object.
type Member struct {
	Name     string
	Required bool
	// Instead is the right name of a member that older texts spell differently; Value is nil then.
	Instead string
	Value   *Node
}

// Rule bounds how many of the members may be there.
type Rule struct {
	Least, Most int
	Members     []string
}

// Kinds are the kinds of kaspr.io/v1alpha1.
func Kinds() []string { return slices.Clone(kinds) }

// Describe is what a document of the kind may hold; nil for a kind there is not.
func Describe(kind string) *Node {
	if !slices.Contains(kinds, kind) {
		return nil
	}
	n := &Node{Key: kind}
	c := cursor{reader: &reader{sketching: true}, node: &yaml.Node{}, sketch: n}
	c.component(kind, &Set{})
	for i := range n.Members {
		switch v := n.Members[i].Value; n.Members[i].Name {
		case "apiVersion":
			v.Types, v.Enum, n.Members[i].Required = []string{"string"}, []string{APIVersion}, true
		case "kind":
			v.Types, v.Enum, n.Members[i].Required = []string{"string"}, []string{kind}, true
		}
	}
	return n
}

// DescribeDefinitions is what a file with lists of components may hold. Its members may also be written in snake_case.
func DescribeDefinitions() *Node {
	n := &Node{Key: "definitions"}
	c := cursor{reader: &reader{sketching: true}, node: &yaml.Node{}, sketch: n}
	c.definition(&Set{})
	return n
}

// of names what is read next in sketches and in fields.txt; without it, a value is named after where it stands. Readers
// called from several places need it.
func (c cursor) of(key string) cursor {
	if c.sketching {
		c.sketch.Key, c.sketch.Shared = key, true
	}
	return c
}

func (c cursor) sketchObject(members []member) found {
	c.sketch.Types = []string{"object"}
	for _, m := range members {
		if m.refused != "" {
			continue
		}
		entry := Member{Name: m.name, Required: m.required, Instead: m.instead}
		if m.instead == "" {
			entry.Value = &Node{Key: strings.TrimPrefix(c.sketch.Key+"."+m.name, ".")}
			next := c
			next.sketch = entry.Value
			m.read(next)
		}
		c.sketch.Members = append(c.sketch.Members, entry)
	}
	return found{}
}

func (c cursor) sketchList(read func(cursor)) {
	item := c
	item.sketch = &Node{Key: c.sketch.Key + "[]"}
	c.sketch.Types, c.sketch.Items = []string{"array"}, item.sketch
	read(item)
}

// exact keeps numbers that JSON readers would round out of sketches.
const exact = 1 << 53

func (c cursor) sketchNumber(kind string, lowest, highest float64) {
	c.sketch.Types, c.sketch.Minimum = []string{kind}, &lowest
	if highest < exact {
		c.sketch.Maximum = &highest
	}
}

// Find is the node of a member below n, by its path; nil when there is none.
func (n *Node) Find(path ...string) *Node {
	for _, name := range path {
		if n == nil {
			return nil
		}
		i := slices.IndexFunc(n.Members, func(m Member) bool { return m.Name == name })
		if i < 0 {
			return nil
		}
		n = n.Members[i].Value
	}
	return n
}

// Walk visits n and everything below it.
func (n *Node) Walk(visit func(*Node)) {
	if n == nil {
		return
	}
	visit(n)
	for _, m := range n.Members {
		m.Value.Walk(visit)
	}
	n.Items.Walk(visit)
	n.Values.Walk(visit)
	n.Also.Walk(visit)
}
