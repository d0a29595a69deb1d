package manifest

import "errors"

// Load reads the files, and every *.yml and *.yaml file below the directories, in the order given and sorted within a
// directory. Hidden files and directories (as in a ConfigMap mount) are passed over. The problems are in file order.
func Load(paths []string) (*Set, Errors) {
	return &Set{}, Errors{{ID: "M000", Text: errors.ErrUnsupported.Error()}}
}

// Parse reads one file's content.
func Parse(file string, content []byte) (*Set, Errors) {
	return &Set{}, Errors{{ID: "M000", Text: errors.ErrUnsupported.Error()}}
}
