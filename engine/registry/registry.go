package registry

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/sr"

	"kaspr.io/kaspr/wasmhost/abi"
)

// Options are how a registry is reached and used.
type Options struct {
	URLs         []string
	Username     string
	Password     string
	PasswordFile string // instead of Password; read again for every request, as is TokenFile
	Token        string // bearer
	TokenFile    string
	TLS          *tls.Config
	Timeout      time.Duration // of one request
	CacheMax     int           // schemas
	AutoRegister bool          // schemas that manifests hold
	Subjects     string        // how subjects are named: TopicName, RecordName, TopicRecordName
	ValidateJSON bool
	Log          *slog.Logger
}

// Subject name strategies.
const (
	TopicName       = "TopicName"
	RecordName      = "RecordName"
	TopicRecordName = "TopicRecordName"
)

// Registry is one schema registry and the schemas that came from it.
type Registry struct {
	opts   Options
	client *sr.Client
	ctx    context.Context // of fetches; ends with Close
	close  context.CancelFunc
	fetch  sync.WaitGroup

	mu      sync.Mutex
	ids     *cache[idKey]    // guarded by mu
	targets *cache[Target]   // guarded by mu
	running map[any]*Fetch   // guarded by mu; by idKey or Target
	down    map[any]struct{} // guarded by mu; fetches that have to try again
	since   time.Time        // guarded by mu; when down last became not empty
	logged  time.Time        // guarded by mu; when that was last logged
	values  sync.Pool        // of *reading
	asked   atomic.Int64     // requests, for tests and metrics
}

// reading is memory for a value that is written.
type reading struct {
	arena abi.FormsArena
	value abi.Value
}

// idKey is a schema of the registry as a serializer reads it.
type idKey struct {
	id         int
	serializer string
}

// Target is what values are written for: a side of a topic, and what a manifest says of its schema.
type Target struct {
	Serializer string
	Key        bool
	Topic      string
	Subject    string // empty: by Options.Subjects
	Text       string // the schema; empty: the latest of the subject
	Message    string // of a protobuf file; empty: the first
}

// schema is what is known of a schema, or why it cannot be used.
type schema struct {
	codec codec
	id    int // to write
	err   error
	until time.Time // of err: then it is asked for again; zero is never
	size  int       // for the cache
}

// Fetch is a question to the registry that is not answered yet.
type Fetch struct{ done chan struct{} }

// Done is closed once the registry gave an answer.
func (f *Fetch) Done() <-chan struct{} { return f.done }

// missingFor is how long the registry's word that something does not exist counts.
const missingFor = 10 * time.Second

// responseBytesMax bounds an answer of the registry; a schema has less (schemaBytesMax).
const responseBytesMax = 4 << 20

// New makes a Registry; it asks for nothing yet.
func New(opts Options) (*Registry, error) {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.TLSClientConfig = opts.TLS
	client, err := sr.NewClient(
		sr.URLs(opts.URLs...),
		sr.UserAgent("kaspr"),
		sr.HTTPClient(&http.Client{Timeout: opts.Timeout, Transport: bounded{transport}}),
		sr.PreReq(opts.login),
	)
	if err != nil {
		return nil, err
	}
	r := &Registry{
		opts: opts, client: client, ids: newCache[idKey](opts.CacheMax), targets: newCache[Target](opts.CacheMax),
		running: map[any]*Fetch{}, down: map[any]struct{}{},
	}
	r.values.New = func() any { return new(reading) }
	r.ctx, r.close = context.WithCancel(context.Background())
	return r, nil
}

// Close ends all questions. It is idempotent.
func (r *Registry) Close() {
	r.close()
	r.fetch.Wait()
}

// login puts the credentials into a request.
func (o Options) login(req *http.Request) error {
	secret := func(value, file string) (string, error) {
		if file == "" {
			return value, nil
		}
		text, err := os.ReadFile(file)
		return strings.TrimSpace(string(text)), err
	}
	token, err := secret(o.Token, o.TokenFile)
	if err != nil {
		return err
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
		return nil
	}
	if o.Username == "" {
		return nil
	}
	password, err := secret(o.Password, o.PasswordFile)
	if err != nil {
		return err
	}
	req.SetBasicAuth(o.Username, password)
	return nil
}

