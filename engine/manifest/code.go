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
}

func (c cursor) code(dst **Code) {
	if c.node.Kind == yaml.ScalarNode && c.node.ShortTag() == "!!str" {
		c.fail(WrongType, c.name()+" must be a mapping with the member python, not text", "write the source below it as `python: |`")
		return
	}
	code := &Code{Pos: c.at}
	there := c.object(
		must("python", func(c cursor) {
			if !c.text(&code.Python) {
				return
			}
			code.Text = c.textPos()
			if blank(code.Python.V) {
				c.failAt(c.at, EmptyCode, c.name()+" holds no Python", "")
			}
			if c.node.Style&yaml.FoldedStyle != 0 && c.folds(code.Text) {
				c.warnAt(c.at, FoldedCode, c.name()+" is a folded block (>): its lines are joined", "use `python: |`")
			}
		}),
		may("entrypoint", func(c cursor) { c.identifier(&code.Entrypoint) }),
	)
	if there != nil {
		*dst = code
	}
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
