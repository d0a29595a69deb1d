package cli

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"kaspr.io/kaspr/engine/enginetest"
)

const greeter = `
apiVersion: kaspr.io/v1alpha1
kind: KasprAgent
metadata: {name: hello, labels: {kaspr.io/app: demo}}
spec:
  input: {topic: {name: names}}
  processors:
    pipeline: [greet]
    operations: [{name: greet, map: {python: "def greet(name): return 'Hello, ' + name"}}]
  output: {topics: [{name: greetings}]}
`

// kaspr dev takes changed manifests into use while its input stays open, says what is wrong with broken ones, and goes
// on after they are repaired.
func TestDevReloads(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "hello.yaml")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(greeter)
	in, input := io.Pipe()
	app := start(t, in, "dev", dir, "--input", "names=-")
	wait := func(b *enginetest.Buffer, text string) {
		t.Helper()
		for began := time.Now(); !strings.Contains(b.String(), text); time.Sleep(20 * time.Millisecond) {
			if time.Since(began) > time.Minute {
				t.Fatalf("no %q\nstandard output:\n%s\nstandard error:\n%s", text, &app.out, &app.errs)
			}
		}
	}
	say := func(line string) {
		t.Helper()
		if _, err := io.WriteString(input, line+"\n"); err != nil {
			t.Fatal(err)
		}
	}
	say(`"Ada"`)
	wait(&app.out, `"value":"Hello, Ada"`)
	write(strings.Replace(greeter, "Hello", "Goodbye", 1))
	wait(&app.errs, "reloading")
	say(`"Bob"`)
	wait(&app.out, `"value":"Goodbye, Bob"`)
	write(strings.Replace(greeter, "pipeline", "pipelin", 1))
	wait(&app.errs, `did you mean "pipeline"?`)
	say(`"Cleo"`)
	write(greeter)
	wait(&app.out, `"value":"Hello, Cleo"`)
	if code := app.stop(); code != exitOK {
		t.Errorf("exit code %d after a stop:\n%s", code, &app.errs)
	}
	_ = input.Close()
	if n := strings.Count(app.out.String(), "\n"); n != 3 {
		t.Errorf("%d output lines for 3 records:\n%s", n, &app.out)
	}
}

// Whoever misspells a topic must be told where the records went.
func TestDevInputNobodyReads(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "hello.yaml"), []byte(greeter), 0o600); err != nil {
		t.Fatal(err)
	}
	c := conformanceCase{stdin: `"Ada"`, Stderr: []string{`msg="no agent reads the topic of an --input"`, "topic=nams like=names"}}
	c.run(t, []string{"dev", dir, "--input", "nams=-", "--drain"})
}

// An agent whose code once took its time has its partition set aside, so as not to hold up the others; it must get the rest
// of its records all the same, also when nothing else is fetched that would wake the engine.
func TestSlowAgentIsFedAgain(t *testing.T) {
	manifest := strings.Replace(greeter, "def greet(name): return 'Hello, ' + name",
		`import time\ndef greet(name):\n  if name == '0': time.sleep(1.5)\n  return {'n': int(name)}`, 1)
	const n = 25_000 // more than one fetch
	var input strings.Builder
	for i := range n {
		fmt.Fprintf(&input, "\"%d\"\n", i)
	}
	lines, code := runDev(t, manifest, "names", input.String(), "--set", "queueRecordsMax=1000")
	if got := len(lines["greetings"]); code != exitOK || got != n {
		t.Errorf("%d of %d records came out, exit code %d", got, n, code)
	}
}
