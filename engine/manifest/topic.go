package manifest

import (
	"math"
	"regexp"
	"strings"
)

// Serializers are those of topics. The last three have their schemas in a registry.
var Serializers = []string{"raw", "str", "json", "pickle", "binary", "avro", "protobuf", "jsonschema"}

// Schema says what is written with a serializer that has schemas.
type Schema struct {
	Pos     Pos
	Text    Value[string] // empty: the latest of the subject
	Subject Value[string] // empty: by schemaRegistrySubjects
	Message Value[string] // of a protobuf file; empty: the first
}

func (c cursor) schema(dst **Schema) {
	s := &Schema{Pos: c.at}
	if c.object(
		may("text", func(c cursor) { c.named(&s.Text) }),
		may("subject", func(c cursor) { c.named(&s.Subject) }),
		may("message", func(c cursor) { c.named(&s.Message) }),
	) != nil {
		*dst = s
	}
}

// TopicOptions is how a topic is created.
type TopicOptions struct {
	Partitions Value[int]
	Retention  Value[int64] // seconds
	Compacting Value[bool]
	Deleting   Value[bool]
	Replicas   Value[int] // 0 means the app's default
	Config     []Entry
}

func (o *TopicOptions) members() []member {
	return []member{
		may("partitions", func(c cursor) { whole(c, &o.Partitions, 1, math.MaxInt32) }),
		may("retention", func(c cursor) { whole(c, &o.Retention, 0, math.MaxInt64/1000) }),
		may("compacting", func(c cursor) { c.boolean(&o.Compacting) }),
		may("deleting", func(c cursor) { c.boolean(&o.Deleting) }),
		may("replicas", func(c cursor) { whole(c, &o.Replicas, 0, math.MaxInt16) }),
		may("config", func(c cursor) { c.texts(&o.Config) }),
	}
}

// useless reports options of a topic that is never created.
func (o *TopicOptions) useless(c cursor, why string) {
	for _, m := range []struct {
		name string
		at   Pos
	}{
		{"partitions", o.Partitions.Pos},
		{"retention", o.Retention.Pos},
		{"compacting", o.Compacting.Pos},
		{"deleting", o.Deleting.Pos},
		{"replicas", o.Replicas.Pos},
	} {
		if m.at != (Pos{}) {
			c.warnAt(m.at, NoEffect, m.name+" of "+c.name()+" has no effect "+why, "")
		}
	}
	if len(o.Config) > 0 {
		c.warnAt(o.Config[0].Key.Pos, NoEffect, "config of "+c.name()+" has no effect "+why, "")
	}
}

// topicNames reads one name, or several separated by commas.
func (c cursor) topicNames(names *[]Value[string]) {
	var read Value[string]
	if !c.named(&read) {
		return
	}
	seen := map[string]bool{}
	for _, name := range strings.Split(read.V, ",") {
		name = strings.TrimSpace(name)
		switch problem := TopicNameProblem(name); {
		case name == "":
			c.fail(BadTopicName, c.name()+" has a comma with no name beside it", "")
		case problem != "":
			c.fail(BadTopicName, c.name()+" "+quote(name)+" "+problem, "")
		case seen[name]:
			c.fail(NamedTwice, c.name()+" lists "+quote(name)+" twice", "")
		}
		seen[name] = true
		*names = append(*names, Value[string]{V: name, Pos: read.Pos})
	}
}

// TopicPattern compiles a pattern of topic names. It matches whole names.
func TopicPattern(pattern string) (*regexp.Regexp, error) {
	if _, err := regexp.Compile(pattern); err != nil {
		return nil, err // in the user's own text
	}
	return regexp.Compile(`^(?:` + pattern + `)$`)
}

var notRE2 = regexp.MustCompile(`\(\?(=|!|<=|<!|>)|\\[1-9]|\(\?P=|[*+?}]\+`)

func (c cursor) pattern(v *Value[string]) {
	var read Value[string]
	if !c.named(&read) {
		return
	}
	if _, err := TopicPattern(read.V); err != nil {
		text, hint := strings.TrimPrefix(err.Error(), "error parsing regexp: "), ""
		if notRE2.MatchString(read.V) {
			hint = "patterns are RE2: no lookaround, no backreferences, no possessive groups; match more and filter in the pipeline"
		}
		c.fail(BadPattern, c.name()+" is not a regular expression: "+text, hint)
		return
	}
	*v = read
}
