package cli

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"kaspr.io/kaspr/engine/broker"
	"kaspr.io/kaspr/engine/dev"
)

// copying is a KasprApp with an agent that divides 6 by what it reads, and a table, so that it has something to keep.
func copying(app, config string) string {
	return fmt.Sprintf(`
apiVersion: kaspr.io/v1alpha1
kind: KasprApp
metadata: {name: %[1]s}
spec:
  bootstrapServers: kafka:9092
  config: {%[2]s}
---
apiVersion: kaspr.io/v1alpha1
kind: KasprTable
metadata: {name: seen, labels: {kaspr.io/app: %[1]s}}
spec: {name: seen}
---
apiVersion: kaspr.io/v1alpha1
kind: KasprAgent
metadata: {name: divide, labels: {kaspr.io/app: %[1]s}}
spec:
  input: {declare: true, topic: {name: %[1]s-in}}
  onError: stop
  processors:
    pipeline: [divide]
    operations:
      - name: divide
        tables: [{name: seen, paramName: seen}]
        map:
          python: |
            def divide(n, seen):
                seen["last"] = n
                return 6 // n
  output: {topics: [{name: %[1]s-out, declare: true}]}
`, app, config)
}

// Two apps in one process must not take each other's port, name or files without a word: the error names both.
func TestAppsThatClash(t *testing.T) {
	for name, c := range map[string]struct {
		one, two string
		args     []string
		want     []string
	}{
		"default ports": {"", "", nil, []string{`app.yaml:2:1: error C005: apps "one" and "two" run in one process and have the same webPort 6065`}},
		"same port":     {"webPort: 7001", "webPort: 7001", nil, []string{`"one" and "two"`, "webPort 7001"}},
		"process's":     {"webPort: 7001", "webPort: 7002", []string{"--set", "webPort=7003"}, []string{`"one" and "two"`, "webPort 7003"}},
		"id":            {"webPort: 7001", "webPort: 7002", []string{"--set", "appName=x"}, []string{`"one" and "two"`, `application id "x"`}},
		"admin server":  {"webPort: 7001", "webPort: 7002", []string{"--set", "adminListen=127.0.0.1:7003"}, []string{`"one" and "two"`, "adminListen 127.0.0.1:7003"}},
		"files":         {"webPort: 7001, tableDir: t", "webPort: 7002, tableDir: t", nil, []string{`"one" and "two"`, "tableDir t"}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for app, config := range map[string]string{"one": c.one, "two": c.two} {
				if err := os.MkdirAll(filepath.Join(dir, "apps", app), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(filepath.Join(dir, "apps", app, "app.yaml"), []byte(copying(app, config)), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			code, _, stderr := kaspr(t, dir, nil, append([]string{"run", "--set", "definitionsDir=apps"}, c.args...)...)
			if code != exitFailed {
				t.Errorf("exit code %d", code)
			}
			for _, text := range c.want {
				if !strings.Contains(stderr, text) {
					t.Errorf("standard error lacks %q:\n%s", text, stderr)
				}
			}
		})
	}
}

// Definition files name no app: with several they would silently be part of each.
func TestDefinitionFilesBesideSeveralApps(t *testing.T) {
	dir := t.TempDir()
	text := copying("one", "") + "---" + copying("two", "")
	for file, text := range map[string]string{"apps.yaml": text, "tables.yaml": "tables: [{name: more}]\n"} {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	code, _, stderr := kaspr(t, dir, nil, "run", "--set", "definitionsDir=.")
	if code != exitFailed || !strings.Contains(stderr, "tables.yaml:1") || !strings.Contains(stderr, "one, two") || !strings.Contains(stderr, "--app") {
		t.Errorf("exit code %d:\n%s", code, stderr)
	}
}

// Several apps of one process: each must serve on its own port and keep its own files, the process is ready when all are, and one that stops
// must not stop the others, nor go unseen.
func TestRunSeveralApps(t *testing.T) {
	kafka, err := dev.NewBroker(1)
	if err != nil {
		t.Fatal(err)
	}
	defer kafka.Close()
	dir := t.TempDir()
	ports := map[string]string{"one": freePort(t), "two": freePort(t)}
	var manifests string
	for app, port := range ports {
		manifests += "---" + copying(app, "topicPartitions: 1, topicReplicationFactor: 1, webPort: "+port)
	}
	for file, text := range map[string]string{
		"apps.yaml": manifests,
		"settings":  "definitionsDir: " + dir + "\ndataDir: " + dir + "\nwebHost: W\nkafkaBootstrapServers: " + strings.Join(kafka.Addrs(), ",") + "\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	settings := filepath.Join(dir, "settings")
	both := start(t, nil, "run", "--config", settings)
	at := func(app, path string) (int, string) { return get(t, "http://127.0.0.1:"+ports[app]+path) }
	for app := range ports {
		both.until("/readyz of "+app, func() bool { code, _ := at(app, "/readyz"); return code == http.StatusOK })
	}
	if code, _, stderr := kaspr(t, dir, nil, "health", "--ready", "--config", settings); code != exitOK {
		t.Errorf("kaspr health --ready: exit code %d\n%s", code, stderr)
	}
	admin, err := broker.NewAdmin(broker.Options{Brokers: kafka.Addrs(), ClientID: "test"})
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	feed := func(topic, lines string) {
		t.Helper()
		if err := dev.Feed(kafka.Addrs(), nil, []dev.Input{{Topic: topic, File: "-"}}, strings.NewReader(lines)); err != nil {
			t.Fatal(err)
		}
	}
	sent := func(app string, n int) func() bool {
		series := fmt.Sprintf(`kaspr_agent_outputs_total{agent="divide",app_name="%s-app",worker_name="W"} %d`, app, n)
		return func() bool { _, text := at(app, "/metrics"); return strings.Contains(text, series) }
	}
	feed("one-in", "1\n2\n")
	feed("two-in", "3\n")
	both.until("outputs of one", sent("one", 2))
	both.until("outputs of two", sent("two", 1))
	for app := range ports {
		if _, err := os.Stat(filepath.Join(dir, "tables", app+"-app", "seen")); err != nil {
			t.Errorf("the stores of %s: %v", app, err)
		}
	}

	feed("two-in", "0\n")
	both.until("/readyz of one that tells of two", func() bool {
		code, text := at("one", "/readyz")
		return code == http.StatusServiceUnavailable && strings.Contains(text, `app \"two\" of this process has stopped`)
	})
	if code, text := at("one", "/healthz"); code != http.StatusOK {
		t.Errorf("/healthz of one is %d: %s", code, text)
	}
	feed("one-in", "3\n")
	both.until("outputs of one, which goes on", sent("one", 3))
	for _, args := range [][]string{{"health"}, {"health", "--ready"}} {
		if code, _, stderr := kaspr(t, dir, nil, append(args, "--config", settings)...); code != exitFailed || !strings.Contains(stderr, `app "two"`) {
			t.Errorf("kaspr %v: exit code %d\n%s", args, code, stderr)
		}
	}
	if code := both.stop(); code != exitFailed {
		t.Errorf("exit code %d, though an app has failed", code)
	}
	for _, text := range []string{`app "two": `, "ZeroDivisionError", "the app has stopped"} {
		if !strings.Contains(both.errs.String(), text) {
			t.Errorf("standard error lacks %q:\n%s", text, &both.errs)
		}
	}
	if code, _, _ := kaspr(t, dir, nil, "health", "--app", "one", "--config", settings); code != exitFailed {
		t.Errorf("nobody runs, and kaspr health says %d", code)
	}
}

// The settings of each app of a directory can be looked at, as they are when the apps run together.
func TestConfigOfSeveralApps(t *testing.T) {
	dir := t.TempDir()
	text := copying("one", "webPort: 7001") + "---" + copying("two", "webPort: 7002")
	if err := os.WriteFile(filepath.Join(dir, "apps.yaml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	code, out, stderr := kaspr(t, dir, nil, "config", "--set", "storeMemoryMax=600MB", "--set", "tableDir=t", ".")
	if code != exitOK {
		t.Errorf("exit code %d:\n%s", code, stderr)
	}
	_, out, _ = strings.Cut(out, "APP one\n")
	one, two, ok := strings.Cut(out, "APP two\n")
	if !ok {
		t.Fatalf("the apps are not told apart:\n%s", out)
	}
	for part, want := range map[string][]string{one: {"7001", "t/one-app", "300000000  "}, two: {"7002", "t/two-app", "300000000  "}} {
		for _, text := range want {
			if !strings.Contains(part, text) {
				t.Errorf("no %q in:\n%s", text, part)
			}
		}
	}
	if code, out, _ := kaspr(t, dir, nil, "config", "--json", "--app", "two", "."); code != exitOK || !strings.Contains(out, `"app": "two"`) || strings.Contains(out, `"app": "one"`) {
		t.Errorf("exit code %d:\n%s", code, out)
	}
}
