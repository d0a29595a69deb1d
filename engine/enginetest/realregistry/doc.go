// Package realregistry starts a real schema registry on loopback for the integration tests (build tag integration): Apicurio Registry
// with its Confluent API, from Maven Central, pinned here.
//
//	registry := realregistry.New(t, realregistry.Options{})
//	… registry.URL() …
//	registry.Kill(); registry.Restart(t.Context())
package realregistry
