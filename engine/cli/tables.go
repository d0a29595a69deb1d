package cli

import (
	"cmp"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"kaspr.io/kaspr/engine/broker"
	"kaspr.io/kaspr/engine/config"
	apphttp "kaspr.io/kaspr/http"
)

// adminTimeout is how long the admin server may take to answer.
const adminTimeout = 30 * time.Second

// tablesCommand asks a running engine's admin server for what is in tables.
func (c *command) tablesCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "tables",
		Short: "Print values of tables, asked of a running engine",
		Long: "Print what is committed in tables, wherever their partitions are. A running engine is asked, at its admin server (adminListen), with the\n" +
			"adminToken that the same settings give.",
	}
	cmd.AddCommand(c.tablesGetCommand(), c.tablesScanCommand())
	return cmd
}

func (c *command) tablesFlags(cmd *cobra.Command, file, address *string) {
	cmd.Flags().StringVar(file, "config", "", "settings file of that engine")
	cmd.Flags().StringVar(address, "address", "", "host:port of its admin server; else adminListen")
	c.appFlag(cmd)
	c.settingFlags(cmd)
}

func (c *command) tablesGetCommand() *cobra.Command {
	var file, address string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "get TABLE KEY",
		Short: "Print the value of a key as JSON; exit code 1 if there is none",
		Args:  cobra.ExactArgs(2),
		RunE: func(_ *cobra.Command, args []string) error {
			path := "/table/" + url.PathEscape(args[0]) + "/" + url.PathEscape(args[1]) + "/"
			if asJSON {
				path += "?key=json"
			}
			body, err := c.askAdmin(file, address, path)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(c.streams.Out, "%s\n", body)
			return err
		},
	}
	cmd.Flags().BoolVar(&asJSON, "key-json", false, "KEY is JSON, as it stands in the changelog; else it is a text")
	c.tablesFlags(cmd, &file, &address)
	return cmd
}

func (c *command) tablesScanCommand() *cobra.Command {
	var file, address, after string
	var limit int
	cmd := &cobra.Command{
		Use:   "scan TABLE",
		Short: "Print entries of a table, a line of JSON each, in the order of partitions and keys",
		Args:  cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			if limit < 0 {
				return errors.New("--limit must not be negative")
			}
			return c.scanTable(file, address, args[0], after, limit)
		},
	}
	cmd.Flags().IntVar(&limit, "limit", 100, "most entries; 0: all there are")
	cmd.Flags().StringVar(&after, "after", "", "go on where an earlier scan ended, as it said")
	c.tablesFlags(cmd, &file, &address)
	return cmd
}

func (c *command) scanTable(file, address, table, after string, limit int) error {
	for printed := 0; ; {
		most := apphttp.PageLimitMax
		if limit > 0 {
			most = min(most, limit-printed)
		}
		body, err := c.askAdmin(file, address, "/table/"+url.PathEscape(table)+"/?"+url.Values{"limit": {strconv.Itoa(most)}, "after": {after}}.Encode())
		if err != nil {
			return err
		}
		var page struct {
			Entries []json.RawMessage
			Next    string
		}
		if err := json.Unmarshal(body, &page); err != nil {
			return fmt.Errorf("read the answer: %w", err)
		}
		for _, e := range page.Entries {
			if _, err := fmt.Fprintf(c.streams.Out, "%s\n", e); err != nil {
				return err
			}
		}
		printed, after = printed+len(page.Entries), page.Next
		if after == "" {
			return nil
		}
		if limit > 0 && printed >= limit {
			fmt.Fprintf(c.streams.Err, "there are more: --after %s\n", after)
			return nil
		}
	}
}

// askAdmin is the answer of an engine's admin server.
func (c *command) askAdmin(file, address, path string) ([]byte, error) {
	p, err := c.configured(file)
	if err != nil {
		return nil, err
	}
	web := p.all()[0].cfg.Web // the process's: a KasprApp has no say in it
	to := adminAddress(web)
	if address == "" && to == "" {
		return nil, errors.New("there is no admin server to ask: set adminListen, or name one with --address")
	}
	code, body, err := askAdminAt(web, address, path)
	switch {
	case err != nil:
		return nil, err
	case code != 200:
		return nil, fmt.Errorf("the admin server at %s answers %d: %s", cmp.Or(address, to), code, body)
	}
	return body, nil
}

func askAdminAt(web config.Web, address, path string) (code int, body []byte, err error) {
	var trust *tls.Config
	if cert := web.AdminTLS.CertFile; cert != "" {
		if address == "" {
			trust, err = apphttp.TrustOwn(cert)
		} else {
			trust, err = broker.TLS{CAFile: web.PeerCAFile}.Config()
		}
		if err != nil {
			return 0, nil, err
		}
	}
	return apphttp.AskAs(web.AdminToken, cmp.Or(address, adminAddress(web)), path, adminTimeout, trust)
}

// adminAddress is where this machine reaches the admin server; empty: there is none.
func adminAddress(web config.Web) string {
	host, port, err := net.SplitHostPort(web.AdminAddress())
	if err != nil {
		return ""
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return net.JoinHostPort(host, port)
}
