package manifest

import (
	"bytes"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

const (
	nestingMax  = 100     // levels of a document, aliases followed
	problemsMax = 1000    // of a document: nobody reads more, and aliases could multiply one without end
	visitsMax   = 200_000 // nodes of a document, aliases followed
)

// reader walks one document and collects its problems.
type reader struct {
	file     string
	doc      document
	lines    [][]byte // of the document's text
	problems *Errors
	codes    *[]*Code
	visits   int
	reported int
	stopped  bool // a limit was hit: nothing more is read or reported
	// snake accepts snake_case members beside camelCase: a definition file of the Python worker.
	snake bool
	// sketching: nothing is read; what would be accepted is noted in the cursors' sketches. See describe.go.
	sketching bool
}

func newReader(file string, doc document, codes *[]*Code, problems *Errors) *reader {
	return &reader{file: file, doc: doc, lines: bytes.Split(doc.text, []byte("\n")), codes: codes, problems: problems}
}

func (r *reader) pos(n *yaml.Node) Pos {
	return Pos{File: r.file, Line: r.doc.offset + n.Line, Column: n.Column}
}

func (r *reader) report(e Error) {
	if r.stopped || r.sketching {
		return
	}
	if r.reported++; r.reported > problemsMax {
		e = Error{Pos: e.Pos, ID: TooBig, Text: "the document has more than " + strconv.Itoa(problemsMax) + " problems"}
		r.stopped = true
	}
	*r.problems = append(*r.problems, e)
}

// cursor is a node with its name in messages.
type cursor struct {
	*reader
	node  *yaml.Node // aliases resolved
	path  string     // such as spec.output.topics[0].name
	at    Pos        // of the key that holds the node, or of the node itself in a list
	depth int

	sketch *Node // set when sketching
}

func (r *reader) root(n *yaml.Node) cursor {
	return cursor{reader: r, node: n}.child(n, "", r.pos(n))
}

// child enters a node. A limit that is hit stops the whole document.
func (c cursor) child(n *yaml.Node, path string, at Pos) cursor {
	next := cursor{reader: c.reader, node: n, path: path, at: at, depth: c.depth + 1}
	for n.Kind == yaml.AliasNode && n.Alias != nil {
		n = n.Alias
		next.node = n
	}
	if next.depth > nestingMax {
		c.stop(at, "more than "+strconv.Itoa(nestingMax)+" levels deep")
	}
	c.visit(at)
	return next
}

// visit counts one value, and stops at the limit: aliases can make a few lines stand for more than memory holds.
func (r *reader) visit(at Pos) {
	if r.visits++; r.visits > visitsMax {
		r.stop(at, "larger than "+strconv.Itoa(visitsMax)+" values, aliases followed")
	}
}

func (r *reader) stop(at Pos, why string) {
	r.report(Error{Pos: at, ID: TooBig, Text: "the document is " + why})
	r.stopped = true
}

// name is the path in messages, without a leading dot.
func (c cursor) name() string {
	if c.path == "" {
		return "the document"
	}
	return c.path
}

func (c cursor) fail(id, text, hint string) {
	c.report(Error{Pos: c.pos(c.node), ID: id, Text: text, Hint: hint})
}

func (c cursor) failAt(at Pos, id, text, hint string) {
	c.report(Error{Pos: at, ID: id, Text: text, Hint: hint})
}

func (c cursor) warnAt(at Pos, id, text, hint string) {
	c.report(Error{Pos: at, ID: id, Level: LevelWarning, Text: text, Hint: hint})
}

func (c cursor) null() bool {
	return c.node.Kind == yaml.ScalarNode && c.node.ShortTag() == "!!null" || c.node.Kind == 0
}

// empty tells a mapping that holds nothing, which the original's operator writes in definition files for a member that was not written.
func (c cursor) empty() bool { return c.node.Kind == yaml.MappingNode && len(c.node.Content) == 0 }

// member is one thing an object may hold.
type member struct {
	name     string
	required bool
	// instead is the right name of a member that older texts spell differently.
	instead string
	// refused says what to do instead of a member that people may expect here and that is not offered.
	refused string
	read    func(cursor)
}

func must(name string, read func(cursor)) member {
	return member{name: name, required: true, read: read}
}
func may(name string, read func(cursor)) member { return member{name: name, read: read} }
func old(name, instead string) member           { return member{name: name, instead: instead} }
func refused(name, hint string) member          { return member{name: name, refused: hint} }
func ignored(names ...string) []member {
	members := make([]member, len(names))
	for i, name := range names {
		members[i] = may(name, func(c cursor) { c.skip() })
	}
	return members
}

// entries lists a mapping's keys and values, merge keys (<<) followed, and reports keys that stand there twice.
func (c cursor) entries() [][2]*yaml.Node {
	seen := map[string]Pos{}
	var list, merged [][2]*yaml.Node
	for i := 0; i+1 < len(c.node.Content) && !c.stopped; i += 2 {
		c.visit(c.at)
		key, value := c.node.Content[i], c.node.Content[i+1]
		for key.Kind == yaml.AliasNode && key.Alias != nil {
			key = key.Alias
		}
		if key.ShortTag() == "!!merge" {
			merged = append(merged, c.merge(value)...)
			continue
		}
		if key.Kind != yaml.ScalarNode {
			c.failAt(c.pos(key), WrongType, "a key in "+c.name()+" must be text", "")
			continue
		}
		if first, twice := seen[key.Value]; twice {
			c.failAt(c.pos(key), DuplicateKey, "key "+quote(key.Value)+" stands twice in "+c.name(), "first in line "+strconv.Itoa(first.Line))
			continue
		}
		seen[key.Value] = c.pos(key)
		list = append(list, [2]*yaml.Node{key, value})
	}
	for _, m := range merged {
		if _, there := seen[m[0].Value]; !there {
			seen[m[0].Value] = c.pos(m[0])
			list = append(list, m)
		}
	}
	return list
}

// merge is what a merge key brings in: the entries of a mapping, or of several, the earlier ones winning.
func (c cursor) merge(value *yaml.Node) [][2]*yaml.Node {
	from := c.child(value, c.path, c.at)
	switch {
	case from.stopped:
	case from.node.Kind == yaml.MappingNode:
		return from.entries()
	case from.node.Kind == yaml.SequenceNode:
		var list [][2]*yaml.Node
		for _, n := range from.node.Content {
			list = append(list, from.merge(n)...)
			if from.stopped {
				return nil
			}
		}
		return list
	default:
		from.fail(WrongType, "a merge key (<<) takes a mapping or a list of mappings", "")
	}
	return nil
}

// members found in a mapping, under their right names; nil when there was no mapping to read.
type found map[string]bool

// object reads a mapping by its members and tells which of them were there.
func (c cursor) object(members ...member) found {
	if c.sketching {
		return c.sketchObject(members)
	}
	if c.stopped {
		return nil
	}
	if c.node.Kind != yaml.MappingNode && !c.null() {
		c.fail(WrongType, c.name()+" must be a mapping, not "+c.kind(), "")
		return nil
	}
	byName := make(map[string]member, len(members))
	for _, m := range members {
		byName[m.name] = m
	}
	there := found{}
	for _, entry := range c.entries() {
		if c.stopped {
			return nil
		}
		key, value := entry[0], entry[1]
		name := key.Value
		m, known := byName[name]
		if !known && c.snake {
			name = camel(name)
			m, known = byName[name]
		}
		if !known {
			c.failAt(c.pos(key), UnknownMember, "unknown member "+quote(key.Value)+" in "+c.name(), didYouMean(name, names(members)))
			continue
		}
		if m.refused != "" {
			c.failAt(c.pos(key), UnknownMember, c.name()+" takes no member "+quote(name), m.refused)
			continue
		}
		if m.instead != "" {
			c.warnAt(c.pos(key), OldName, "member "+quote(name)+" of "+c.name()+" is written "+quote(m.instead), "")
			if right, ok := byName[m.instead]; ok {
				name, m = m.instead, right
			}
		}
		path := name
		if c.path != "" {
			path = c.path + "." + name
		}
		next := c.child(value, path, c.pos(key))
		if c.stopped {
			return nil
		}
		if next.null() || c.snake && next.empty() {
			continue // as Kubernetes does: a null member is one that was not written
		}
		if there[name] {
			c.failAt(c.pos(key), DuplicateKey, "member "+quote(name)+" of "+c.name()+" is written under two names", "")
			continue
		}
		there[name] = true
		m.read(next)
	}
	if c.stopped {
		return nil
	}
	for _, m := range members {
		if m.required && !there[m.name] {
			c.failAt(c.at, MissingMember, "member "+quote(m.name)+" is missing in "+c.name(), "")
		}
	}
	return there
}

func names(members []member) []string {
	var list []string
	for _, m := range members {
		if m.instead == "" && m.refused == "" {
			list = append(list, m.name)
		}
	}
	return list
}

func camel(snake string) string {
	words := strings.Split(snake, "_")
	for i, w := range words[1:] {
		if w != "" {
			words[i+1] = strings.ToUpper(w[:1]) + w[1:]
		}
	}
	return strings.Join(words, "")
}

// list reads a sequence item by item.
func (c cursor) list(read func(cursor)) {
	if c.sketching {
		c.sketchList(read)
		return
	}
	if c.stopped {
		return
	}
	if c.node.Kind != yaml.SequenceNode {
		c.fail(WrongType, c.name()+" must be a list, not "+c.kind(), "")
		return
	}
	for i, n := range c.node.Content {
		next := c.child(n, c.path+"["+strconv.Itoa(i)+"]", c.pos(n))
		if c.stopped {
			return
		}
		read(next)
	}
}

// skip passes over a member whose content is not ours to judge, but still checks for keys that stand twice.
func (c cursor) skip() {
	if c.stopped || c.sketching { // a sketch of anything is empty
		return
	}
	switch c.node.Kind {
	case yaml.MappingNode:
		for _, entry := range c.entries() {
			c.child(entry[1], c.path+"."+entry[0].Value, c.pos(entry[0])).skip()
		}
	case yaml.SequenceNode:
		c.list(cursor.skip)
	}
}

// kind names what the node is, for messages.
func (c cursor) kind() string {
	switch c.node.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	}
	switch c.node.ShortTag() {
	case "!!null":
		return "empty"
	case "!!bool":
		return "a boolean"
	case "!!int", "!!float":
		return "a number"
	case "!!timestamp":
		return "a date"
	case "!!str":
		return "text"
	}
	return "a value tagged " + c.node.Tag
}

