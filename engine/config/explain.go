package config

import (
	"strings"
	"time"
)

// Explained is one setting as `kaspr config` shows it.
type Explained struct {
	Key       string `json:"key"`
	Value     string `json:"value"`     // as a user would write it; hidden for a secret that is set
	Effective string `json:"effective"` // Value, or what follows from other settings where it leaves that open
	Default   string `json:"default"`
	Source    string `json:"source"`           // default, KasprApp app.yaml:9:3, file kaspr.yaml:4:1, environment K_WEB_PORT, flag webPort
	Unused    string `json:"unused,omitempty"` // why the setting has no effect in this version
}

const hidden = "***"

// Explain lists every setting with its value and its source, in the order of docs/settings.md.
func (c Config) Explain() []Explained { return c.values }

func (c *Config) explain(from map[string]given, bad map[string]bool) {
	for _, s := range settings {
		if s.key == "" {
			continue
		}
		e := Explained{Key: s.key, Default: s.defaultText(), Unused: s.unused}
		e.Value, e.Source = e.Default, string(layerDefault)
		if !bad[s.key] {
			e.Value, e.Source = s.format(c, from[s.key].Text), from[s.key].source()
		}
		if s.secret && e.Value != "" {
			e.Value = hidden
		}
		c.values = append(c.values, e)
	}
}

// explainResolved adds what follows from other settings.
func (c *Config) explainResolved() {
	i := 0
	for _, s := range settings {
		if s.key == "" {
			continue
		}
		e := &c.values[i]
		if e.Effective = e.Value; s.get != nil && !s.secret {
			e.Effective = s.format(c, "")
		}
		i++
	}
}

// defaultText is the default as format would write it.
func (s setting) defaultText() string {
	var c Config
	must(s.set(&c, s.text, given{Layer: layerDefault}))
	return s.format(&c, s.text)
}

// Conf is what Code sees as context["app"].conf: settings by their snake_case names, durations in seconds. What
// has to do with logging in is left out.
func (c Config) Conf() map[string]any {
	conf := map[string]any{}
	for _, s := range settings {
		if s.key == "" || s.get == nil || s.secret || strings.HasPrefix(s.key, "kafka") {
			continue
		}
		v := s.get(&c)
		switch v := v.(type) {
		case time.Duration:
			conf[snake(s.key)] = v.Seconds()
		case string, bool, int, int64, []string:
			conf[snake(s.key)] = v
		default:
			conf[snake(s.key)] = s.format(&c, "")
		}
	}
	return conf
}

// Getenv looks a variable up in the environment the settings were read from, the .env file included.
func (c Config) Getenv(name string) (string, bool) {
	value, ok := c.environ[name]
	return value, ok
}

// Redacted is the Config with every secret that is set replaced, for printing and logging.
func (c Config) Redacted() Config {
	for _, s := range settings {
		if s.secret && s.format(&c, "") != "" {
			mask := hidden
			if s.pairs {
				mask = hidden + "=" + hidden
			}
			must(s.set(&c, mask, given{}))
		}
	}
	c.environ = nil
	return c
}
