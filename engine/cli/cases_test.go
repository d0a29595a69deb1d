package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Users' own cases: one that holds must pass, and each way in which one can fail must be told, or tests say nothing.
func TestTestCommand(t *testing.T) {
	dir := t.TempDir()
	files := map[string]string{
		"app/hello.yaml":                      greeter,
		"app/tests/right/case.json":           `{"about": "greets"}`,
		"app/tests/right/input-names.jsonl":   "\"Ada\"\n{\"key\": \"k\", \"value\": \"Bob\"}\n",
		"app/tests/right/expected.jsonl":      "{\"topic\": \"greetings\", \"key\": null, \"value\": \"Hello, Ada\"}\n{\"topic\": \"greetings\", \"value\": \"Hello, Bob\"}\n",
		"app/tests/wrong/case.json":           `{"about": "another value"}`,
		"app/tests/wrong/input-names.jsonl":   "\"Ada\"\n",
		"app/tests/wrong/expected.jsonl":      "{\"topic\": \"greetings\", \"value\": \"Goodbye, Ada\"}\n",
		"app/tests/more/case.json":            `{"about": "an output too many"}`,
		"app/tests/more/input-names.jsonl":    "\"Ada\"\n",
		"app/tests/more/expected.jsonl":       "",
		"app/tests/fails/case.json":           `{"about": "a record fails, which is expected, but not said so", "stderr": ["TypeError", "NoSuchText"]}`,
		"app/tests/fails/input-names.jsonl":   "1\n",
		"app/tests/fails/expected.jsonl":      "",
		"app/tests/failing/case.json":         `{"about": "a record fails, as expected", "exit": 1, "ignore": ["demo-app-hello-dead-letter"], "stderr": ["TypeError"]}`,
		"app/tests/failing/input-names.jsonl": "1\n",
		"app/tests/failing/expected.jsonl":    "",
		"app/tests/nothing/case.json":         `{"about": "without an expectation"}`,
		"app/tests/misspelt/case.json":        `{"abuot": "?"}`,
		"cases/elsewhere/case.json":           `{"about": "manifests of another folder", "manifests": ["../../app/hello.yaml"], "set": {"valueSerializer": "raw"}, "exit": 0}`,
		"cases/elsewhere/input-names.jsonl":   "",
		"cases/elsewhere/expected.jsonl":      "",
		"cases/none/case.json":                `{"about": "no manifests"}`,
		"empty/readme":                        "",
		"view/view.yaml":                      asksLeader,
		"view/case.json":                      `{"about": "requests"}`,
		"view/requests.jsonl":                 "{\"path\": \"/leader\"}\n{\"path\": \"/other\"}\n",
		"view/responses.jsonl":                "{\"status\": 200, \"body\": true}\n{\"status\": 200}\n",
	}
	for file, text := range files {
		file = filepath.Join(dir, file)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	code, out, stderr := kaspr(t, dir, nil, "test", "app", "cases", "view")
	if code != exitFailed || stderr != "" {
		t.Errorf("exit code %d, standard error:\n%s", code, stderr)
	}
	said := map[string]string{} // of each case
	var of string
	for line := range strings.Lines(out) {
		if name, _, ok := strings.Cut(line, " ("); ok && !strings.HasPrefix(line, " ") {
			of = strings.Join(strings.Fields(name), " ")
		}
		said[of] += line
	}
	for name, texts := range map[string][]string{
		"ok app/tests/right":      nil,
		"ok app/tests/failing":    nil,
		"ok cases/elsewhere":      nil,
		"FAIL app/tests/wrong":    {"topic greetings: record 1: value Hello, Ada, want Goodbye, Ada", `"value":"Hello, Ada"`},
		"FAIL app/tests/more":     {"topic greetings: 1 records, want 0"},
		"FAIL app/tests/fails":    {"exit code 1, want 0", `standard error lacks "NoSuchText"`, "topic demo-app-hello-dead-letter: 1 records, want 0", "standard error:", "TypeError"},
		"FAIL app/tests/nothing":  {"expected.jsonl: no such file"},
		"FAIL app/tests/misspelt": {`unknown field "abuot"`},
		"FAIL cases/none":         {"no manifests"},
		"FAIL view":               {"response 2, status: 404, want 200"},
	} {
		text, ok := said[name]
		if !ok {
			t.Errorf("no line begins with %q", name)
		}
		for _, x := range texts {
			if !strings.Contains(text, x) {
				t.Errorf("%s: lacks %q:\n%s", name, x, text)
			}
		}
	}
	if !strings.HasSuffix(out, "10 cases, 7 failed\n") {
		t.Errorf("the end is %q", out[max(0, len(out)-60):])
	}
	if t.Failed() {
		t.Logf("output:\n%s", out)
	}
	if code, out, stderr := kaspr(t, dir, nil, "test", "app", "--run", "right$"); code != exitOK || !strings.HasSuffix(out, "1 cases, 0 failed\n") {
		t.Errorf("exit code %d\n%s%s", code, out, stderr)
	}
	for _, args := range [][]string{{"empty"}, {"nowhere"}, {"app", "--run", "("}, {"app", "--run", "nothing like it"}} {
		if code, out, stderr := kaspr(t, dir, nil, append([]string{"test"}, args...)...); code != exitFailed || out != "" || stderr == "" {
			t.Errorf("kaspr test %v: exit code %d\n%s%s", args, code, out, stderr)
		}
	}
}

// The test of an example is what users copy.
func TestExampleIsTested(t *testing.T) {
	if code, out, stderr := kaspr(t, root, nil, "test", "examples"); code != exitOK || !strings.Contains(out, "ok   examples/hello/tests/greeting") {
		t.Errorf("exit code %d\n%s%s", code, out, stderr)
	}
}
