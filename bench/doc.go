// Package bench holds the end-to-end benchmarks: whole apps on the embedded broker, run by `go test -bench`, and beside other stream
// processors on a real Kafka (bench/peers). The work is that of bench/workload.
//
// Micro-benchmarks stand beside the code they measure (wasmhost, wasmhost/abi, state).
package bench
