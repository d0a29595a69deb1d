//go:build integration

package cli

import (
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sr"

	"kaspr.io/kaspr/engine/enginetest/realkafka"
	"kaspr.io/kaspr/engine/enginetest/realregistry"
)

// What these tests hold against each other is the registry's own answers and bytes put together here, by the formats' specifications.

// schemaClient looks after the registry as its operators do.
type schemaClient struct {
	t *testing.T
	*sr.Client
}

func newSchemaClient(t *testing.T, r *realregistry.Registry) schemaClient {
	t.Helper()
	cl, err := sr.NewClient(sr.URLs(r.URL()))
	if err != nil {
		t.Fatal(err)
	}
	return schemaClient{t, cl}
}

// register registers a schema and returns its id.
func (c schemaClient) register(subject string, s sr.Schema) int {
	c.t.Helper()
	id, err := c.RegisterSchema(c.t.Context(), subject, s, -1, -1)
	if err != nil {
		c.t.Fatalf("register %s: %v", subject, err)
	}
	return id
}

// latest is the id of a subject's latest version.
func (c schemaClient) latest(subject string) int {
	c.t.Helper()
	s, err := c.SchemaByVersion(c.t.Context(), subject, -1)
	if err != nil {
		c.t.Fatalf("subject %s: %v", subject, err)
	}
	return s.ID
}

// framed is a schema's id and a value as Confluent's clients write them.
func framed(id int, value ...string) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{0}, uint32(id)), strings.Join(value, "")...)
}

// avroLong and avroText are Avro's: zigzag, and a length before the text.
func avroLong(n int64) string { return string(binary.AppendVarint(nil, n)) }

func avroText(s string) string { return avroLong(int64(len(s))) + s }

func inBase64(b []byte) string { return `{"base64":"` + base64.StdEncoding.EncodeToString(b) + `"}` }

