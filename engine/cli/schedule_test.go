package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	apphttp "kaspr.io/kaspr/http"
)

// What waits must be seen page by page, each row once, and an id's end be told.
func TestScheduleShown(t *testing.T) {
	dir := t.TempDir()
	app := "apiVersion: kaspr.io/v1alpha1\nkind: KasprApp\nmetadata: {name: later}\nspec: {config: {schedulerCronEnabled: true, schedulerTopicPartitions: 3}}\n"
	if err := os.WriteFile(filepath.Join(dir, "app.yaml"), []byte(app), 0o600); err != nil {
		t.Fatal(err)
	}
	var requests strings.Builder
	for _, id := range []string{"a", "b", "c", "d", "e", "f", "g"} {
		requests.WriteString(`{"key": "k", "value": "secret", "headers": {"x-scheduler-deliver-to": "out", "x-scheduler-deliver-at": "9000-01-01", "x-scheduler-request-id": "` + id + `"}}` + "\n")
	}
	requests.WriteString(`{"key": "k", "value": null, "headers": {"x-scheduler-action": "CANCEL", "x-scheduler-request-id": "a"}}` + "\n")
	requests.WriteString(`{"value": "secret", "headers": {"x-scheduler-action": "CRON_ADD", "x-scheduler-deliver-to": "out", "x-scheduler-cron-expr": "0 0 1 1 *", "x-scheduler-request-id": "yearly"}}` + "\n")
	input := filepath.Join(dir, "requests.jsonl")
	if err := os.WriteFile(input, []byte(requests.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	port := freePort(t)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan int, 1)
	go func() {
		ended <- Main(ctx, "test", []string{
			"dev", dir, "--http", "--set", "webPort=" + port, "--set", "schedulerWebEnabled=true", "--set", "webToken=secret-of-views", "--input", "later-app-schedule-requests=" + input,
		}, Streams{In: strings.NewReader(""), Out: &bytes.Buffer{}, Err: &bytes.Buffer{}})
	}()
	defer func() {
		cancel()
		<-ended
	}()
	type page struct {
		Messages []struct {
			ID   string `json:"requestId"`
			Cron string
		}
		Crons []struct {
			ID    string `json:"requestId"`
			State string
		}
		Next, State string
	}
	token := "secret-of-views"
	ask := func(want int, args ...string) (p page, text string) {
		var out, errs bytes.Buffer
		code := Main(t.Context(), "test", append(append([]string{"schedule"}, args...), "--address", "127.0.0.1:"+port, "--set", "webToken="+token), Streams{Out: &out, Err: &errs})
		if code != want {
			t.Fatalf("%v: exit code %d: %s", args, code, errs.String())
		}
		if out.Len() > 0 {
			if err := json.Unmarshal(out.Bytes(), &p); err != nil {
				t.Fatal(err)
			}
		}
		return p, out.String()
	}
	for began := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		_, body, err := apphttp.AskAs(token, "127.0.0.1:"+port, "/schedule?limit=100", 10*time.Second, nil)
		if text := fmt.Sprint(string(body), err); strings.Count(text, "deliverAt") == 7 && strings.Contains(text, "yearly") {
			break
		} else if time.Since(began) > 30*time.Second {
			t.Fatalf("after 30 s: %s", text)
		}
	}
	seen, after := map[string]int{}, ""
	for pages := 0; pages < 10; pages++ {
		p, text := ask(0, "list", "--limit", "2", "--after", after)
		if len(p.Messages) > 2 || strings.Contains(text, "secret") {
			t.Errorf("page %s", text)
		}
		for _, m := range p.Messages {
			seen[m.ID+m.Cron]++
		}
		if after = p.Next; after == "" {
			break
		}
	}
	for _, id := range []string{"b", "c", "d", "e", "f", "g", "yearly"} {
		if seen[id] != 1 {
			t.Errorf("%s is there %d times", id, seen[id])
		}
	}
	if len(seen) != 7 {
		t.Errorf("listed: %v", seen)
	}
	if p, _ := ask(0, "list", "--crons"); len(p.Crons) != 1 || p.Crons[0].ID != "yearly" || p.Crons[0].State != "active" {
		t.Errorf("crons: %+v", p)
	}
	for id, state := range map[string]string{"a": "cancelled", "b": "pending"} {
		if p, _ := ask(0, "get", id); p.State != state {
			t.Errorf("%s is %q, not %s", id, p.State, state)
		}
	}
	ask(1, "get", "nobody")
	ask(1, "list", "--after", "nonsense")
	ask(1, "list", "--limit", "100000")
	token = "wrong"
	ask(1, "list")
	ask(1, "get", "b")
}