// scalarText is the text of any plain scalar: numbers as written, booleans as true or false.
func (c cursor) scalarText() (string, bool) {
	if c.node.Kind != yaml.ScalarNode {
		return "", false
	}
	switch c.node.ShortTag() {
	case "!!bool":
		return strings.ToLower(c.node.Value), true
	case "!!str", "!!int", "!!float", "!!timestamp":
		return c.node.Value, true
	}
	return "", false
}

// text reads text that is not empty.
func (c cursor) text(v *Value[string]) bool {
	if c.sketching {
		c.sketch.Types = []string{"string"}
		return false
	}
	if c.node.Kind != yaml.ScalarNode || c.node.ShortTag() != "!!str" {
		hint := ""
		if s, ok := c.scalarText(); ok {
			hint = "in quotes: " + strconv.Quote(s)
		}
		c.fail(WrongType, c.name()+" must be text, not "+c.kind(), hint)
		return false
	}
	*v = Value[string]{V: c.node.Value, Pos: c.pos(c.node)}
	return true
}

// named reads text that must not be empty.
func (c cursor) named(v *Value[string]) bool {
	if c.sketching {
		c.sketch.NotBlank = true
	}
	var read Value[string]
	if !c.text(&read) {
		return false
	}
	if strings.TrimSpace(read.V) == "" {
		c.fail(WrongType, c.name()+" must not be empty", "")
		return false
	}
	*v = read
	return true
}

