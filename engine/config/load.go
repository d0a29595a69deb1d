package config

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/knadh/koanf/providers/confmap"
	"github.com/knadh/koanf/providers/env/v2"
	"github.com/knadh/koanf/v2"

	"kaspr.io/kaspr/engine/manifest"
)

// Sources are where settings come from, weakest first: the defaults, the KasprApp, File, Environ, Flags.
type Sources struct {
	File    string            // YAML file; empty: none
	Environ []string          // as os.Environ gives it
	Dir     string            // where the search for .env begins, upwards; empty: no .env
	Flags   map[string]string // by setting key, such as logLevel
	// Offline says that no cluster will be contacted: what logging in and encrypting need is then not asked for.
	Offline bool
}

// Layers are the sources as read. Reading never fails: problems come out of Config, all at once.
type Layers struct {
	path                     string // of the settings file
	offline                  bool
	file, environment, flags *koanf.Koanf
	environ                  map[string]string // .env included
	problems                 manifest.Errors
}

type layer string

const (
	layerDefault layer = "default"
	layerApp     layer = "KasprApp"
	layerFile    layer = "file"
	layerEnv     layer = "environment"
	layerFlag    layer = "flag"
)

// given is one value and where it comes from: the leaf of every koanf layer, so that merging keeps both together.
type given struct {
	Text  string
	Layer layer
	Name  string       // as written: an alias, a variable's name
	Pos   manifest.Pos // in the file or manifest; otherwise File names the source
}

func (g given) source() string {
	switch g.Layer {
	case layerDefault:
		return string(layerDefault)
	case layerFlag, layerEnv:
		return g.Pos.File
	case layerApp:
		return "KasprApp " + g.Pos.String()
	}
	return "file " + g.Pos.String()
}

// rows are the settings by each of their names.
var rows = func() map[string]setting {
	m := map[string]setting{}
	for _, s := range settings {
		if s.key == "" {
			continue
		}
		for _, name := range s.names() {
			if _, twice := m[name]; twice {
				panic("BUG: two settings named " + name)
			}
			m[name] = s
		}
	}
	return m
}()

// Read reads the file, the .env file and the environment.
func Read(src Sources) *Layers {
	l := &Layers{path: src.File, offline: src.Offline}
	l.file = l.readFile(src.File)
	l.readEnviron(src)
	l.flags = l.readFlags(src.Flags)
	return l
}

func (l *Layers) readFile(file string) *koanf.Koanf {
	if file == "" {
		return load(nil)
	}
	content, err := os.ReadFile(file)
	if err != nil {
		l.problems = append(l.problems, manifest.Error{Pos: manifest.Pos{File: file}, ID: Unreadable, Text: "cannot read: " + reason(err)})
		return load(nil)
	}
	entries, problems := manifest.ReadSettings(file, content)
	l.problems = append(l.problems, problems...)
	values := map[string]any{}
	for _, e := range entries {
		s, known := rows[e.Name.V]
		if !known {
			l.unknown(e.Name.Pos, e.Name.V)
			continue
		}
		l.put(values, s, given{Text: e.Value.V, Layer: layerFile, Name: e.Name.V, Pos: e.Value.Pos}, e.Name.Pos)
	}
	return load(values)
}

// put adds a value to a layer; a setting has one value there.
func (l *Layers) put(values map[string]any, s setting, g given, at manifest.Pos) {
	if other, twice := values[s.key]; twice {
		l.problems = append(l.problems, manifest.Error{Pos: at, ID: SetTwice, Text: fmt.Sprintf("%s and %s are the same setting", other.(given).Name, g.Name), Hint: "keep " + s.key})
		return
	}
	values[s.key] = g
}

func (l *Layers) unknown(at manifest.Pos, name string) {
	l.problems = append(l.problems, unknownSetting(at, name))
}

