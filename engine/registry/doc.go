// Package registry reads and writes keys and values that a schema describes: Avro, Protobuf and JSON Schema, framed as Confluent's
// clients do, with the schemas in a registry.
//
// A record's bytes become a form (wasmhost/abi), which the guest reads in one pass with the rest of the batch. Schemas are fetched once and kept.
// Nothing here waits for the registry: who needs a schema that is not at hand gets a Fetch to wait for, and asks again. A
// registry that cannot be reached is asked until it can; only its own word that a schema does not exist is final.
//
// Schemas and records come from strangers. What a schema can make us do is bounded: its size, its depth, the size of what comes of a record
// (formBytesMax), the steps of a validation, and that nothing it names is fetched but from the registry.
package registry
