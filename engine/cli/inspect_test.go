package cli

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"kaspr.io/kaspr/engine/dev"
)

// Whoever asks why nothing comes out looks at topics and lag: what is there, what is missing, and how far the app is, whether it runs or not.
func TestTopicsAndLag(t *testing.T) {
	kafka, err := dev.NewBroker(1)
	if err != nil {
		t.Fatal(err)
	}
	defer kafka.Close()
	topicsAndLag(t, kafka.Addrs())
}

// topicsAndLag is the test on a broker that knows nothing of the app yet. What it leaves: settings that name the app, which has ended with five
// records in its input, three of them processed.
func topicsAndLag(t *testing.T, addrs []string) (settings string) {
	dir := t.TempDir()
	settings = filepath.Join(dir, "settings")
	for file, text := range map[string]string{
		"app.yaml": copying("one", "topicPartitions: 1, topicReplicationFactor: 1, webPort: 0"),
		"settings": "definitionsDir: " + dir + "\ndataDir: " + dir + "\nkafkaBootstrapServers: " + strings.Join(addrs, ",") + "\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ask := func(into any, what string) { inspected(t, into, what, settings) }
	type topic struct {
		App, Topic string
		Partitions int
		Records    int64
		Uses       []string
	}
	topics := func() string {
		var list []topic
		ask(&list, "topics")
		var text strings.Builder
		for _, x := range list {
			records := fmt.Sprint(x.Records)
			if x.Topic != "one-in" && x.Records > 0 {
				records = "some" // ends of transactions
			}
			fmt.Fprintf(&text, "%s %s %d %s %s\n", x.App, x.Topic, x.Partitions, records, strings.Join(x.Uses, "; "))
		}
		return text.String()
	}
	want := func(partitions int, in, other string) string {
		return fmt.Sprintf("one-app one-app-seen-changelog %[1]d %[3]s changelog of table \"seen\"\none-app one-in %[1]d %[2]s read by agent \"divide\"\n"+
			"one-app one-out %[1]d %[3]s written by agent \"divide\"\n", partitions, in, other)
	}
	if got := topics(); got != want(0, "0", "0") {
		t.Errorf("before the app has run:\n%s", got)
	}
	var lag []lagRow
	if ask(&lag, "lag"); len(lag) != 0 {
		t.Errorf("lag of topics that do not exist: %+v", lag)
	}

	app := start(t, nil, "run", "--config", settings)
	feed := func(lines string) {
		t.Helper()
		if err := dev.Feed(addrs, nil, []dev.Input{{Topic: "one-in", File: "-"}}, strings.NewReader(lines)); err != nil {
			t.Fatal(err)
		}
	}
	for began := time.Now(); topics() == want(0, "0", "0"); time.Sleep(50 * time.Millisecond) {
		if time.Since(began) > time.Minute {
			t.Fatalf("no topics\n%s", &app.errs)
		}
	}
	feed("1\n2\n3\n")
	for began := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		if ask(&lag, "lag"); len(lag) == 1 && lag[0].Committed == 3 {
			break
		}
		if time.Since(began) > time.Minute {
			t.Fatalf("lag %+v\n%s", lag, &app.errs)
		}
	}
	if l := lag[0]; l.Topic != "one-in" || l.Partition != 0 || l.End != 3 || l.Lag != 0 {
		t.Errorf("lag of an app that has done all: %+v", l)
	}
	if code := app.stop(); code != exitOK {
		t.Fatalf("exit code %d\n%s", code, &app.errs)
	}
	feed("4\n5\n")
	if ask(&lag, "lag"); len(lag) != 1 || lag[0].Committed != 3 || lag[0].End != 5 || lag[0].Lag != 2 {
		t.Errorf("lag of an app that does not run: %+v", lag)
	}
	if got := topics(); got != want(1, "5", "some") {
		t.Errorf("topics:\n%s", got)
	}
	code, out, _ := kaspr(t, dir, nil, "lag", "--config", settings)
	if code != exitOK || strings.Join(strings.Fields(out), " ") != "APP TOPIC PARTITION COMMITTED END LAG one-app one-in 0 3 5 2" {
		t.Errorf("exit code %d, as a table:\n%s", code, out)
	}
	code, out, _ = kaspr(t, dir, nil, "topics", "--config", settings)
	if code != exitOK || !strings.HasPrefix(out, "APP ") || !strings.Contains(out, `read by agent "divide"`) {
		t.Errorf("exit code %d, as a table:\n%s", code, out)
	}
	return settings
}

// lagRow is a line of `kaspr lag --json`.
type lagRow struct {
	Topic               string
	Partition           int32
	Committed, End, Lag int64
}

// inspected reads what `kaspr topics` or `kaspr lag` says.
func inspected(t *testing.T, into any, what, settings string) {
	t.Helper()
	code, out, stderr := kaspr(t, t.TempDir(), nil, what, "--config", settings, "--json")
	if code != exitOK {
		t.Fatalf("kaspr %s: exit code %d\n%s", what, code, stderr)
	}
	if err := json.Unmarshal([]byte(out), into); err != nil {
		t.Fatalf("kaspr %s: %v\n%s", what, err, out)
	}
}