func unknownSetting(at manifest.Pos, name string) manifest.Error {
	e := manifest.Error{Pos: at, ID: UnknownSetting, Text: fmt.Sprintf("there is no setting %q", name)}
	if why, ok := refused[name]; ok {
		e.Hint = why
	} else if s := suggest(name); s != "" {
		e.Hint = fmt.Sprintf("did you mean %q?", s)
	}
	return e
}

// suggest is the setting meant by name; forms that are too short or too long, such as port, are matched by their ends.
func suggest(name string) string {
	names := slices.Sorted(maps.Keys(rows))
	if s := manifest.Suggest(name, names); s != "" {
		return s
	}
	short := strings.ToLower(name)
	for _, original := range names {
		if n := strings.ToLower(original); len(short) >= 4 && (strings.HasSuffix(n, short) || strings.HasPrefix(n, short) || strings.HasPrefix(short, n)) {
			return original
		}
	}
	return ""
}

func (l *Layers) readFlags(flags map[string]string) *koanf.Koanf {
	values := map[string]any{}
	for _, name := range sortedKeys(flags) {
		at := manifest.Pos{File: "flag " + name}
		s, known := rows[name]
		if !known {
			l.unknown(at, name)
			continue
		}
		l.put(values, s, given{Text: flags[name], Layer: layerFlag, Name: name, Pos: at}, at)
	}
	return load(values)
}

// prefixes of variables, the weaker first.
var prefixes = []string{"K_", "KASPR_"}

// elsewhere are variables with our prefixes that are not settings and not worth a word.
var elsewhere = map[string]bool{
	// Set by Knative.
	"K_SERVICE": true, "K_REVISION": true, "K_CONFIGURATION": true,
}

func (l *Layers) readEnviron(src Sources) {
	l.environ = map[string]string{}
	fromFile, problems := dotEnv(src)
	l.problems = append(l.problems, problems...)
	dotted := map[string]string{} // where a variable of the .env file stands
	for _, v := range fromFile {
		l.environ[v.name], dotted[v.name] = v.value, v.pos.String()
	}
	for _, v := range src.Environ {
		if name, value, ok := strings.Cut(v, "="); ok {
			l.environ[name] = value
			delete(dotted, name)
		}
	}
	var environ []string
	for _, name := range sortedKeys(l.environ) {
		environ = append(environ, name+"="+l.environ[name])
	}
	names := map[string]setting{} // without prefix
	for name, s := range rows {
		names[variableName(name)] = s
	}
	l.environment = koanf.New(".")
	for _, prefix := range prefixes {
		for _, canonical := range []bool{false, true} { // a setting's own name beats its older ones
			must(l.environment.Load(env.Provider("", env.Opt{
				Prefix:      prefix,
				EnvironFunc: func() []string { return environ },
				TransformFunc: func(variable, value string) (string, any) {
					bare := strings.TrimPrefix(variable, prefix)
					s, known := names[bare]
					if !known || value == "" || (bare == variableName(s.key)) != canonical {
						return "", nil
					}
					at := "environment " + variable
					if where, ok := dotted[variable]; ok {
						at = where + ": " + variable
					}
					return s.key, given{Text: value, Layer: layerEnv, Name: variable, Pos: manifest.Pos{File: at}}
				},
			}), nil))
		}
	}
	for _, v := range environ {
		variable, _, _ := strings.Cut(v, "=")
		l.unknownVariable(variable, names)
	}
}

// unknownVariable warns of what was probably meant for the engine. K_ is too short a prefix to claim as ours, so
// there only a near miss is worth a word.
func (l *Layers) unknownVariable(variable string, names map[string]setting) {
	for _, prefix := range slices.Backward(prefixes) {
		bare, ours := strings.CutPrefix(variable, prefix)
		if !ours {
			continue
		}
		if _, known := names[bare]; known || elsewhere[variable] {
			return
		}
		meant := manifest.Suggest(bare, slices.Sorted(maps.Keys(names)))
		if prefix == "K_" && meant == "" {
			return
		}
		e := manifest.Error{
			Pos: manifest.Pos{File: "environment " + variable}, ID: UnknownVariable, Level: manifest.LevelWarning,
			Text: "there is no such setting",
		}
		if meant != "" {
			e.Hint = fmt.Sprintf("did you mean %s%s?", prefix, meant)
		}
		l.problems = append(l.problems, e)
		return
	}
}

