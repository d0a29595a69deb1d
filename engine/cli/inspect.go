package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"kaspr.io/kaspr/engine"
)

// topicsCommand and lagCommand ask Kafka, with the app's settings; the app need not run.
func (c *command) topicsCommand() *cobra.Command {
	var file string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "topics",
		Short: "Print the topics of the apps: what for, and how they stand in Kafka",
		Long: "Print every topic that the apps read, write or keep as far as their manifests tell, with its partitions and the number of its offsets. A\n" +
			"topic with 0 partitions does not exist. Kafka is asked, with the settings of the app.",
		Args: cobra.NoArgs,
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		type row struct {
			App string `json:"app"`
			engine.TopicUse
		}
		rows := []row{}
		err := c.eachApp(file, func(a app) error {
			list, err := engine.Topics(cmd.Context(), a.cfg, a.plan, c.logger(a.cfg))
			for _, u := range list {
				rows = append(rows, row{a.plan.App.ID, u})
			}
			return err
		})
		if err != nil {
			return err
		}
		return printRows(c.streams.Out, asJSON, rows, "APP\tTOPIC\tPARTITIONS\tRECORDS\tUSES", func(r row) string {
			return fmt.Sprintf("%s\t%s\t%d\t%d\t%s", r.App, r.Topic, r.Partitions, r.Records, strings.Join(r.Uses, "; "))
		})
	}
	c.inspectFlags(cmd, &file, &asJSON)
	return cmd
}

func (c *command) lagCommand() *cobra.Command {
	var file string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "lag",
		Short: "Print how far the apps' consumer groups are behind the ends of the partitions they read",
		Long: "Print of every partition that the apps read what their consumer groups have committed, its end, and the offsets between, which is the most\n" +
			"records there may be: ends of transactions have offsets, too. -1 says that nothing has been committed. Kafka is asked, with the settings\n" +
			"of the app.",
		Args: cobra.NoArgs,
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		type row struct {
			App string `json:"app"`
			engine.PartitionLag
		}
		rows := []row{}
		err := c.eachApp(file, func(a app) error {
			list, err := engine.Lag(cmd.Context(), a.cfg, a.plan, c.logger(a.cfg))
			for _, l := range list {
				rows = append(rows, row{a.plan.App.ID, l})
			}
			return err
		})
		if err != nil {
			return err
		}
		return printRows(c.streams.Out, asJSON, rows, "APP\tTOPIC\tPARTITION\tCOMMITTED\tEND\tLAG", func(r row) string {
			return fmt.Sprintf("%s\t%s\t%d\t%d\t%d\t%d", r.App, r.Topic, r.Partition, r.Committed, r.End, r.Lag)
		})
	}
	c.inspectFlags(cmd, &file, &asJSON)
	return cmd
}

func (c *command) inspectFlags(cmd *cobra.Command, file *string, asJSON *bool) {
	cmd.Flags().StringVar(file, "config", "", "settings file of the app")
	cmd.Flags().BoolVar(asJSON, "json", false, "print a JSON list")
	c.appFlag(cmd)
	c.settingFlags(cmd)
}

// eachApp calls do with every app that the settings file names.
func (c *command) eachApp(file string, do func(app) error) error {
	p, err := c.configured(file)
	if err != nil {
		return err
	}
	if c.report(p.problems) {
		return errReported
	}
	for _, a := range p.apps {
		if err := do(a); err != nil {
			return err
		}
	}
	return nil
}

func printRows[T any](out io.Writer, asJSON bool, rows []T, head string, line func(T) string) error {
	if asJSON {
		encoder := json.NewEncoder(out)
		encoder.SetIndent("", "  ")
		return encoder.Encode(rows)
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, head)
	for _, r := range rows {
		fmt.Fprintln(w, line(r))
	}
	return w.Flush()
}
