package plan

import (
	"strconv"

	"kaspr.io/kaspr/engine/manifest"
	"kaspr.io/kaspr/engine/registry"
)

// Schema is what one side of an output is written with.
type Schema struct {
	registry.Target // without a topic when a selector makes it
	For             string
	Pos             manifest.Pos
}

// Known tells whether the schema can be asked for before the first record: its topic does not matter, or is known.
func (s *Schema) Known() bool { return s.Topic != "" || s.Subject != "" }

// schema notes what an output's side is written with, and gives its number in the agent's list; 0 is no schema at all.
func (b *builder) schema(a *Agent, m *manifest.Schema, where string, t registry.Target, at manifest.Pos) int {
	label := a.Label + ", " + where
	if !registry.Has(t.Serializer) {
		if m != nil {
			b.warn(m.Pos, manifest.NoEffect, label+" has no effect with the serializer "+t.Serializer, "it is for avro, protobuf and jsonschema")
		}
		return 0
	}
	b.needsRegistry(t.Serializer, label, at)
	if m != nil {
		at = m.Pos
		t.Subject, t.Text, t.Message = m.Subject.V, m.Text.V, m.Message.V
		if m.Message.Set() && t.Serializer != registry.Protobuf {
			b.warn(m.Message.Pos, manifest.NoEffect, label+": message has no effect with the serializer "+t.Serializer, "it is for protobuf")
			t.Message = ""
		}
	}
	name := t.Message
	if t.Text != "" {
		var err error
		if name, err = registry.NameOf(t.Serializer, t.Text, t.Message); err != nil {
			b.fail(m.Text.Pos, manifest.BadSchema, label+": "+t.Serializer+" cannot read the schema: "+err.Error(), "")
			return 0
		}
	}
	if by := b.cfg.Registry.Subjects; t.Subject == "" && by != registry.TopicName && name == "" {
		b.fail(at, manifest.BadSchema, label+": schemaRegistrySubjects is "+by+", and nothing says the record's name", "give the schema with a name, or its subject")
		return 0
	}
	a.Schemas = append(a.Schemas, Schema{Target: t, For: label, Pos: at})
	return len(a.Schemas)
}

// needsRegistry warns once of a serializer that has no registry. Settings may be only where the app runs.
func (b *builder) needsRegistry(serializer, label string, at manifest.Pos) {
	if len(b.cfg.Registry.URLs) > 0 || b.warnedOfRegistry || !registry.Has(serializer) {
		return
	}
	b.warnedOfRegistry = true
	b.warn(at, manifest.NoRegistry, label+": the serializer "+strconv.Quote(serializer)+" needs a schema registry, and schemaRegistryUrl is not set", "the app does not start without it")
}
