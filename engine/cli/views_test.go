package cli

import (
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
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
	args := []string{
		"dev", dir, "--input", "numbers=-", "--http", "--set", "webPort=" + port, "--set", "webInstances=1", "--set", "webQueueMax=1",
		"--set", "webDeadline=20s", "--set", "webTimeout=3s", "--set", "adminListen=127.0.0.1:" + admin,
	}
	app := start(t, in, args...)
	base := "http://127.0.0.1:" + port
	app.until("/readyz", func() bool { code, _ := get(t, base+"/readyz"); return code == http.StatusOK })

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
	app.until("records beside a view that never ends", func() bool { return strings.Contains(app.out.String(), `"value":3`) })
	app.until("other views beside a view that never ends", func() bool { code, text := get(t, base+"/quick"); return code == 200 && text == "3" })
	for path, want := range map[string]string{
		"/table/totals/?limit=10": `"entries":[{"partition":0,"key":"all","value":3}],"name":"totals"}`, "/table/?limit=1": `{"tables":[{"name":"totals"`,
		"/table/totals/all/": "3", "/router/?limit=1": `{"routes":{"http`, "/router/": `"demo-app-totals-changelog":[0]`, "/table/": `[{"name":"totals","help":"sum of the numbers"}]`, "/router/totals/all/": ":" + port,
	} {
		if code, text := get(t, "http://127.0.0.1:"+admin+path); code != 200 || !strings.Contains(text, want) || strings.Contains(text, "@") {
			t.Errorf("%s: %d %s, want %s", path, code, text, want)
		}
		if code, _ := get(t, base+path); code == 200 {
			t.Errorf("%s is answered on the views' port", path)
		}
	}
	if _, text := get(t, "http://127.0.0.1:"+admin+"/console/api/overview"); !strings.Contains(text, `{"view":"slow","method":"GET","path":"/slow","requests":`) {
		t.Errorf("the console's overview: %s", text)
	}
	if code, text := get(t, base+"/openapi.json"); code != 200 || !strings.Contains(text, `"/quick":{"get":{"operationId":"quick"`) || !strings.Contains(text, `"/slow"`) {
		t.Errorf("/openapi.json: %d %s", code, text)
	}
	asking.Wait()
	if refused < 4 || late > 2 {
		t.Errorf("%d requests were turned away at once and %d after their time, want 4 and 2: one runs, one waits", refused, late)
	}
	app.until("counts", func() bool {
		_, text := get(t, base+"/metrics")
		return strings.Contains(text, `kaspr_view_refused_requests_total{app_name="demo-app",reason="queue",view="slow"`) &&
			strings.Contains(text, `kaspr_guest_instance_memory_bytes{agent="KasprWebView/quick",`) && strings.Contains(text, `kaspr_guest_calls_total{agent="KasprWebView/slow",`)
	})
	app.cancel()
	_ = input.Close() // ends the reader
	if code := app.stop(); code != 0 {
		t.Errorf("exit code %d\n%s", code, &app.errs)
	}
}

const instanceView = `
apiVersion: kaspr.io/v1alpha1
kind: KasprApp
metadata: {name: demo}
spec: {}
---
apiVersion: kaspr.io/v1alpha1
kind: KasprWebView
metadata: {name: who, labels: {kaspr.io/app: demo}}
spec:
  request: {method: GET, path: "/who/{seconds}"}
  processors:
    init:
      python: |
        import asyncio, uuid
        me = []
    pipeline: [tell]
    operations:
      - name: tell
        map:
          python: |
            async def tell(request, seconds):
                if not me:
                    me.append(str(uuid.uuid4()))
                await asyncio.sleep(float(seconds))
                return me[0]
`

// Requests that come one after the other should find the same instance, whose memory the processor knows; but one that takes long must not keep
// those behind it from the view's other instances.
func TestViewInstances(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "app.yaml"), []byte(instanceView), 0o600); err != nil {
		t.Fatal(err)
	}
	port := freePort(t)
	app := start(t, strings.NewReader(""), "dev", dir, "--http", "--set", "webPort="+port, "--set", "webInstances=3")
	base := "http://127.0.0.1:" + port
	waitReady(t, base, &app.errs)
	who := func(seconds string) string {
		code, text := get(t, base+"/who/"+seconds)
		if code != http.StatusOK {
			t.Errorf("status %d: %s", code, text)
		}
		return text
	}
	who("0") // the first call of an instance takes longer than those that keep it its turn
	changed, last := 0, who("0")
	for range 100 {
		now := who("0")
		if now != last { // also when the machine had no time for a call
			changed++
		}
		last = now
	}
	if changed > 50 {
		t.Errorf("of 100 requests one after the other, %d were answered by another instance than the one before", changed)
	}
	const long = 3 * time.Second
	began := time.Now()
	var asking sync.WaitGroup
	slow := make([]string, 2)
	for i := range slow {
		asking.Go(func() { slow[i] = who("3") })
		time.Sleep(100 * time.Millisecond) // those that come at once may be one call
	}
	quick := who("0")
	if took := time.Since(began); took > long {
		t.Errorf("a request waited %v for two others, with an instance to spare", took)
	}
	asking.Wait()
	if slow[0] == slow[1] || quick == slow[0] || quick == slow[1] {
		t.Errorf("instances %v and %s, want three", slow, quick)
	}
	if code := app.stop(); code != 0 {
		t.Errorf("exit code %d\n%s", code, &app.errs)
	}
}
