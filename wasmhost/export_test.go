package wasmhost

// Collect is shared by the tests with and without Python.
var Collect = collect
