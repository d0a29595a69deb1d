package cli

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"kaspr.io/kaspr/engine"
	"kaspr.io/kaspr/engine/record"
	apphttp "kaspr.io/kaspr/http"
	"kaspr.io/kaspr/scheduler"
)

// scheduleCommand steers the message scheduler: changes are requests in Kafka, as any client makes them; lists are asked of a
// running engine.
func (c *command) scheduleCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "schedule",
		Short: "List, cancel, replace, pause and resume messages for later",
		Long: "Changes are requests to the app's message scheduler: they need the app's settings and the rights of a client, and the app need not\n" +
			"run. What becomes of them is told in <id>-schedule-rejections and, with schedulerResultsEnabled, <id>-schedule-results. Lists are asked\n" +
			"of a running engine with schedulerWebEnabled, with the webToken that the same settings give.",
	}
	verb := func(use, short string, of, ofCron scheduler.Verb) *cobra.Command {
		var file string
		cron := of == ""
		sub := &cobra.Command{Use: use + " REQUEST-ID", Short: short, Args: cobra.ExactArgs(1)}
		if of != "" {
			sub.Flags().BoolVar(&cron, "cron", false, "the id is that of a cron entry")
		}
		sub.RunE = func(cmd *cobra.Command, args []string) error {
			v := of
			if cron {
				v = ofCron
			}
			return c.steer(cmd.Context(), file, v, args[0], []byte(args[0]), nil, nil)
		}
		c.scheduleFlags(sub, &file)
		return sub
	}
	cmd.AddCommand(
		c.scheduleReplaceCommand(),
		verb("cancel", "Take back a message that waits, or with --cron end a cron entry", scheduler.Cancel, scheduler.CronCancel),
		verb("pause", "Pause a cron entry", "", scheduler.CronPause),
		verb("resume", "Resume a cron entry", "", scheduler.CronResume),
		c.scheduleListCommand(), c.scheduleGetCommand(),
	)
	return cmd
}

func (c *command) scheduleFlags(cmd *cobra.Command, file *string) {
	cmd.Flags().StringVar(file, "config", "", "settings file of the app")
	c.appFlag(cmd)
	c.settingFlags(cmd)
}

func (c *command) scheduleReplaceCommand() *cobra.Command {
	var file, to, at, key, value string
	var headers []string
	cmd := &cobra.Command{
		Use:   "replace REQUEST-ID --to TOPIC --at TIME [--key KEY] [--value TEXT] [--header NAME=TEXT]",
		Short: "Put a message in the place of the one with this id, or make it if there is none",
		Args:  cobra.ExactArgs(1),
	}
	cmd.Flags().StringVar(&to, "to", "", "topic the message is for")
	cmd.Flags().StringVar(&at, "at", "", "when, in ISO 8601; without an offset it is UTC")
	cmd.Flags().StringVar(&key, "key", "", "its key; without the flag it is null")
	cmd.Flags().StringVar(&value, "value", "", "its value; without the flag it is null")
	cmd.Flags().StringArrayVar(&headers, "header", nil, "one of its headers, NAME=TEXT; repeat for more")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if to == "" || at == "" {
			return errors.New("--to and --at are needed")
		}
		list := []record.Header{{Key: scheduler.HeaderTo, Value: []byte(to)}, {Key: scheduler.HeaderAt, Value: []byte(at)}}
		for _, h := range headers {
			name, text, ok := strings.Cut(h, "=")
			if !ok || name == "" {
				return fmt.Errorf("--header %q: NAME=TEXT is wanted", h)
			}
			list = append(list, record.Header{Key: name, Value: []byte(text)})
		}
		var k, v []byte
		if cmd.Flags().Changed("key") {
			k = []byte(key)
		}
		if cmd.Flags().Changed("value") {
			v = []byte(value)
		}
		return c.steer(cmd.Context(), file, scheduler.Replace, args[0], k, v, list)
	}
	c.scheduleFlags(cmd, &file)
	return cmd
}

// steer writes a request and says where it is.
func (c *command) steer(ctx context.Context, file string, verb scheduler.Verb, id string, key, value []byte, headers []record.Header) error {
	p, err := c.configured(file)
	if err != nil {
		return err
	}
	a, err := c.one(p)
	if err != nil {
		return err
	}
	if !a.cfg.Scheduler.Enabled {
		return fmt.Errorf("app %q has no message scheduler: schedulerEnabled is false", a.plan.App.Name)
	}
	at, err := engine.Steer(ctx, a.cfg, a.plan, c.logger(p.cfg), verb, id, key, value, headers)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(c.streams.Out, "%s %s: request written to %s\n", verb, id, at)
	return err
}

func (c *command) scheduleListCommand() *cobra.Command {
	var file, address, after string
	var crons bool
	var limit int
	cmd := &cobra.Command{
		Use:   "list",
		Short: "Print a page of the messages that wait, or of the cron entries",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			q := url.Values{"limit": {strconv.Itoa(limit)}, "after": {after}, "list": {"messages"}}
			if crons {
				q.Set("list", "crons")
			}
			return c.askSchedule(file, address, q)
		},
	}
	cmd.Flags().BoolVar(&crons, "crons", false, "cron entries instead of messages")
	cmd.Flags().StringVar(&after, "after", "", "what the page before gave as next")
	cmd.Flags().IntVar(&limit, "limit", 100, fmt.Sprintf("rows of a page, at most %d", apphttp.ScheduleLimitMax))
	cmd.Flags().StringVar(&address, "address", "", "host:port of the engine; else this machine at webPort")
	c.scheduleFlags(cmd, &file)
	return cmd
}

func (c *command) scheduleGetCommand() *cobra.Command {
	var file, address string
	var cron bool
	cmd := &cobra.Command{
		Use:   "get REQUEST-ID",
		Short: "Print what has become of a request id, or with --cron a cron entry",
		Args:  cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			q := url.Values{"id": {args[0]}}
			if cron {
				q.Set("list", "crons")
			}
			return c.askSchedule(file, address, q)
		},
	}
	cmd.Flags().BoolVar(&cron, "cron", false, "the id is that of a cron entry")
	cmd.Flags().StringVar(&address, "address", "", "host:port of the engine; else this machine at webPort")
	c.scheduleFlags(cmd, &file)
	return cmd
}

// askSchedule prints what a running engine says.
func (c *command) askSchedule(file, address string, q url.Values) error {
	p, err := c.configured(file)
	if err != nil {
		return err
	}
	if address == "" && len(p.apps) > 1 {
		if _, err := c.one(p); err != nil {
			return err
		}
	}
	cfg := p.all()[0].cfg
	if address == "" && cfg.Web.Port == 0 {
		return errors.New("there is no HTTP server to ask: webPort is 0")
	}
	code, body, err := askEngine(cfg, cfg.Web.Token, address, "/schedule?"+q.Encode(), 10*time.Second)
	if err != nil {
		return err
	}
	if code != 200 {
		fmt.Fprintf(c.streams.Err, "kaspr: the engine answers %d: %s", code, body)
		if code == 404 && q.Get("id") == "" {
			fmt.Fprintln(c.streams.Err, "kaspr: lists need schedulerWebEnabled in that engine")
		}
		return errReported
	}
	_, err = c.streams.Out.Write(body)
	return err
}