// fromApp is the layer of a KasprApp's own settings.
func fromApp(app *manifest.App) (*koanf.Koanf, manifest.Errors) {
	if app == nil {
		return load(nil), nil
	}
	l := &Layers{}
	values := map[string]any{}
	put := func(key, text string, at manifest.Pos) {
		values[key] = given{Text: text, Layer: layerApp, Name: key, Pos: at}
	}
	if app.BootstrapServers.Set() {
		put("kafkaBootstrapServers", app.BootstrapServers.V, app.BootstrapServers.Pos)
	}
	if protocol, at := securityProtocol(app); protocol != "" {
		put("kafkaSecurityProtocol", protocol, at)
	}
	if auth := app.Authentication; auth != nil && (auth.Username.Set() || auth.Type.V != "plain") && auth.Type.Set() {
		put("kafkaSaslMechanism", strings.ToUpper(auth.Type.V), auth.Type.Pos)
		if auth.Username.Set() {
			put("kafkaAuthUsername", auth.Username.V, auth.Username.Pos)
		}
	}
	bySnake := map[string]setting{}
	for name, s := range rows {
		bySnake[snake(name)] = s
	}
	for _, e := range app.Config {
		s, known := rows[e.Name.V]
		if !known {
			s, known = bySnake[e.Name.V] // as the original takes a worker's own settings
		}
		switch {
		case !known:
			l.unknown(e.Name.Pos, e.Name.V)
		case s.process:
			l.problems = append(l.problems, manifest.Error{Pos: e.Name.Pos, ID: NotForApp, Text: fmt.Sprintf("setting %q is not the app's", e.Name.V), Hint: "set it in the engine's own settings"})
		default:
			l.put(values, s, given{Text: e.Value.V, Layer: layerApp, Name: e.Name.V, Pos: e.Value.Pos}, e.Name.Pos)
		}
	}
	return load(values), l.problems
}

// securityProtocol is what spec.tls and spec.authentication stand for (settings.md 6.1 of the original).
func securityProtocol(app *manifest.App) (string, manifest.Pos) {
	auth := app.Authentication
	sasl := auth != nil && auth.Type.Set() && (auth.Type.V != "plain" || auth.Username.Set())
	switch {
	case sasl && app.TLS.V:
		return "SASL_SSL", auth.Pos
	case sasl:
		return "SASL_PLAINTEXT", auth.Pos
	case app.TLS.V:
		return "SSL", app.TLS.Pos
	case auth != nil:
		return "PLAINTEXT", auth.Pos
	}
	return "", manifest.Pos{}
}

func load(values map[string]any) *koanf.Koanf {
	k := koanf.New(".")
	must(k.Load(confmap.Provider(values, ""), nil))
	return k
}

// must is for what koanf cannot fail at: merging flat maps that are in memory.
func must(err error) {
	if err != nil {
		panic("BUG: " + err.Error())
	}
}

