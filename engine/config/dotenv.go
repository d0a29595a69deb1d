package config

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"kaspr.io/kaspr/engine/manifest"
)

type dotEnvVar struct {
	name, value string
	pos         manifest.Pos
}

// dotEnv reads the .env file in src.Dir or the nearest directory above that has one; ENV_FILE gives another name. No
// file is fine, unless ENV_FILE asks for it by an absolute path.
func dotEnv(src Sources) ([]dotEnvVar, manifest.Errors) {
	if src.Dir == "" {
		return nil, nil
	}
	name := ".env"
	for _, v := range src.Environ {
		if value, ok := strings.CutPrefix(v, "ENV_FILE="); ok && value != "" {
			name = value
		}
	}
	if filepath.IsAbs(name) {
		content, err := os.ReadFile(name)
		if err != nil {
			return nil, manifest.Errors{{Pos: manifest.Pos{File: name}, ID: Unreadable, Text: "cannot read, though ENV_FILE names it: " + reason(err)}}
		}
		return parseDotEnv(name, string(content))
	}
	for dir := src.Dir; ; dir = filepath.Dir(dir) {
		file := filepath.Join(dir, name)
		if content, err := os.ReadFile(file); err == nil {
			return parseDotEnv(file, string(content))
		}
		if dir == filepath.Dir(dir) {
			return nil, nil
		}
	}
}

var dotEnvName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.]*$`)

// parseDotEnv reads lines NAME=value: export before the name, quotes around the value and comments are allowed, names
// of other variables in a value are not replaced. A quoted value ends on its line.
func parseDotEnv(file, content string) ([]dotEnvVar, manifest.Errors) {
	var vars []dotEnvVar
	var problems manifest.Errors
	line := 0
	for text := range strings.Lines(content) {
		line++
		text = strings.TrimSpace(text)
		if text == "" || text[0] == '#' {
			continue
		}
		at := manifest.Pos{File: file, Line: line}
		name, value, ok := strings.Cut(strings.TrimPrefix(text, "export "), "=")
		name = strings.TrimSpace(name)
		if !ok || !dotEnvName.MatchString(name) {
			problems = append(problems, manifest.Error{Pos: at, ID: BadDotEnv, Text: "not NAME=value"})
			continue
		}
		value, ok = dotEnvValue(strings.TrimSpace(value))
		if !ok {
			problems = append(problems, manifest.Error{Pos: at, ID: BadDotEnv, Text: name + ": the quote is not closed"})
			continue
		}
		vars = append(vars, dotEnvVar{name, value, at})
	}
	return vars, problems
}

func dotEnvValue(text string) (string, bool) {
	if text == "" {
		return "", true
	}
	switch text[0] {
	case '\'':
		value, _, closed := strings.Cut(text[1:], "'")
		return value, closed
	case '"':
		var b strings.Builder
		for i := 1; i < len(text); i++ {
			switch c := text[i]; {
			case c == '"':
				return b.String(), true
			case c == '\\' && i+1 < len(text):
				i++
				switch text[i] {
				case 'n':
					b.WriteByte('\n')
				case 't':
					b.WriteByte('\t')
				case 'r':
					b.WriteByte('\r')
				case '"', '\\', '$':
					b.WriteByte(text[i])
				default:
					b.WriteByte('\\')
					b.WriteByte(text[i])
				}
			default:
				b.WriteByte(c)
			}
		}
		return "", false
	}
	if i := strings.Index(text, " #"); i >= 0 {
		text = strings.TrimSpace(text[:i])
	} else if text[0] == '#' {
		text = ""
	}
	return text, true
}
