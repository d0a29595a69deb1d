package plan

import (
	"fmt"
	"slices"
	"strings"

	"kaspr.io/kaspr/engine/config"
	"kaspr.io/kaspr/engine/manifest"
	"kaspr.io/kaspr/wasmhost/abi"
)

// View is one KasprWebView, resolved.
type View struct {
	Name    string
	Label   string // web view "orders", for messages
	Pos     manifest.Pos
	Method  string
	Path    string          // as written, with webBasePath before it
	Route   *manifest.Route // of what follows webBasePath
	About   string          // description
	Program abi.Program
	// Tables are the tables its code may touch, by the same index as Program.Tables.
	Tables []TableUse
	// OutputTopics are the target topics known beforehand, by name, each once.
	OutputTopics []string
	Schemas      []Schema // as Agent.Schemas
}

// BuiltinPaths are those the engine answers itself, on the same port. No view can have one.
var BuiltinPaths = []string{"/", "/healthz", "/readyz", "/status", "/status/", "/openapi.json", "/signal/rebalance"}

// BuiltinPrefix begins the paths of what processes of an app ask of each other.
const BuiltinPrefix = "/_kaspr/"

// BasePath is a setting's path with one slash before it and none after; empty for none.
func BasePath(setting string) string {
	if setting = strings.Trim(setting, "/"); setting != "" {
		return "/" + setting
	}
	return ""
}

func (b *builder) view(m *manifest.WebView) View {
	route := manifest.Route{} // of a path that is missing or wrong, which has been reported
	if m.Route != nil {
		route = *m.Route
	}
	base := BasePath(b.cfg.Web.BasePath)
	v := View{Name: m.Name.V, Label: m.Label(), Pos: m.Pos, Method: m.Method.V, Route: m.Route, About: m.Description.V}
	v.Path = base + "/" + strings.TrimPrefix(m.Path.V, "/")
	taken := slices.Contains(BuiltinPaths, v.Path) || v.Path == BasePath(b.cfg.Web.MetricsBasePath)+"/metrics" ||
		v.Path == "/schedule" && b.cfg.Scheduler.Enabled && b.cfg.Scheduler.Web
	if taken && m.Route != nil && len(route.Params) == 0 || strings.HasPrefix(v.Path, BuiltinPrefix) {
		b.fail(m.Path.Pos, manifest.DuplicateRoute, fmt.Sprintf("%s: the engine answers %s itself", v.Label, v.Path), "choose another path, or set webBasePath")
	}
	if n := len(route.Params); n > abi.ViewParamsMax {
		b.fail(m.Path.Pos, manifest.OutOfRange, fmt.Sprintf("%s: its path has %d parameters; at most %d are possible", v.Label, n, abi.ViewParamsMax), "")
	}
	// Operations, outputs and tables are an agent's in every respect.
	a := Agent{Name: v.Name, Label: v.Label, Pos: v.Pos, Program: abi.Program{
		Kind: manifest.KindWebView, Name: v.Name, App: b.info, Env: b.env,
		Init: code(m.Processors.Init, "init"), Ops: []abi.Operation{}, Outputs: []abi.Output{},
		JSONExact: b.cfg.JSONValueStyle == config.JSONOriginal,
		View: &abi.View{
			Params: slices.Clone(route.Params), ContentType: m.Response.ContentType.Or("text/plain"), Status: m.Response.StatusCode.V,
			StatusSelector:  resultSelector(m.Response.StatusCodeSelector, "statusCodeSelector"),
			HeadersSelector: resultSelector(m.Response.HeadersSelector, "headersSelector"),
			BodySelector:    resultSelector(m.Response.BodySelector, "bodySelector"),
			Debug:           b.cfg.Web.Debug,
		},
	}}
	if a.Program.View.Params == nil {
		a.Program.View.Params = []string{}
	}
	for _, h := range m.Response.Headers {
		a.Program.View.Headers = append(a.Program.View.Headers, [2]string{h.Key.V, h.Value.V})
	}
	for _, name := range m.Processors.Pipeline {
		if op := m.Processors.Operation(name.V); op != nil {
			a.Program.Ops = append(a.Program.Ops, b.operation(&a, op))
		}
	}
	b.use(&a, &m.Processors)
	for _, u := range a.Tables {
		b.written(&b.tables[u.Table]) // whatever a request writes goes to the owner of the key's partition; and a table needs owners to be read
	}
	v.Program, v.Tables, v.OutputTopics, v.Schemas = a.Program, a.Tables, a.OutputTopics, a.Schemas
	return v
}

func resultSelector(s *manifest.ResultSelector, where string) abi.Selector {
	if s == nil {
		return abi.Selector{}
	}
	return abi.Selector{OnSuccess: code(s.OnSuccess, where+", onSuccess"), OnError: code(s.OnError, where+", onError")}
}
