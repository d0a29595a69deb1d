package config

import (
	"fmt"
	"log/slog"
	"math"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"kaspr.io/kaspr/engine/manifest"
)

// setting is one row of the table: where a value may come from, what it may be, and where it goes.
type setting struct {
	key     string
	aliases []string // other names of the same setting, such as the original's
	text    string   // default, as a user would write it
	what    string   // what it may be, for docs and messages
	doc     string
	group   string
	// set parses a value into the Config; the error is for the user and starts after "<name> ".
	set func(c *Config, value string, from given) error
	// get is the effective value: what `kaspr config` prints and Code sees as conf.<name>. Nil for a setting that is only checked.
	get func(c *Config) any
	// unused says why the value has no effect in this version; empty for one that has.
	unused string
	// quiet suppresses the warning that an unused setting is set: the operator always sets it.
	quiet  bool
	secret bool
	pairs  bool // the value is a list of name=value
	// process settings are the engine's own: not of the app, so not in a KasprApp.
	process bool
}

// variableName is a key as the name of an environment variable, without prefix: webPort is WEB_PORT.
func variableName(key string) string {
	var b strings.Builder
	for i, r := range key {
		if r >= 'A' && r <= 'Z' && i > 0 {
			b.WriteByte('_')
		}
		b.WriteRune(r)
	}
	return strings.ToUpper(b.String())
}

// snake is a key as Python writes it: webPort is web_port.
func snake(key string) string { return strings.ToLower(variableName(key)) }

func (s setting) names() []string { return append([]string{s.key}, s.aliases...) }

type option func(*setting)

func alias(keys ...string) option { return func(s *setting) { s.aliases = append(s.aliases, keys...) } }
func later(why string) option     { return func(s *setting) { s.unused = why } }
func secret() option              { return func(s *setting) { s.secret = true } }
func process() option             { return func(s *setting) { s.process = true } }
func quiet() option               { return func(s *setting) { s.quiet = true } }

func define(key, text, what, doc string, opts []option) setting {
	s := setting{key: key, text: text, what: what, doc: doc}
	for _, o := range opts {
		o(&s)
	}
	return s
}

func textSetting(key, text, doc string, field func(*Config) *string, opts ...option) setting {
	s := define(key, text, "text", doc, opts)
	s.set = func(c *Config, value string, _ given) error { *field(c) = value; return nil }
	s.get = func(c *Config) any { return *field(c) }
	return s
}

// pathSetting is a file or directory; a relative one in a settings file is relative to that file.
func pathSetting(key, text, doc string, field func(*Config) *string, opts ...option) setting {
	s := textSetting(key, text, doc, field, opts...)
	s.what = "path"
	s.set = func(c *Config, value string, from given) error {
		if value != "" && from.Layer == layerFile && !filepath.IsAbs(value) {
			value = filepath.Join(filepath.Dir(from.Pos.File), value)
		}
		*field(c) = value
		return nil
	}
	return s
}

func wordSetting(key, text, doc string, words []string, field func(*Config) *string, opts ...option) setting {
	s := textSetting(key, text, doc, field, opts...)
	s.what = strings.Join(words, ", ")
	s.set = func(c *Config, value string, _ given) error {
		for _, w := range words {
			if strings.EqualFold(w, value) {
				*field(c) = w
				return nil
			}
		}
		return wrong("must be one of %s, not %q", manifest.Suggest(value, words), strings.Join(words, ", "), value)
	}
	return s
}

func intSetting(key, text, doc string, lowest, highest int, field func(*Config) *int, opts ...option) setting {
	s := define(key, text, "whole number", doc, opts)
	switch {
	case highest != math.MaxInt32:
		s.what += fmt.Sprintf(", %d to %d", lowest, highest)
	default:
		s.what += fmt.Sprintf(", at least %d", lowest)
	}
	s.set = func(c *Config, value string, _ given) error {
		n, err := strconv.Atoi(strings.ReplaceAll(value, "_", ""))
		if err != nil {
			return wrong("must be a whole number, not %q", "", value)
		}
		if n < lowest {
			return outOfRange("must be at least %d, not %d", lowest, n)
		}
		if n > highest {
			return outOfRange("must be at most %d, not %d", highest, n)
		}
		*field(c) = n
		return nil
	}
	s.get = func(c *Config) any { return *field(c) }
	return s
}

