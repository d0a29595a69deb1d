// Package mem keeps stores in memory: the same interface and behaviour as package state, for tests and for equivalences.
package mem
