package cli

import (
	"context"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"kaspr.io/kaspr/engine/enginetest"
)

const slowView = counting + `
---
apiVersion: kaspr.io/v1alpha1
kind: KasprWebView
metadata: {name: slow, labels: {kaspr.io/app: demo}}
spec:
  request: {method: GET, path: /slow}
  processors:
    pipeline: [spin]
    operations:
      - name: spin
        map:
          python: |
            def spin(request):
                while True:
                    pass
---
apiVersion: kaspr.io/v1alpha1
kind: KasprWebView
metadata: {name: quick, labels: {kaspr.io/app: demo}}
spec:
  request: {method: GET, path: /quick}
  response: {contentType: application/json}
  processors:
    pipeline: [read]
    operations:
      - name: read
        tables: [{name: totals, paramName: totals}]
        map: {python: "def read(request, totals): return totals.get('all')"}
`

// A view that never ends must delay neither records nor other views, and requests beyond its queue must be turned away at once.
func TestSlowView(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "app.yaml"), []byte(slowView), 0o600); err != nil {
		t.Fatal(err)
	}
	port, admin := freePort(t), freePort(t)
	in, input := io.Pipe()
	var out, errs enginetest.Buffer
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan int, 1)
	args := []string{
		"dev", dir, "--input", "numbers=-", "--http", "--set", "webPort=" + port, "--set", "webInstances=1", "--set", "webQueueMax=1",
		"--set", "webDeadline=20s", "--set", "webTimeout=3s", "--set", "adminListen=127.0.0.1:" + admin,
	}
	go func() { ended <- Main(ctx, "test", args, Streams{In: in, Out: &out, Err: &errs}) }()
	base := "http://127.0.0.1:" + port
	until := func(what string, ok func() bool) {
		t.Helper()
		for began := time.Now(); !ok(); time.Sleep(20 * time.Millisecond) {
			if time.Since(began) > time.Minute {
				t.Fatalf("no %s\nstandard output:\n%s\nstandard error:\n%s", what, &out, &errs)
			}
		}
	}
	until("/readyz", func() bool { code, _ := get(t, base+"/readyz"); return code == http.StatusOK })

	var asking sync.WaitGroup
	var mu sync.Mutex
	refused, late := 0, 0
	for range 6 {
		asking.Go(func() {
			began := time.Now()
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, base+"/slow", nil)
			if err != nil {
				t.Error(err)
				return
			}
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			if resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") == "" {
				t.Errorf("status %d, Retry-After %q", resp.StatusCode, resp.Header.Get("Retry-After"))
			}
			mu.Lock()
			defer mu.Unlock()
			if time.Since(began) < 2*time.Second {
				refused++
			} else {
				late++
			}
		})
	}
	time.Sleep(100 * time.Millisecond)
	if _, err := io.WriteString(input, "1\n2\n"); err != nil {
		t.Fatal(err)
	}
	until("records beside a view that never ends", func() bool { return strings.Contains(out.String(), `"value":3`) })
	until("other views beside a view that never ends", func() bool { code, text := get(t, base+"/quick"); return code == 200 && text == "3" })
	for path, want := range map[string]string{
		"/table/totals/all/": "3", "/router/": `"demo-app-totals-changelog":[0]`, "/table/": `"name":"totals"`, "/router/totals/all/": ":" + port,
	} {
		if code, text := get(t, "http://127.0.0.1:"+admin+path); code != 200 || !strings.Contains(text, want) || strings.Contains(text, "@") {
			t.Errorf("%s: %d %s, want %s", path, code, text, want)
		}
		if code, _ := get(t, base+path); code == 200 {
			t.Errorf("%s is answered on the views' port", path)
		}
	}
	asking.Wait()
	if refused < 4 || late > 2 {
		t.Errorf("%d requests were turned away at once and %d after their time, want 4 and 2: one runs, one waits", refused, late)
	}
	until("counts", func() bool {
		_, text := get(t, base+"/metrics")
		return strings.Contains(text, `kaspr_view_refused_requests_total{app_name="demo-app",reason="queue",view="slow"`)
	})
	cancel()
	_ = input.Close() // ends the reader
	if code := <-ended; code != 0 {
		t.Errorf("exit code %d\n%s", code, &errs)
	}
}
