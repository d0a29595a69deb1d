package manifest

import (
	"slices"
	"strings"
)

// AppNames are the apps of the set: the KasprApps, or where there is none the apps that the components' labels name.
// Definition files name no app; alone they make one app without a name, and so does nothing at all where that may be (LoadAny).
func (s *Set) AppNames() []string {
	var names []string
	add := func(name string) {
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	for _, a := range s.Apps {
		if a.Name.Set() {
			add(a.Name.V)
		}
	}
	if len(s.Apps) > 0 {
		return names
	}
	definitions := s.alone
	for _, m := range s.Components() {
		definitions = definitions || m.Definition
		if m.App.Set() {
			add(m.App.V)
		}
	}
	if len(names) == 0 && definitions {
		return []string{""}
	}
	return names
}

// ChooseApp finds the app to run: the one named, or with no name the only one there is. Where labels name an app that
// has no KasprApp, an app with nothing but its name stands in for it.
func (s *Set) ChooseApp(name string) (*App, Errors) {
	names := s.AppNames()
	switch {
	case name != "" && !slices.Contains(names, name) && !slices.Equal(names, []string{""}):
		return nil, Errors{{ID: UnknownApp, Text: "app " + quote(name) + " is not among the manifests", Hint: didYouMean(name, names)}}
	case name == "" && len(names) == 0:
		return nil, Errors{{ID: NothingToRun, Text: "the manifests hold no app", Hint: "a component names its app in the label " + AppLabel}}
	case name == "" && len(names) > 1:
		return nil, Errors{{ID: WhichApp, Text: "the manifests hold several apps: " + strings.Join(names, ", "), Hint: "say which with --app or the setting app"}}
	case name == "":
		name = names[0]
	}
	for _, a := range s.Apps {
		if a.Name.V == name {
			return a, nil
		}
	}
	return &App{Meta: Meta{Kind: KindApp, Name: Value[string]{V: name}}}, nil
}

// ChooseApps finds the apps to run: the one named, or with no name all there are.
func (s *Set) ChooseApps(name string) ([]*App, Errors) {
	names := []string{name}
	if all := s.AppNames(); name == "" && len(all) > 0 {
		names = all
	}
	var apps []*App
	for _, name := range names {
		app, problems := s.ChooseApp(name)
		if problems.Fatal() {
			return nil, problems
		}
		apps = append(apps, app)
	}
	if len(apps) < 2 {
		return apps, nil
	}
	for _, m := range s.Components() {
		if m.Definition {
			return nil, Errors{{Pos: m.Pos, ID: WhichApp, Text: "a definition file names no app, and the manifests hold several: " + strings.Join(names, ", "), Hint: "say which to run with --app or the setting app"}}
		}
	}
	return apps, nil
}

// Of tells whether a component belongs to the app.
func (m *Meta) Of(app string) bool { return m.Definition || m.App.V == app }
