package cli

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"kaspr.io/kaspr/engine/dev"
)

const manyKeys = `
apiVersion: kaspr.io/v1alpha1
kind: KasprTable
metadata: {name: seen, labels: {kaspr.io/app: demo}}
spec: {name: seen, partitionBy: key}
---
apiVersion: kaspr.io/v1alpha1
kind: KasprTable
metadata: {name: bytes, labels: {kaspr.io/app: demo}}
spec: {name: bytes, keySerializer: raw, valueSerializer: raw}
---
apiVersion: kaspr.io/v1alpha1
kind: KasprAgent
metadata: {name: fill, labels: {kaspr.io/app: demo}}
spec:
  input: {topic: {name: numbers}, declare: true}
  processors:
    pipeline: [fill]
    operations:
      - name: fill
        tables: [{name: seen, paramName: seen}, {name: bytes, paramName: bytes}]
        map:
          python: |
            def fill(n, seen, bytes):
                for i in range(n):
                    seen["k%05d" % i] = {"n": i}
                seen[7] = "number"
                bytes[b"text"] = b"\\xff"
                bytes[b"\\xfe"] = b"plain"
`

// Who looks for a value asks kaspr tables: over all partitions, in pages, with the token, and not at all without it.
func TestTables(t *testing.T) {
	kafka, err := dev.NewBroker(1)
	if err != nil {
		t.Fatal(err)
	}
	defer kafka.Close()
	dir := t.TempDir()
	admin := "127.0.0.1:" + freePort(t)
	settings := filepath.Join(dir, "settings")
	for file, text := range map[string]string{
		"app.yaml": strings.ReplaceAll(manyKeys, `\\`, `\`),
		"settings": "definitionsDir: " + dir + "\ndataDir: " + dir + "\ntopicPartitions: 3\ntopicReplicationFactor: 1\nwebPort: " + freePort(t) +
			"\nadminListen: " + admin + "\nadminToken: secret\nkafkaBootstrapServers: " + strings.Join(kafka.Addrs(), ",") + "\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	app := start(t, nil, "run", "--config", settings)
	ask := func(args ...string) (int, string, string) {
		t.Helper()
		return kaspr(t, dir, nil, append(append([]string{"tables"}, args...), "--config", settings)...)
	}
	for began := time.Now(); ; time.Sleep(50 * time.Millisecond) { // the engine makes the topic
		err := dev.Feed(kafka.Addrs(), nil, []dev.Input{{Topic: "numbers", File: "-"}}, strings.NewReader("2500\n"))
		if err == nil {
			break
		}
		if time.Since(began) > time.Minute {
			t.Fatalf("%v\n%s", err, &app.errs)
		}
	}
	for began := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		if code, out, _ := ask("get", "seen", "7", "--key-json"); code == exitOK {
			if out != "\"number\"\n" {
				t.Errorf("the value is %q", out)
			}
			break
		}
		if time.Since(began) > time.Minute {
			t.Fatalf("no value\n%s", &app.errs)
		}
	}
	for began := time.Now(); ; time.Sleep(50 * time.Millisecond) { // what goes to other partitions is there later
		if _, all, _ := ask("scan", "seen", "--limit", "0"); strings.Count(all, "\n") == 2501 {
			break
		}
		if time.Since(began) > time.Minute {
			t.Fatalf("not all keys\n%s", &app.errs)
		}
	}
	for _, c := range []struct {
		args string
		code int
		out  string
		errs []string
	}{
		{"get seen k00042", exitOK, "{\"n\":42}\n", nil},
		{"get seen nobody", exitFailed, "", []string{"404", "key not found"}},
		{"get elsewhere k", exitFailed, "", []string{"404", "unknown table"}},
		{"get bytes text", exitOK, "{\"base64\":\"/w==\"}\n", nil},
		{"get seen k --set adminToken=wrong", exitFailed, "", []string{"401"}},
		{"get seen k00042 --set adminListen=127.0.0.1:1 --address " + admin, exitOK, "{\"n\":42}\n", nil},
		{"scan elsewhere", exitFailed, "", []string{"404", "unknown table"}},
		{"scan seen --after nowhere", exitFailed, "", []string{"400", "after"}},
		{"scan seen --limit -1", exitFailed, "", []string{"--limit"}},
	} {
		code, out, stderr := ask(strings.Fields(c.args)...)
		if code != c.code || strings.ReplaceAll(out, " ", "") != c.out {
			t.Errorf("kaspr tables %s: exit code %d, %q\n%s", c.args, code, out, stderr)
		}
		for _, text := range c.errs {
			if !strings.Contains(stderr, text) {
				t.Errorf("kaspr tables %s: standard error lacks %q: %s", c.args, text, stderr)
			}
		}
	}
	code, out, stderr := ask("scan", "bytes")
	if want := `"key":{"base64":"dGV4dA=="},"value":{"base64":"/w=="}}`; code != exitOK || !strings.Contains(out, want) || !strings.Contains(out, `"key":{"base64":"/g=="},"value":{"base64":"cGxhaW4="}}`) {
		t.Errorf("scan of raw bytes: exit code %d\n%s%s", code, out, stderr)
	}

	code, all, stderr := ask("scan", "seen", "--limit", "0")
	lines := strings.Split(strings.TrimSuffix(all, "\n"), "\n")
	if code != exitOK || len(lines) != 2501 || stderr != "" {
		t.Fatalf("a scan of all: exit code %d, %d lines\n%s", code, len(lines), stderr)
	}
	for _, n := range []int{0, 1, 2} {
		if !strings.Contains(all, fmt.Sprintf(`{"partition":%d,`, n)) {
			t.Errorf("no entry of partition %d", n)
		}
	}
	sorted := slices.Clone(lines)
	slices.Sort(sorted)
	if len(slices.Compact(sorted)) != len(lines) {
		t.Error("an entry is there twice")
	}
	var paged string
	for after, pages := "", 0; ; pages++ {
		code, out, stderr := ask("scan", "seen", "--limit", "900", "--after", after)
		if code != exitOK || pages > 3 {
			t.Fatalf("page %d: exit code %d\n%s", pages, code, stderr)
		}
		paged += out
		_, next, more := strings.Cut(strings.TrimSpace(stderr), "there are more: --after ")
		if !more {
			break
		}
		after = next
	}
	if paged != all {
		t.Errorf("pages have %d bytes, all %d", len(paged), len(all))
	}
	if code := app.stop(); code != exitOK {
		t.Errorf("exit code %d\n%s", code, &app.errs)
	}
	if code, _, stderr := ask("get", "seen", "k00042"); code != exitFailed || !strings.Contains(stderr, admin) {
		t.Errorf("nobody runs: exit code %d, %s", code, stderr)
	}
	if code, _, stderr := ask("get", "seen", "k", "--set", "adminListen=off"); code != exitFailed || !strings.Contains(stderr, "adminListen") {
		t.Errorf("no admin server: exit code %d, %s", code, stderr)
	}
}
