package http

import (
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	nethttp "net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

type fakeConsole struct{}

func (fakeConsole) Overview() any {
	return map[string]string{"app": "</script><script>alert(1)</script>"}
}
func (fakeConsole) Failures() any { return []int{} }

func (fakeConsole) Scheduled(crons bool, after string) (any, error) {
	if after == "early" {
		return nil, ErrNotReady
	}
	return []any{crons, after}, nil
}

func (fakeConsole) Table(_ context.Context, name, search, from string) (any, error) {
	if name != "users" {
		return nil, fmt.Errorf("table %q: %w", name, ErrUnknown)
	}
	return []string{search, from}, nil
}

func (fakeConsole) Topic(_ context.Context, name string, from map[int32]int64) (any, error) {
	if name == "gone" {
		return nil, fmt.Errorf("no broker")
	}
	return from, nil
}

func serveConsole(t *testing.T, who, token string) *AdminServer {
	t.Helper()
	s, err := ListenAdmin(t.Context(), AdminOptions{
		Addr: "127.0.0.1:0", Token: token, Admin: &fakeAdmin{}, Log: slog.New(slog.DiscardHandler), Console: fakeConsole{}, ConsoleFor: who,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close(context.Background()) })
	return s
}

func TestConsole(t *testing.T) {
	s := serveConsole(t, "loopback", "")
	for path, want := range map[string]struct {
		code int
		body string
	}{
		"/console/":              {200, `<script type="module" src="app.js">`},
		"/console/app.css":       {200, `light-dark(`},
		"/console/api/overview":  {200, `\u003c/script\u003e`},
		"/console/api/failures":  {200, `[]`},
		"/console/api/scheduled": {400, `messages or crons`},
		"/console/api/scheduled?list=messages&after=early":  {503, `starting`},
		"/console/api/scheduled?list=messages":              {200, `[false,""]`},
		"/console/api/scheduled?list=crons&after=a%26b":     {200, `[true,"a\u0026b"]`},
		"/console/api/table?name=users&search=a%26b&from=x": {200, `["a\u0026b","x"]`},
		"/console/api/table?name=other":                     {404, `table \"other\"`},
		"/console/api/topic?name=t&from=0:5,3:7":            {200, `{"0":5,"3":7}`},
		"/console/api/topic?name=t&from=0":                  {400, `such as 0:15`},
		"/console/api/topic?name=gone":                      {502, `no broker`},
		"/console/app.jsx":                                  {404, ``},
		"/console/../status":                                {404, ``},
		"/status":                                           {200, `status`},
	} {
		got := ask(t, s, "GET", path)
		if got.code != want.code || !strings.Contains(got.body, want.body) {
			t.Errorf("%s: %d %s, want %d with %s", path, got.code, got.body, want.code, want.body)
		}
		if !strings.HasPrefix(path, "/console/") || got.code == 404 {
			continue
		}
		if policy := got.header.Get("Content-Security-Policy"); !strings.HasPrefix(policy, "default-src 'none'; script-src 'self';") || strings.Contains(policy, "unsafe") {
			t.Errorf("%s: policy %q", path, policy)
		}
		if got.header.Get("X-Content-Type-Options") != "nosniff" || got.header.Get("Cache-Control") != "no-store" || got.header.Get("Access-Control-Allow-Origin") != "" {
			t.Errorf("%s: headers %v", path, got.header)
		}
	}
	if got := ask(t, s, "POST", "/console/api/overview"); got.code != 405 {
		t.Errorf("POST: %d", got.code)
	}
}

// Records and tables must not be read from other machines, nor by a page elsewhere whose name was made to resolve to this one.
func TestConsoleIsLocal(t *testing.T) {
	for _, c := range []struct {
		who, token string
		codes      [2]int
	}{
		{"loopback", "", [2]int{200, 403}},
		{"all", "", [2]int{200, 403}},
		{"off", "", [2]int{404, 403}},
		{"", "", [2]int{404, 403}},
		{"loopback", "secret", [2]int{200, 403}},
		{"all", "secret", [2]int{200, 200}},
	} {
		s := serveConsole(t, c.who, c.token)
		for i, host := range []string{"localhost:6065", "evil.example"} {
			req, err := nethttp.NewRequestWithContext(t.Context(), nethttp.MethodGet, "http://"+s.Addr()+"/console/api/failures", nil)
			if err != nil {
				t.Fatal(err)
			}
			req.Host = host
			req.Header.Set("Authorization", "Bearer "+c.token)
			resp, err := nethttp.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode != c.codes[i] {
				t.Errorf("console %q, token %q, host %s: %d, want %d", c.who, c.token, host, resp.StatusCode, c.codes[i])
			}
		}
	}
	for host, want := range map[string]bool{
		"localhost": true, "localhost:1": true, "127.0.0.1:6065": true, "127.9.9.9": true, "[::1]:6065": true, "[::1]": true,
		"": false, "10.0.0.1:6065": false, "localhost.evil.example": false, "127.0.0.1.evil.example:80": false, "0.0.0.0": false,
	} {
		if local(host) != want {
			t.Errorf("host %q is this machine: %v", host, !want)
		}
	}
}

// With a token on the admin server nothing of the app may be seen without it; the page itself comes, and asks for it.
func TestConsoleToken(t *testing.T) {
	s := serveConsole(t, "all", "secret")
	for path, want := range map[string]int{
		"/console/": 200, "/console/app.js": 200, "/console/app.css": 200,
		"/console/api/overview": 401, "/console/api/failures": 401, "/console/api/scheduled?list=crons": 401, "/console/api/table?name=users": 401,
		"/console/api/topic?name=t": 401, "/status": 401, "/console/api/": 401,
	} {
		if got := ask(t, s, "GET", path); got.code != want {
			t.Errorf("%s: %d, want %d", path, got.code, want)
		}
	}
}

// Browsers send the origin with the page's script: without it there is no page. Pages of elsewhere stay out, whatever they name themselves.
func TestConsoleOrigin(t *testing.T) {
	s := serveConsole(t, "loopback", "")
	for origin, want := range map[string]int{
		"": 200, "http://" + s.Addr(): 200, "https://" + s.Addr(): 403, "http://evil.example": 403, "null": 403, "http://" + s.Addr() + ".evil.example": 403,
	} {
		for _, path := range []string{"/console/app.js", "/console/api/overview"} {
			if code, text := status(t, nethttp.DefaultClient, "http://"+s.Addr()+path, "Origin", origin); code != want {
				t.Errorf("%s from %q: %d %s, want %d", path, origin, code, text, want)
			}
		}
	}
}

func FuzzOffsets(f *testing.F) {
	f.Add("0:15,3:7")
	f.Add("1:")
	f.Add("-1:2")
	f.Fuzz(func(t *testing.T, text string) {
		offsets, err := parseOffsets(text)
		if len(offsets) > offsetsMax {
			t.Errorf("%d partitions", len(offsets))
		}
		for n, at := range offsets {
			if err != nil || n < 0 || at < 0 {
				t.Errorf("%q: partition %d, offset %d, %v", text, n, at, err)
			}
		}
	})
}

// The page may not make markup of data, nor need anything from elsewhere.
func TestConsoleSource(t *testing.T) {
	forbidden := regexp.MustCompile(`innerHTML|outerHTML|insertAdjacentHTML|document\.write|dangerouslySet|eval\(|new Function|https?://`)
	err := filepath.WalkDir("console/src", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		if found := forbidden.Find(text); found != nil {
			t.Errorf("%s has %s", path, found)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	page, err := dist.ReadFile("console/dist/index.html")
	if err != nil || regexp.MustCompile(`<script[^>]*>[^<]|style=| on[a-z]+=`).Match(page) {
		t.Errorf("the page has a script or style of its own: %s %v", page, err)
	}
}

// What is served must be what the source says. Without node and its packages (make console installs them) nobody can tell.
func TestConsoleIsBuilt(t *testing.T) {
	node, err := exec.LookPath("node")
	if _, missing := os.Stat("console/node_modules"); err != nil || missing != nil {
		t.Skip("node, or http/console/node_modules, is not here: make console")
	}
	built := t.TempDir()
	cmd := exec.CommandContext(t.Context(), node, "build.js", built)
	cmd.Dir = "console"
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, f := range consoleFiles {
		got, err := dist.ReadFile("console/dist/" + f.name)
		want, err2 := os.ReadFile(filepath.Join(built, f.name))
		if err != nil || err2 != nil || string(got) != string(want) {
			t.Errorf("http/console/dist/%s is not what the source makes: make console (%v, %v)", f.name, err, err2)
		}
	}
}
