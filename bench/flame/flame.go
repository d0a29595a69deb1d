// Package flame draws what `perf script` prints as a flame graph that a browser shows without any script.
package flame

import (
	"bufio"
	"fmt"
	"html"
	"io"
	"regexp"
	"slices"
	"strings"
)

// Kind is what a frame belongs to: it gives the color.
type Kind byte

// The kinds; the values are classes of the picture's style sheet.
const (
	Guest   Kind = 'p' // Python's C code, compiled to wasm
	Engine  Kind = 'e'
	Client  Kind = 'k' // of Kafka
	Native  Kind = 'r' // C libraries: RocksDB, lz4, libc
	Runtime Kind = 'g' // Go's, and what else is written in Go
	Kernel  Kind = 's'
)

var kinds = []struct {
	Kind
	color, text string
}{
	{Guest, "#7fb3d5", "guest: CPython and its glue, as wasm"},
	{Engine, "#f5b041", "Kaspr"},
	{Client, "#82c99a", "Kafka client"},
	{Native, "#c39bd3", "RocksDB and other C"},
	{Runtime, "#d5d8dc", "Go's runtime and libraries"},
	{Kernel, "#ec7063", "kernel"},
}

// Frame is one function of a stack.
type Frame struct {
	Name string
	Kind Kind
}

// Node is all samples whose stacks begin in the same way; the root has the zero Frame.
type Node struct {
	Frame
	Samples  int // with the children's
	Children []*Node
}

// Add counts one stack, the outermost frame first.
func (n *Node) Add(stack []Frame) {
	n.Samples++
	for _, f := range stack {
		i := slices.IndexFunc(n.Children, func(c *Node) bool { return c.Frame == f })
		if i < 0 {
			i = len(n.Children)
			n.Children = append(n.Children, &Node{Frame: f})
		}
		n = n.Children[i]
		n.Samples++
	}
}

// Shares is the part of all samples that ended in a frame of each kind.
func (n *Node) Shares() map[Kind]float64 {
	own := map[Kind]int{}
	var count func(*Node)
	count = func(x *Node) {
		own[x.Kind] += x.Samples
		for _, c := range x.Children {
			own[x.Kind] -= c.Samples
			count(c)
		}
	}
	count(n)
	shares := map[Kind]float64{}
	for k, samples := range own {
		shares[k] = float64(samples) / float64(n.Samples)
	}
	return shares
}

// Parse reads the output of `perf script -F ip,sym,dso`: a line for each frame, the innermost first, and an empty one behind each stack.
func Parse(r io.Reader) (*Node, error) {
	root := &Node{}
	var stack []Frame
	add := func() {
		slices.Reverse(stack)
		if len(stack) > 0 {
			root.Add(tidy(stack))
		}
		stack = nil
	}
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		if line == "" {
			add()
			continue
		}
		_, line, _ = strings.Cut(line, " ") // the address
		at := strings.LastIndex(line, " (")
		if at < 0 {
			return nil, fmt.Errorf("%q is no frame of perf script -F ip,sym,dso", lines.Text())
		}
		if f := frame(line[:at], strings.TrimSuffix(line[at+2:], ")")); f.Name != "" {
			stack = append(stack, f)
		}
	}
	add()
	if root.Samples == 0 {
		return nil, fmt.Errorf("no samples: %w", io.ErrUnexpectedEOF)
	}
	return root, lines.Err()
}

// ofWazero is what wazero's perf map has before a function's name: its number, and the module.
var ofWazero = regexp.MustCompile(`^(\[\d+/\d+\])?(.*\.wasm\.)?`)

// frame is a symbol of a binary; unnamed when there is nothing to show.
func frame(symbol, binary string) Frame {
	unknown := symbol == "[unknown]"
	switch {
	case strings.HasPrefix(binary, "[kernel") || strings.HasPrefix(binary, "[guest.kernel"):
		return Frame{"kernel", Kernel} // what it does is not ours
	case strings.HasSuffix(binary, ".map") || strings.HasPrefix(binary, "//anon") || strings.HasPrefix(binary, "[heap"):
		switch {
		case unknown:
			return Frame{}
		case strings.HasPrefix(symbol, "entry_preamble"):
			return Frame{"guest", Guest}
		}
		name, _, _ := strings.Cut(symbol, ":::::") // the block within the function
		return Frame{ofWazero.ReplaceAllString(name, ""), Guest}
	case strings.Contains(binary, ".so"):
		name := binary[strings.LastIndex(binary, "/")+1:]
		name, _, _ = strings.Cut(name, ".so")
		return Frame{name, Native} // without frame pointers: what calls what in there is not known
	case unknown:
		return Frame{}
	}
	name := symbol[strings.LastIndex(symbol, "/")+1:]
	switch {
	case !strings.Contains(name, "."): // Go's names have their package
		return Frame{name, Native}
	case strings.HasPrefix(symbol, "kaspr.io/"):
		return Frame{name, Engine}
	case strings.HasPrefix(symbol, "github.com/twmb/"):
		return Frame{name, Client}
	case strings.HasPrefix(symbol, "github.com/linxGnu/"):
		return Frame{name, Native}
	}
	return Frame{name, Runtime}
}

