package config

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"kaspr.io/kaspr/engine/manifest"
)

// An app that ran on the original engine brings these names; each must still mean what it meant (settings.md 2 to 4).
func TestOriginalNames(t *testing.T) {
	for name, want := range map[string]string{
		"TABLE_DIR": "tables", "TOPIC_REPLICATION_FACTOR": "3", "TOPIC_PARTITIONS": "3", "TOPIC_ALLOW_DECLARE": "true",
		"KEY_SERIALIZER": "raw", "VALUE_SERIALIZER": "json",
		"SCHEDULER_ENABLED": "false", "SCHEDULER_DEBUG_STATS_ENABLED": "false", "SCHEDULER_TOPIC_PARTITIONS": "0",
		"SCHEDULER_CHECKPOINT_SAVE_INTERVAL_SECONDS": "1.3s", "SCHEDULER_DISPATCHER_DEFAULT_CHECKPOINT_LOOKBACK_DAYS": "7",
		"SCHEDULER_DISPATCHER_CHECKPOINT_INTERVAL": "10s", "SCHEDULER_JANITOR_CHECKPOINT_INTERVAL": "10s",
		"SCHEDULER_JANITOR_CLEAN_INTERVAL_SECONDS": "3s", "SCHEDULER_JANITOR_HIGHWATER_OFFSET_SECONDS": "4h0m0s",
		"SCHEDULER_CRON_ENABLED": "false", "SCHEDULER_CRON_TICK_INTERVAL_SECONDS": "30s",
		"SCHEDULER_CRON_TICK_BUFFER_SECONDS": "10m0s", "SCHEDULER_CRON_MIN_INTERVAL_SECONDS": "5s",
		"STORE_ROCKSDB_WRITE_BUFFER_SIZE": "64MiB", "STORE_ROCKSDB_MAX_WRITE_BUFFER_NUMBER": "3",
		"STORE_ROCKSDB_TARGET_FILE_SIZE_BASE": "64MiB", "STORE_ROCKSDB_BLOCK_CACHE_SIZE": "0",
		"STORE_ROCKSDB_BLOCK_CACHE_COMPRESSED_SIZE": "256MiB", "STORE_ROCKSDB_BLOOM_FILTER_SIZE": "3",
		"STORE_ROCKSDB_SET_CACHE_INDEX_AND_FILTER_BLOCKS": "false",
		"WEB_BASE_PATH": "", "WEB_PORT": "6065", "WEB_METRICS_BASE_PATH": "", "WEB_HOST": "",
		"APP_NAME": "", "WORKER_ORDINAL_NUMBER": "-1", "KAFKA_BOOTSTRAP_SERVERS": "localhost:9092",
		"KAFKA_SECURITY_PROTOCOL": "PLAINTEXT", "KAFKA_SASL_MECHANISM": "PLAIN", "KAFKA_AUTH_USERNAME": "", "KAFKA_AUTH_PASSWORD": "",
		"KAFKA_AUTH_CAFILE": "", "KAFKA_AUTH_CAPATH": "", "KAFKA_AUTH_CADATA": "",
		"BROKER_REQUEST_TIMEOUT": "3m0s", "BROKER_COMMIT_EVERY": "10000", "BROKER_COMMIT_INTERVAL": "100ms", // there 2 s: we commit oftener
		"BROKER_HEARTBEAT_INTERVAL": "3s", "BROKER_SESSION_TIMEOUT": "2m0s", "BROKER_MAX_POLL_RECORDS": "100",
		"BROKER_MAX_POLL_INTERVAL": "1000s", "PRODUCER_ACKS": "-1", "CONSUMER_GROUP_INSTANCE_ID": "", "STREAM_BUFFER_MAXSIZE": "4096",
		"STREAM_RECOVERY_DELAY": "10s", "STREAM_WAIT_EMPTY": "true", "DATA_DIR": ".", "DEFINITIONS_DIR": "builders", "APP_BUILDER_ENABLED": "true",
	} {
		found := false
		for key, s := range rows {
			if variableName(key) != name {
				continue
			}
			found = true
			if got := s.defaultText(); got != want {
				t.Errorf("%s defaults to %q, want %q", name, got, want)
			}
		}
		if !found {
			t.Errorf("no setting is read from K_%s", name)
		}
	}
}