// bounded reads no more of an answer than responseBytesMax. JSON that goes on is the registry's, and final: asked again it would be as large.
// Errors, and pages of whoever stands before the registry, are cut off, and are no answer (final).
type bounded struct{ http.RoundTripper }

func (b bounded) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := b.RoundTripper.RoundTrip(req)
	if err == nil {
		whole := resp.StatusCode == http.StatusOK && strings.Contains(resp.Header.Get("Content-Type"), "json")
		resp.Body = &boundedBody{body: resp.Body, left: responseBytesMax, whole: whole}
	}
	return resp, err
}

type boundedBody struct {
	body  io.ReadCloser
	left  int  // bytes that may still be read
	whole bool // nothing can be made of a part
}

func (b *boundedBody) Read(p []byte) (int, error) {
	if b.left == 0 && !b.whole {
		return 0, io.EOF
	}
	n, err := b.body.Read(p[:min(len(p), max(b.left, 1))]) // with nothing left: is there more?
	if n > b.left {
		return 0, finalError{fmt.Errorf("the answer of the schema registry has more than %d MiB", responseBytesMax>>20)}
	}
	b.left -= n
	return n, err
}

func (b *boundedBody) Close() error { return b.body.Close() }

// Decode appends the form of a key or value. With a Fetch its schema is not at hand yet. An error is the record's own.
func (r *Registry) Decode(dst []byte, serializer string, data []byte) ([]byte, *Fetch, error) {
	id, rest, err := unframe(data)
	if err != nil {
		return nil, nil, err
	}
	key := idKey{id, serializer}
	s, fetch := known(r, r.ids, key), (*Fetch)(nil)
	if s == nil {
		s, fetch = find(r, r.ids, key, func(ctx context.Context) (schemaText, int, error) {
			text, err := r.byID(ctx, id)
			if err == nil && text.serializer != serializer {
				err = finalError{fmt.Errorf("it is of serializer %s, not %s", text.serializer, serializer)}
			}
			return text, id, err
		}, "")
	}
	switch {
	case fetch != nil:
		return nil, fetch, nil
	case s.err != nil:
		return nil, nil, fmt.Errorf("schema %d: %w", id, s.err)
	}
	if dst, err = s.codec.decode(dst, rest); err != nil {
		return nil, nil, fmt.Errorf("%s, schema %d: %w", serializer, id, err)
	}
	return dst, nil, nil
}

// Encode appends the bytes of a form the guest made. With a Fetch the schema is not at hand yet.
func (r *Registry) Encode(dst []byte, t Target, form []byte) ([]byte, *Fetch, error) {
	s, fetch := r.target(t)
	switch {
	case fetch != nil:
		return nil, fetch, nil
	case s.err != nil:
		return nil, nil, s.err
	}
	in := r.values.Get().(*reading)
	defer r.values.Put(in)
	var err error
	if in.value, err = in.arena.Read(form); err != nil {
		return nil, nil, err
	}
	if dst, err = s.codec.encode(frame(dst, s.id), &in.value); err != nil {
		return nil, nil, fmt.Errorf("%s: %w", t.Serializer, err)
	}
	return dst, nil, nil
}

// Prepare has a target's schema at hand from now on. The error is final: the registry refuses it, or ctx ended.
func (r *Registry) Prepare(ctx context.Context, t Target) error {
	for {
		s, fetch := r.target(t)
		if fetch == nil {
			return s.err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-fetch.done:
		}
	}
}

func (r *Registry) target(t Target) (*schema, *Fetch) {
	if s := known(r, r.targets, t); s != nil {
		return s, nil
	}
	return find(r, r.targets, t, func(ctx context.Context) (schemaText, int, error) { return r.forWriting(ctx, t) }, t.Message)
}

