package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"kaspr.io/kaspr/engine/broker"
	"kaspr.io/kaspr/engine/manifest"
	"kaspr.io/kaspr/engine/plan"
	"kaspr.io/kaspr/engine/record"
	"kaspr.io/kaspr/engine/registry"
	"kaspr.io/kaspr/wasmhost"
	"kaspr.io/kaspr/wasmhost/abi"
)

// A key or value with a schema is decoded once, before the call, for the whole batch, and the guest gets plain values (record.Forms).
// Records whose schema is not at hand stay in their feed until it is: the partition waits, and others go on. Values that are sent are
// encoded while their record runs, so that one that does not fit its schema fails the record like any other error of its code.

// openRegistry makes the client of the schema registry, if there is one, and says who needs it and has none.
func (a *App) openRegistry() error {
	r := a.cfg.Registry
	if len(r.URLs) == 0 {
		needs := func(label string, at manifest.Pos) error {
			return fmt.Errorf("%s: %s has a serializer with schemas: set schemaRegistryUrl", at, label)
		}
		for i := range a.plan.Agents {
			if p := &a.plan.Agents[i]; len(p.Schemas) > 0 || readsSchemas(&p.Program) {
				return needs(p.Label, p.Pos)
			}
		}
		for i := range a.plan.Views {
			if p := &a.plan.Views[i]; len(p.Schemas) > 0 {
				return needs(p.Label, p.Pos)
			}
		}
		return nil
	}
	opts := registry.Options{
		URLs: r.URLs, Username: r.Username, Password: r.Password, PasswordFile: r.PasswordFile, Token: r.Token, TokenFile: r.TokenFile,
		Timeout: r.Timeout, CacheMax: r.CacheMax, AutoRegister: r.AutoRegister, Subjects: r.Subjects, ValidateJSON: r.ValidateJSON, Log: a.log,
	}
	t := broker.TLS{CAFile: r.TLS.CAFile, CertFile: r.TLS.CertFile, KeyFile: r.TLS.KeyFile, ServerName: r.TLS.ServerName}
	var err error
	if opts.TLS, err = t.Config(); err != nil {
		return fmt.Errorf("schema registry: %w", err)
	}
	a.registry, err = registry.New(opts)
	return err
}

// prepareSchemas has the schemas of outputs at hand before the first record, as far as they are known. A registry that is not up yet is
// waited for; what it refuses stops the app.
func (a *App) prepareSchemas(ctx context.Context) error {
	var refused error
	var all []plan.Schema
	for i := range a.plan.Agents {
		all = append(all, a.plan.Agents[i].Schemas...)
	}
	for i := range a.plan.Views {
		all = append(all, a.plan.Views[i].Schemas...)
	}
	for i := range all {
		s := &all[i]
		if !s.Known() {
			continue
		}
		if err := a.registry.Prepare(ctx, s.Target); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			refused = errors.Join(refused, fmt.Errorf("%s: %s: %w", s.Pos, s.For, err))
		}
	}
	return refused
}

// errNoSchema says that a batch cannot be decoded yet.
var errNoSchema = errors.New("a schema is not at hand yet")

const (
	schemaWait = 250 * time.Millisecond // for a schema in a step; then the partition waits, and others have their turn
	// formsMax bounds what the values of a batch may become; records behind wait for the next one. A list for take is not cut: its
	// records fail beyond takeBytesMax.
	formsMax = 8 << 20
)

// readsSchemas tells whether a program's records have schemas.
func readsSchemas(p *abi.Program) bool {
	return registry.Has(p.Input.KeySerializer) || registry.Has(p.Input.ValueSerializer)
}

// decoding is memory for the forms of a lane's batches. They are copied into the guest, and then not needed any more.
type decoding struct {
	records []record.Record
	forms   []record.Forms
	bytes   []byte
	ends    []int // of each form in bytes: key, value, key, …; -1 for none
}