func (c cursor) boolean(v *Value[bool]) {
	if c.sketching {
		c.sketch.Types = []string{"boolean"}
		return
	}
	if c.node.Kind == yaml.ScalarNode && c.node.Style&(yaml.SingleQuotedStyle|yaml.DoubleQuotedStyle) == 0 {
		switch strings.ToLower(c.node.Value) {
		case "true", "yes", "on":
			*v = Value[bool]{V: true, Pos: c.pos(c.node)}
			return
		case "false", "no", "off":
			*v = Value[bool]{V: false, Pos: c.pos(c.node)}
			return
		}
	}
	hint := ""
	if c.node.Kind == yaml.ScalarNode {
		hint = "write true or false, without quotes"
	}
	c.fail(WrongType, c.name()+" must be a boolean, not "+c.kind(), hint)
}

// whole reads a whole number of at least lowest and at most highest.
func whole[T int | int64](c cursor, v *Value[T], lowest, highest T) {
	if c.sketching {
		c.sketchNumber("integer", float64(lowest), float64(highest))
		return
	}
	var n int64
	if c.node.Kind != yaml.ScalarNode || c.node.ShortTag() != "!!int" || c.node.Decode(&n) != nil {
		hint := ""
		if _, err := strconv.ParseInt(c.node.Value, 10, 64); err == nil && c.node.ShortTag() == "!!str" {
			hint = "without quotes: " + c.node.Value
		}
		what := c.kind()
		if what == "a number" {
			what = c.node.Value
		}
		c.fail(WrongType, c.name()+" must be a whole number, not "+what, hint)
		return
	}
	if n < int64(lowest) || n > int64(highest) {
		bounds := "at least " + strconv.FormatInt(int64(lowest), 10)
		if n > int64(highest) {
			bounds = "at most " + strconv.FormatInt(int64(highest), 10)
		}
		c.fail(OutOfRange, c.name()+" must be "+bounds+", not "+c.node.Value, "")
		return
	}
	*v = Value[T]{V: T(n), Pos: c.pos(c.node)}
}