// Waiting is for how long questions have gone unanswered; 0 is not at all.
func (r *Registry) Waiting() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.down) == 0 {
		return 0
	}
	return time.Since(r.since)
}

// Requests is how many requests were made.
func (r *Registry) Requests() int64 { return r.asked.Load() }

// known is what a cache has, or nil. Every record asks, so nothing is allocated here; find is for what has to be fetched.
func known[K comparable](r *Registry, c *cache[K], key K) *schema {
	r.mu.Lock()
	defer r.mu.Unlock()
	return c.current(key)
}

// find gives what a cache has by now, and begins to fetch what is not there.
func find[K comparable](r *Registry, c *cache[K], key K, get func(context.Context) (schemaText, int, error), message string) (*schema, *Fetch) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if s := c.current(key); s != nil {
		return s, nil
	}
	if f := r.running[key]; f != nil {
		return nil, f
	}
	f := &Fetch{make(chan struct{})}
	r.running[key] = f
	r.fetch.Go(func() {
		s := r.ask(key, get, message)
		r.mu.Lock()
		if s != nil {
			c.put(key, s)
		}
		delete(r.running, key)
		r.mu.Unlock()
		close(f.done)
	})
	return nil, f
}

// Pauses between attempts to reach the registry.
const (
	pauseFirst = 100 * time.Millisecond
	pauseMax   = 5 * time.Second
)

// ask asks until there is an answer; nil is the end of the Registry.
func (r *Registry) ask(key any, get func(context.Context) (schemaText, int, error), message string) *schema {
	for pause := pauseFirst; ; pause = min(2*pause, pauseMax) {
		text, id, err := get(r.ctx)
		if r.ctx.Err() != nil {
			return nil
		}
		s := &schema{id: id, size: 100}
		var final finalError
		switch {
		case err == nil:
			r.answered(key)
			for _, ref := range text.references {
				s.size += len(ref.text)
			}
			s.size += len(text.text)
			if s.codec, _, s.err = compile(text, message, r.opts.ValidateJSON); s.err != nil {
				s.until = time.Now().Add(missingFor)
			}
			return s
		case errors.As(err, &final):
			r.answered(key)
			s.err, s.until = final, time.Now().Add(missingFor)
			return s
		}
		r.unanswered(key, err, pause)
		select {
		case <-r.ctx.Done():
			return nil
		case <-time.After(pause):
		}
	}
}

// logEvery is how often a registry that stays away is logged.
const logEvery = 30 * time.Second

func (r *Registry) unanswered(key any, err error, pause time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.down) == 0 {
		r.since = time.Now()
		r.logged = time.Time{}
	}
	r.down[key] = struct{}{}
	if time.Since(r.logged) >= logEvery {
		r.logged = time.Now()
		r.opts.Log.Warn("the schema registry does not answer; what needs its schemas waits", "registry", strings.Join(r.opts.URLs, ","), "err", err, "again", pause)
	}
}

func (r *Registry) answered(key any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.down[key]; !ok {
		return
	}
	delete(r.down, key)
	if len(r.down) == 0 {
		r.opts.Log.Info("the schema registry answers again", "after", time.Since(r.since).Round(time.Millisecond))
	}
}

// ---- questions ----

// finalError is an answer that asking again does not change.
type finalError struct{ error }

// final tells answers that are the registry's own word from what a proxy, a wrong address or an overload says.
func final(err error) error {
	var resp *sr.ResponseError
	if errors.As(err, &resp) && (sr.IsNotFoundError(resp.ErrorCode) || sr.IsInvalidRequestError(resp.ErrorCode) || resp.StatusCode == http.StatusConflict && resp.ErrorCode != 0) {
		return finalError{fmt.Errorf("the registry says: %s", resp.Message)}
	}
	return err
}

func (r *Registry) byID(ctx context.Context, id int) (schemaText, error) {
	r.asked.Add(1)
	s, err := r.client.SchemaByID(ctx, id)
	if err != nil {
		return schemaText{}, final(err)
	}
	return r.whole(ctx, s)
}

