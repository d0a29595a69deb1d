package regrtest

import (
	"fmt"
	"maps"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
)

// expected is expected.txt: what is known of each test module. The file says how it is written.
type expected struct {
	modules []*module
	tail    []string // comments after the last module
}

type module struct {
	comments  []string
	name      string         // below the package test
	short     []string       // patterns of the tests that run without -full; nil: none
	resources []string       // of test.support, such as cpu
	stubs     []string       // modules the guest has not and the module imports
	passed    int            // tests
	skipped   map[string]int // tests by the reason they gave themselves
	omit      []listed       // not run
	fail      []listed       // run, and expected to fail
}

// listed is a test, or a pattern of tests, and why it is listed.
type listed struct{ pattern, reason string }

// unexplained stands where a reason is to be written.
const unexplained = "?"

func (l listed) matches(id string) bool {
	ok, _ := path.Match(l.pattern, id)
	return ok
}

func find(list []listed, id string) int {
	return slices.IndexFunc(list, func(l listed) bool { return l.matches(id) })
}

func readExpected(file string) (*expected, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	e := &expected{}
	var comments []string
	var m *module
	for i, line := range strings.Split(strings.TrimRight(string(text), "\n"), "\n") {
		bad := func(why string) error { return fmt.Errorf("%s:%d: %s: %s", file, i+1, why, line) }
		if line == "" || line[0] == '#' {
			comments = append(comments, line)
			continue
		}
		word, rest, _ := strings.Cut(strings.TrimLeft(line, " "), " ")
		if word == "module" {
			m = &module{comments: comments, name: rest, skipped: map[string]int{}}
			comments = nil
			e.modules = append(e.modules, m)
			continue
		}
		if m == nil || len(comments) > 0 {
			return nil, bad("not within a module")
		}
		head, reason, hasReason := strings.Cut(rest, ": ")
		switch word {
		case "short":
			m.short = strings.Fields(rest)
		case "resources":
			m.resources = strings.Fields(rest)
		case "stubs":
			m.stubs = strings.Fields(rest)
		case "passed":
			m.passed, err = strconv.Atoi(rest)
		case "skipped":
			m.skipped[reason], err = strconv.Atoi(head)
		case "omit", "fail":
			l := listed{head, reason}
			if _, matchErr := path.Match(head, ""); matchErr != nil || !hasReason {
				return nil, bad("no pattern, or no reason")
			}
			if word == "omit" {
				m.omit = append(m.omit, l)
			} else {
				m.fail = append(m.fail, l)
			}
		default:
			return nil, bad("unknown word")
		}
		if err != nil {
			return nil, bad("no number")
		}
	}
	e.tail = comments
	return e, nil
}

func (e *expected) write(file string) error {
	var b strings.Builder
	for _, m := range e.modules {
		for _, line := range m.comments {
			b.WriteString(line + "\n")
		}
		fmt.Fprintf(&b, "module %s\n", m.name)
		if m.short != nil {
			fmt.Fprintf(&b, "    short %s\n", strings.Join(m.short, " "))
		}
		if m.resources != nil {
			fmt.Fprintf(&b, "    resources %s\n", strings.Join(m.resources, " "))
		}
		if m.stubs != nil {
			fmt.Fprintf(&b, "    stubs %s\n", strings.Join(m.stubs, " "))
		}
		fmt.Fprintf(&b, "    passed %d\n", m.passed)
		for _, reason := range slices.Sorted(maps.Keys(m.skipped)) {
			fmt.Fprintf(&b, "    skipped %d: %s\n", m.skipped[reason], reason)
		}
		for _, l := range m.omit {
			fmt.Fprintf(&b, "    omit %s: %s\n", l.pattern, l.reason)
		}
		for _, l := range m.fail {
			fmt.Fprintf(&b, "    fail %s: %s\n", l.pattern, l.reason)
		}
	}
	for _, line := range e.tail {
		b.WriteString(line + "\n")
	}
	return os.WriteFile(file, []byte(b.String()), 0o644)
}

// compare says what is not as expected. The counts are only compared when whole is set.
func (m *module) compare(r *report, whole bool) []string {
	var wrong []string
	say := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	used := map[string]bool{}
	for _, o := range r.outcomes {
		i := find(m.fail, o.ID)
		switch {
		case o.Status == "omit":
			used[m.omit[find(m.omit, o.ID)].pattern] = true
		case o.Status == "fail" && i < 0:
			say("%s failed:\n%s", o.ID, o.Why)
		case o.Status == "fail":
			used[m.fail[i].pattern] = true
		case i >= 0:
			say("%s is listed as failing (%s) and gave: %s %s", o.ID, m.fail[i].reason, o.Status, o.Why)
		}
	}
	if !whole {
		return wrong
	}
	for _, l := range slices.Concat(m.omit, m.fail) {
		if strings.HasPrefix(l.reason, unexplained) {
			say("no reason is given for %s: %s", l.pattern, l.reason)
		}
		if !used[l.pattern] {
			say("no test fits %s, listed because: %s", l.pattern, l.reason)
		}
	}
	if passed := r.count("pass"); passed != m.passed {
		say("%d tests passed, expected %d", passed, m.passed)
	}
	skipped := r.skipped()
	for _, reason := range slices.Sorted(maps.Keys(merge(skipped, m.skipped))) {
		if skipped[reason] != m.skipped[reason] {
			say("%d tests were skipped, expected %d: %s", skipped[reason], m.skipped[reason], reason)
		}
	}
	return wrong
}

func merge(a, b map[string]int) map[string]int {
	out := maps.Clone(a)
	maps.Copy(out, b)
	return out
}

// update makes r what is expected, except for reasons: a new failure is listed without one, which the next run refuses.
func (m *module) update(r *report) {
	m.passed, m.skipped = r.count("pass"), r.skipped()
	fits := func(status string) func(l listed) bool {
		return func(l listed) bool {
			return !slices.ContainsFunc(r.outcomes, func(o outcome) bool { return o.Status == status && l.matches(o.ID) })
		}
	}
	m.fail = slices.DeleteFunc(m.fail, func(l listed) bool { return strings.HasPrefix(l.reason, unexplained) })
	m.fail = slices.DeleteFunc(m.fail, fits("fail"))
	m.omit = slices.DeleteFunc(m.omit, fits("omit"))
	for _, o := range r.outcomes {
		if o.Status == "fail" && find(m.fail, o.ID) < 0 {
			lines := strings.Split(strings.TrimSpace(o.Why), "\n")
			m.fail = append(m.fail, listed{o.ID, unexplained + " " + lines[len(lines)-1]})
		}
	}
}
