//go:generate go test . -run "TestGolden|TestCatalog|TestLoadProblems" -rewrite

// Package manifest reads Kaspr's YAML kinds into typed values that remember where in which file they stand.
//
// It checks everything that can be known from the manifests alone and reports all problems at once, in file order.
// What depends on settings or on the whole of one app is checked by engine/plan.
package manifest

import (
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Kinds of kaspr.io/v1alpha1.
const (
	KindApp     = "KasprApp"
	KindAgent   = "KasprAgent"
	KindTable   = "KasprTable"
	KindWebView = "KasprWebView"
	KindTask    = "KasprTask"
	KindJoin    = "KasprJoin"
)

var kinds = []string{KindApp, KindAgent, KindTable, KindWebView, KindTask, KindJoin}

const (
	group = "kaspr.io"
	// APIVersion is the one version of the kinds this engine reads.
	APIVersion = group + "/v1alpha1"
	// AppLabel is the label that binds a component to its app.
	AppLabel = group + "/app"
)

// Set is everything a list of files holds, each kind in file order.
type Set struct {
	Files    []string // every file read, in the order read
	Apps     []*App
	Agents   []*Agent
	Tables   []*Table
	WebViews []*WebView
	Tasks    []*Task
	Joins    []*Join

	codes []*Code // every block, for InFile
	alone bool    // there is nothing but an app that the settings name
}

// Components are all kinds but App, in file order.
func (s *Set) Components() []*Meta {
	var list []*Meta
	for _, a := range s.Agents {
		list = append(list, &a.Meta)
	}
	for _, t := range s.Tables {
		list = append(list, &t.Meta)
	}
	for _, w := range s.WebViews {
		list = append(list, &w.Meta)
	}
	for _, t := range s.Tasks {
		list = append(list, &t.Meta)
	}
	for _, j := range s.Joins {
		list = append(list, &j.Meta)
	}
	less := order(s.Files)
	slices.SortStableFunc(list, func(a, b *Meta) int { return less(a.Pos, b.Pos) })
	return list
}

// Meta is what every kind has: its place, its name, its app.
type Meta struct {
	Kind   string
	Pos    Pos           // of the document's first member
	Name   Value[string] // metadata.name
	App    Value[string] // label kaspr.io/app; unset in a KasprApp and in a definition file of the Python worker
	Labels map[string]string
	// Definition says that the component comes from a definition file as the original operator writes it, which names
	// no app: it belongs to whichever app the engine runs.
	Definition bool
}

// Label names the component in messages, such as `agent "orders"`.
func (m *Meta) Label() string {
	if m.Name.V == "" {
		return Word(m.Kind) + " without a name"
	}
	return Word(m.Kind) + " " + quote(m.Name.V)
}

// Word is a kind as messages call it.
func Word(kind string) string {
	switch kind {
	case KindApp:
		return "app"
	case KindAgent:
		return "agent"
	case KindTable:
		return "table"
	case KindWebView:
		return "web view"
	case KindTask:
		return "task"
	case KindJoin:
		return "join"
	}
	return kind
}

// manifest reads one document of any kind into the set.
func (c cursor) manifest(set *Set) {
	switch {
	case c.null():
		return // an empty document, as between two markers
	case c.node.Kind != yaml.MappingNode:
		c.fail(NotAManifest, "a manifest is a mapping, not "+c.kind(), "")
		return
	}
	apiVersion, kind := c.peek("apiVersion"), c.peek("kind")
	switch {
	case !apiVersion.Set() && !kind.Set():
		if c.isDefinition() {
			c.definition(set)
			return
		}
		c.fail(NotAManifest, "the document has neither apiVersion nor kind", "start it with apiVersion: "+APIVersion)
		return
	case apiVersion.V == "v1" && kind.V == "List":
		c.object(append(ignored("apiVersion", "kind", "metadata"),
			must("items", func(c cursor) { c.list(func(c cursor) { c.manifest(set) }) }))...)
		return
	case !c.ours(apiVersion, kind):
		return
	}
	c.component(kind.V, set)
}

// component reads a document of one of our kinds into the set.
func (c cursor) component(kind string, set *Set) {
	meta := Meta{Kind: kind, Pos: c.pos(c.node)}
	members := append(ignored("apiVersion", "kind", "status"), must("metadata", func(c cursor) { c.metadata(&meta) }))
	spec := func(read func(cursor)) {
		c.object(append(members, must("spec", read))...)
	}
	switch kind {
	case KindApp:
		a := &App{}
		spec(func(c cursor) { c.app(a) })
		a.Meta = meta
		set.Apps = append(set.Apps, a)
	case KindAgent:
		a := &Agent{}
		spec(func(c cursor) { c.agent(a) })
		a.Meta = meta
		set.Agents = append(set.Agents, a)
	case KindTable:
		t := &Table{}
		spec(func(c cursor) { c.table(t) })
		t.Meta = meta
		c.nameIsIgnored(meta, t.SpecName)
		set.Tables = append(set.Tables, t)
	case KindWebView:
		w := &WebView{}
		spec(func(c cursor) { c.webView(w) })
		w.Meta = meta
		c.nameIsIgnored(meta, w.SpecName)
		set.WebViews = append(set.WebViews, w)
	case KindTask:
		t := &Task{}
		spec(func(c cursor) { c.task(t) })
		t.Meta = meta
		c.nameIsIgnored(meta, t.SpecName)
		set.Tasks = append(set.Tasks, t)
	case KindJoin:
		j := &Join{}
		spec(func(c cursor) { c.join(j) })
		j.Meta = meta
		c.nameIsIgnored(meta, j.SpecName)
		set.Joins = append(set.Joins, j)
	}
}

// peek is a text member at the top of a document.
func (c cursor) peek(name string) Value[string] {
	for i := 0; i+1 < len(c.node.Content); i += 2 {
		if c.node.Content[i].Value == name {
			value := c.child(c.node.Content[i+1], name, c.pos(c.node.Content[i]))
			if text, ok := value.scalarText(); ok {
				return At(text, c.pos(value.node))
			}
			return At("", value.at)
		}
	}
	return Value[string]{}
}

// ours tells whether a document is of a kind read here, and reports what is not, or only nearly.
func (c cursor) ours(apiVersion, kind Value[string]) bool {
	if !apiVersion.Set() {
		c.fail(NotAManifest, "the document has no apiVersion", "start it with apiVersion: "+APIVersion)
		return false
	}
	if apiVersion.V != APIVersion {
		theirs, _, _ := strings.Cut(apiVersion.V, "/")
		// Not our group, not nearly our group, not one of our kinds: something for somebody else.
		if theirs != group && Suggest(apiVersion.V, []string{APIVersion}) == "" && !strings.HasPrefix(kind.V, "Kaspr") {
			c.warnAt(apiVersion.Pos, OtherKind, "a document of "+quote(apiVersion.V)+", kind "+quote(kind.V)+", is skipped", "")
			return false
		}
		c.failAt(apiVersion.Pos, UnknownKind, "apiVersion "+quote(apiVersion.V)+" is not known", `did you mean "`+APIVersion+`"?`)
		return false
	}
	if !kind.Set() {
		c.fail(NotAManifest, "the document has no kind", "one of "+strings.Join(kinds, ", "))
		return false
	}
	if !slices.Contains(kinds, kind.V) {
		hint := didYouMean(kind.V, kinds)
		if s := Suggest("Kaspr"+kind.V, kinds); s != "" {
			hint = `did you mean "` + s + `"?`
		}
		c.failAt(kind.Pos, UnknownKind, "kind "+quote(kind.V)+" is not known", hint)
		return false
	}
	return true
}

func (c cursor) metadata(m *Meta) {
	if m.Kind != KindApp {
		c = c.of("metadata")
	}
	labels := may
	if c.sketching && m.Kind != KindApp {
		labels = must // without the app's label there is a message of its own, below
	}
	there := c.object(append(ignored("namespace", "annotations", "generateName", "uid", "resourceVersion", "generation", "creationTimestamp",
		"deletionTimestamp", "deletionGracePeriodSeconds", "ownerReferences", "finalizers", "managedFields", "selfLink"),
		must("name", func(c cursor) { c.componentName(&m.Name) }),
		labels("labels", func(c cursor) {
			var labels []Entry
			if c.texts(&labels); c.sketching && m.Kind != KindApp {
				c.sketch.Members = []Member{{Name: AppLabel, Required: true, Value: &Node{Key: "metadata.labels." + AppLabel, Types: []string{"string"}, NotBlank: true}}}
			}
			m.Labels = Texts(labels)
			for _, l := range labels {
				if l.Key.V == AppLabel {
					m.App = l.Value
				}
			}
		}),
	)...)
	switch {
	case there == nil:
	case m.Kind == KindApp:
		m.App = Value[string]{} // an app is not a component of itself
	case !m.App.Set():
		hint := "add " + AppLabel + " with the name of the KasprApp to metadata.labels"
		var keys []string
		for k := range m.Labels {
			keys = append(keys, k)
		}
		slices.Sort(keys)
		if s := Suggest(AppLabel, keys); s != "" {
			hint = "the label is " + AppLabel + ", not " + s
		}
		c.failAt(c.at, NoAppLabel, m.Label()+" does not say which app it belongs to", hint)
	case !kubernetesName.MatchString(m.App.V):
		c.failAt(m.App.Pos, BadName, "label "+AppLabel+": "+quote(m.App.V)+" is not the name of an app", "")
		m.App = Value[string]{}
	}
}

const nameMax = 253

// componentName reads metadata.name. The value is kept even when it is bad, so that later messages can use it.
func (c cursor) componentName(v *Value[string]) {
	if !c.named(v) {
		return
	}
	if len(v.V) > nameMax || !kubernetesName.MatchString(v.V) {
		hint := ""
		if better := strings.Trim(notInName.ReplaceAllString(strings.ToLower(v.V), "-"), "-."); kubernetesName.MatchString(better) && len(better) <= nameMax {
			hint = "such as " + quote(better)
		}
		c.fail(BadName, c.name()+" "+quote(v.V)+" is not a Kubernetes name: lower-case letters, digits, '-' and '.'", hint)
	}
}

var notInName = regexp.MustCompile(`[^a-z0-9.-]+`)

// specName is the member spec.name that some kinds have; in a definition file it is the component's name.
func (c cursor) specName(m *Meta, v *Value[string]) []member {
	if c.snake {
		return c.definitionName(m)
	}
	return []member{may("name", func(c cursor) { c.text(v) })}
}

// definitionName is the member that holds the component's name in a definition file, and nothing elsewhere.
func (c cursor) definitionName(m *Meta) []member {
	if !c.snake {
		return nil
	}
	return []member{must("name", func(c cursor) { c.named(&m.Name) })}
}

func (c cursor) nameIsIgnored(m Meta, specName Value[string]) {
	if specName.Set() && m.Name.Set() && specName.V != m.Name.V {
		c.warnAt(specName.Pos, NoEffect, "spec.name "+quote(specName.V)+" has no effect: metadata.name "+quote(m.Name.V)+" counts", "")
	}
}

var definitionLists = []string{"agents", "tables", "joins", "tasks", "webviews"}

// isDefinition tells whether a document is a definition file as the original operator hands it to a worker.
func (c cursor) isDefinition() bool {
	for i := 0; i+1 < len(c.node.Content); i += 2 {
		if slices.Contains(definitionLists, c.node.Content[i].Value) {
			return true
		}
	}
	return false
}

// definition reads lists of components with snake_case members; they belong to whichever app is run.
func (c cursor) definition(set *Set) {
	c.snake = true
	meta := func(kind string, c cursor) Meta { return Meta{Kind: kind, Pos: c.at, Definition: true} }
	list := func(name, kind string, read func(cursor)) member {
		return may(name, func(c cursor) {
			c.list(func(c cursor) {
				if c.sketching {
					c.sketch.Key = kind + ".spec" // the same members, and a name
				}
				read(c)
			})
		})
	}
	c.object(
		list("agents", KindAgent, func(c cursor) {
			a := &Agent{Meta: meta(KindAgent, c)}
			c.agent(a)
			set.Agents = append(set.Agents, a)
		}),
		list("tables", KindTable, func(c cursor) {
			t := &Table{Meta: meta(KindTable, c)}
			c.table(t)
			set.Tables = append(set.Tables, t)
		}),
		list("webviews", KindWebView, func(c cursor) {
			w := &WebView{Meta: meta(KindWebView, c)}
			c.webView(w)
			set.WebViews = append(set.WebViews, w)
		}),
		list("tasks", KindTask, func(c cursor) {
			t := &Task{Meta: meta(KindTask, c)}
			c.task(t)
			set.Tasks = append(set.Tasks, t)
		}),
		list("joins", KindJoin, func(c cursor) {
			j := &Join{Meta: meta(KindJoin, c)}
			c.join(j)
			set.Joins = append(set.Joins, j)
		}),
	)
	c.snake = false
}
