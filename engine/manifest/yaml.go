package manifest

import (
	"bytes"
	"errors"
	"io"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// document is one YAML document of a file, and the line it stands on.
type document struct {
	text   []byte
	offset int // lines of the file before it
	root   *yaml.Node
}

// documents parses a file's YAML. A document that does not parse is reported and left out; the others are kept: a line
// that starts with --- always begins a new document, whatever state the one before it is in.
func documents(file string, content []byte) ([]document, Errors) {
	if problem, bad := badText(file, content); bad {
		return nil, Errors{problem}
	}
	var parsed []document
	var problems Errors
	// The parser knows version 1.1 of the directive only; what differs in 1.2 does not matter to manifests.
	content = yaml12.ReplaceAll(content, []byte("${1}1"))
	// Files joined by `cat` have byte order marks at the start of documents, where YAML allows them and the parser does not.
	content = bytes.ReplaceAll(content, []byte("\n\ufeff"), []byte("\n"))
	for _, piece := range split(content) {
		decoder := yaml.NewDecoder(bytes.NewReader(piece.text))
		for {
			var root yaml.Node
			err := decoder.Decode(&root)
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				message, line := explain(piece.text, err)
				e := Error{Pos: Pos{File: file, Line: piece.offset + line}, ID: BadYAML, Text: message, Hint: yamlHint(message)}
				if e.Hint == tabHint {
					if e.Column = tabIn(piece.text, line); e.Column > 0 {
						e.Text, e.Hint = "the line is indented with a tab", "indent with spaces"
					}
				}
				problems = append(problems, e)
				break
			}
			parsed = append(parsed, document{text: piece.text, offset: piece.offset, root: &root})
		}
	}
	return parsed, problems
}

var yaml12 = regexp.MustCompile(`(?m)^(%YAML[ \t]+1\.)2`)

// badText finds what the YAML reader refuses without saying where.
func badText(file string, content []byte) (Error, bool) {
	if bytes.HasPrefix(content, []byte("\xff\xfe")) || bytes.HasPrefix(content, []byte("\xfe\xff")) {
		return Error{Pos: Pos{File: file, Line: 1}, ID: BadYAML, Text: "the file is UTF-16", Hint: "save it as UTF-8"}, true
	}
	line, column := 1, 1
	for i := 0; i < len(content); {
		r, size := utf8.DecodeRune(content[i:])
		at := Pos{File: file, Line: line, Column: column}
		switch {
		case r == utf8.RuneError && size == 1:
			return Error{Pos: at, ID: BadYAML, Text: "the file is not UTF-8", Hint: "save it as UTF-8"}, true
		case r < ' ' && r != '\n' && r != '\r' && r != '\t', r >= 0x7f && r < 0xa0 && r != 0x85, r == 0xfffe, r == 0xffff:
			return Error{Pos: at, ID: BadYAML, Text: "control character " + strconv.QuoteRuneToASCII(r), Hint: `write it as an escape in double quotes`}, true
		case r == '\n':
			line, column = line+1, 0
		}
		i, column = i+size, column+1
	}
	return Error{}, false
}

// split cuts a file before every line that starts a document.
func split(content []byte) []document {
	var pieces []document
	start, startLine, line := 0, 0, 0
	for i := 0; i < len(content); {
		if i > start && startsDocument(content[i:]) && !onlyDirectives(content[start:i]) {
			pieces = append(pieces, document{text: content[start:i], offset: startLine})
			start, startLine = i, line
		}
		next := bytes.IndexByte(content[i:], '\n')
		if next < 0 {
			break
		}
		i, line = i+next+1, line+1
	}
	return append(pieces, document{text: content[start:], offset: startLine})
}

func startsDocument(text []byte) bool {
	return bytes.HasPrefix(text, []byte("---")) && (len(text) == 3 || strings.IndexByte(" \t\r\n", text[3]) >= 0)
}