// decoded is the batch, or the front of it, with the forms of what schemas describe; b itself when there are none. A record that
// cannot be decoded gets a form that fails in the guest, where failures of all kinds are kept in order.
func (d *decoding) decoded(ctx context.Context, a *agent, b *record.Batch) (*record.Batch, error) {
	if b.Tick || !readsSchemas(&a.plan.Program) {
		return b, nil
	}
	in := &a.plan.Program.Input
	d.bytes, d.ends = d.bytes[:0], d.ends[:0]
	most := formsMax
	if b.Take {
		most = takeBytesMax
	}
	n := 0
	for ; n < len(b.Records); n++ {
		r := &b.Records[n]
		before := len(d.bytes)
		if before > most && !b.Take {
			break
		}
		err := d.side(ctx, a, in.KeySerializer, r.Key, before > most)
		if err == nil {
			err = d.side(ctx, a, in.ValueSerializer, r.Value, before > most)
		}
		if err != nil {
			if ctx.Err() != nil || n == 0 || b.Take {
				return nil, err
			}
			d.bytes, d.ends = d.bytes[:before], d.ends[:2*n]
			break // those before it need not wait
		}
	}
	d.records = append(d.records[:0], b.Records[:n]...) // b's are shared with the topic's other agents
	d.forms = slices.Grow(d.forms[:0], n)[:n]
	start := 0
	next := func(i int) []byte {
		end := d.ends[i]
		if end < 0 {
			return nil
		}
		form := d.bytes[start:end:end]
		start = end
		return form
	}
	for i := range d.records {
		d.forms[i] = record.Forms{Key: next(2 * i), Value: next(2*i + 1)}
		d.records[i].Forms = &d.forms[i]
	}
	call := *b
	call.Records = d.records
	return &call, nil
}

// release lets go of memory that only few batches need.
func (d *decoding) release() {
	clear(d.records) // the records' own bytes
	if cap(d.bytes) > 2*formsMax {
		d.bytes = nil
	}
}

// side appends the form of a key or value.
func (d *decoding) side(ctx context.Context, a *agent, serializer string, data []byte, full bool) error {
	if data == nil || !registry.Has(serializer) {
		d.ends = append(d.ends, -1)
		return nil
	}
	var failed error
	if full {
		failed = fmt.Errorf("the values of the list are larger than %d MiB", takeBytesMax>>20)
	}
	for failed == nil {
		out, fetch, err := a.registry.Decode(d.bytes, serializer, data)
		if err != nil {
			failed = err
			break
		}
		if fetch == nil {
			d.bytes = out
			d.ends = append(d.ends, len(d.bytes))
			return nil
		}
		timer := time.NewTimer(schemaWait)
		select {
		case <-fetch.Done():
			timer.Stop()
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-timer.C:
			return errNoSchema
		}
	}
	d.bytes = abi.AppendFormBytes(d.bytes, abi.FormError, failed.Error())
	d.ends = append(d.ends, len(d.bytes))
	return nil
}

// schemaWriter writes what the code of an agent or a view sends with a schema (wasmhost.Host).
type schemaWriter struct {
	registry *registry.Registry // nil: there is none
	schemas  []plan.Schema      // of its outputs
}

// target is what a value is written for.
func (s schemaWriter) target(req *abi.EncodeRequest) (registry.Target, error) {
	if s.registry == nil {
		return registry.Target{}, errors.New("there is no schema registry: set schemaRegistryUrl")
	}
	if req.Schema < 0 || req.Schema > len(s.schemas) {
		return registry.Target{}, fmt.Errorf("there is no schema %d", req.Schema)
	}
	t := registry.Target{Serializer: registry.Serializers[req.Serializer], Key: req.Key}
	if req.Schema > 0 {
		if t = s.schemas[req.Schema-1].Target; t.Serializer != registry.Serializers[req.Serializer] || t.Key != req.Key {
			return registry.Target{}, errors.New("the schema is not of this serializer")
		}
	}
	if t.Topic == "" && t.Subject == "" {
		t.Topic = req.Topic
	}
	return t, nil
}

func (s schemaWriter) Encode(dst []byte, req *abi.EncodeRequest) ([]byte, error) {
	t, err := s.target(req)
	if err != nil {
		return nil, err
	}
	out, fetch, err := s.registry.Encode(dst, t, req.Form)
	if fetch != nil {
		return nil, wasmhost.ErrNoSchema
	}
	return out, err
}

func (s schemaWriter) Prepare(ctx context.Context, req *abi.EncodeRequest) error {
	t, err := s.target(req)
	if err != nil {
		return err
	}
	return s.registry.Prepare(ctx, t)
}
