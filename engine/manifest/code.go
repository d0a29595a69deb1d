package manifest

import (
	"strings"

	"go.yaml.in/yaml/v3"
)

// Code is one Python block.
type Code struct {
	Pos        Pos // of the member that holds the block, such as map
	Python     Value[string]
	Entrypoint Value[string] // unset: the first function defined in the block
	// Text is where the first character of the Python source stands: the line after the indicator for a literal or
	// folded block, the value's own line otherwise.
	Text Pos

	lines   int  // of the source
	literal bool // the source stands in the file as it is, indented by Text.Column - 1
}

// InFile turns a place inside a block of Code, its column counted in the Python source, into a place in the file. What
// quotes and escapes have shifted gets the block's line and no column.
func (s *Set) InFile(p Pos) Pos {
	var in *Code
	for _, c := range s.codes {
		if c.Text.File != p.File || p.Line < c.Text.Line || p.Line >= c.Text.Line+c.lines {
			continue
		}
		if in != nil && in.Text != c.Text {
			return Pos{File: p.File, Line: p.Line} // two blocks on one line
		}
		in = c
	}
	switch {
	case in == nil:
		return p
	case !in.literal:
		return Pos{File: p.File, Line: in.Text.Line}
	case p.Column > 0:
		p.Column += in.Text.Column - 1
	}
	return p
}

func (c cursor) code(dst **Code) {
	if c.node.Kind == yaml.ScalarNode && c.node.ShortTag() == "!!str" {
		c.fail(WrongType, c.name()+" must be a mapping with the member python, not text", "write the source below it as `python: |`")
		return
	}
	code := &Code{Pos: c.at}
	there := c.of("Code").object(
		must("python", func(c cursor) {
			if !c.text(&code.Python) {
				return
			}
			code.Text = c.textPos()
			code.lines, code.literal = strings.Count(code.Python.V, "\n")+1, c.verbatim(code.Text)
			if blank(code.Python.V) {
				c.failAt(c.at, EmptyCode, c.name()+" holds no Python", "")
			}
			if c.node.Style&yaml.FoldedStyle != 0 && c.folds(code.Text) {
				c.warnAt(c.at, FoldedCode, c.name()+" is a folded block (>): its lines are joined", "use `python: |`")
			}
		}),
		may("entrypoint", func(c cursor) { c.identifier(&code.Entrypoint) }),
	)
	if there == nil {
		return
	}
	*dst = code
	if code.lines > 0 {
		*c.codes = append(*c.codes, code)
	}
}

// verbatim tells whether a scalar's text stands in the file just as it is.
func (c cursor) verbatim(text Pos) bool {
	if c.node.Style&yaml.LiteralStyle != 0 {
		return true
	}
	line := text.Line - c.doc.offset - 1
	if line < 0 || line >= len(c.lines) || strings.Contains(c.node.Value, "\n") {
		return false
	}
	here := []rune(string(c.lines[line]))
	return text.Column <= len(here) && strings.HasPrefix(string(here[text.Column-1:]), c.node.Value)
}

// folds tells whether a folded block has two lines that YAML would join.
func (c cursor) folds(text Pos) bool {
	line := text.Line - c.doc.offset - 1
	for n := line; n+1 < len(c.lines) && n-line < 2; n++ {
		here, next := strings.TrimSpace(string(c.lines[n])), strings.TrimSpace(string(c.lines[n+1]))
		if here != "" && next != "" && strings.Contains(c.node.Value, here) && strings.Contains(c.node.Value, next) {
			return true
		}
	}
	return false
}

// blank tells whether Python source has nothing but blanks and comments.
func blank(source string) bool {
	for line := range strings.Lines(source) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			return false
		}
	}
	return true
}
