package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/sr"
	"github.com/twmb/franz-go/pkg/sr/srfake"

	"kaspr.io/kaspr/engine/enginetest"
	"kaspr.io/kaspr/wasmhost/abi"
)

// fixture is a registry of the client's own author behind a handler that tests can put something before.
type fixture struct {
	*Registry
	fake *srfake.Registry
	logs *enginetest.Buffer
	// before answers a request in the registry's place if it returns true.
	before atomic.Pointer[func(http.ResponseWriter, *http.Request) bool]
}

func newFixture(t *testing.T, change func(*Options)) *fixture {
	t.Helper()
	f := &fixture{fake: srfake.NewRegistry(), logs: &enginetest.Buffer{}}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if before := f.before.Load(); before != nil && (*before)(w, req) {
			return
		}
		f.fake.Handler().ServeHTTP(w, req)
	}))
	opts := Options{
		URLs: []string{server.URL}, Timeout: 200 * time.Millisecond, CacheMax: 10, AutoRegister: true, Subjects: TopicName, ValidateJSON: true,
		Log: slog.New(slog.NewTextHandler(f.logs, nil)),
	}
	if change != nil {
		change(&opts)
	}
	var err error
	if f.Registry, err = New(opts); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	t.Cleanup(f.Close)
	return f
}

func (f *fixture) instead(before func(http.ResponseWriter, *http.Request) bool) {
	f.before.Store(&before)
}

// get decodes, and waits for the schema as long as it takes.
func (f *fixture) get(t *testing.T, serializer string, data []byte) (string, error) {
	t.Helper()
	for range 100 {
		form, fetch, err := f.Decode(nil, serializer, data)
		if fetch == nil {
			return string(form), err
		}
		select {
		case <-fetch.Done():
		case <-time.After(10 * time.Second):
			t.Fatal("no schema after 10 s")
		}
	}
	t.Fatal("a schema that was fetched is not there")
	return "", nil
}

var five = []byte{0, 0, 0, 0, 1, 10}

const fiveForm = "i\x05\x00\x00\x00\x00\x00\x00\x00"

func (f *fixture) seed(id int, schema string) {
	f.fake.SeedSchema(fmt.Sprintf("s%d", id), 1, id, sr.Schema{Schema: schema})
}

// A registry that is down, slow or says nonsense must hold records up, not make them fail: they would be lost.
func TestDownIsWaitedFor(t *testing.T) {
	hang := make(chan struct{})
	defer close(hang)
	for name, before := range map[string]func(http.ResponseWriter, *http.Request) bool{
		"overloaded": func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(503); return true },
		"error": func(w http.ResponseWriter, _ *http.Request) bool {
			http.Error(w, `{"error_code":50001,"message":"store"}`, 500)
			return true
		},
		"wrong place": func(w http.ResponseWriter, _ *http.Request) bool { http.Error(w, "<html>not here", 404); return true },
		"unauthorised": func(w http.ResponseWriter, _ *http.Request) bool {
			http.Error(w, `{"error_code":401,"message":"who"}`, http.StatusUnauthorized)
			return true
		},
		"too many": func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(429); return true },
		"no JSON":  func(w http.ResponseWriter, _ *http.Request) bool { fmt.Fprint(w, "<html>"); return true },
		"too long": func(w http.ResponseWriter, _ *http.Request) bool { // and not said to be JSON
			fmt.Fprintf(w, `{"schema":"%s"}`, strings.Repeat("x", responseBytesMax))
			return true
		},
		"silent": func(_ http.ResponseWriter, req *http.Request) bool {
			select {
			case <-hang:
			case <-req.Context().Done():
			}
			return true
		},
		"cut off": func(http.ResponseWriter, *http.Request) bool { panic(http.ErrAbortHandler) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, nil)
			f.seed(1, `"int"`)
			f.instead(before)
			_, fetch, err := f.Decode(nil, Avro, five)
			if err != nil || fetch == nil {
				t.Fatalf("decoded without a registry: %v", err)
			}
			select {
			case <-fetch.Done():
				t.Fatal("the question counts as answered")
			case <-time.After(600 * time.Millisecond):
			}
			if f.Waiting() == 0 || strings.Count(f.logs.String(), "does not answer") != 1 {
				t.Errorf("waiting %v; the log says\n%s", f.Waiting(), f.logs)
			}
			f.instead(func(http.ResponseWriter, *http.Request) bool { return false })
			if form, err := f.get(t, Avro, five); form != fiveForm || err != nil {
				t.Errorf("%q, %v once it is back", form, err)
			}
			if f.Waiting() != 0 || !strings.Contains(f.logs.String(), "answers again") {
				t.Errorf("waiting %v; the log says\n%s", f.Waiting(), f.logs)
			}
		})
	}
}

