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
			"a variable of the environment or a flag; of several apps, those of each. Manifests are those in PATH, else in definitionsDir. Secrets are not shown.",
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
	var problems manifest.Errors
	chosen := []*manifest.App{nil}
	if len(paths) > 0 {
		set, all := manifest.Load(paths)
		if all.Fatal() { // warnings about manifests belong to validate
			problems = all
		}
		apps, more := set.ChooseApps(early.App)
		if len(apps) > 0 {
			chosen = apps
		}
		if len(set.AppNames()) > 0 {
			problems = append(problems, more...)
		}
	}
	var list []explained
	for _, app := range chosen {
		cfg, more := layers.Config(app)
		for _, e := range more {
			if !contains(problems, e) {
				problems = append(problems, e)
			}
		}
		name := early.App
		if app != nil {
			name = app.Name.V
		}
		for _, e := range cfg.Share(len(chosen)).Explain() {
			list = append(list, explained{name, e})
		}
	}
	failed := c.report(problems)
	if err := printSettings(c.streams.Out, list, asJSON); err != nil {
		return err
	}
	if failed {
		return errReported
	}
	return nil
}

// explained is a setting of one of the apps.
type explained struct {
	App string `json:"app,omitempty"`
	config.Explained
}

// printSettings prints the settings of the apps, one after the other.
func printSettings(out io.Writer, list []explained, asJSON bool) error {
	if asJSON {
		encoder := json.NewEncoder(out)
		encoder.SetIndent("", "  ")
		return encoder.Encode(list)
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	several := len(list) > 0 && list[0].App != list[len(list)-1].App
	if !several {
		fmt.Fprintln(w, "SETTING\tVALUE\tFROM")
	}
	for i, e := range list {
		if several && (i == 0 || list[i-1].App != e.App) {
			if i > 0 {
				fmt.Fprintln(w)
			}
			fmt.Fprintf(w, "APP %s\nSETTING\tVALUE\tFROM\n", e.App)
		}
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
