// Package child runs other people's servers for the integration tests (build tag integration, but for the keys): their programs from Maven Central,
// pinned and checked, once for all test binaries; a folder, ports and keys of their own; and that they end with the test binary,
// however that ends. realkafka and realregistry are made of it.
package child
