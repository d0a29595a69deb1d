package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strconv"
	"strings"

	"kaspr.io/kaspr/engine"
	"kaspr.io/kaspr/engine/config"
	"kaspr.io/kaspr/engine/manifest"
	"kaspr.io/kaspr/engine/plan"
	"kaspr.io/kaspr/wasmhost"
)

// project is what manifests and settings say is to run, with every problem found on the way.
type project struct {
	set      *manifest.Set
	cfg      config.Config // the process's; its app's where there is only one
	apps     []app
	problems manifest.Errors
}

// app is one of the apps of a project.
type app struct {
	name string
	cfg  config.Config
	plan *plan.Plan // nil: there are problems
}

// read reads the manifests with their settings: of the app named, or of all. adapt, if not nil, changes the settings before the plan
// is made.
func read(paths []string, layers *config.Layers, name string, adapt func(config.Config) config.Config) project {
	set, problems := manifest.Load(paths)
	return choose(set, problems, layers, name, adapt)
}

// choose is read for manifests that are loaded.
func choose(set *manifest.Set, problems manifest.Errors, layers *config.Layers, name string, adapt func(config.Config) config.Config) project {
	p := project{set: set, cfg: layers.Early(), problems: problems}
	chosen, problems := set.ChooseApps(name)
	if p.problems = append(p.problems, problems...); problems.Fatal() {
		// What is wrong with the settings may be why: a settings file that cannot be read names no manifests.
		_, problems = layers.Config(nil)
		p.problems = append(p.problems, problems...)
	}
	for _, m := range chosen {
		a, problems := resolve(set, layers, m, len(chosen), adapt)
		p.apps = append(p.apps, a)
		for _, e := range problems { // what is wrong with the process's own settings is wrong for each
			if !contains(p.problems, e) {
				p.problems = append(p.problems, e)
			}
		}
	}
	if len(p.apps) == 1 {
		p.cfg = p.apps[0].cfg
	}
	p.problems = p.problems.Sorted(set.Files)
	return p
}

func contains(list manifest.Errors, e manifest.Error) bool {
	for i := range list {
		if list[i].Error() == e.Error() {
			return true
		}
	}
	return false
}

// configured reads what an engine with this settings file runs: the manifests its settings name.
func (c *command) configured(file string) (project, error) {
	dir, err := os.Getwd()
	if err != nil {
		return project{}, err
	}
	layers := config.Read(config.Sources{File: file, Environ: c.streams.Environ, Dir: dir, Flags: c.flags})
	early := layers.Early()
	load := manifest.Load
	if early.AppName != "" { // it is known what to run
		load = manifest.LoadAny
	}
	set, problems := load([]string{early.DefinitionsDir})
	return choose(set, problems, layers, early.App, nil), nil
}

// one is the app of a project for a command that asks or changes something of one app. Problems are reported.
func (c *command) one(p project) (app, error) {
	if len(p.apps) > 1 {
		_, which := p.set.ChooseApp("")
		p.problems = append(p.problems, which...)
	}
	if c.report(p.problems) {
		return app{}, errReported
	}
	return p.apps[0], nil
}

// resolve makes the plan of one app of a set, of which so many run in the process.
func resolve(set *manifest.Set, layers *config.Layers, m *manifest.App, apps int, adapt func(config.Config) config.Config) (app, manifest.Errors) {
	cfg, problems := layers.Config(m)
	if adapt != nil {
		cfg = adapt(cfg)
	}
	cfg = cfg.Share(apps)
	a := app{name: m.Name.V, cfg: cfg}
	if problems.Fatal() {
		return a, problems
	}
	made, more := plan.New(set, cfg)
	problems = append(append(problems, more...), engine.CheckOptions(set, m.Name.V)...)
	if !problems.Fatal() {
		a.plan = made
	}
	return a, problems
}

// resolveNamed is resolve for an app by its name; empty: the only one.
func resolveNamed(set *manifest.Set, layers *config.Layers, name string) (app, manifest.Errors) {
	m, problems := set.ChooseApp(name)
	if problems.Fatal() {
		_, more := layers.Config(nil)
		return app{}, append(problems, more...)
	}
	a, more := resolve(set, layers, m, 1, nil)
	return a, append(problems, more...)
}