// The engine is written against these values; a default that changes changes every app.
// The admin server is there by default, for this machine only; whoever wants no HTTP server gets none of it.
func TestAdminAddress(t *testing.T) {
	for _, c := range []struct {
		listen string
		port   int
		want   string
	}{
		{AdminListenDefault, 6065, "127.0.0.1:6165"}, {AdminListenDefault, 0, ""}, {AdminOff, 6065, ""}, {"", 6065, ""}, {"127.0.0.1:1234", 0, "127.0.0.1:1234"},
	} {
		if got := (Web{Port: c.port, AdminListen: c.listen}).AdminAddress(); got != c.want {
			t.Errorf("%q with port %d: %q, want %q", c.listen, c.port, got, c.want)
		}
	}
}

func TestDefault(t *testing.T) {
	c := Default()
	c.values, c.environ = nil, nil
	want := Config{
		DefinitionsDir: "builders", DataDir: ".", TableDir: "tables", Definitions: true,
		Kafka: Kafka{
			BootstrapServers: []string{"localhost:9092"}, SecurityProtocol: "PLAINTEXT", SASL: SASL{Mechanism: Plain, OAuth: OAuth{Extensions: map[string]string{}}},
			SessionTimeout: 120 * time.Second, HeartbeatInterval: 3 * time.Second, RequestTimeout: 180 * time.Second,
		},
		Topics:        Topics{Partitions: 3, ReplicationFactor: 3, AllowDeclare: true},
		Registry:      Registry{Timeout: 10 * time.Second, CacheMax: 1000, AutoRegister: true, Subjects: "TopicName", ValidateJSON: true},
		KeySerializer: "raw", ValueSerializer: "json", JSONValueStyle: JSONCompact,
		ProcessingGuarantee: ExactlyOnce, OnOffsetLost: OffsetFail, TransactionTimeout: 15 * time.Second, StandbyReplicas: 1, Workers: runtime.GOMAXPROCS(0),
		Batch:          Batch{RecordsMax: 1000, BytesMax: 1 << 20, ConcurrencyMax: 64},
		CommitInterval: 100 * time.Millisecond, CommitEvery: 10000, QueueRecordsMax: 4096,
		ShutdownTimeout: 30 * time.Second, RecoveryDelay: 10 * time.Second, WaitEmpty: true, WorkerOrdinal: -1,
		Sandbox: Sandbox{Deadline: 5 * time.Second, LoadDeadline: time.Minute, MemoryMax: 256 << 20, Tick: 5 * time.Millisecond},
		Log:     Log{Level: slog.LevelInfo, Format: "text"},
		Tracing: TracingOff, OTLP: OTLP{Endpoint: "http://localhost:4318", Headers: map[string]string{}},
		Web: Web{Port: 6065, Deadline: 5 * time.Second, Instances: 2 * Processors, QueueMax: 1000, Timeout: 30 * time.Second, BodyBytesMax: 1 << 20, ConnectionsMax: 1024, AdminListen: AdminListenDefault, Console: ConsoleLoopback},
		Scheduler: Scheduler{
			TopicPartitions: 3, CheckpointSaveInterval: 1300 * time.Millisecond, DispatcherLookbackDays: 7, DispatcherCheckpointInterval: 10 * time.Second,
			JanitorCheckpointInterval: 10 * time.Second, JanitorCleanInterval: 3 * time.Second, JanitorHighwaterOffset: 4 * time.Hour,
			CronTickInterval: 30 * time.Second, CronTickBuffer: 10 * time.Minute, CronMinInterval: 5 * time.Second,
			PastDue: PastDueDeliver, DuplicateID: DuplicateReject,
		},
		Store: Store{WriteBufferSize: 64 << 20, MaxWriteBufferNumber: 3, TargetFileSizeBase: 64 << 20, BlockCacheCompressedSize: 256 << 20, BloomFilterSize: 3, CleanupDelay: 10 * time.Minute},
	}
	if !reflect.DeepEqual(c, want) {
		t.Errorf("defaults\n%+v\nwant\n%+v", c, want)
	}
	if _, problems := Read(Sources{}).Config(nil); len(problems) > 0 {
		t.Errorf("the defaults themselves are wrong: %v", problems)
	}
}

