// Package bench holds the end-to-end benchmarks: whole apps on the embedded broker, run by `go test -bench`.
//
// Micro-benchmarks stand beside the code they measure (wasmhost, wasmhost/abi, state).
package bench
