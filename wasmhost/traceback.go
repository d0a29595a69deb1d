package wasmhost

import (
	"strconv"
	"strings"

	"kaspr.io/kaspr/wasmhost/abi"
)

// traceback turns the report of a guest that was ended ("file:line\tfunction" a line, oldest first) into the text Python's
// own failures carry: each frame with its source line.
func (p *program) traceback(report string) string {
	var b strings.Builder
	for line := range strings.Lines(report) {
		place, function, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "\t")
		if !ok {
			continue
		}
		b.WriteString("    " + place + ", in " + function + "\n")
		if source := p.sourceLine(place); source != "" {
			b.WriteString("        " + source + "\n")
		}
	}
	return strings.ToValidUTF8(b.String(), "\uFFFD")
}

// sourceLine finds the line that place ("file:line") names in the program's Code.
func (p *program) sourceLine(place string) string {
	i := strings.LastIndexByte(place, ':')
	if i < 0 || p.code == nil {
		return ""
	}
	number, err := strconv.Atoi(place[i+1:])
	if err != nil {
		return ""
	}
	for _, code := range codes(p.code) {
		if code == nil || code.File != place[:i] || number < code.Line {
			continue
		}
		lines := strings.Split(code.Python, "\n")
		if n := number - code.Line; n < len(lines) {
			return strings.TrimSpace(lines[n])
		}
	}
	return ""
}

// codes lists all Code of a program; some are nil.
func codes(p *abi.Program) []*abi.Code {
	list := []*abi.Code{p.Init}
	for i := range p.Ops {
		list = append(list, p.Ops[i].Map, p.Ops[i].Filter)
		if p.Ops[i].Send != nil {
			list = append(list, p.Ops[i].Send.Codes()...)
		}
	}
	for i := range p.Outputs {
		list = append(list, p.Outputs[i].Codes()...)
	}
	return list
}