// starts are frames below which every goroutine is alike.
var starts = []string{"runtime.goexit", "runtime.mcall", "runtime.mstart", "runtime.systemstack", "sync.(*WaitGroup).Go.func1"}

// tidy makes stacks alike that differ in nothing that matters: repeated frames are one, and the way into a goroutine is left out.
func tidy(stack []Frame) []Frame {
	out := stack[:0:0]
	for _, f := range stack {
		if len(out) == 0 && slices.ContainsFunc(starts, func(s string) bool { return strings.HasPrefix(f.Name, s) }) {
			continue
		}
		if len(out) == 0 || out[len(out)-1] != f {
			out = append(out, f)
		}
	}
	if len(out) > 0 && out[0].Kind == Runtime { // its own threads: collecting, scheduling, polling
		out = append([]Frame{{"Go's runtime", Runtime}}, out...)
	}
	return out
}

// The picture's measures, in pixels.
const (
	width  = 1200
	height = 15 // of a frame
	head   = 46
	glyph  = 6.2 // of the font
)

// SVG draws a profile. Frames of less than a thousandth are left out, and more of them if the picture would have more bytes than that.
func SVG(root *Node, title string, bytesMax int) string {
	for least := 0.001; ; least *= 1.3 {
		if s := draw(root, title, least); len(s) <= bytesMax || least > 0.1 {
			return s
		}
	}
}

func draw(root *Node, title string, least float64) string {
	var deep func(n *Node) int
	shown := func(n *Node) bool { return float64(n.Samples) >= least*float64(root.Samples) }
	deep = func(n *Node) int {
		most := 0
		for _, c := range n.Children {
			if shown(c) {
				most = max(most, 1+deep(c))
			}
		}
		return most
	}
	total := head + height*deep(root) + 4
	var out strings.Builder
	fmt.Fprintf(&out, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="11"><style>rect{stroke:#fff;stroke-width:.5}`, width, total)
	for _, k := range kinds {
		fmt.Fprintf(&out, ".%c{fill:%s}", k.Kind, k.color)
	}
	fmt.Fprintf(&out, `</style><rect width="%d" height="%d" fill="#fff"/><text x="4" y="14" font-size="13">%s</text>`+"\n", width, total, html.EscapeString(title))
	shares, x := root.Shares(), 4.0
	for _, k := range kinds {
		text := fmt.Sprintf("%s %.1f %%", k.text, 100*shares[k.Kind])
		fmt.Fprintf(&out, `<rect class="%c" x="%.0f" y="22" width="11" height="11"/><text x="%.0f" y="32">%s</text>`+"\n", k.Kind, x, x+15, html.EscapeString(text))
		x += 15 + glyph*float64(len(text)) + 8
	}
	var frames func(n *Node, x float64, level int)
	frames = func(n *Node, x float64, level int) {
		children := slices.Clone(n.Children)
		slices.SortFunc(children, func(a, b *Node) int { return strings.Compare(a.Name, b.Name) })
		for _, c := range children {
			if !shown(c) {
				continue
			}
			w := width * float64(c.Samples) / float64(root.Samples)
			y := total - 4 - height*(level+1)
			name := html.EscapeString(c.Name)
			fmt.Fprintf(&out, `<g><title>%s %.1f%%</title><rect class="%c" x="%.1f" y="%d" width="%.1f" height="%d"/>`, name, 100*float64(c.Samples)/float64(root.Samples), c.Kind, x, y, w, height)
			if fit := int((w - 4) / glyph); fit >= 4 {
				short := c.Name
				if r := []rune(short); len(r) > fit {
					short = string(r[:fit-1]) + "…"
				}
				fmt.Fprintf(&out, `<text x="%.1f" y="%d">%s</text>`, x+2, y+11, html.EscapeString(short))
			}
			out.WriteString("</g>\n")
			frames(c, x, level+1)
			x += w
		}
	}
	frames(root, 0, 0)
	out.WriteString("</svg>\n")
	return out.String()
}
