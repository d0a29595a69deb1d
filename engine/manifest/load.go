package manifest

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

const (
	fileBytesMax = 8 << 20
	filesMax     = 10_000
)

// Load reads the files, and every *.yml and *.yaml file below the directories, in the order given and sorted within a
// directory. Hidden files and directories (as in a ConfigMap mount) are passed over. The problems are in file order.
func Load(paths []string) (*Set, Errors) {
	set := &Set{}
	files, problems := find(paths)
	for _, file := range files {
		set.Files = append(set.Files, file)
		content, err := readFile(file)
		switch {
		case errors.Is(err, errTooBig):
			problems = append(problems, Error{Pos: Pos{File: file}, ID: TooBig, Text: "the file is larger than " + strconv.Itoa(fileBytesMax>>20) + " MiB"})
		case err != nil:
			problems = append(problems, unreadable(file, err))
		default:
			set.parse(file, content, &problems)
		}
	}
	if len(files) == 0 && len(problems) == 0 {
		problems = append(problems, Error{ID: NoManifests, Text: "no *.yaml or *.yml file in " + strings.Join(paths, ", ")})
	}
	set.check(&problems)
	return set, problems.Sorted(set.Files)
}

// LoadAny is Load for an app that may have no manifests: where nothing is there to be read it has no components, which is a warning. So the original's
// operator begins with an app, whose components come later; and an app may be there for the message scheduler alone.
func LoadAny(paths []string) (*Set, Errors) {
	set, problems := Load(paths)
	none := len(problems) == 1 && problems[0].ID == NoManifests
	for _, path := range paths {
		_, err := os.Stat(path)
		none = none || errors.Is(err, fs.ErrNotExist)
	}
	if !none || len(set.Files) > 0 {
		return set, problems
	}
	return &Set{alone: true}, Errors{{ID: EmptyApp, Level: LevelWarning, Text: "the app has no components: there is no *.yaml or *.yml file in " + strings.Join(paths, ", ")}}
}

// Parse reads one file's content.
func Parse(file string, content []byte) (*Set, Errors) {
	set, problems := &Set{Files: []string{file}}, Errors{}
	if len(content) > fileBytesMax {
		return set, Errors{{Pos: Pos{File: file}, ID: TooBig, Text: "the file is larger than " + strconv.Itoa(fileBytesMax>>20) + " MiB"}}
	}
	set.parse(file, content, &problems)
	set.check(&problems)
	return set, problems.Sorted(set.Files)
}

func (s *Set) parse(file string, content []byte, problems *Errors) {
	docs, bad := documents(file, content)
	*problems = append(*problems, bad...)
	for _, doc := range docs {
		r := newReader(file, doc, &s.codes, problems)
		for _, n := range doc.root.Content {
			r.root(n).manifest(s)
		}
	}
}

// find lists the files that the paths stand for, each once.
func find(paths []string) (files []string, problems Errors) {
	seen := map[string]bool{}
	add := func(file string) {
		id := file
		if absolute, err := filepath.Abs(file); err == nil {
			id = absolute
		}
		if !seen[id] {
			seen[id] = true
			files = append(files, file)
		}
	}
	for _, path := range paths {
		info, err := os.Stat(path)
		if err != nil {
			problems = append(problems, unreadable(path, err))
			continue
		}
		if !info.IsDir() {
			add(filepath.Clean(path))
			continue
		}
		var below []string
		root := strings.TrimRight(path, string(filepath.Separator)) + string(filepath.Separator) // a link to a directory is followed
		err = filepath.WalkDir(root, func(file string, entry fs.DirEntry, err error) error {
			hidden := file != root && strings.HasPrefix(entry.Name(), ".")
			switch {
			case err != nil:
				problems = append(problems, unreadable(file, err))
				return fs.SkipDir
			case hidden && entry.IsDir():
				return fs.SkipDir
			case hidden || entry.IsDir() || !isYAML(file):
				return nil
			}
			// A link to a file is read like a file; one to a directory could lead anywhere.
			if info, err := os.Stat(file); err == nil && info.IsDir() {
				return nil
			}
			if below = append(below, file); len(below) > filesMax {
				return errors.New("more than " + strconv.Itoa(filesMax) + " manifest files")
			}
			return nil
		})
		if err != nil {
			problems = append(problems, Error{Pos: Pos{File: path}, ID: TooBig, Text: err.Error()})
		}
		slices.Sort(below)
		for _, file := range below {
			add(file)
		}
	}
	return files, problems
}

func isYAML(file string) bool {
	ext := filepath.Ext(file)
	return ext == ".yaml" || ext == ".yml"
}

var errTooBig = errors.New("too big")

func readFile(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // only read
	content, err := io.ReadAll(io.LimitReader(f, fileBytesMax+1))
	if err == nil && len(content) > fileBytesMax {
		err = errTooBig
	}
	return content, err
}

func unreadable(path string, err error) Error {
	if inner := (*fs.PathError)(nil); errors.As(err, &inner) {
		err = inner.Err
	}
	return Error{Pos: Pos{File: path}, ID: Unreadable, Text: "cannot read: " + err.Error()}
}