var schemaTypes = map[sr.SchemaType]string{sr.TypeAvro: Avro, sr.TypeProtobuf: Protobuf, sr.TypeJSON: JSONSchema}

func typeOf(serializer string) sr.SchemaType {
	for t, name := range schemaTypes {
		if name == serializer {
			return t
		}
	}
	panic("BUG: serializer " + serializer + " has no type in the registry")
}

// referencesMax bounds what a schema may refer to, all in all.
const referencesMax = 200

// whole fetches what a schema refers to, too.
func (r *Registry) whole(ctx context.Context, s sr.Schema) (schemaText, error) {
	text := schemaText{serializer: schemaTypes[s.Type], text: s.Schema}
	size := len(s.Schema)
	type version struct {
		subject string
		number  int
	}
	seen := map[version]bool{}
	var collect func(refs []sr.SchemaReference) error
	collect = func(refs []sr.SchemaReference) error {
		for _, ref := range refs {
			v := version{ref.Subject, ref.Version}
			if seen[v] {
				continue
			}
			seen[v] = true
			if len(seen) > referencesMax || size > schemaBytesMax {
				return finalError{errors.New("the schema refers to too much")}
			}
			r.asked.Add(1)
			inner, err := r.client.SchemaByVersion(ctx, ref.Subject, ref.Version)
			if err != nil {
				return final(err)
			}
			size += len(inner.Schema.Schema)
			if err := collect(inner.References); err != nil {
				return err
			}
			text.references = append(text.references, reference{ref.Name, inner.Schema.Schema})
		}
		return nil
	}
	return text, collect(s.References)
}

// forWriting gives the schema a target is written with, and its id.
func (r *Registry) forWriting(ctx context.Context, t Target) (schemaText, int, error) {
	subject, err := r.subject(t)
	if err != nil {
		return schemaText{}, 0, finalError{err}
	}
	if t.Text == "" {
		r.asked.Add(1)
		s, err := r.client.SchemaByVersion(ctx, subject, -1)
		if err != nil {
			return schemaText{}, 0, named(subject, final(err))
		}
		text, err := r.whole(ctx, s.Schema)
		if err == nil && text.serializer != t.Serializer {
			err = finalError{fmt.Errorf("subject %s has a schema of serializer %s, not %s", subject, text.serializer, t.Serializer)}
		}
		return text, s.ID, err
	}
	own := schemaText{serializer: t.Serializer, text: t.Text}
	s := sr.Schema{Schema: t.Text, Type: typeOf(t.Serializer)}
	r.asked.Add(1)
	if r.opts.AutoRegister {
		id, err := r.client.RegisterSchema(ctx, subject, s, -1, -1)
		return own, id, named(subject, final(err))
	}
	found, err := r.client.LookupSchema(ctx, subject, s)
	return own, found.ID, named(subject, final(err))
}

// named says which subject a final answer is about.
func named(subject string, err error) error {
	var f finalError
	if errors.As(err, &f) {
		return finalError{fmt.Errorf("subject %s: %w", subject, f.error)}
	}
	return err
}

// subject is where a target's schema stands in the registry.
func (r *Registry) subject(t Target) (string, error) {
	if t.Subject != "" {
		return t.Subject, nil
	}
	if r.opts.Subjects == TopicName {
		if t.Key {
			return t.Topic + "-key", nil
		}
		return t.Topic + "-value", nil
	}
	name := t.Message
	if t.Text != "" {
		var err error
		if _, name, err = compile(schemaText{serializer: t.Serializer, text: t.Text}, t.Message, false); err != nil {
			return "", err
		}
	}
	if name == "" {
		return "", fmt.Errorf("subjects are named after records (%s), and no schema says the record's name: give the schema, or its subject", r.opts.Subjects)
	}
	if r.opts.Subjects == TopicRecordName {
		return t.Topic + "-" + name, nil
	}
	return name, nil
}
