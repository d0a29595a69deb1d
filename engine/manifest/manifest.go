// Package manifest reads Kaspr's YAML kinds into typed values that remember where in which file they stand.
//
// It checks everything that can be known from the manifests alone and reports all problems at once, in file order.
// What depends on settings or on the whole of one app is checked by engine/plan.
package manifest

// Kinds of kaspr.io/v1alpha1.
const (
	KindApp     = "KasprApp"
	KindAgent   = "KasprAgent"
	KindTable   = "KasprTable"
	KindWebView = "KasprWebView"
	KindTask    = "KasprTask"
	KindJoin    = "KasprJoin"
)

// APIVersion is the one version of the kinds this engine reads.
const APIVersion = "kaspr.io/v1alpha1"

// AppLabel is the label that binds a component to its app.
const AppLabel = "kaspr.io/app"

// Set is everything a list of files holds, each kind in file order.
type Set struct {
	Files    []string // every file read, in the order read
	Apps     []*App
	Agents   []*Agent
	Tables   []*Table
	WebViews []*WebView
	Tasks    []*Task
	Joins    []*Join
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
func (m *Meta) Label() string { return kindWord(m.Kind) + " \"" + m.Name.V + "\"" }

func kindWord(kind string) string {
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
