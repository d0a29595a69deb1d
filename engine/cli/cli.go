// Package cli is the command line: it reads manifests and settings, reports what is wrong with them, and runs the engine.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"kaspr.io/kaspr/engine"
	"kaspr.io/kaspr/engine/config"
	"kaspr.io/kaspr/engine/dev"
	"kaspr.io/kaspr/engine/manifest"
	"kaspr.io/kaspr/engine/plan"
	"kaspr.io/kaspr/pyguest"
	"kaspr.io/kaspr/wasmhost"
)

// Streams are the process's standard streams and environment. Standard output carries results only; logs and problems
// go to standard error.
type Streams struct {
	In      io.Reader
	Out     io.Writer
	Err     io.Writer
	Environ []string
}

// Std are the real ones.
func Std() Streams { return Streams{os.Stdin, os.Stdout, os.Stderr, os.Environ()} }

// Exit codes.
const (
	exitOK     = 0
	exitFailed = 1 // the command ran and the answer is no: problems found, records failed, the app stopped with an error
	exitUsage  = 2 // the command line itself is wrong
)

// errReported ends a command whose problems are printed already.
var errReported = errors.New("")

// Main runs one command line and returns the process's exit code. It ends early, and well, when ctx does.
func Main(ctx context.Context, version string, args []string, s Streams) int {
	c := &command{streams: s, version: version}
	root := c.root()
	root.SetArgs(args)
	root.SetIn(s.In)
	root.SetOut(s.Out)
	root.SetErr(s.Err)
	err := root.ExecuteContext(ctx)
	switch {
	case err == nil:
		return exitOK
	case errors.Is(err, errReported):
		return exitFailed
	case c.running:
		fmt.Fprintln(s.Err, "kaspr: "+err.Error())
		return exitFailed
	}
	fmt.Fprintf(s.Err, "kaspr: %v\nRun 'kaspr --help' for usage.\n", err)
	return exitUsage
}

type command struct {
	streams Streams
	version string
	running bool // the command line was understood

	app   string            // --app
	flags map[string]string // settings given as flags, by key
}

func (c *command) root() *cobra.Command {
	root := &cobra.Command{
		Use:              "kaspr",
		Short:            "Run people's Python on Kafka streams, sandboxed",
		SilenceUsage:     true,
		SilenceErrors:    true,
		PersistentPreRun: func(*cobra.Command, []string) { c.running = true },
	}
	root.AddCommand(c.validateCommand(), c.runCommand(), c.devCommand(), c.testCommand(), c.configCommand(), c.schemaCommand(), c.healthCommand(), c.scheduleCommand(), c.tablesCommand(), c.topicsCommand(), c.lagCommand(), c.versionCommand())
	return root
}

func (c *command) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version of the engine and of its Python guest",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintf(c.streams.Out, "kaspr %s\nguest %s\n", c.version, pyguest.BuildID())
			return err
		},
	}
}

// appFlag and settingFlags are shared by the commands that read an app.
func (c *command) appFlag(cmd *cobra.Command) {
	cmd.Flags().StringVar(&c.app, "app", "", "KasprApp to take when the manifests hold several; else all of them are run")
}

// settingFlags offers every setting as --set key=value, the strongest source there is.
func (c *command) settingFlags(cmd *cobra.Command) {
	cmd.Flags().StringToStringVar(&c.flags, "set", nil, "set one setting, as in --set batchRecordsMax=500; repeat for more")
	level := cmd.Flags().String("log-level", "", "debug, info, warn or error")
	format := cmd.Flags().String("log-format", "", "text or json")
	cmd.PreRun = func(*cobra.Command, []string) {
		for key, v := range map[string]*string{"logLevel": level, "logFormat": format} {
			if *v != "" {
				if c.flags == nil {
					c.flags = map[string]string{}
				}
				c.flags[key] = *v
			}
		}
		if c.app != "" {
			if c.flags == nil {
				c.flags = map[string]string{}
			}
			c.flags["app"] = c.app
		}
	}
}

// report prints problems in the order they come and says whether one of them is an error.
func (c *command) report(problems manifest.Errors) bool {
	for _, p := range problems {
		fmt.Fprintln(c.streams.Err, p.Error())
	}
	return problems.Fatal()
}

// newRuntime starts the sandbox. Compiled code is kept in the cache folder, so only the first start takes seconds.
func newRuntime(ctx context.Context, cfg config.Config, log *slog.Logger) (*wasmhost.Runtime, error) {
	dir := cfg.CacheDir
	if dir == "" {
		if user, err := os.UserCacheDir(); err == nil {
			dir = filepath.Join(user, "kaspr", "compiled")
		}
	}
	if dir != "" {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			dir = "" // a read-only root file system: compile in every process
		}
	}
	return wasmhost.New(ctx, wasmhost.Config{
		Module: pyguest.Module(), Stdlib: pyguest.Stdlib(), CacheDir: dir, Tick: cfg.Sandbox.Tick,
		Gate: wasmhost.NewGate(engine.Turns(cfg)),
		Defaults: wasmhost.Options{
			Logger: log, Deadline: cfg.Sandbox.Deadline, LoadDeadline: cfg.Sandbox.LoadDeadline, MemoryMax: cfg.Sandbox.MemoryMax,
		},
	})
}

func (c *command) logger(cfg config.Config) *slog.Logger {
	opts := &slog.HandlerOptions{Level: cfg.Log.Level}
	if cfg.Log.Format == "json" {
		return slog.New(slog.NewJSONHandler(c.streams.Err, opts))
	}
	return slog.New(slog.NewTextHandler(c.streams.Err, opts))
}