// A setting whose value reaches no field, or whose printed value reads back as another, cannot be trusted.
func TestTable(t *testing.T) {
	for _, s := range settings {
		if s.key == "" {
			continue
		}
		if s.doc == "" || !strings.HasSuffix(s.doc, ".") || s.what == "" {
			t.Errorf("%s is not documented", s.key)
		}
		if !regexp.MustCompile(`^[a-z][a-zA-Z0-9]*$`).MatchString(s.key) {
			t.Errorf("%s is not a key", s.key)
		}
		for why := range refused {
			if why == s.key {
				t.Errorf("%s is refused and a setting", s.key)
			}
		}
		var c Config
		if err := s.set(&c, s.text, given{}); err != nil {
			t.Errorf("%s: its default: %v", s.key, err)
		}
		if s.get == nil {
			continue
		}
		text := s.format(&c, "")
		var again Config
		if err := s.set(&again, text, given{}); err != nil || !reflect.DeepEqual(c, again) {
			t.Errorf("%s: its default is printed as %q, which reads as something else: %v", s.key, text, err)
		}
		// Some value other than the default changes the Config.
		var changed Config
		for _, value := range []string{"true", "false", "77", "7777", "77777777", "7s", "a:1", "http://a", "RecordName", "x=y", "text", "json", "raw", "SSL", OAuthBearer, AtLeastOnce, OffsetLatest, JSONOriginal, PastDueReject, DuplicateReplace, ConsoleAll, TracingPass, "0.5", "debug", "500ms"} {
			before := changed
			if s.set(&changed, value, given{}) == nil && !reflect.DeepEqual(before, changed) && s.format(&changed, "") != text {
				changed = Config{}
				text = ""
				break
			}
		}
		if text != "" {
			t.Errorf("%s: no value changes the Config", s.key)
		}
	}
}

// Settings that follow from others are filled in for the engine, and only there.
func TestResolved(t *testing.T) {
	c, problems := Read(Sources{Environ: []string{
		"K_DATA_DIR=/data", "K_TABLE_DIR=t", "K_SCHEDULER_CRON_ENABLED=1", "K_TOPIC_PARTITIONS=9", "KASPR_WORKERS=5",
	}}).Config(&manifest.App{Meta: manifest.Meta{Name: manifest.Value[string]{V: "shop"}}})
	if problems.Fatal() {
		t.Fatal(problems)
	}
	if c.TableDir != "/data/t" || !c.Scheduler.Enabled || c.Scheduler.TopicPartitions != 9 || c.Workers != 5 || c.App != "shop" {
		t.Errorf("%+v", c)
	}
	for _, e := range c.Explain() {
		if e.Key == "schedulerTopicPartitions" && (e.Value != "0" || e.Effective != "9" || e.Source != "default") {
			t.Errorf("explained as %+v", e)
		}
		if e.Key == "tableDir" && (e.Value != "t" || e.Effective != "/data/t" || e.Source != "environment K_TABLE_DIR") {
			t.Errorf("explained as %+v", e)
		}
	}
	c, _ = Read(Sources{Environ: []string{"K_TABLE_DIR=/abs"}, Flags: map[string]string{"app": "bank"}}).Config(&manifest.App{Meta: manifest.Meta{Name: manifest.Value[string]{V: "shop"}}})
	if c.TableDir != "/abs" || c.App != "bank" {
		t.Errorf("table directory %q, app %q", c.TableDir, c.App)
	}
}

// Directories that the image names must give way to those of whoever runs it, by either name: the original's operator mounts manifests and disks
// elsewhere, and says so by K_.
func TestImageDirectories(t *testing.T) {
	file, err := os.ReadFile("../../Containerfile")
	if err != nil {
		t.Fatal(err)
	}
	image := regexp.MustCompile(`\bK[A-Z]*_[A-Z_]+=[^\s\\]+`).FindAllString(string(file), -1)
	for _, c := range []struct {
		environ                     []string
		definitions, tables, caches string
	}{
		{nil, "/etc/kaspr/definitions", "/var/lib/kaspr/tables", "/var/lib/kaspr/cache"},
		{
			[]string{"K_DATA_DIR=/var/lib/data", "K_TABLE_DIR=/var/lib/data/tables", "K_DEFINITIONS_DIR=/var/lib/data/definitions"},
			"/var/lib/data/definitions", "/var/lib/data/tables", "/var/lib/kaspr/cache",
		},
		{[]string{"KASPR_DATA_DIR=/a", "KASPR_CACHE_DIR=/b", "KASPR_DEFINITIONS_DIR=/c"}, "/c", "/a/tables", "/b"},
	} {
		app := &manifest.App{Meta: manifest.Meta{Name: manifest.Value[string]{V: "shop"}}}
		cfg, problems := Read(Sources{Environ: append(slices.Clone(image), c.environ...)}).Config(app)
		if len(problems) > 0 || cfg.DefinitionsDir != c.definitions || cfg.TableDir != c.tables || cfg.CacheDir != c.caches {
			t.Errorf("%v: definitions %s, tables %s, cache %s, %v", c.environ, cfg.DefinitionsDir, cfg.TableDir, cfg.CacheDir, problems)
		}
	}
}