func (c cursor) float(v *Value[float64], lowest, highest float64) {
	if c.sketching {
		c.sketchNumber("number", lowest, highest)
		return
	}
	var f float64
	if tag := c.node.ShortTag(); c.node.Kind != yaml.ScalarNode || tag != "!!int" && tag != "!!float" || c.node.Decode(&f) != nil {
		c.fail(WrongType, c.name()+" must be a number, not "+c.kind(), "")
		return
	}
	if !(f >= lowest && f <= highest) {
		c.fail(OutOfRange, c.name()+" must be from "+strconv.FormatFloat(lowest, 'g', -1, 64)+" to "+strconv.FormatFloat(highest, 'g', -1, 64)+", not "+c.node.Value, "")
		return
	}
	*v = Value[float64]{V: f, Pos: c.pos(c.node)}
}

// word reads one of a few words.
func (c cursor) word(v *Value[string], words ...string) {
	if c.sketching {
		c.sketch.Enum = words
	}
	var read Value[string]
	if !c.text(&read) {
		return
	}
	for _, w := range words {
		if read.V == w {
			*v = read
			return
		}
	}
	hint := ""
	if s := Suggest(read.V, words); s != "" {
		hint = "did you mean " + strconv.Quote(s) + "?"
	}
	c.fail(WrongWord, c.name()+" must be one of "+strings.Join(words, ", ")+", not "+quote(read.V), hint)
}

// oldWord reads one of a few words, or a name that older texts have for one of them.
func (c cursor) oldWord(v *Value[string], old map[string]string, words ...string) {
	if c.sketching {
		c.word(v, words...)
		c.sketch.Also = &Node{Types: []string{"string"}, Enum: slices.Sorted(maps.Keys(old))}
		return
	}
	if right, ok := old[c.node.Value]; ok && c.node.Kind == yaml.ScalarNode {
		c.warnAt(c.pos(c.node), OldName, c.name()+" "+quote(c.node.Value)+" is written "+quote(right), "")
		*v = At(right, c.pos(c.node))
		return
	}
	c.word(v, words...)
}

// duration reads 30s, 1m30s, or whole seconds as a number.
func (c cursor) duration(v *Value[time.Duration]) {
	const hint = "digits and s, m, h or d, such as 30s"
	if c.sketching {
		c.sketch.Types = []string{"string", "integer"}
		return
	}
	text, ok := c.scalarText()
	if !ok {
		c.fail(WrongType, c.name()+" must be a duration, not "+c.kind(), hint)
		return
	}
	if _, err := strconv.Atoi(text); err == nil {
		text += "s"
	}
	d, ok := ParseDuration(text)
	if !ok {
		c.fail(BadDuration, c.name()+" is not a duration: "+quote(c.node.Value), hint)
		return
	}
	*v = Value[time.Duration]{V: d, Pos: c.pos(c.node)}
}

