package cli

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"kaspr.io/kaspr/engine/broker"
	"kaspr.io/kaspr/engine/config"
	apphttp "kaspr.io/kaspr/http"
)

// healthTimeout is how long an answer may take.
const healthTimeout = 3 * time.Second

// healthCommand is what a container without a shell asks its own process with.
func (c *command) healthCommand() *cobra.Command {
	var file string
	var ready bool
	cmd := &cobra.Command{
		Use:   "health",
		Short: "Ask the engine that runs on this machine whether it lives, or with --ready whether it does all of its work",
		Long: "Ask the engine that runs on this machine, at the webPort that the same settings give it, whether it lives.\n" +
			"The exit code is 0 if it does, and if it has no HTTP server (webPort is 0); else 1. Of several apps each is asked.",
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return c.health(file, ready) },
	}
	cmd.Flags().StringVar(&file, "config", "", "settings file of that engine")
	cmd.Flags().BoolVar(&ready, "ready", false, "ask /readyz: partitions assigned, tables restored")
	c.appFlag(cmd)
	c.settingFlags(cmd)
	return cmd
}

func (c *command) health(file string, ready bool) error {
	p, err := c.configured(file)
	if err != nil {
		return err
	}
	path := "/healthz"
	if ready {
		path = "/readyz"
	}
	var failed error
	for _, a := range p.all() { // the manifests may name the port, too; whether they are right is not asked here
		if err := c.askHealth(a.cfg, path); err != nil {
			if failed = errReported; len(p.apps) < 2 {
				return err
			}
			if errors.Is(err, errReported) {
				err = errors.New("is not well")
			}
			fmt.Fprintf(c.streams.Err, "kaspr: app %q: %v\n", a.name, err)
		}
	}
	return failed
}

// all is the apps of a project; where manifests do not tell, one without a name.
func (p project) all() []app {
	if len(p.apps) == 0 {
		return []app{{cfg: p.cfg}}
	}
	return p.apps
}

func (c *command) askHealth(cfg config.Config, path string) error {
	if cfg.Web.Port == 0 {
		fmt.Fprintln(c.streams.Err, "no HTTP server: webPort is 0")
		return nil
	}
	code, body, err := askEngine(cfg, "", "", path, healthTimeout)
	if err != nil {
		return err
	}
	if _, err := c.streams.Out.Write(body); err != nil {
		return err
	}
	if code != 200 {
		return errReported
	}
	return nil
}

// askEngine asks a running engine for a path: at an address, or the one on this machine that has these settings. The token is for paths that
// want one; empty: none.
func askEngine(cfg config.Config, token, address, path string, within time.Duration) (code int, body []byte, err error) {
	var trust *tls.Config
	if cert := cfg.Web.TLS.CertFile; cert != "" {
		if address == "" {
			trust, err = apphttp.TrustOwn(cert)
		} else {
			trust, err = broker.TLS{CAFile: cfg.Web.PeerCAFile}.Config()
		}
		if err != nil {
			return 0, nil, err
		}
	}
	if address == "" {
		address = net.JoinHostPort("127.0.0.1", strconv.Itoa(cfg.Web.Port))
	}
	return apphttp.AskAs(token, address, path, within, trust)
}