// Only the registry's own word that there is no such schema makes records fail, and not for ever.
func TestUnknownID(t *testing.T) {
	f := newFixture(t, nil)
	_, err := f.get(t, Avro, five)
	if err == nil || !strings.Contains(err.Error(), "schema 1: the registry says") {
		t.Fatalf("%v", err)
	}
	asked := f.Requests()
	if _, err := f.get(t, Avro, five); err == nil || f.Requests() != asked {
		t.Errorf("%v; asked %d times again at once", err, f.Requests()-asked)
	}
	f.seed(1, `"int"`)
	f.mu.Lock()
	f.ids.get(idKey{1, Avro}).until = time.Now().Add(-time.Second)
	f.mu.Unlock()
	if form, err := f.get(t, Avro, five); form != fiveForm || err != nil {
		t.Errorf("%q, %v after it was registered", form, err)
	}
}

// A schema whose answer is too large to read will be so the next time: its records must fail and say why, not wait for ever. What a
// proxy says of an overload, however much, is no answer of the registry.
func TestAnswerTooLarge(t *testing.T) {
	f := newFixture(t, nil)
	f.seed(1, `"int"`)
	large := func(size int) string { return `{"schema": "\"int\"` + strings.Repeat(" ", size) + `"}` }
	say := func(code int, text string, times int32) {
		var n atomic.Int32
		f.instead(func(w http.ResponseWriter, _ *http.Request) bool {
			if n.Add(1) > times {
				return false
			}
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(code)
			_, _ = w.Write([]byte(text))
			return true
		})
	}
	say(200, large(responseBytesMax), 1000)
	_, err := f.get(t, Avro, five)
	if err == nil || !strings.Contains(err.Error(), "schema 1: the answer of the schema registry has more than 4 MiB") {
		t.Fatalf("%v", err)
	}
	if n := f.Requests(); n != 1 || f.Waiting() != 0 {
		t.Errorf("asked %d times, waits for %v", n, f.Waiting())
	}
	say(502, large(responseBytesMax), 1)
	f.seed(2, `"int"`)
	if form, err := f.get(t, Avro, []byte{0, 0, 0, 0, 2, 10}); form != fiveForm || err != nil {
		t.Errorf("%q, %v after a proxy's long error", form, err)
	}
	whole := large(0)
	say(200, large(responseBytesMax-len(whole)), 1) // just what may be read, of which the schema is too large
	f.seed(3, `"int"`)
	if _, err := f.get(t, Avro, []byte{0, 0, 0, 0, 3, 10}); err == nil || strings.Contains(err.Error(), "answer") {
		t.Errorf("of an answer of 4 MiB: %v", err)
	}
}

// A request for every record would make the registry the slowest part of the app.
func TestSchemaIsFetchedOnce(t *testing.T) {
	f := newFixture(t, nil)
	f.seed(1, `"int"`)
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 1000 {
				if form, err := f.get(t, Avro, five); form != fiveForm || err != nil {
					t.Errorf("%q, %v", form, err)
				}
			}
		})
	}
	all.Wait()
	if n := f.Requests(); n != 1 {
		t.Errorf("%d requests for 8000 records", n)
	}
}

