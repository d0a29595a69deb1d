// Package pyguest holds the built guest: CPython for WebAssembly with our glue, and its standard library.
//
// The files are products of build.sh and are not committed. When the compiler says "no matching files found" for them,
// run make pyguest.
package pyguest

import (
	_ "embed"
	"strings"
)

var (
	//go:embed build/kaspr-python.wasm
	module []byte
	//go:embed build/stdlib.zip
	stdlib []byte
	//go:embed build/BUILD_ID
	buildID string
)

// Module is the guest's WebAssembly module. It is not to be changed.
func Module() []byte { return module }

// Stdlib is the zip of Python's standard library and the guest's own Python files; the guest wants it as /lib/stdlib.zip.
// It is not to be changed.
func Stdlib() []byte { return stdlib }

// BuildID tells builds of the guest apart: equal ids mean equal bytes of both files.
func BuildID() string { return strings.TrimSpace(buildID) }
