package manifest

import (
	_ "embed"
	"fmt"
	"strings"
	"sync"
)

//go:embed fields.txt
var fieldsText string

// Field is what fields.txt says about a member.
type Field struct {
	Key    string // such as KasprAgent.spec.input or Code.python
	Doc    string
	Status Status
	Why    string // why the member has no effect or is refused

	marked bool
}

// Status is what becomes of a member.
type Status string

const (
	Done     Status = "done"
	NoneDone Status = "no effect"
	Refused  Status = "refused"
)

// FieldOf is what is known about a value, by Node.Key; false for one that is no member, such as a list's item.
func FieldOf(key string) (Field, bool) {
	f, ok := fields()[key]
	return f, ok
}

var fields = sync.OnceValue(func() map[string]Field {
	all, _ := parseFields(fieldsText)
	return all
})

// parseFields reads fields.txt; order are its keys as they stand there.
func parseFields(text string) (all map[string]Field, order []string) {
	all = map[string]Field{}
	marks := map[string]Field{} // of members and of sections
	var sections []string
	for i, line := range strings.Split(text, "\n") {
		bug := func(what string) { panic(fmt.Sprintf("BUG: fields.txt:%d: %s", i+1, what)) }
		line = strings.TrimSpace(line)
		switch {
		case line == "" || strings.HasPrefix(line, "#"):
		case strings.HasPrefix(line, "["):
			names, mark, ok := strings.Cut(line[1:], "]")
			if !ok {
				bug("a section is not closed")
			}
			sections = nil
			for _, name := range strings.Split(names, ",") {
				f := Field{Key: strings.TrimSpace(name)}
				if !f.mark(mark) {
					bug("an unknown mark")
				}
				if f.marked {
					marks[f.Key] = f
				}
				sections = append(sections, f.Key)
			}
		default:
			member, rest, ok := strings.Cut(line, ": ")
			if !ok || len(sections) == 0 {
				bug("not a member and its description, below a section")
			}
			doc, mark, _ := strings.Cut(rest, " | ")
			for _, section := range sections {
				f := Field{Key: section + "." + member, Doc: strings.TrimSpace(doc)}
				if !f.mark(mark) {
					bug("an unknown mark")
				}
				if _, twice := all[f.Key]; twice {
					bug(f.Key + " stands twice")
				}
				if f.marked {
					marks[f.Key] = f
				}
				all[f.Key] = f
				order = append(order, f.Key)
			}
		}
	}
	for key, f := range all {
		for above := key; !f.marked && strings.Contains(above, "."); {
			above = strings.TrimSuffix(above[:strings.LastIndexByte(above, '.')], "[]")
			if m, ok := marks[above]; ok {
				f.Status, f.Why, f.marked = m.Status, m.Why, true
			}
		}
		all[key] = f
	}
	return all, order
}

// mark reads what stands behind a section or a description.
func (f *Field) mark(text string) bool {
	status, why, _ := strings.Cut(strings.TrimSpace(text), ":")
	f.Status, f.Why, f.marked = Status(strings.TrimSpace(status)), strings.TrimSpace(why), text != ""
	if f.Status == "" {
		f.Status, f.marked = Done, false
	}
	return f.Status == Done && f.Why == "" || (f.Status == NoneDone || f.Status == Refused) && f.Why != ""
}