// A settings file works from any working directory: its paths are beside it.
func TestPathsAreRelativeToTheFile(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "kaspr.yaml")
	if err := os.WriteFile(file, []byte("definitionsDir: apps\ncacheDir: /abs\nkafkaTlsCaFile: ca.pem\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	c := Read(Sources{File: file, Environ: []string{"KASPR_DATA_DIR=here"}}).Early()
	if c.DefinitionsDir != filepath.Join(dir, "apps") || c.CacheDir != "/abs" || c.Kafka.TLS.CAFile != filepath.Join(dir, "ca.pem") || c.DataDir != "here" {
		t.Errorf("%q %q %q %q", c.DefinitionsDir, c.CacheDir, c.Kafka.TLS.CAFile, c.DataDir)
	}
	if _, problems := Read(Sources{File: filepath.Join(dir, "none.yaml")}).Config(nil); len(problems) != 1 || problems[0].ID != Unreadable {
		t.Errorf("a settings file that is not there: %v", problems)
	}
}

// The .env file of a project is found from any of its directories, unless ENV_FILE says otherwise.
func TestDotEnvSearch(t *testing.T) {
	root := t.TempDir()
	deep := filepath.Join(root, "a", "b")
	if err := os.MkdirAll(deep, 0o755); err != nil {
		t.Fatal(err)
	}
	for file, value := range map[string]string{".env": "1", "a/.other": "2", "a/b/abs": "3"} {
		if err := os.WriteFile(filepath.Join(root, file), []byte("K_TOPIC_PARTITIONS="+value+"\nCITY=Ulm\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		dir     string
		environ []string
		want    int
	}{
		{deep, nil, 1},
		{deep, []string{"ENV_FILE=.other"}, 2},
		{deep, []string{"ENV_FILE=" + filepath.Join(deep, "abs")}, 3},
		{deep, []string{"ENV_FILE=nowhere-to-be-found"}, 3 /* the default */},
		{"", nil, 3},
	} {
		cfg, problems := Read(Sources{Dir: c.dir, Environ: c.environ}).Config(nil)
		if cfg.Topics.Partitions != c.want || len(problems) > 0 {
			t.Errorf("%+v: %d partitions, %v", c, cfg.Topics.Partitions, problems)
		}
		city, ok := cfg.Getenv("CITY")
		if ok != (c.dir != "" && !slices.Contains(c.environ, "ENV_FILE=nowhere-to-be-found")) || ok && city != "Ulm" {
			t.Errorf("%+v: CITY is %q, %v", c, city, ok)
		}
	}
	if _, problems := Read(Sources{Dir: deep, Environ: []string{"ENV_FILE=" + filepath.Join(root, "gone")}}).Config(nil); !problems.Fatal() {
		t.Error("ENV_FILE names a file that is not there, and nobody is told")
	}
}

// Where spans go is found wrong at the start, not by a collector that never gets any; and what may be a secret is not repeated.
func TestOTLPSettings(t *testing.T) {
	for _, wrong := range []string{
		"OTLP_ENDPOINT=collector:4318", "OTLP_ENDPOINT=grpc://collector:4317", "OTLP_ENDPOINT=http://", "OTLP_ENDPOINT=https://u:hunter2@collector",
		"OTLP_ENDPOINT=http://collector/?key=hunter2", "OTLP_HEADERS=hunter2", "OTLP_HEADERS==hunter2", "OTLP_HEADERS=a b=hunter2", "OTLP_HEADERS=a=hunter2\r\nb: c",
		"TRACING_SAMPLE_RATIO=1.1", "TRACING_SAMPLE_RATIO=-0.1", "TRACING_SAMPLE_RATIO=NaN", "TRACING_SAMPLE_RATIO=half", "TRACING=on",
	} {
		if _, problems := Read(Sources{Environ: []string{"KASPR_" + wrong}}).Config(nil); !problems.Fatal() || strings.Contains(fmt.Sprint(problems), "hunter2") {
			t.Errorf("%q: %v", wrong, problems)
		}
	}
	c, problems := Read(Sources{Environ: []string{
		"KASPR_TRACING=Export", "KASPR_OTLP_ENDPOINT=https://collector/base/", "KASPR_OTLP_HEADERS=Authorization=Bearer a=b, x-team=one", "KASPR_TRACING_SAMPLE_RATIO=0.25",
	}}).Config(nil)
	want := OTLP{Endpoint: "https://collector/base/", Headers: map[string]string{"Authorization": "Bearer a=b", "x-team": "one"}, Ratio: 0.25}
	if len(problems) > 0 || c.Tracing != TracingExport || !reflect.DeepEqual(c.OTLP, want) {
		t.Errorf("%s, %+v, %v", c.Tracing, c.OTLP, problems)
	}
}

// A password in a log line or in Code's conf is a password lost.
func TestSecretsStayHidden(t *testing.T) {
	var environ []string
	for _, s := range settings {
		if s.secret {
			value := "hunter2"
			if s.pairs {
				value = "x=hunter2"
			}
			environ = append(environ, "KASPR_"+variableName(s.key)+"="+value)
		}
	}
	if len(environ) != 8 {
		t.Errorf("%d secrets: is a new one marked?", len(environ))
	}
	c, problems := Read(Sources{Environ: append(environ, "K_KAFKA_SECURITY_PROTOCOL=SASL_SSL")}).Config(nil)
	for what, text := range map[string]string{
		"problems": fmt.Sprint(problems), "Explain": fmt.Sprint(c.Explain()), "Conf": fmt.Sprint(c.Conf()),
		"Redacted": fmt.Sprintf("%+v", c.Redacted()),
	} {
		if strings.Contains(text, "hunter2") {
			t.Errorf("%s shows a secret: %s", what, text)
		}
	}
	if c.Kafka.SASL.Password != "hunter2" || c.Redacted().Kafka.SASL.Password != "***" || Default().Redacted().Kafka.SASL.Password != "" {
		t.Error("Redacted changes the original, or an empty secret, or nothing")
	}
	if c.OTLP.Headers["x"] != "hunter2" || c.Redacted().OTLP.Headers["x"] != "" || len(Default().Redacted().OTLP.Headers) != 0 {
		t.Errorf("otlpHeaders %v, hidden as %v", c.OTLP.Headers, c.Redacted().OTLP.Headers)
	}
	for key := range c.Conf() {
		if strings.HasPrefix(key, "kafka") {
			t.Errorf("Code sees %s", key)
		}
	}
}

// Code written for the original reads conf by these names and types.
func TestConf(t *testing.T) {
	conf := Default().Conf()
	for key, want := range map[string]any{
		"topic_partitions": 3, "topic_allow_declare": true, "commit_interval": 0.1, "value_serializer": "json",
		"batch_bytes_max": int64(1 << 20), "log_level": "info", "web_port": 6065, "code_env": []string(nil),
	} {
		if got, ok := conf[key]; !ok || !reflect.DeepEqual(got, want) {
			t.Errorf("conf.%s is %#v, want %#v", key, got, want)
		}
	}
}

func TestParseSize(t *testing.T) {
	for text, want := range map[string]int64{
		"0": 0, "5": 5, "1_000": 1000, "5B": 5, "64MiB": 64 << 20, "64Mi": 64 << 20, "64mib": 64 << 20, "64MB": 64e6, "64M": 64e6,
		"1.5GiB": 3 << 29, " 2 KiB ": 2048, "1T": 1e12, "8TiB": 8 << 40,
	} {
		if got, ok := parseSize(text); !ok || got != want {
			t.Errorf("%q is %d, %v, want %d", text, got, ok, want)
		}
	}
	for _, text := range []string{"", "x", "-1", "1.5", "1XB", "9999999TiB", "MiB", "1 2MiB", "NaNMiB", "InfGiB"} {
		if got, ok := parseSize(text); ok {
			t.Errorf("%q is %d, want none", text, got)
		}
	}
}

func TestParseDuration(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"0": 0, "2": 2 * time.Second, "2.8": 2800 * time.Millisecond, "10.0": 10 * time.Second, "250ms": 250 * time.Millisecond, "1h30m": 90 * time.Minute, "7d": 168 * time.Hour,
	} {
		if got, ok := parseDuration(text); !ok || got != want {
			t.Errorf("%q is %v, %v, want %v", text, got, ok, want)
		}
	}
	for _, text := range []string{"", "x", "-1", "-1s", "1e300", "NaN", "Inf", "1 s"} {
		if got, ok := parseDuration(text); ok {
			t.Errorf("%q is %v, want none", text, got)
		}
	}
}

// Booleans: what the original took for true, "off" among it, must not silently stay so (settings.md Q7).
func TestBooleans(t *testing.T) {
	for text, want := range map[string]string{
		"true": "true", "True": "true", "1": "true", "YES": "true", "on": "true", "false": "false", "False": "false", "0": "false", "no": "false", "OFF": "false",
		"": "default", "2": "error", "y": "error", "t": "error", " true": "error",
	} {
		c, problems := Read(Sources{Environ: []string{"K_TOPIC_ALLOW_DECLARE=" + text}}).Config(nil)
		got := fmt.Sprint(c.Topics.AllowDeclare)
		if problems.Fatal() {
			got = "error"
			if !strings.Contains(problems[0].Error(), "K_TOPIC_ALLOW_DECLARE") {
				t.Errorf("%q: the error does not name the variable: %v", text, problems)
			}
		} else if text == "" {
			got = "default"
		}
		if got != want {
			t.Errorf("%q is %s, want %s", text, got, want)
		}
	}
}

var anID = regexp.MustCompile(`\bC\d\d\d\b`)

// docs/settings.md is made from the table; every ID is in it and shown by some case.
func TestDocs(t *testing.T) {
	var b strings.Builder
	b.WriteString(docHead)
	for _, s := range settings {
		if s.key == "" {
			fmt.Fprintf(&b, "\n## %s\n\n| Setting | Default | Values | What it does |\n|---|---|---|---|\n", s.group)
			continue
		}
		doc := s.doc
		var where []string
		for _, alias := range s.aliases {
			where = append(where, "`"+alias+"`")
		}
		if len(where) > 0 {
			doc += " Also called " + strings.Join(where, ", ") + "."
		}
		if !s.process {
			doc += " *In a KasprApp too.*"
		}
		if s.secret {
			doc += " *Secret.*"
		}
		if s.unused != "" {
			doc += " **No effect**: " + s.unused + "."
		}
		text := ""
		if s.text != "" {
			text = "`" + s.text + "`"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", s.key, text, s.what, doc)
	}
	b.WriteString(docProblems)
	shown := map[string]bool{}
	files, _ := filepath.Glob("testdata/*.txt")
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, id := range anID.FindAllString(string(content), -1) {
			shown[id] = true
		}
	}
	listed := map[string]bool{}
	for _, e := range catalog {
		fmt.Fprintf(&b, "| %s | %s | %s |\n", e.id, e.level, e.what)
		listed[e.id] = true
		if !shown[e.id] {
			t.Errorf("no case shows %s: %s", e.id, e.what)
		}
	}
	source, err := os.ReadFile("problems.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range anID.FindAllString(string(source), -1) {
		if !listed[id] {
			t.Errorf("%s is not in the catalog", id)
		}
	}
	const file = "../../docs/settings.md"
	if *rewrite {
		if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if b.String() != string(want) {
		t.Errorf("%s is not what the table says: go generate ./engine/config", file)
	}
}

const docHead = `# Settings

Made from engine/config/table.go by ` + "`go generate ./engine/config`" + `; do not edit.

A setting comes from the strongest source that has it:

1. the default below,
2. the KasprApp: ` + "`spec.config`" + ` (where the table says so), ` + "`spec.bootstrapServers`, `spec.tls`, `spec.authentication`" + `,
3. the settings file (` + "`--config`" + `): one YAML mapping with the names below; unknown names are errors; relative paths are relative to the file,
4. the environment: the name in capitals after ` + "`KASPR_`" + ` or, weaker, ` + "`K_`" + `, such as ` + "`KASPR_TOPIC_PARTITIONS`" + ` for ` + "`topicPartitions`" + `. An empty
   variable counts as not set. A file ` + "`.env`" + ` in the working directory or above (another name with ` + "`ENV_FILE`" + `) stands in for variables that are not set,
5. flags.

Durations are ` + "`250ms`, `2s`, `1h30m`, `7d`" + `, or seconds as a number (` + "`2.8`" + `). Sizes are bytes, or ` + "`64MiB`, `64Mi`, `64MB`, `64M`" + `. Booleans are true, yes, on, 1
and false, no, off, 0. Lists are separated by commas, or YAML lists in a file. Upper and lower case of words does not matter.
`

const docProblems = `
## Problems

Problems in manifests (M…) are in manifest-errors.md.

| ID | Level | What is wrong |
|---|---|---|
`