// Config merges the layers with the app's own settings (nil: none) and checks the result. The app is then the one to
// run, unless a setting names another.
func (l *Layers) Config(app *manifest.App) (Config, manifest.Errors) {
	problems := slices.Clone(l.problems)
	own, more := fromApp(app)
	problems = append(problems, more...)
	merged := koanf.New(".")
	for _, k := range []*koanf.Koanf{own, l.file, l.environment, l.flags} {
		must(merged.Merge(k))
	}
	c := Config{environ: l.environ}
	from := map[string]given{}
	bad := map[string]bool{}
	for _, s := range settings {
		if s.key == "" {
			continue
		}
		must(s.set(&c, s.text, given{Layer: layerDefault}))
		g, ok := merged.Get(s.key).(given)
		if !ok {
			from[s.key] = given{Text: s.text, Layer: layerDefault, Name: s.key}
			continue
		}
		from[s.key] = g
		if err := s.set(&c, g.Text, g); err != nil {
			bad[s.key] = true
			problems = append(problems, report(s, g, err))
			must(s.set(&c, s.text, given{Layer: layerDefault}))
			continue
		}
		if s.unused != "" && !s.quiet && s.format(&c, g.Text) != s.defaultText() {
			problems = append(problems, manifest.Error{Pos: g.Pos, ID: NotUsed, Level: manifest.LevelWarning, Text: g.Name + " has no effect", Hint: s.unused})
		}
	}
	c.explain(from, bad)
	problems = append(problems, c.check(from, bad, l.offline)...)
	c.resolve()
	if c.App == "" && app != nil {
		c.App = app.Name.V
	}
	c.explainResolved()
	files := []string{l.path}
	if app != nil {
		files = append(files, app.Pos.File)
	}
	return c, problems.Sorted(files)
}

// report puts the setting's name before what is wrong with its value. The value of a secret is not repeated.
func report(s setting, g given, err error) manifest.Error {
	e := manifest.Error{Pos: g.Pos, ID: BadValue, Text: g.Name + " " + err.Error()}
	if p := (*problem)(nil); errors.As(err, &p) {
		e.ID, e.Hint = p.id, p.hint
	}
	return e
}

// resolve fills in what follows from other settings.
func (c *Config) resolve() {
	if c.Workers == 0 {
		c.Workers = Processors
	}
	if c.Web.Instances == 0 {
		c.Web.Instances = 2 * Processors
	}
	if !filepath.IsAbs(c.TableDir) {
		c.TableDir = filepath.Join(c.DataDir, c.TableDir)
	}
	if c.Scheduler.CronEnabled {
		c.Scheduler.Enabled = true
	}
	if c.Scheduler.TopicPartitions == 0 {
		c.Scheduler.TopicPartitions = c.Topics.Partitions
	}
}

// ID is the application id of an app.
func (c Config) ID(app string) string {
	if c.AppName != "" {
		return c.AppName
	}
	return app + "-app"
}

// Share is the settings of an app that runs beside others in one process. What is given to the process is shared: its stores stand in a
// folder of its own, named after its id, and have their part of the memory. What its KasprApp says is for it alone.
func (c Config) Share(apps int) Config {
	if apps < 2 {
		return c
	}
	own := map[string]bool{}
	for _, e := range c.values {
		own[e.Key] = strings.HasPrefix(e.Source, string(layerApp))
	}
	c.Store.Apps = apps
	if !own["tableDir"] {
		c.TableDir = filepath.Join(c.TableDir, c.ID(c.App))
	}
	if !own["storeMemoryMax"] {
		c.Store.MemoryMax /= int64(apps)
	}
	if !own["storeRocksdbBlockCacheSize"] {
		c.Store.BlockCacheSize /= int64(apps)
	}
	if !own["storeRocksdbBlockCacheCompressedSize"] {
		c.Store.BlockCacheCompressedSize /= int64(apps)
	}
	c.values = slices.Clone(c.values)
	c.explainResolved()
	return c
}

// Early is what is needed before the manifests are read; wrong values are left at their defaults.
func (l *Layers) Early() Config {
	c, _ := l.Config(nil)
	return c
}

// Default is every setting's default.
func Default() Config { return Read(Sources{}).Early() }

func reason(err error) string {
	if inner := (*fs.PathError)(nil); errors.As(err, &inner) {
		return inner.Err.Error()
	}
	return err.Error()
}

func sortedKeys(m map[string]string) []string { return slices.Sorted(maps.Keys(m)) }
