package manifest

import (
	"strings"

	"go.yaml.in/yaml/v3"
)

// ReadSettings reads a settings file: one mapping of names to scalars, lists of scalars (joined by commas) or mappings
// of scalars (as name=value). Which names there are and what they may hold is known to engine/config.
func ReadSettings(file string, content []byte) ([]Setting, Errors) {
	docs, problems := documents(file, content)
	var settings []Setting
	for i, doc := range docs {
		r := newReader(file, doc, nil, &problems)
		for _, n := range doc.root.Content {
			c := r.root(n)
			if c.null() {
				continue
			}
			if i > 0 || c.node.Kind != yaml.MappingNode {
				c.fail(WrongType, "settings are one mapping of names to values, not "+c.kind(), "")
				continue
			}
			c.settings(&settings)
		}
	}
	return settings, problems.Sorted([]string{file})
}

func (c cursor) settings(list *[]Setting) {
	for _, entry := range c.entries() {
		next := c.child(entry[1], strings.TrimPrefix(c.path+"."+entry[0].Value, "."), c.pos(entry[0]))
		if c.stopped {
			return
		}
		if next.null() {
			continue
		}
		text, ok := next.settingText()
		if !ok {
			next.fail(WrongType, next.name()+" must be a value or a list of values, not "+next.kind(), "")
			continue
		}
		*list = append(*list, Setting{Name: At(entry[0].Value, c.pos(entry[0])), Value: At(text, c.pos(next.node))})
	}
}

func (c cursor) settingText() (string, bool) {
	switch c.node.Kind {
	case yaml.SequenceNode:
		var items []string
		for _, n := range c.node.Content {
			text, ok := c.child(n, c.path, c.at).scalarText()
			if !ok {
				return "", false
			}
			items = append(items, text)
		}
		return strings.Join(items, ","), true
	case yaml.MappingNode:
		var items []string
		for _, entry := range c.entries() {
			text, ok := c.child(entry[1], c.path, c.at).scalarText()
			if !ok {
				return "", false
			}
			items = append(items, entry[0].Value+"="+text)
		}
		return strings.Join(items, ","), true
	}
	return c.scalarText()
}