// writeFiles writes the files of an app into a folder of the test's.
func writeFiles(t *testing.T, files map[string]string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

const (
	orderV1  = `{"type": "record", "name": "Order", "namespace": "shop", "fields": [{"name": "id", "type": "long"}, {"name": "to", "type": "shop.Address"}]}`
	orderV2  = `{"type": "record", "name": "Order", "namespace": "shop", "fields": [{"name": "id", "type": "long"}, {"name": "to", "type": "shop.Address"}, {"name": "note", "type": ["null", "string"], "default": null}]}`
	orderOut = `{"type": "record", "name": "Seen", "fields": [{"name": "id", "type": "long"}, {"name": "street", "type": "string"}, {"name": "note", "type": "string", "default": "none"}]}`
	billOut  = `syntax = "proto3"; package shop; message Other {} message Bill { int64 id = 1; repeated string lines = 2; optional int32 rebate = 3; }`
)

// registryApp has an agent for each serializer. What it writes to orders-out has its schema here; the others' are in the registry.
var registryApp = `
apiVersion: kaspr.io/v1alpha1
kind: KasprAgent
metadata: {name: orders, labels: {kaspr.io/app: shop}}
spec:
  input: {topic: {name: orders, keySerializer: avro, valueSerializer: avro}}
  processors:
    pipeline: [seen]
    operations:
      - name: seen
        map:
          python: |
            def seen(order):
                seen = {"id": order["id"] + 1, "street": order["to"]["street"]}
                if "note" in order:
                    seen["note"] = repr(order["note"])
                return seen
  output:
    topics:
      - name: orders-out
        keySerializer: avro
        keySelector: {python: "def key(v): return context['event'].key"}
        keySchema: {text: '"string"'}
        valueSerializer: avro
        valueSchema: {text: '` + orderOut + `'}
---
apiVersion: kaspr.io/v1alpha1
kind: KasprAgent
metadata: {name: bills, labels: {kaspr.io/app: shop}}
spec:
  input: {topic: {name: bills, valueSerializer: protobuf}}
  processors:
    pipeline: [seen]
    operations:
      - name: seen
        map:
          python: |
            def seen(bill):
                return {"id": bill["sum"]["units"], "lines": bill["lines"] + ["end"]}
  output:
    topics: [{name: bills-out, valueSerializer: protobuf, valueSchema: {message: shop.Bill}}]
---
apiVersion: kaspr.io/v1alpha1
kind: KasprAgent
metadata: {name: people, labels: {kaspr.io/app: shop}}
spec:
  input: {topic: {name: people, valueSerializer: jsonschema}}
  processors:
    pipeline: [seen]
    operations:
      - name: seen
        map: {python: "def seen(person): return {'name': person['name'].upper()}"}
  output:
    topics: [{name: people-out, valueSerializer: jsonschema, valueSchema: {subject: people-out-of-another-name}}]
`

// Records of all formats must be read by the schemas of a registry that others wrote and run, old versions and references included, and
// what is written must be what the registry's other users can read.
func TestRealRegistry(t *testing.T) {
	registry := realregistry.New(t, realregistry.Options{})
	c := newSchemaClient(t, registry)
	c.register("address", sr.Schema{Schema: `{"type": "record", "name": "Address", "namespace": "shop", "fields": [{"name": "street", "type": "string"}]}`})
	address := []sr.SchemaReference{{Name: "shop.Address", Subject: "address", Version: 1}}
	key := c.register("orders-key", sr.Schema{Schema: `"string"`})
	v1 := c.register("orders-value", sr.Schema{Schema: orderV1, References: address})
	for _, r := range c.SetCompatibility(t.Context(), sr.SetCompatibility{Level: sr.CompatFull}, "orders-value", "orders-out-value") {
		if r.Err != nil {
			t.Fatal(r.Err)
		}
	}
	v2 := c.register("orders-value", sr.Schema{Schema: orderV2, References: address})
	c.register("money", sr.Schema{Type: sr.TypeProtobuf, Schema: `syntax = "proto3"; package money; message Money { int64 units = 1; }`})
	bills := c.register("bills-value", sr.Schema{
		Type: sr.TypeProtobuf, Schema: `syntax = "proto3"; import "money.proto"; message Bill { money.Money sum = 1; repeated string lines = 2; }`,
		References: []sr.SchemaReference{{Name: "money.proto", Subject: "money", Version: 1}},
	})
	billsOut := c.register("bills-out-value", sr.Schema{Type: sr.TypeProtobuf, Schema: billOut})
	c.register("name", sr.Schema{Type: sr.TypeJSON, Schema: `{"$schema": "http://json-schema.org/draft-07/schema#", "type": "string", "minLength": 2}`})
	people := c.register("people-value", sr.Schema{
		Type: sr.TypeJSON, Schema: `{"$schema": "http://json-schema.org/draft-07/schema#", "type": "object", "required": ["name"], "properties": {"name": {"$ref": "name.json"}}}`,
		References: []sr.SchemaReference{{Name: "name.json", Subject: "name", Version: 1}},
	})
	peopleOut := c.register("people-out-of-another-name", sr.Schema{Type: sr.TypeJSON, Schema: `{"$schema": "http://json-schema.org/draft-07/schema#", "type": "object"}`})
	if v1 == v2 {
		t.Fatal("the registry took two versions for one")
	}

	dir := writeFiles(t, map[string]string{
		"app.yaml": registryApp,
		"orders.jsonl": fmt.Sprintf("{\"key\": %s, \"value\": %s}\n{\"key\": %s, \"value\": %s}\n{\"key\": %s, \"value\": %s}\n",
			inBase64(framed(key, avroText("a"))), inBase64(framed(v1, avroLong(1), avroText("Elm"))),
			inBase64(framed(key, avroText("b"))), inBase64(framed(v2, avroLong(-70), avroText("Ümlaut"), avroLong(1), avroText("hi"))),
			inBase64(framed(key, avroText("a"))), inBase64(framed(v2, avroLong(1<<40), avroText(""), avroLong(0)))),
		// Message index 0, field 1 (length 2: field 1 varint 7), field 2 "x".
		"bills.jsonl":  fmt.Sprintf("{\"value\": %s}\n", inBase64(framed(bills, "\x00", "\x0a\x02\x08\x07", "\x12\x01x"))),
		"people.jsonl": fmt.Sprintf("{\"value\": %s}\n{\"value\": %s}\n", inBase64(framed(people, `{"name": "x"}`)), inBase64(framed(people, `{"name": "Ada"}`))),
	})
	run := conformanceCase{Exit: 1, Stderr: []string{"minLength"}} // a name of one letter is the one record that fails
	set := func(name, v string) []string { return []string{"--set", name + "=" + v} }
	args := slices.Concat([]string{"dev", dir, "--drain"}, set("schemaRegistryUrl", registry.URL()), set("keySerializer", "raw"),
		[]string{"--input", "orders=" + dir + "/orders.jsonl", "--input", "bills=" + dir + "/bills.jsonl", "--input", "people=" + dir + "/people.jsonl"})
	stdout, _ := run.run(t, args)
	outKey, out := c.latest("orders-out-key"), c.latest("orders-out-value")
	got := bytesByTopic(t, stdout)
	want := map[string][]string{
		"orders-out": {
			string(framed(outKey, avroText("a"))) + "=" + string(framed(out, avroLong(2), avroText("Elm"), avroText("none"))),
			string(framed(outKey, avroText("b"))) + "=" + string(framed(out, avroLong(-69), avroText("Ümlaut"), avroText("'hi'"))),
			string(framed(outKey, avroText("a"))) + "=" + string(framed(out, avroLong(1<<40+1), avroText(""), avroText("None"))),
		},
		// One index, the second message of the file; field 1 varint 7, field 2 twice.
		"bills-out":  {"=" + string(framed(billsOut, "\x02\x02", "\x08\x07", "\x12\x01x", "\x12\x03end"))},
		"people-out": {"=" + string(framed(peopleOut, `{"name":"ADA"}`))},
	}
	for _, topic := range slices.Sorted(maps.Keys(want)) {
		if !slices.Equal(got[topic], want[topic]) {
			t.Errorf("%s:\n%q\nwant\n%q", topic, got[topic], want[topic])
		}
	}
	// The registry has what the manifest says, under the topic's name.
	registered, err := c.SchemaByID(t.Context(), out)
	if err != nil || !sameJSON(t, registered.Schema, orderOut) {
		t.Errorf("registered %s, %v", registered.Schema, err)
	}

	// A schema of a manifest that breaks the subject's rule is refused before the first record, by the registry and with the place.
	broken := writeFiles(t, map[string]string{"app.yaml": strings.Replace(registryApp, `"name": "street", "type": "string"`, `"name": "street", "type": "int"`, 1)})
	run = conformanceCase{Exit: 1, Stderr: []string{`app.yaml:25:`, `output "orders-out", valueSchema: subject orders-out-value: the registry says`, "ncompatible"}}
	run.run(t, slices.Concat([]string{"dev", broken, "--drain"}, set("schemaRegistryUrl", registry.URL())))

	// Without autoRegister only what is there may be used, and that is found by its text.
	run = conformanceCase{Exit: 1, Stderr: []string{"minLength"}}
	again, _ := run.run(t, append(args, set("schemaRegistryAutoRegister", "false")...))
	if got := bytesByTopic(t, again); !slices.Equal(got["orders-out"], want["orders-out"]) {
		t.Errorf("without autoRegister: %q", got["orders-out"])
	}
	elsewhere := writeFiles(t, map[string]string{"app.yaml": strings.ReplaceAll(registryApp, "orders-out", "orders-new")})
	run = conformanceCase{Exit: 1, Stderr: []string{`output "orders-new", valueSchema: subject orders-new-value: the registry says`}}
	run.run(t, slices.Concat([]string{"dev", elsewhere, "--drain"}, set("schemaRegistryUrl", registry.URL()), set("schemaRegistryAutoRegister", "false")))
	if _, err := c.SchemaByVersion(t.Context(), "orders-new-value", -1); err == nil {
		t.Error("it was registered all the same")
	}
}

// A registry with TLS of its own authority and a login must serve like an open one.
func TestRealRegistryTLS(t *testing.T) {
	registry := realregistry.New(t, realregistry.Options{TLS: true, Users: map[string]string{"ada": "s3cret word"}})
	dir := writeFiles(t, map[string]string{
		"app.yaml": strings.Replace(schemaAgents, "valueSerializer: avro}}", "valueSerializer: json}}", 1),
		"password": "s3cret word\n",
	})
	var run conformanceCase
	run.stdin = "41\n"
	stdout, _ := run.run(t, []string{
		"dev", dir, "--drain", "--input", "numbers=-", "--set", "schemaRegistryUrl=" + registry.URL(), "--set", "schemaRegistryTlsCaFile=" + registry.CAFile(),
		"--set", "schemaRegistryUsername=ada", "--set", "schemaRegistryPasswordFile=" + filepath.Join(dir, "password"),
	})
	if got := bytesByTopic(t, stdout)["more"]; !slices.Equal(got, []string{"=" + string(framed(1, avroLong(42)))}) {
		t.Errorf("%q", got)
	}
}

// bytesByTopic are the output records, key=value, as the bytes they are.
func bytesByTopic(t *testing.T, stdout []string) map[string][]string {
	t.Helper()
	topics := map[string][]string{}
	for _, line := range stdout {
		var r struct {
			Topic      string
			Key, Value json.RawMessage
		}
		if line == "" {
			continue
		}
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		text := func(m json.RawMessage) string {
			var s string
			var b struct{ Base64 []byte }
			switch {
			case string(m) == "null" || len(m) == 0:
				return ""
			case json.Unmarshal(m, &s) == nil:
				return s
			case json.Unmarshal(m, &b) == nil && b.Base64 != nil:
				return string(b.Base64)
			}
			return string(m)
		}
		topics[r.Topic] = append(topics[r.Topic], text(r.Key)+"="+text(r.Value))
	}
	return topics
}

func sameJSON(t *testing.T, a, b string) bool {
	t.Helper()
	var values [2]any
	for i, text := range []string{a, b} {
		if err := json.Unmarshal([]byte(text), &values[i]); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
	}
	return reflect.DeepEqual(values[0], values[1])
}

const countingApp = `
apiVersion: kaspr.io/v1alpha1
kind: KasprAgent
metadata: {name: numbers, labels: {kaspr.io/app: registry}}
spec:
  input: {topic: {name: reg-in, valueSerializer: avro}}
  processors: {pipeline: [n], operations: [{name: n, map: {python: "def n(v): return v['n'] * (-1 if 'unit' in v else 1)"}}]}
  output: {topics: [{name: reg-out, keySelector: {python: "def key(v): return context['event'].key"}, valueSerializer: avro, valueSchema: {text: '"long"'}}]}
`

// A registry that is killed must hold up what needs it and nothing else, whatever else dies meanwhile; and once it is back, every record
// must have come out once, in its partition's order.
func TestRegistryIsKilled(t *testing.T) {
	registry := realregistry.New(t, realregistry.Options{})
	c := newSchemaClient(t, registry)
	v1 := c.register("reg-in-value", sr.Schema{Schema: `{"type": "record", "name": "N", "fields": [{"name": "n", "type": "long"}]}`})
	v2 := c.register("reg-in-value", sr.Schema{Schema: `{"type": "record", "name": "N", "fields": [{"name": "n", "type": "long"}, {"name": "unit", "type": "string", "default": "s"}]}`})
	k := newKafka(t, realkafka.Shared(t))
	k.topic("reg-in", 2)
	k.topic("reg-out", 2)
	manual, err := kgo.NewClient(kgo.SeedBrokers(k.broker.Addr()), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err != nil {
		t.Fatal(err)
	}
	defer manual.Close()
	sent := 0
	produce := func(partition int32, n, id int, unit ...string) {
		t.Helper()
		for range n {
			sent++
			value := framed(id, avroLong(int64(sent)), strings.Join(unit, ""))
			manual.Produce(t.Context(), &kgo.Record{Topic: "reg-in", Partition: partition, Key: fmt.Appendf(nil, "p%d", partition), Value: value}, func(_ *kgo.Record, err error) {
				if err != nil {
					t.Error(err)
				}
			})
		}
		if err := manual.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	settings := map[string]string{"schemaRegistryUrl": registry.URL(), "processingGuarantee": "exactly_once"}
	a := k.engine(countingApp, settings)
	produce(0, 500, v1)
	produce(1, 500, v1)
	if got := k.outputs(time.Minute, count(1000), "reg-out"); len(got) != 1000 {
		t.Fatalf("%d of 1000 records came out with a registry", len(got))
	}
	registry.Kill()
	produce(1, 500, v2, avroText("kg")) // a schema nobody has seen
	produce(1, 500, v1)                 // behind it
	produce(0, 1000, v1)
	a.waitLog("the schema registry does not answer")
	if got := k.outputs(time.Minute, count(2000), "reg-out"); len(got) != 2000 {
		t.Fatalf("%d of the 2000 records that need no registry came out", len(got))
	}
	if got := k.outputs(time.Minute, nothingBehind(2000), "reg-out"); len(got) != 2000 {
		t.Fatalf("%d records came out without their schema", len(got)-2000)
	}
	if err := a.Cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	b := k.engine(countingApp, settings) // knows no schema at all
	produce(0, 500, v1)
	b.waitLog("the schema registry does not answer")
	if err := registry.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	got := k.outputs(2*time.Minute, count(sent), "reg-out")
	again := k.outputs(time.Minute, nothingBehind(sent), "reg-out")
	if len(again) != sent {
		t.Errorf("%d records came out, %d went in", len(again), sent)
	}
	out := c.latest("reg-out-value")
	seen, last := map[int64]bool{}, map[string]int64{}
	for _, r := range again {
		if len(r.Value) < 6 || string(r.Value[:5]) != string(framed(out)) {
			t.Fatalf("%x is not of schema %d", r.Value, out)
		}
		n, _ := binary.Varint(r.Value[5:])
		newer := n < 0
		n = max(n, -n)
		if seen[n] || n <= last[string(r.Key)] {
			t.Fatalf("%d came twice, or behind %d", n, last[string(r.Key)])
		}
		if newer != (n > 1000 && n <= 1500) {
			t.Fatalf("%d was read by another schema than its own", n)
		}
		seen[n], last[string(r.Key)] = true, n
	}
	if len(got) != sent || len(seen) != sent {
		t.Errorf("%d different records of %d", len(seen), sent)
	}
	if code := b.stop(); code != 0 {
		t.Errorf("exit code %d after SIGTERM", code)
	}
	k.committed("registry-app", "reg-in")
}
