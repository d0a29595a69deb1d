package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"kaspr.io/kaspr/engine/config"
	"kaspr.io/kaspr/engine/manifest"
)

func (c *command) configCommand() *cobra.Command {
	var file string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "config [PATH...]",
		Short: "Print every setting: its value and where it comes from",
		Long: "Print every setting with its effective value and the place it comes from: the default, the KasprApp, the settings file,\n" +
			"a variable of the environment or a flag. Manifests are those in PATH, else in definitionsDir. Secrets are not shown.",
		RunE: func(_ *cobra.Command, paths []string) error {
			return c.printConfig(file, paths, asJSON)
		},
	}
	cmd.Flags().StringVar(&file, "config", "", "settings file (YAML), as `kaspr run` takes it")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print a JSON list")
	c.appFlag(cmd)
	c.settingFlags(cmd)
	return cmd
}

func (c *command) printConfig(file string, paths []string, asJSON bool) error {
	dir, err := os.Getwd()
	if err != nil {
		return err
	}
	layers := config.Read(config.Sources{File: file, Environ: c.streams.Environ, Dir: dir, Flags: c.flags})
	early := layers.Early()
	if len(paths) == 0 {
		// An app's settings can be looked at where its manifests are not.
		if _, err := os.Stat(early.DefinitionsDir); !errors.Is(err, fs.ErrNotExist) {
			paths = []string{early.DefinitionsDir}
		}
	}
	var app *manifest.App
	var problems manifest.Errors
	if len(paths) > 0 {
		set, all := manifest.Load(paths)
		if all.Fatal() { // warnings about manifests belong to validate
			problems = all
		}
		chosen, more := set.ChooseApp(early.App)
		if app = chosen; len(set.AppNames()) > 0 {
			problems = append(problems, more...)
		}
	}
	cfg, more := layers.Config(app)
	failed := c.report(append(problems, more...))
	if err := printSettings(c.streams.Out, cfg.Explain(), asJSON); err != nil {
		return err
	}
	if failed {
		return errReported
	}
	return nil
}

func printSettings(out io.Writer, list []config.Explained, asJSON bool) error {
	if asJSON {
		encoder := json.NewEncoder(out)
		encoder.SetIndent("", "  ")
		return encoder.Encode(list)
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "SETTING\tVALUE\tFROM")
	for _, e := range list {
		from := e.Source
		if e.Effective != e.Value {
			from += fmt.Sprintf(" (as written: %q)", e.Value)
		}
		if e.Unused != "" {
			from += "; no effect: " + e.Unused
		}
		value := e.Effective
		if value == "" {
			value = `""`
		}
		fmt.Fprintf(w, "%s\t%s\t%s\n", e.Key, value, from)
	}
	return w.Flush()
}