// onlyDirectives tells whether text is a prologue of %YAML and %TAG lines, which belongs to the document after it.
func onlyDirectives(text []byte) bool {
	directives := false
	for line := range bytes.Lines(text) {
		switch {
		case line[0] == '%':
			directives = true
		case line[0] == '#' || len(bytes.TrimSpace(line)) == 0:
		default:
			return false
		}
	}
	return directives
}

var yamlError = regexp.MustCompile(`(?s)^yaml: (?:line (\d+): )?(.*)$`)

// explain takes the parser's message apart and finds the line it is about. The parser names the start of the block it
// was reading, or nothing; the line wanted is the first one without which there is no error.
func explain(text []byte, err error) (message string, line int) {
	split := func(err error) (string, int) {
		m := yamlError.FindStringSubmatch(err.Error())
		if m == nil {
			return err.Error(), 0
		}
		n, _ := strconv.Atoi(m[1])
		return m[2], n
	}
	message, line = split(err)
	if strings.HasPrefix(message, "did not find") {
		line++ // counted from 0
	}
	line = max(line, 1)
	if len(text) > searchMax {
		return message, line
	}
	// How far the parser read is an upper bound.
	meter := &oneByteReader{text: text}
	decoder := yaml.NewDecoder(meter)
	for err := error(nil); err == nil; {
		var node yaml.Node
		err = decoder.Decode(&node)
	}
	ends := lineEnds(text)
	last := bytes.Count(text[:meter.read], []byte{'\n'}) + 1
	fails := func(lines int) bool {
		if lines < 1 {
			return false
		}
		decoder := yaml.NewDecoder(bytes.NewReader(text[:ends[min(lines, len(ends))-1]]))
		for {
			var node yaml.Node
			err := decoder.Decode(&node)
			if errors.Is(err, io.EOF) {
				return false
			}
			if err != nil {
				m, _ := split(err)
				return m == message
			}
		}
	}
	const lookahead = 8
	for n := max(1, last-lookahead); n <= min(last, len(ends)); n++ {
		if fails(n) {
			if n > 1 && fails(n-1) {
				break // an error far from its cause, such as a quote never closed: the parser's line is better
			}
			return message, n
		}
	}
	return message, line
}

// tabIn is the column of a tab that indents the line, 0 if there is none: it is what the parser cannot read.
func tabIn(text []byte, line int) int {
	n := 0
	for l := range bytes.Lines(text) {
		if n++; n == line {
			return bytes.IndexByte(l[:len(l)-len(bytes.TrimLeft(l, " \t"))], '\t') + 1
		}
	}
	return 0
}

// searchMax bounds the text that is parsed again and again to find one line.
const searchMax = 256 << 10

func lineEnds(text []byte) []int {
	var ends []int
	for i, c := range text {
		if c == '\n' {
			ends = append(ends, i+1)
		}
	}
	if len(ends) == 0 || ends[len(ends)-1] < len(text) {
		ends = append(ends, len(text))
	}
	return ends
}

// oneByteReader tells how far its reader looked.
type oneByteReader struct {
	text []byte
	read int
}

func (r *oneByteReader) Read(p []byte) (int, error) {
	if r.read >= len(r.text) {
		return 0, io.EOF
	}
	p[0] = r.text[r.read]
	r.read++
	return 1, nil
}

const tabHint = "indent with spaces; quote a value that starts with @, `, % or a tab"

func yamlHint(message string) string {
	switch {
	case strings.Contains(message, "tab character"), strings.Contains(message, "cannot start any token"):
		return tabHint
	case strings.Contains(message, "mapping values are not allowed"):
		return "check the indentation, and for a missing colon in the line above; quote a value that contains a colon and a space"
	case strings.Contains(message, "could not find expected ':'"), strings.Contains(message, "did not find expected key"):
		return "check the indentation; the lines of a text block stand deeper than the member that holds it"
	case strings.Contains(message, "unexpected end of stream"):
		return "a quote is not closed"
	case strings.Contains(message, "expected ',' or"):
		return "a bracket or brace is not closed"
	case strings.Contains(message, "did not find expected"):
		return "check the indentation"
	}
	return ""
}
