package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// kaspr runs one command line in a directory and gives what it printed.
func kaspr(t *testing.T, dir string, environ []string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	t.Chdir(dir)
	var out, errs bytes.Buffer
	code = Main(context.Background(), "test", args, Streams{In: strings.NewReader(""), Out: &out, Err: &errs, Environ: environ})
	return code, out.String(), errs.String()
}

// Whoever wonders why an app behaves as it does asks here: each source must be named, the strongest must win, and no secret
// may show.
func TestConfigCommand(t *testing.T) {
	dir := t.TempDir()
	for file, text := range map[string]string{
		"apps/app.yaml":   "apiVersion: kaspr.io/v1alpha1\nkind: KasprApp\nmetadata: {name: shop}\nspec:\n  config:\n    topicPartitions: 6\n    webPort: 7001\n    keySerializer: json\n",
		"apps/other.yaml": "apiVersion: kaspr.io/v1alpha1\nkind: KasprApp\nmetadata: {name: bank}\nspec:\n  config: {topicPartitions: 12}\n",
		"kaspr.yaml":      "definitionsDir: apps\nwebPort: 7002\ncommitEvery: 5\n",
	} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, file)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	environ := []string{"K_WEB_PORT=7003", "KASPR_COMMIT_EVERY=6", "K_KAFKA_AUTH_PASSWORD=hunter2", "K_KAFKA_SECURITY_PROTOCOL=SASL_SSL", "K_KAFKA_AUTH_USERNAME=u"}
	code, out, stderr := kaspr(t, dir, environ, "config", "--config", "kaspr.yaml", "--app", "shop", "--set", "commitEvery=7", "--json")
	if code != exitOK || strings.Contains(out+stderr, "hunter2") {
		t.Errorf("exit %d\n%s", code, out+stderr)
	}
	var list []struct{ Key, Value, Effective, Source string }
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		t.Fatal(err)
	}
	got := map[string][2]string{}
	for _, e := range list {
		got[e.Key] = [2]string{e.Effective, e.Source}
	}
	for key, want := range map[string][2]string{
		"topicPartitions":          {"6", "KasprApp apps/app.yaml:6:22"},
		"keySerializer":            {"json", "KasprApp apps/app.yaml:8:20"},
		"webPort":                  {"7003", "environment K_WEB_PORT"},
		"commitEvery":              {"7", "flag commitEvery"},
		"definitionsDir":           {"apps", "file kaspr.yaml:1:17"},
		"valueSerializer":          {"json", "default"},
		"schedulerTopicPartitions": {"6", "default"},
		"kafkaAuthPassword":        {"***", "environment K_KAFKA_AUTH_PASSWORD"},
	} {
		if got[key] != want {
			t.Errorf("%s: %q, want %q", key, got[key], want)
		}
	}

	code, out, _ = kaspr(t, dir, nil, "config", "apps", "--app", "bank")
	if code != exitOK || !strings.Contains(out, "topicPartitions ") || !strings.Contains(out, "12 ") {
		t.Errorf("exit %d, as a table:\n%s", code, out)
	}
	if code, out, stderr = kaspr(t, dir, []string{"K_TOPIC_PARTITIONS=none"}, "config"); code != exitFailed || !strings.Contains(stderr, "K_TOPIC_PARTITIONS") || !strings.Contains(out, "topicPartitions") {
		t.Errorf("a wrong value, no manifests: exit %d, %s", code, stderr)
	}
}

// The printed schema must be the one in the repository, and a misspelt kind must not give something else.
func TestSchemaCommand(t *testing.T) {
	want, err := os.ReadFile("../../schemas/kaspr.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	crd, err := os.ReadFile("../../schemas/crds/kaspr.io_kasprjoins.yaml")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if code, out, stderr := kaspr(t, dir, nil, "schema"); code != exitOK || out != string(want) {
		t.Errorf("exit %d, %d bytes, %s", code, len(out), stderr)
	}
	for _, word := range []string{"KasprJoin", "join", "kasprJOIN"} {
		code, out, stderr := kaspr(t, dir, nil, "schema", "--crd", word)
		if code != exitOK || !strings.HasSuffix(string(crd), "\n"+out) {
			t.Errorf("%s: exit %d, %s", word, code, stderr)
		}
	}
	code, out, _ := kaspr(t, dir, nil, "schema", "--crd")
	if code != exitOK || strings.Count(out, "kind: CustomResourceDefinition") != 6 || strings.Count(out, "\n---\n") != 5 {
		t.Errorf("all CRDs: exit %d\n%s", code, out)
	}
	if code, out, _ := kaspr(t, dir, nil, "schema", "definitions"); code != exitOK || !strings.Contains(out, `"value_serializer"`) {
		t.Errorf("definitions: exit %d\n%s", code, out)
	}
	if code, out, stderr := kaspr(t, dir, nil, "schema", "agnet"); code != exitFailed || out != "" || !strings.Contains(stderr, "agnet") {
		t.Errorf("a kind there is not: exit %d, %s", code, stderr)
	}
}
