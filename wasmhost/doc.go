// Package wasmhost runs Python programs in CPython instances compiled to WebAssembly, one call per batch of records.
//
// It knows wazero and the byte layout of package abi, and nothing of Kafka, state or manifests. Nothing else imports wazero.
// It needs Linux (memory files, futexes) and cgo (the ticker).
//
//	Runtime    the compiled module, the base image (Python started), the ticker thread; one per process
//	Snapshot   memory of an instance after one program was loaded and its init ran; immutable, shared by its instances
//	Instance   one live copy-on-write restore of a Snapshot; runs one call at a time
//	Component  a Snapshot and an Instance per slot; turns everything that can go wrong in a call into record.Failure
//	Gate       how many instances run at the same moment, and fair turns among them
//
// # Ownership
//
// A Runtime owns everything made from it: Close it last, after its Snapshots, Instances and Components. A Snapshot must
// outlive its Instances. Records handed to a call are only read, and only during the call; a Result owns its bytes and
// never points into a guest's memory. Outputs of one Result share one buffer, so keeping one output keeps them all.
//
// # Concurrency
//
// Runtime, Snapshot and Gate may be used by many goroutines. An Instance, and a slot of a Component, is used by one
// goroutine at a time; a second one at the same moment is a bug and panics. No lock is held while a guest runs.
//
// # How a guest is stopped
//
// The module is rewritten before it is compiled: every loop looks at a word of the guest's memory and calls the host
// when the word is set. One C thread sets it in every running instance each Config.Tick; it runs on while the Go world is
// stopped, so the garbage collector never waits longer than about a tick for a guest. The host then checks the
// deadline of the unit (record, or list of a take batch) in progress: past it Python gets an exception at the user's
// line, past one and a half of it the instance ends and its result so far is kept.
package wasmhost