// codeProblems turns what loading found into problems of the manifests.
func codeProblems(set *manifest.Set, err error) (manifest.Errors, bool) {
	var found manifest.Errors
	for _, e := range flatten(err) {
		var load *wasmhost.LoadError
		if !errors.As(e, &load) {
			return nil, false
		}
		for _, p := range load.Problems {
			text := p.Type + ": " + p.Message
			if p.Where != "" {
				text = p.Where + ": " + text
			}
			if p.Traceback != "" {
				text += "\n" + strings.TrimRight(p.Traceback, "\n")
			}
			found = append(found, manifest.Error{Pos: set.InFile(manifest.Pos{File: p.File, Line: p.Line, Column: p.Column}), ID: "P001", Text: text})
		}
	}
	return found, len(found) > 0
}

// checkCode compiles every block of the app's manifests, one that nothing runs too.
func checkCode(ctx context.Context, set *manifest.Set, app string, rt *wasmhost.Runtime) (found manifest.Errors, err error) {
	programs := plan.Blocks(set, app)
	for i := range programs {
		if err := rt.Check(ctx, &programs[i]); err != nil {
			problems, ok := codeProblems(set, err)
			if !ok {
				return nil, err
			}
			found = append(found, problems...)
		}
	}
	return found, nil
}

// reportCode reports what kept the apps' code from being loaded, and tells whether that was it. Loading ends at the first block of a
// component that does not compile, and meets a table's blocks with each that uses it; the check finds all, each once.
func (c *command) reportCode(ctx context.Context, p project, rt *wasmhost.Runtime, err error) bool {
	loading, ok := codeProblems(p.set, err)
	if !ok {
		return false
	}
	app := "" // all of them
	if len(p.apps) == 1 {
		app = p.apps[0].name
	}
	found, err := checkCode(ctx, p.set, app, rt)
	if err != nil {
		c.report(loading)
		return true
	}
	for _, l := range loading { // and what only shows when the component is whole
		if !slices.ContainsFunc(found, func(f manifest.Error) bool { return f.Pos == l.Pos }) {
			found = append(found, l)
		}
	}
	c.report(found.Sorted(p.set.Files))
	return true
}

// flatten undoes errors.Join.
func flatten(err error) []error {
	if many, ok := err.(interface{ Unwrap() []error }); ok {
		var out []error
		for _, e := range many.Unwrap() {
			out = append(out, flatten(e)...)
		}
		return out
	}
	return []error{err}
}

func (c *command) validateCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "validate PATH...",
		Short: "Report everything wrong with manifests, Python included, as file:line:column",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, paths []string) error {
			return c.validate(cmd.Context(), paths)
		},
	}
	c.appFlag(cmd)
	return cmd
}

func (c *command) validate(ctx context.Context, paths []string) error {
	layers := config.Read(config.Sources{Offline: true})
	set, problems := manifest.Load(paths)
	apps := set.AppNames()
	if c.app != "" {
		apps = []string{c.app}
	}
	for _, name := range apps {
		_, more := resolveNamed(set, layers, name)
		problems = append(problems, more...)
	}
	if len(apps) == 0 && !problems.Fatal() { // an empty file is no app without errors: dev and run refuse it
		_, more := set.ChooseApp("")
		problems = append(problems, more...)
	}
	// What is wrong elsewhere does not keep the Python from being checked: all problems at once.
	rt, err := newRuntime(ctx, layers.Early(), nil)
	if err != nil {
		return err
	}
	defer rt.Close()
	found, err := checkCode(ctx, set, c.app, rt)
	if err != nil {
		return err
	}
	problems = append(problems, found...)
	problems = problems.Sorted(set.Files)
	if c.report(problems) {
		return errReported
	}
	fmt.Fprintf(c.streams.Err, "%d files, %d apps: no errors\n", len(set.Files), len(apps))
	return nil
}

func (c *command) runCommand() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "run --config FILE",
		Short: "Run the engine against Kafka until it is told to stop (SIGTERM drains, commits and leaves the group)",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.run(cmd.Context(), file)
		},
	}
	cmd.Flags().StringVar(&file, "config", "", "settings file (YAML); the environment (KASPR_*, K_*) and flags override it")
	c.appFlag(cmd)
	c.settingFlags(cmd)
	return cmd
}

func (c *command) devCommand() *cobra.Command {
	var inputs []string
	var drain, http bool
	var requests string
	cmd := &cobra.Command{
		Use:   "dev PATH...",
		Short: "Run manifests on an embedded broker; reload them when they change",
		Long: "Run manifests on an embedded broker. Every output record is printed as one JSON line on standard output;\n" +
			"logs go to standard error. Files are watched, and the app is reloaded when they change.",
		Example: "  kaspr dev examples/quickstart --input orders=orders.jsonl --drain",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, paths []string) error {
			o := dev.Options{Drain: drain, HTTP: http, Requests: requests, Stdin: c.streams.In, Stdout: c.streams.Out, Version: c.version}
			if requests != "" && !drain {
				return errors.New("--requests needs --drain")
			}
			for _, s := range inputs {
				in, err := dev.ParseInput(s)
				if err != nil {
					return err
				}
				o.Inputs = append(o.Inputs, in)
			}
			return c.dev(cmd.Context(), paths, o)
		},
	}
	cmd.Flags().StringArrayVar(&inputs, "input", nil, "TOPIC=FILE: records to produce, JSON lines; - is standard input; repeat for more")
	cmd.Flags().BoolVar(&drain, "drain", false, "stop when all input is processed; exit 1 if records failed")
	cmd.Flags().StringVar(&requests, "requests", "", "with --drain: a file of requests to web views, JSON lines, sent when all input is processed; their responses are printed")
	cmd.Flags().BoolVar(&http, "http", false, "serve web views, health, metrics and status on webPort of this machine only, and the console at adminListen")
	c.appFlag(cmd)
	c.settingFlags(cmd)
	return cmd
}
