package config

import "strings"

// Described is a setting for schemas and documents.
type Described struct {
	Key     string
	Names   []string // all it is read by in a KasprApp: Key, its aliases, and each as Python writes it
	Types   []string // JSON types a value may have
	Doc     string
	Default string
	Unused  string // why it has no effect in this version
	App     bool   // a KasprApp may set it
}

// Describe lists every setting, in the order of docs/settings.md.
func Describe() []Described {
	var list []Described
	for _, s := range settings {
		if s.key == "" {
			continue
		}
		d := Described{Key: s.key, Types: s.jsonTypes(), Doc: s.doc, Default: s.text, Unused: s.unused, App: !s.process}
		for _, name := range s.names() {
			d.Names = append(d.Names, name)
			if in := snake(name); in != name {
				d.Names = append(d.Names, in)
			}
		}
		list = append(list, d)
	}
	return list
}

// Refused are names that are no settings here although they are elsewhere, with what to do instead.
func Refused() map[string]string {
	list := map[string]string{}
	for name, why := range refused {
		list[name] = why
	}
	return list
}

// jsonTypes follow from what the setting says of its values. Every value may also be written as text.
func (s setting) jsonTypes() []string {
	what, _, _ := strings.Cut(s.what, ",")
	switch {
	case what == "boolean":
		return []string{"boolean", "string"}
	case what == "whole number":
		return []string{"integer", "string"}
	case what == "size":
		return []string{"integer", "string"}
	case what == "duration":
		return []string{"number", "string"}
	case strings.HasPrefix(what, "list of"):
		return []string{"array", "object", "string"}
	}
	return []string{"string", "number", "boolean"}
}