// ratioSetting is a share of a whole.
func ratioSetting(key, text, doc string, field func(*Config) *float64, opts ...option) setting {
	s := define(key, text, "number, 0 to 1", doc, opts)
	s.set = func(c *Config, value string, _ given) error {
		n, err := strconv.ParseFloat(value, 64)
		if err != nil {
			return wrong("must be a number, not %q", "", value)
		}
		if !(n >= 0 && n <= 1) {
			return outOfRange("must be from 0 to 1, not %s", value)
		}
		*field(c) = n
		return nil
	}
	s.get = func(c *Config) any { return *field(c) }
	return s
}

// urlSetting is an http or https URL. It has no user: that would be logged.
func urlSetting(key, text, doc string, field func(*Config) *string, opts ...option) setting {
	s := textSetting(key, text, doc, field, opts...)
	s.what = "http or https URL"
	s.set = func(c *Config, value string, _ given) error {
		u, err := url.Parse(value)
		if err == nil && u.User != nil {
			return wrong("must be a URL without a user or password", "")
		}
		if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" || u.RawQuery != "" || u.Fragment != "" {
			return wrong("must be an http or https URL without a query", "")
		}
		*field(c) = value
		return nil
	}
	return s
}

// portSetting is a port to listen on that needs no rights, or 0 for none.
func portSetting(key, text, doc string, field func(*Config) *int, opts ...option) setting {
	s := intSetting(key, text, doc, 0, math.MaxUint16, field, opts...)
	s.what = "whole number, 0 or 1024 to 65535"
	set := s.set
	s.set = func(c *Config, value string, from given) error {
		if err := set(c, value, from); err != nil {
			return err
		}
		if n := *field(c); n > 0 && n < 1024 {
			return outOfRange("must be 0 or at least 1024, not %d", n)
		}
		return nil
	}
	return s
}

func boolSetting(key, text, doc string, field func(*Config) *bool, opts ...option) setting {
	s := define(key, text, "boolean", doc, opts)
	s.set = func(c *Config, value string, _ given) error {
		switch strings.ToLower(value) {
		case "true", "1", "yes", "on":
			*field(c) = true
		case "false", "0", "no", "off":
			*field(c) = false
		default:
			return wrong("must be true or false, not %q", "", value)
		}
		return nil
	}
	s.get = func(c *Config) any { return *field(c) }
	return s
}

// durationSetting takes 250ms, 2s, 1h30m, 7d, or seconds as a plain number.
func durationSetting(key, text, doc string, lowest, highest time.Duration, field func(*Config) *time.Duration, opts ...option) setting {
	s := define(key, text, "duration", doc, opts)
	switch {
	case lowest == 0 && highest == math.MaxInt64:
	case highest == math.MaxInt64:
		s.what += ", at least " + lowest.String()
	default:
		s.what += ", " + lowest.String() + " to " + highest.String()
	}
	s.set = func(c *Config, value string, _ given) error {
		d, ok := parseDuration(value)
		if !ok {
			return wrong("must be a duration such as 250ms, 2s or 1h, or seconds as a number, not %q", "", value)
		}
		if d < lowest {
			return outOfRange("must be at least %s, not %s", lowest, value)
		}
		if d > highest {
			return outOfRange("must be at most %s, not %s", highest, value)
		}
		*field(c) = d
		return nil
	}
	s.get = func(c *Config) any { return *field(c) }
	return s
}

func parseDuration(text string) (time.Duration, bool) {
	if seconds, err := strconv.ParseFloat(text, 64); err == nil {
		if !(seconds >= 0 && seconds < math.MaxInt64/float64(time.Second)) {
			return 0, false
		}
		return time.Duration(math.Round(seconds * float64(time.Second))), true
	}
	return manifest.ParseDuration(text)
}