// texts reads a free map from text to text; numbers and booleans are taken as the text they are.
func (c cursor) texts(list *[]Entry) {
	if c.sketching {
		c.sketch.Types = []string{"object"}
		c.sketch.Values = &Node{Types: []string{"string", "integer", "number", "boolean"}}
		return
	}
	if c.node.Kind != yaml.MappingNode {
		c.fail(WrongType, c.name()+" must be a mapping, not "+c.kind(), "")
		return
	}
	for _, entry := range c.entries() {
		next := c.child(entry[1], c.path+"."+entry[0].Value, c.pos(entry[0]))
		if c.stopped {
			return
		}
		text, ok := next.scalarText()
		if !ok {
			next.fail(WrongType, next.name()+" must be text, not "+next.kind(), "")
			continue
		}
		*list = append(*list, Entry{
			Key:   Value[string]{V: entry[0].Value, Pos: c.pos(entry[0])},
			Value: Value[string]{V: text, Pos: c.pos(next.node)},
		})
	}
}

// identifier reads a name user code can use.
func (c cursor) identifier(v *Value[string]) {
	var read Value[string]
	if !c.text(&read) {
		return
	}
	if problem := identifierProblem(read.V); problem != "" {
		c.fail(BadIdentifier, c.name()+" "+quote(read.V)+" "+problem, "")
		return
	}
	*v = read
}

// topic reads one topic name.
func (c cursor) topic(v *Value[string]) {
	var read Value[string]
	if !c.named(&read) {
		return
	}
	if problem := TopicNameProblem(read.V); problem != "" {
		c.fail(BadTopicName, c.name()+" "+quote(read.V)+" "+problem, "")
		return
	}
	*v = read
}

var blockHeader = regexp.MustCompile(`[|>][0-9+-]*[ \t]*(#.*)?\r?$`)

// textPos is where the first character of a scalar's text stands.
func (c cursor) textPos() Pos {
	at := c.pos(c.node)
	switch {
	case c.node.Style&(yaml.LiteralStyle|yaml.FoldedStyle) != 0:
		// The node stands at its tag or anchor; the block's header is on the same line or soon after.
		header := c.node.Line
		for n := header; n < header+3 && n <= len(c.lines); n++ {
			if blockHeader.Match(c.lines[n-1]) {
				header = n
				break
			}
		}
		return Pos{File: c.file, Line: c.doc.offset + header + 1, Column: c.blockColumn(header + 1)}
	case c.node.Style&(yaml.SingleQuotedStyle|yaml.DoubleQuotedStyle) != 0:
		at.Column++
	}
	return at
}

// blockColumn is where the text of a block scalar starts in its lines: the indentation that YAML takes away.
func (c cursor) blockColumn(line int) int {
	for _, text := range strings.Split(c.node.Value, "\n") {
		if strings.TrimSpace(text) != "" && line <= len(c.lines) {
			return 1 + indent(string(c.lines[line-1])) - indent(text)
		}
		line++
	}
	return 1
}

func indent(line string) int { return len(line) - len(strings.TrimLeft(line, " ")) }

func quote(s string) string {
	if len(s) > 80 {
		s = s[:77] + "..."
	}
	return strconv.Quote(s)
}

// exactlyOne reports that none of the members is there, or several.
func (c cursor) exactlyOne(there found, members ...string) {
	if c.sketching {
		c.sketch.Rules = append(c.sketch.Rules, Rule{Least: 1, Most: 1, Members: members})
		return
	}
	if there.count(members) == 0 {
		c.failAt(c.at, Contradiction, c.name()+" needs one of "+strings.Join(members, ", "), "")
	}
	c.atMostOne(there, members...)
}

// atMostOne reports members that exclude each other.
func (c cursor) atMostOne(there found, members ...string) {
	if c.sketching {
		c.sketch.Rules = append(c.sketch.Rules, Rule{Most: 1, Members: members})
		return
	}
	if there.count(members) < 2 {
		return
	}
	var both []string
	for _, m := range members {
		if there[m] {
			both = append(both, m)
		}
	}
	c.failAt(c.at, Contradiction, c.name()+" has "+strings.Join(both, " and ")+", which exclude each other", "keep one")
}

// atLeastOne reports that none of the members is there.
func (c cursor) atLeastOne(there found, members ...string) {
	if c.sketching {
		c.sketch.Rules = append(c.sketch.Rules, Rule{Least: 1, Most: len(members), Members: members})
		return
	}
	if there.count(members) == 0 {
		c.failAt(c.at, Contradiction, c.name()+" needs "+strings.Join(members, " or ")+", or both", "")
	}
}

func (there found) count(members []string) int {
	n := 0
	for _, m := range members {
		if there[m] {
			n++
		}
	}
	return n
}
