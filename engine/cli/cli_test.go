package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"kaspr.io/kaspr/pyguest"
)

// Scripts depend on what goes where and on the exit code: 0 well, 1 the answer is no, 2 the command line is wrong.
func TestCommandLine(t *testing.T) {
	good, err := filepath.Abs("../../examples/hello")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for file, text := range map[string]string{
		"bad/bad.yaml":  "apiVersion: kaspr.io/v1alpha1\nkind: KasprAgnt\nmetadata: {name: x}\n",
		"misspelt.yaml": "definitionDir: " + good + "\ncommitEvry: 5\n",
	} {
		path := filepath.Join(dir, file)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for args, want := range map[string]struct {
		code     int
		out, err []string
	}{
		"version":                {exitOK, []string{"kaspr test\n", "guest " + pyguest.BuildID()}, nil},
		"completion bash":        {exitOK, []string{"complete -o default", "kaspr"}, nil},
		"completion zsh":         {exitOK, []string{"#compdef kaspr"}, nil},
		"completion fish":        {exitOK, []string{"complete -c kaspr"}, nil},
		"__complete va":          {exitOK, []string{"validate\t"}, nil},
		"--help":                 {exitOK, []string{"validate", "dev", "run", "health", "version", "completion"}, nil},
		"validate " + good:       {exitOK, nil, []string{"no errors"}},
		"validate bad":           {exitFailed, nil, []string{"bad.yaml:2:7: error", `did you mean "KasprAgent"?`}},
		"validate nowhere":       {exitFailed, nil, []string{"nowhere"}},
		"health --set webPort=0": {exitOK, nil, []string{"no HTTP server"}},
		"health x":               {exitUsage, nil, []string{"unknown command"}},
		"validate":               {exitUsage, nil, []string{"requires at least 1 arg"}},
		"validat":                {exitUsage, nil, []string{"unknown command"}},
		"dev bad --drain":        {exitFailed, nil, []string{"KasprAgnt"}},
		"dev " + good + " -x":    {exitUsage, nil, []string{"unknown shorthand flag"}},
		// All that is wrong with the settings is said, although without them there are no manifests either.
		"run --config gone.yaml":     {exitFailed, nil, []string{"gone.yaml", "no such file"}},
		"run --config misspelt.yaml": {exitFailed, nil, []string{`"definitionsDir"`, `"commitEvery"`, "misspelt.yaml:1", "misspelt.yaml:2"}},
	} {
		t.Run(args, func(t *testing.T) {
			code, out, stderr := kaspr(t, dir, nil, strings.Fields(args)...)
			if code != want.code {
				t.Errorf("exit code %d, want %d", code, want.code)
			}
			if len(want.out) == 0 && out != "" {
				t.Errorf("standard output is for results, and has %q", out)
			}
			for _, text := range want.out {
				if !strings.Contains(out, text) {
					t.Errorf("standard output lacks %q:\n%s", text, out)
				}
			}
			for _, text := range want.err {
				if !strings.Contains(stderr, text) {
					t.Errorf("standard error lacks %q:\n%s", text, stderr)
				}
			}
		})
	}
}

// A process that is told to stop while it waits for a broker has nothing to complain of: that is how a deployment is taken back.
func TestStopBeforeTheBrokerIsThere(t *testing.T) {
	manifests, err := filepath.Abs(root + "/examples/hello")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "settings.conf")
	settings := "definitionsDir: " + manifests + "\ndataDir: " + dir + "\nwebPort: 0\nkafkaBootstrapServers: 127.0.0.1:" + freePort(t) + "\n"
	if err := os.WriteFile(file, []byte(settings), 0o600); err != nil {
		t.Fatal(err)
	}
	app := start(t, nil, "run", "--config", file)
	for began := time.Now(); !strings.Contains(app.errs.String(), "no broker reached"); time.Sleep(20 * time.Millisecond) {
		if time.Since(began) > time.Minute {
			t.Fatalf("it does not say that there is no broker:\n%s", &app.errs)
		}
	}
	if code := app.stop(); code != exitOK || strings.Contains(app.errs.String(), "context canceled") {
		t.Errorf("exit code %d:\n%s", code, &app.errs)
	}
}
