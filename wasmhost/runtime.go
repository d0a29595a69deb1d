package wasmhost

import (
	"context"
	"errors"

	"kaspr.io/kaspr/wasmhost/abi"
)

var errNotYet = errors.New("wasmhost: not implemented yet")

// Runtime is the guest compiled once, and its base image: Python started, no program loaded.
type Runtime struct{}

// New compiles the guest (or takes it from Config.CacheDir), starts Python in it once and keeps the image.
func New(ctx context.Context, cfg Config) (*Runtime, error) { return nil, errNotYet }

// Check compiles a program's Code without running it. Problems come as a *LoadError.
func (r *Runtime) Check(ctx context.Context, p *abi.Program) error { return errNotYet }

// Load runs a program's imports and init in an instance of its own and keeps the image. Problems in the program
// come as a *LoadError, an instance that ended as a *CallError.
func (r *Runtime) Load(ctx context.Context, p *abi.Program, o Options) (*Snapshot, error) {
	return nil, errNotYet
}

// Close ends the ticker and frees the compiled module. Instances and Snapshots must be closed before.
func (r *Runtime) Close() error { return errNotYet }