// sizeSetting takes bytes as a number, or with a unit: 64MiB, 64Mi, 64MB, 64M.
func sizeSetting(key, text, doc string, lowest, highest int64, field func(*Config) *int64, opts ...option) setting {
	s := define(key, text, "size", doc, opts)
	if highest == math.MaxInt64 {
		s.what += ", at least " + formatSize(lowest)
	} else {
		s.what += ", " + formatSize(lowest) + " to " + formatSize(highest)
	}
	s.set = func(c *Config, value string, _ given) error {
		n, ok := parseSize(value)
		if !ok {
			return wrong("must be a size such as 1048576, 64MiB or 1GB, not %q", "", value)
		}
		if n < lowest {
			return outOfRange("must be at least %s, not %s", formatSize(lowest), value)
		}
		if n > highest {
			return outOfRange("must be at most %s, not %s", formatSize(highest), value)
		}
		*field(c) = n
		return nil
	}
	s.get = func(c *Config) any { return *field(c) }
	return s
}

var units = []struct {
	name  string
	bytes int64
}{
	{"KiB", 1 << 10},
	{"MiB", 1 << 20},
	{"GiB", 1 << 30},
	{"TiB", 1 << 40},
	{"Ki", 1 << 10},
	{"Mi", 1 << 20},
	{"Gi", 1 << 30},
	{"Ti", 1 << 40},
	{"KB", 1e3},
	{"MB", 1e6},
	{"GB", 1e9},
	{"TB", 1e12},
	{"K", 1e3},
	{"M", 1e6},
	{"G", 1e9},
	{"T", 1e12},
	{"B", 1},
}

func parseSize(text string) (int64, bool) {
	number, unit := strings.TrimSpace(text), int64(1)
	for _, u := range units {
		if len(number) > len(u.name) && strings.EqualFold(number[len(number)-len(u.name):], u.name) {
			number, unit = strings.TrimSpace(number[:len(number)-len(u.name)]), u.bytes
			break
		}
	}
	if n, err := strconv.ParseInt(strings.ReplaceAll(number, "_", ""), 10, 64); err == nil {
		if n < 0 || n > math.MaxInt64/unit {
			return 0, false
		}
		return n * unit, true
	}
	f, err := strconv.ParseFloat(number, 64)
	if err != nil || unit == 1 || !(f >= 0 && f*float64(unit) < math.MaxInt64) {
		return 0, false
	}
	return int64(f * float64(unit)), true
}

// formatSize writes a size with the largest binary unit that divides it.
func formatSize(n int64) string {
	for _, u := range []struct {
		name  string
		bytes int64
	}{{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}} {
		if n >= u.bytes && n%u.bytes == 0 {
			return strconv.FormatInt(n/u.bytes, 10) + u.name
		}
	}
	return strconv.FormatInt(n, 10)
}

// listSetting takes items separated by commas or semicolons; one with a default cannot be empty.
func listSetting(key, text, what, doc string, check func(string) error, field func(*Config) *[]string, opts ...option) setting {
	s := define(key, text, what, doc, opts)
	s.set = func(c *Config, value string, _ given) error {
		var items []string
		for _, item := range strings.FieldsFunc(value, func(r rune) bool { return r == ',' || r == ';' }) {
			if item = strings.TrimSpace(item); item == "" {
				continue
			}
			if err := check(item); err != nil {
				return err
			}
			items = append(items, item)
		}
		if len(items) == 0 && text != "" {
			return wrong("must name at least one", "")
		}
		*field(c) = items
		return nil
	}
	s.get = func(c *Config) any { return *field(c) }
	return s
}

// format is an effective value as a user would write it; what was given stands for a setting that is only checked.
func (s setting) format(c *Config, given string) string {
	if s.get == nil {
		return given
	}
	switch v := s.get(c).(type) {
	case string:
		return v
	case []string:
		return strings.Join(v, ",")
	case time.Duration:
		return v.String()
	case int64:
		return formatSize(v)
	case slog.Level:
		return strings.ToLower(v.String())
	default:
		return fmt.Sprint(v)
	}
}

// problem is what is wrong with one value.
type problem struct {
	id, text, hint string
}

func (p *problem) Error() string { return p.text }

func wrong(format, suggestion string, args ...any) error {
	p := &problem{id: BadValue, text: fmt.Sprintf(format, args...)}
	if suggestion != "" {
		p.hint = fmt.Sprintf("did you mean %q?", suggestion)
	}
	return p
}

func outOfRange(format string, args ...any) error {
	return &problem{id: OutOfRange, text: fmt.Sprintf(format, args...)}
}