// together finds what keeps apps from running in one process.
func (p project) together(serve bool) manifest.Errors {
	var problems manifest.Errors
	clash := func(a, b app, what, hint string) {
		e := manifest.Error{ID: config.Contradiction, Text: fmt.Sprintf("apps %q and %q run in one process and have the same %s", a.name, b.name, what), Hint: hint}
		if m, _ := p.set.ChooseApp(b.name); m != nil {
			e.Pos = m.Pos
		}
		problems = append(problems, e)
	}
	for i, b := range p.apps {
		for _, a := range p.apps[:i] {
			if a.plan == nil || b.plan == nil {
				continue
			}
			if port := b.cfg.Web.Port; serve && port != 0 && port == a.cfg.Web.Port {
				clash(a, b, "webPort "+strconv.Itoa(port), "give each KasprApp a webPort of its own in spec.config, and none to the process; 0: no HTTP server. Or run one with --app")
			}
			if l := b.cfg.Web.AdminAddress(); serve && l != "" && l != config.AdminListenDefault { // for which there is another port
				clash(a, b, "adminListen "+l, "it is for one app: run one with --app")
			}
			if a.plan.App.ID == b.plan.App.ID {
				clash(a, b, "application id "+strconv.Quote(a.plan.App.ID), "appName of the process is for one app: leave it out, or run one with --app")
			}
			if a.cfg.TableDir == b.cfg.TableDir {
				clash(a, b, "tableDir "+a.cfg.TableDir, "leave tableDir out of the KasprApps: each then has a folder of its own below the process's")
			}
		}
	}
	return problems
}

// withWork leaves out apps that have nothing to run; that none has is an error.
func (p project) withWork(log *slog.Logger) (apps []app, err error) {
	var idle []string
	for _, a := range p.apps {
		if len(a.plan.Agents)+len(a.plan.Views) > 0 {
			apps = append(apps, a)
		} else {
			idle = append(idle, strconv.Quote(a.plan.App.Name))
		}
	}
	switch names := strings.Join(idle, ", "); {
	case len(apps) == 0:
		return nil, fmt.Errorf("app %s has no component to run", names)
	case len(idle) > 0:
		log.Warn("apps without components are not run", "apps", names)
	}
	return apps, nil
}

// run runs the apps until ctx ends.
func (c *command) run(ctx context.Context, file string) error {
	p, err := c.configured(file)
	if err != nil {
		return err
	}
	if c.report(append(p.problems, p.together(true)...)) {
		return errReported
	}
	log := c.logger(p.cfg)
	apps, err := p.withWork(log)
	if err != nil {
		return err
	}
	rt, err := newRuntime(ctx, p.cfg, log)
	if err != nil {
		return err
	}
	defer rt.Close()
	process, err := c.load(ctx, apps, rt, log)
	if err != nil {
		if c.reportCode(ctx, p, rt, err) {
			return errReported
		}
		return err
	}
	return process.Run(ctx)
}

// load loads the code of all apps, whose problems are reported all at once.
func (c *command) load(ctx context.Context, apps []app, rt *wasmhost.Runtime, log *slog.Logger) (*engine.Process, error) {
	var loaded []*engine.App
	var problems error
	for _, a := range apps {
		made, err := engine.New(ctx, a.cfg, a.plan, rt, log, engine.Options{Listen: listen(a.cfg), ListenAdmin: a.cfg.Web.AdminAddress(), Version: c.version})
		if err != nil {
			problems = errors.Join(problems, err)
			continue
		}
		loaded = append(loaded, made)
	}
	process := engine.NewProcess(loaded...)
	if problems != nil {
		process.Close()
		return nil, problems
	}
	return process, nil
}

// listen is where the HTTP server of an app listens.
func listen(cfg config.Config) string {
	if cfg.Web.Port == 0 {
		return ""
	}
	return net.JoinHostPort("", strconv.Itoa(cfg.Web.Port))
}
