package manifest

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// Route is the path of a web view: text, and parameters written {name} or {name:pattern}.
type Route struct {
	// Match matches a whole path as it stands in a request, before it is percent-decoded; its groups are named after the
	// parameters. A parameter without a pattern is at least one character, up to the next slash.
	Match  *regexp.Regexp
	Params []string // in the order of the path, each a Python identifier
	// Patterns are what the parameters match, as it is written; empty for one without.
	Patterns []string
	// Template is the path with {name} for each parameter.
	Template string
	Text     string // the path itself when there is no parameter
	// Shape is the same for paths that differ only in the names of their parameters.
	Shape string
}

const anySegment = `[^{}/]+`

// ParseRoute reads a path. A leading slash may be missing.
func ParseRoute(path string) (*Route, error) {
	if !strings.HasPrefix(path, "/") {
		path = "/" + path
	}
	r, match, shape := &Route{}, `^`, ""
	for rest := path; rest != ""; {
		text, param, found := strings.Cut(rest, "{")
		if bad := strings.IndexFunc(text, func(r rune) bool { return r <= ' ' || r == 0x7f || strings.ContainsRune(`?#}`, r) }); bad >= 0 {
			return nil, fmt.Errorf("%q cannot stand in a path", text[bad:bad+1])
		}
		match, shape, r.Template = match+regexp.QuoteMeta(text), shape+text, r.Template+text
		if !found {
			break
		}
		end := closing(param)
		if end < 0 {
			return nil, errors.New("a { is not closed")
		}
		name, pattern, custom := strings.Cut(param[:end], ":")
		rest = param[end+1:]
		if !custom {
			pattern = anySegment
		}
		switch problem := identifierProblem(name); {
		case problem != "":
			return nil, fmt.Errorf("parameter %q %s", name, problem)
		case strings.Trim(name, identifierASCII) != "":
			return nil, fmt.Errorf("parameter %q has characters other than a-z A-Z 0-9 _", name)
		case slices.Contains(r.Params, name):
			return nil, fmt.Errorf("parameter %q stands twice", name)
		}
		own, err := regexp.Compile(pattern)
		if err != nil {
			return nil, fmt.Errorf("the pattern of %q is not a regular expression of RE2: %s", name, strings.TrimPrefix(err.Error(), "error parsing regexp: "))
		}
		if strings.Join(own.SubexpNames(), "") != "" {
			return nil, fmt.Errorf("the pattern of %q has a group with a name, which could be taken for a parameter", name)
		}
		r.Params, r.Template = append(r.Params, name), r.Template+"{"+name+"}"
		if custom {
			r.Patterns = append(r.Patterns, pattern)
		} else {
			r.Patterns = append(r.Patterns, "")
		}
		match, shape = match+`(?P<`+name+`>`+pattern+`)`, shape+"{"+pattern+"}"
	}
	whole, err := regexp.Compile(match + `$`)
	if err != nil { // each pattern compiles; all of them may be too large
		return nil, errors.New(strings.TrimPrefix(err.Error(), "error parsing regexp: "))
	}
	r.Match, r.Shape = whole, shape
	if len(r.Params) == 0 {
		r.Text = path
	}
	return r, nil
}

const identifierASCII = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_"

// closing is where the brace that was opened before text is closed; -1: nowhere. A pattern may hold pairs of braces.
func closing(text string) int {
	depth := 1
	for i := 0; i < len(text); i++ {
		switch text[i] {
		case '\\':
			i++
		case '{':
			depth++
		case '}':
			if depth--; depth == 0 {
				return i
			}
		}
	}
	return -1
}

func (c cursor) route(w *WebView) {
	var read Value[string]
	if !c.named(&read) {
		return
	}
	route, err := ParseRoute(read.V)
	if err != nil {
		c.fail(BadPath, c.name()+" "+quote(read.V)+" is not a path: "+err.Error(), "text, {name} and {name:pattern}, such as /orders/{id}")
		return
	}
	w.Path, w.Route = read, route
}
