// Package pyguest is the Python guest as bytes: CPython and our glue as one WebAssembly module, and its standard library.
//
// The bytes are build products of pyguest/build.sh (make pyguest); without them this package does not compile.
package pyguest

import (
	_ "embed"
	"strings"
)

//go:embed build/kaspr-python.wasm
var module []byte

//go:embed build/stdlib.zip
var stdlib []byte

//go:embed build/BUILD_ID
var buildID string

// Module is the guest's WebAssembly code. Do not change it.
func Module() []byte { return module }

// Stdlib is a zip of the standard library and of our runtime, compiled. Do not change it.
func Stdlib() []byte { return stdlib }

// BuildID names the inputs the guest was built from: equal ids, equal guests.
func BuildID() string { return strings.TrimSpace(buildID) }