// Records name any ids they like: what is remembered of them must not grow.
func TestCacheIsBounded(t *testing.T) {
	f := newFixture(t, nil)
	f.seed(1, `"int"`)
	for id := range 50 {
		_, _ = f.get(t, Avro, []byte{0, 0, 0, 1, byte(id), 10})
	}
	if form, err := f.get(t, Avro, five); form != fiveForm || err != nil {
		t.Errorf("%q, %v", form, err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if n := len(f.ids.byKey); n != 10 || f.ids.order.Len() != 10 || len(f.running)+len(f.down) != 0 {
		t.Errorf("%d of 10 schemas kept, %d running, %d down", n, len(f.running), len(f.down))
	}
	big := &schema{size: bytesMax}
	f.ids.put(idKey{99, Avro}, big)
	f.ids.put(idKey{100, Avro}, &schema{size: 1})
	if f.ids.size > bytesMax || f.ids.get(idKey{100, Avro}) == nil {
		t.Errorf("%d bytes kept", f.ids.size)
	}
}

func TestLogin(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "secret")
	for want, change := range map[string]func(*Options){
		"":                            func(*Options) {},
		"Basic YWRhOnNlY3JldA==":      func(o *Options) { o.Username, o.Password = "ada", "secret" },
		"Basic YWRhOmZpcnN0":          func(o *Options) { o.Username, o.PasswordFile = "ada", file },
		"Bearer token":                func(o *Options) { o.Token = "token" },
		"Bearer first, Bearer second": func(o *Options) { o.TokenFile = file },
	} {
		if err := os.WriteFile(file, []byte("first\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		f := newFixture(t, change)
		f.seed(1, `"int"`)
		f.seed(2, `"int"`)
		var got []string
		f.instead(func(_ http.ResponseWriter, req *http.Request) bool {
			got = append(got, req.Header.Get("Authorization"))
			return false
		})
		if _, err := f.get(t, Avro, five); err != nil {
			t.Fatal(err)
		}
		if strings.Contains(want, ", ") { // a secret that is replaced counts at once
			if err := os.WriteFile(file, []byte("second\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := f.get(t, Avro, []byte{0, 0, 0, 0, 2, 10}); err != nil {
				t.Fatal(err)
			}
		}
		if strings.Join(got, ", ") != want {
			t.Errorf("sent %q, want %q", got, want)
		}
	}
}

// Subjects are the contract with other producers and with those who look after the registry.
func TestSubjects(t *testing.T) {
	const record = `{"type": "record", "name": "shop.A", "fields": []}`
	for _, c := range []struct {
		by     string
		target Target
		want   string
	}{
		{TopicName, Target{Topic: "t", Text: record}, "t-value"},
		{TopicName, Target{Topic: "t", Text: record, Key: true}, "t-key"},
		{RecordName, Target{Topic: "t", Text: record}, "shop.A"},
		{TopicRecordName, Target{Topic: "t", Text: record}, "t-shop.A"},
		{RecordName, Target{Topic: "t", Text: record, Subject: "mine"}, "mine"},
	} {
		f := newFixture(t, func(o *Options) { o.Subjects = c.by })
		c.target.Serializer = Avro
		if err := f.Prepare(t.Context(), c.target); err != nil {
			t.Fatal(err)
		}
		if !f.fake.SubjectExists(c.want) {
			t.Errorf("%s, %+v: not registered as %s", c.by, c.target, c.want)
		}
	}
}

// Without auto-registration nothing may be written to the registry; what is not there is refused, for the reason.
func TestNoAutoRegister(t *testing.T) {
	f := newFixture(t, func(o *Options) { o.AutoRegister = false })
	target := Target{Serializer: Avro, Topic: "t", Text: `"int"`}
	err := f.Prepare(t.Context(), target)
	if err == nil || !strings.Contains(err.Error(), "subject t-value: the registry says") {
		t.Errorf("%v", err)
	}
	if f.fake.SubjectExists("t-value") {
		t.Error("it was registered all the same")
	}
	f.fake.SeedSchema("t-value", 1, 7, sr.Schema{Schema: `"int"`})
	f.mu.Lock()
	f.targets.get(target).until = time.Now().Add(-time.Second)
	f.mu.Unlock()
	if err := f.Prepare(t.Context(), target); err != nil {
		t.Fatal(err)
	}
	out, _, err := f.Encode(nil, target, []byte(fiveForm))
	if err != nil || !bytes.Equal(out, []byte{0, 0, 0, 0, 7, 10}) {
		t.Errorf("%x, %v", out, err)
	}
}

// A stop must not wait for a registry that is down.
func TestCloseEndsQuestions(t *testing.T) {
	f := newFixture(t, nil)
	f.instead(func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(503); return true })
	_, fetch, _ := f.Decode(nil, Avro, five)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := f.Prepare(ctx, Target{Serializer: Avro, Topic: "t"}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	began := time.Now()
	f.Close()
	<-fetch.Done()
	if took := time.Since(began); took > time.Second {
		t.Errorf("closing took %v", took)
	}
}

// An answer of the registry that goes in circles, or on for ever, must end.
func TestReferencesInCircles(t *testing.T) {
	f := newFixture(t, nil)
	f.instead(func(w http.ResponseWriter, req *http.Request) bool {
		n := strings.Count(req.URL.Path, "x")
		fmt.Fprintf(w, `{"subject": "x", "version": 1, "id": 1, "schema": "\"int\"", "references": [{"name": "a", "subject": "a%s", "version": 1}]}`, strings.Repeat("x", n+1))
		return true
	})
	if _, err := f.get(t, Avro, five); err == nil || !strings.Contains(err.Error(), "refers to too much") {
		t.Errorf("%v", err)
	}
	g := newFixture(t, nil)
	g.instead(func(w http.ResponseWriter, _ *http.Request) bool {
		fmt.Fprint(w, `{"subject": "x", "version": 1, "id": 1, "schema": "\"int\"", "references": [{"name": "a", "subject": "a", "version": 1}]}`)
		return true
	})
	if form, err := g.get(t, Avro, five); form != fiveForm || err != nil {
		t.Errorf("%q, %v", form, err)
	}
}

// Schemas come from strangers: a bad one is refused, in little time and memory.
func TestHostileSchemas(t *testing.T) {
	nested := func(open, inner, end string, n int) string {
		return strings.Repeat(open, n) + inner + strings.Repeat(end, n)
	}
	for _, c := range []struct{ serializer, text, want string }{
		{Avro, `{"type": "record", "name": "A", "fields": [{"name": "a", "type": "A", "default": {}}]}`, "nor a default before it"},
		{Avro, nested(`{"type": "array", "items": `, `"int"`, `}`, 10_000), "too deep"},
		{Avro, `[` + nested(`"int", `, `"long"`, ``, 1) + strings.Repeat(`, "string"`, 2) + `]`, "twice"},
		{Avro, `{"type": "fixed", "name": "F", "size": 99999999999}`, "size"},
		{Avro, `{"type": "fixed", "name": "F", "size": -1}`, "size"},
		{Avro, `["null", ["int"]]`, "union cannot hold a union"},
		{Avro, `[]`, "empty"},
		{Avro, `{"type": "enum", "name": "E", "symbols": [1]}`, "not a symbol"},
		{Avro, `{"type": {"type": {"type": "int"}}} 5`, "behind the schema"},
		{Avro, `{"type": "record", "name": "A", "fields": [{"name": "a", "type": ["null", "int"], "default": "x"}]}`, "default"},
		{Avro, strings.Repeat(" ", schemaBytesMax) + `"int"`, "bytes, more than"},
		{Protobuf, nested("message A { ", "", " }", 5000), ""},
		{Protobuf, `syntax = "proto3"; import "/etc/passwd"; message A {}`, "/etc/passwd"},
		{Protobuf, `syntax = "proto3"; import "schema.proto"; message A {}`, "cycle"},
		{Protobuf, `syntax = "proto3";`, "no message"},
		{JSONSchema, `{"$ref": "http://127.0.0.1:1/x"}`, "none of the schema's references"},
		{JSONSchema, `{"$schema": "http://127.0.0.1:1/meta"}`, "none of the schema's references"},
		{JSONSchema, `{"$ref": "file:///etc/passwd"}`, "none of the schema's references"},
		{JSONSchema, nested(`{"not": `, `{}`, `}`, 20_000), "depth"},
	} {
		began := time.Now()
		_, _, err := compile(schemaText{serializer: c.serializer, text: c.text}, "", true)
		if c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%.60s: %v, want %q", c.text, err, c.want)
		}
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("%.60s took %v", c.text, took)
		}
	}
}

// A few bytes of a record must not become gigabytes, whatever the schema.
func TestHostileRecords(t *testing.T) {
	wide := `{"type": "record", "name": "W", "fields": [`
	for i := range 500 {
		wide += fmt.Sprintf(`{"name": "%s%d", "type": "null"},`, strings.Repeat("n", 100), i)
	}
	wide = strings.TrimSuffix(wide, ",") + "]}"
	many := bytes.Repeat([]byte{0xfe, 0xff, 0x0f}, 1) // a block of 131,071 items
	for _, c := range []struct {
		schema string
		data   []byte
	}{
		{`{"type": "array", "items": "null"}`, many},
		{`{"type": "array", "items": ` + wide + `}`, many},
		{`{"type": "array", "items": {"type": "record", "name": "E", "fields": []}}`, []byte{0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01}},
		{`{"type": "record", "name": "L", "fields": [{"name": "next", "type": ["null", "L"]}]}`, bytes.Repeat([]byte{2}, 1<<20)},
		{`{"type": "record", "name": "L", "fields": [{"name": "next", "type": "L"}]}`, nil},
		{`"bytes"`, []byte{0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01}},
		{`"string"`, []byte{0x01}},
		{`"long"`, bytes.Repeat([]byte{0xff}, 11)},
		{`{"type": "bytes", "logicalType": "decimal", "precision": 4}`, append([]byte{0x80, 0x89, 0x7a}, make([]byte, 1_000_000)...)},
	} {
		codec, _, err := compile(schemaText{serializer: Avro, text: c.schema}, "", true)
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if form, err := codec.decode(nil, c.data); err == nil {
			t.Errorf("%.80s: %d bytes became %d", c.schema, len(c.data), len(form))
		}
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("%.80s took %v", c.schema, took)
		}
	}
}

const fuzzAvro = `{"type": "record", "name": "R", "fields": [
	{"name": "i", "type": "int"}, {"name": "l", "type": "long"}, {"name": "f", "type": "float"}, {"name": "d", "type": "double"},
	{"name": "b", "type": "boolean"}, {"name": "s", "type": "string"}, {"name": "y", "type": "bytes"},
	{"name": "e", "type": {"type": "enum", "name": "E", "symbols": ["A", "B"]}}, {"name": "x", "type": {"type": "fixed", "name": "X", "size": 2}},
	{"name": "a", "type": {"type": "array", "items": ["null", "R", "long"]}}, {"name": "m", "type": {"type": "map", "values": "R"}},
	{"name": "p", "type": {"type": "bytes", "logicalType": "decimal", "precision": 999, "scale": 3}},
	{"name": "u", "type": {"type": "string", "logicalType": "uuid"}}, {"name": "t", "type": {"type": "int", "logicalType": "time-millis"}},
	{"name": "z", "type": {"type": "long", "logicalType": "timestamp-micros"}}]}`

const fuzzProtobuf = `syntax = "proto2"; message A { optional int32 i = 1 [default = 3]; repeated A a = 2; map<string, A> m = 3; optional bytes y = 4;
	oneof o { string s = 5; E e = 6; } enum E { X = 0; Y = 1; } repeated sint64 p = 7 [packed = true]; optional group G = 8 { optional bool b = 1; }
	repeated double d = 9; optional fixed64 f = 10; message Inner { optional uint64 u = 1; } }`

// Anybody may write a record: reading it must not panic, and what could be read can be written and reads the same again.
func FuzzDecode(f *testing.F) {
	texts := []schemaText{{serializer: Avro, text: fuzzAvro}, {serializer: Protobuf, text: fuzzProtobuf}, {serializer: JSONSchema, text: `{"type": "object", "properties": {"a": {"$ref": "#"}}}`}}
	var codecs []codec
	for _, s := range texts {
		c, _, err := compile(s, "", true)
		if err != nil {
			f.Fatal(err)
		}
		codecs = append(codecs, c)
	}
	f.Add(uint8(0), []byte("\x02\x04\x00\x00\x80\x3f\x00\x00\x00\x00\x00\x00\xf0\x3f\x01\x02a\x02b\x02xy\x02\x00\x00\x00\x02\x7f"))
	f.Add(uint8(1), []byte("\x00\x08\x05\x12\x02\x08\x01\x1a\x05\x0a\x01k\x12\x00\x2a\x01x\x3a\x02\x01\x02"))
	f.Add(uint8(1), []byte("\x04\x00\x00\x08\x05"))
	f.Add(uint8(2), []byte(`{"a": {"a": {}}}`))
	f.Fuzz(func(t *testing.T, which uint8, data []byte) {
		if _, rest, err := unframe(data); err == nil && len(rest) != len(data)-frameSize {
			t.Fatal("the frame has another size")
		}
		c := codecs[int(which)%len(codecs)]
		form, err := c.decode(nil, data)
		if err != nil {
			return
		}
		if len(form) > 2*formBytesMax {
			t.Fatalf("%d bytes became %d", len(data), len(form))
		}
		var arena abi.FormsArena
		v, err := arena.Read(form)
		if err != nil {
			t.Fatalf("a form of ours cannot be read: %v", err)
		}
		if p, ok := c.(protobufCodec); ok {
			m, _, err := p.messageOf(data)
			if err != nil || m != p.message {
				return // only the first message is written
			}
		}
		out, err := c.encode(nil, &v)
		if err != nil {
			t.Fatalf("what was read cannot be written: %v", err)
		}
		again, err := c.decode(nil, out)
		if err != nil || len(again) != len(form) || c == codecs[0] && !bytes.Equal(again, form) && !bytes.Contains(form, []byte("d")) {
			t.Fatalf("read again: %v\n%q\n%q", err, form, again)
		}
	})
}

// Anybody who may register a schema may write one of these.
func FuzzSchema(f *testing.F) {
	for i, text := range []string{fuzzAvro, fuzzProtobuf, `{"$ref": "#/a", "a": {"allOf": [{"$ref": "#"}]}}`, `{"type": "record", "name": "A", "fields": [{"name": "a", "type": ["null", "A"], "default": null}]}`} {
		f.Add(uint8(i), text, []byte{0, 2, 1})
	}
	f.Fuzz(func(t *testing.T, which uint8, text string, data []byte) {
		serializer := []string{Avro, Protobuf, JSONSchema}[which%3]
		c, _, err := compile(schemaText{serializer: serializer, text: text}, "", true)
		if err != nil {
			if strings.Contains(err.Error(), "cannot be read: ") {
				t.Fatalf("a panic: %v", err)
			}
			return
		}
		form, err := c.decode(nil, data)
		if err != nil {
			return
		}
		var arena abi.FormsArena
		if _, err := arena.Read(form); err != nil {
			t.Fatalf("a form of ours cannot be read: %v", err)
		}
	})
}
