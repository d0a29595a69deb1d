package config

import (
	"log/slog"
	"math"
	"net"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode"

	"kaspr.io/kaspr/engine/manifest"
)

const (
	positionsCommitted = "positions are committed with what was made of the messages before them"
	laterWorkers       = "nothing is labelled with it in this version"
	notNeeded          = "the engine needs no such limit"
)

const forever = time.Duration(math.MaxInt64)

// settings is the table of all settings, in the order of docs/settings.md.
var settings = []setting{
	group("The app and its files"),
	textSetting("app", "", "KasprApp to run; without it all that the manifests hold.",
		func(c *Config) *string { return &c.App }, process()),
	textSetting("appName", "", "Application id: consumer group and prefix of internal topics. `<app>-app` when empty.",
		func(c *Config) *string { return &c.AppName }, process()),
	pathSetting("definitionsDir", "builders", "Directory with the manifests, searched recursively for `*.yaml` and `*.yml`.",
		func(c *Config) *string { return &c.DefinitionsDir }, process()),
	boolSetting("appBuilderEnabled", "true", "With false the manifests are ignored.",
		func(c *Config) *bool { return &c.Definitions }, process()),
	pathSetting("dataDir", ".", "Directory that other relative directories are below.",
		func(c *Config) *string { return &c.DataDir }, process()),
	textSetting("tableDir", "tables", "Directory of the table stores; a relative one is below dataDir.",
		func(c *Config) *string { return &c.TableDir }, quiet()),
	pathSetting("cacheDir", "", "Directory of compiled modules; the user's cache directory when empty.",
		func(c *Config) *string { return &c.CacheDir }, process()),
	listSetting("codeEnv", "", "list of names", "Variables of the process's environment that Code sees in `os.environ`, beside those the KasprApp declares.",
		anyName, func(c *Config) *[]string { return &c.CodeEnv }, process()),
	ordinalSetting(),

	group("Kafka"),
	listSetting("kafkaBootstrapServers", "localhost:9092", "list of host:port, at least one", "Brokers to begin with, separated by commas (or semicolons).",
		hostAndPort, func(c *Config) *[]string { return &c.Kafka.BootstrapServers }, alias("bootstrapServers"), process()),
	wordSetting("kafkaSecurityProtocol", "PLAINTEXT", "Whether connections are encrypted and log in.",
		[]string{"PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"},
		func(c *Config) *string { return &c.Kafka.SecurityProtocol }, alias("securityProtocol"), process()),
	wordSetting("kafkaSaslMechanism", Plain, "How to log in.",
		[]string{Plain, ScramSHA256, ScramSHA512, OAuthBearer},
		func(c *Config) *string { return &c.Kafka.SASL.Mechanism }, alias("saslMechanism"), process()),
	textSetting("kafkaAuthUsername", "", "User to log in as.",
		func(c *Config) *string { return &c.Kafka.SASL.Username }, alias("saslUsername"), process()),
	textSetting("kafkaAuthPassword", "", "Password of the user.",
		func(c *Config) *string { return &c.Kafka.SASL.Password }, alias("saslPassword"), secret(), process()),
	pathSetting("kafkaAuthPasswordFile", "", "File with the password instead, read again at every login.",
		func(c *Config) *string { return &c.Kafka.SASL.PasswordFile }, alias("saslPasswordFile"), process()),
	textSetting("kafkaOauthToken", "", "Token for OAUTHBEARER.",
		func(c *Config) *string { return &c.Kafka.SASL.OAuth.Token }, secret(), process()),
	pathSetting("kafkaOauthTokenFile", "", "File with the token instead, read again at every login.",
		func(c *Config) *string { return &c.Kafka.SASL.OAuth.TokenFile }, process()),
	textSetting("kafkaOauthTokenEndpoint", "", "URL that gives tokens for client credentials instead.",
		func(c *Config) *string { return &c.Kafka.SASL.OAuth.TokenEndpoint }, process()),
	textSetting("kafkaOauthClientId", "", "Client id for the token endpoint.",
		func(c *Config) *string { return &c.Kafka.SASL.OAuth.ClientID }, process()),
	textSetting("kafkaOauthClientSecret", "", "Client secret for the token endpoint.",
		func(c *Config) *string { return &c.Kafka.SASL.OAuth.ClientSecret }, secret(), process()),
	pathSetting("kafkaOauthClientSecretFile", "", "File with the client secret instead.",
		func(c *Config) *string { return &c.Kafka.SASL.OAuth.ClientSecretFile }, process()),
	textSetting("kafkaOauthScope", "", "Scope asked of the token endpoint.",
		func(c *Config) *string { return &c.Kafka.SASL.OAuth.Scope }, process()),
	pairsSetting("kafkaOauthExtensions", "SASL extensions sent with the token.",
		func(c *Config) *map[string]string { return &c.Kafka.SASL.OAuth.Extensions }, anyPair, process()),
	pathSetting("kafkaTlsCaFile", "", "PEM file of the authorities to trust; the system's when no CA is given.",
		func(c *Config) *string { return &c.Kafka.TLS.CAFile }, alias("kafkaAuthCafile"), process()),
	pathSetting("kafkaTlsCaPath", "", "Directory of PEM files of authorities to trust.",
		func(c *Config) *string { return &c.Kafka.TLS.CAPath }, alias("kafkaAuthCapath"), process()),
	textSetting("kafkaTlsCaData", "", "Authorities to trust, as PEM text.",
		func(c *Config) *string { return &c.Kafka.TLS.CAData }, alias("kafkaAuthCadata"), process()),
	pathSetting("kafkaTlsCertFile", "", "PEM file of the client certificate.",
		func(c *Config) *string { return &c.Kafka.TLS.CertFile }, process()),
	pathSetting("kafkaTlsKeyFile", "", "PEM file of the client certificate's key.",
		func(c *Config) *string { return &c.Kafka.TLS.KeyFile }, process()),
	textSetting("kafkaTlsServerName", "", "Name the brokers' certificates must have, instead of their host names.",
		func(c *Config) *string { return &c.Kafka.TLS.ServerName }, process()),
	textSetting("consumerGroupInstanceId", "", "Static group membership under this name.",
		func(c *Config) *string { return &c.Kafka.GroupInstanceID }, process()),
	durationSetting("brokerSessionTimeout", "120s", "The group waits this long for a silent member.",
		time.Second, 30*time.Minute, func(c *Config) *time.Duration { return &c.Kafka.SessionTimeout }),
	durationSetting("brokerHeartbeatInterval", "3s", "How often a member says that it is alive.",
		10*time.Millisecond, 10*time.Minute, func(c *Config) *time.Duration { return &c.Kafka.HeartbeatInterval }),
	durationSetting("brokerRequestTimeout", "180s", "How long a request may take; not shorter than brokerSessionTimeout.",
		time.Second, time.Hour, func(c *Config) *time.Duration { return &c.Kafka.RequestTimeout }),
	checkedSetting("brokerMaxPollRecords", "100", "whole number, at least 1", "Read for compatibility.", atLeastOne, later(notNeeded)),
	checkedSetting("brokerMaxPollInterval", "1000s", "duration", "Read for compatibility.", aDuration, later(notNeeded)),
	checkedSetting("producerAcks", "-1", "-1 or all", "Produced records are always acknowledged by all in-sync replicas.", allAcks, later("it cannot be anything else")),

	group("Schema registry"),
	listSetting("schemaRegistryUrl", "", "list of http or https URLs", "Registries with the schemas of avro, protobuf and jsonschema, tried in turn.",
		httpURL, func(c *Config) *[]string { return &c.Registry.URLs }),
	textSetting("schemaRegistryUsername", "", "User of the registry.",
		func(c *Config) *string { return &c.Registry.Username }, process()),
	textSetting("schemaRegistryPassword", "", "Password of the user.",
		func(c *Config) *string { return &c.Registry.Password }, secret(), process()),
	pathSetting("schemaRegistryPasswordFile", "", "File with the password instead, read again at every request.",
		func(c *Config) *string { return &c.Registry.PasswordFile }, process()),
	textSetting("schemaRegistryToken", "", "Bearer token instead of a user.",
		func(c *Config) *string { return &c.Registry.Token }, secret(), process()),
	pathSetting("schemaRegistryTokenFile", "", "File with the token instead, read again at every request.",
		func(c *Config) *string { return &c.Registry.TokenFile }, process()),
	pathSetting("schemaRegistryTlsCaFile", "", "PEM file of the authorities to trust; the system's without it.",
		func(c *Config) *string { return &c.Registry.TLS.CAFile }, process()),
	pathSetting("schemaRegistryTlsCertFile", "", "PEM file of the client certificate.",
		func(c *Config) *string { return &c.Registry.TLS.CertFile }, process()),
	pathSetting("schemaRegistryTlsKeyFile", "", "PEM file of the client certificate's key.",
		func(c *Config) *string { return &c.Registry.TLS.KeyFile }, process()),
	textSetting("schemaRegistryTlsServerName", "", "Name the registry's certificate must have, instead of its host name.",
		func(c *Config) *string { return &c.Registry.TLS.ServerName }, process()),
	durationSetting("schemaRegistryTimeout", "10s", "How long a request to the registry may take.",
		10*time.Millisecond, 10*time.Minute, func(c *Config) *time.Duration { return &c.Registry.Timeout }),
	intSetting("schemaRegistryCacheMax", "1000", "Schemas that are kept.",
		1, 1_000_000, func(c *Config) *int { return &c.Registry.CacheMax }),
	boolSetting("schemaRegistryAutoRegister", "true", "Schemas that manifests hold are registered. With false they must be there.",
		func(c *Config) *bool { return &c.Registry.AutoRegister }),
	wordSetting("schemaRegistrySubjects", "TopicName", "What subjects are named after: topic and side, the record, or both.",
		[]string{"TopicName", "RecordName", "TopicRecordName"}, func(c *Config) *string { return &c.Registry.Subjects }),
	boolSetting("schemaRegistryValidateJson", "true", "Records of jsonschema are held against their schema, read and written. With false they are only framed.",
		func(c *Config) *bool { return &c.Registry.ValidateJSON }),

	group("Topics and codecs"),
	intSetting("topicPartitions", "3", "Partitions of topics the app creates without a count of their own.",
		1, math.MaxInt32, func(c *Config) *int { return &c.Topics.Partitions }),
	intSetting("topicReplicationFactor", "3", "Replicas of topics the app creates.",
		1, math.MaxInt16, func(c *Config) *int { return &c.Topics.ReplicationFactor }),
	boolSetting("topicAllowDeclare", "true", "With false the app creates no topics.",
		func(c *Config) *bool { return &c.Topics.AllowDeclare }),
	wordSetting("keySerializer", "raw", "Codec of keys where a topic names none.", manifest.Serializers,
		func(c *Config) *string { return &c.KeySerializer }),
	wordSetting("valueSerializer", "json", "Codec of values where a topic names none.", manifest.Serializers,
		func(c *Config) *string { return &c.ValueSerializer }),
	wordSetting("jsonValueStyle", JSONCompact, "JSON values without blanks, or with exactly the original's bytes. Keys always have those: they decide partitions.",
		[]string{JSONCompact, JSONOriginal}, func(c *Config) *string { return &c.JSONValueStyle }),

	group("Processing"),
	wordSetting("processingGuarantee", ExactlyOnce, "What a crash may do: with exactly_once outputs, tables and offsets change together or not at all, at_least_once may repeat records.",
		[]string{AtLeastOnce, ExactlyOnce}, func(c *Config) *string { return &c.ProcessingGuarantee }),
	intSetting("workers", "0", "Instances of each agent's code that run side by side; 0 is one for each processor.",
		0, 1024, func(c *Config) *int { return &c.Workers }, process()),
	intSetting("batchRecordsMax", "1000", "Most records of one call into Python.",
		1, 1_000_000, func(c *Config) *int { return &c.Batch.RecordsMax }),
	sizeSetting("batchBytesMax", "1MiB", "Most bytes of one call into Python; one larger record is a batch of its own.",
		1, 1<<30, func(c *Config) *int64 { return &c.Batch.BytesMax }),
	durationSetting("batchLinger", "0s", "How long a batch that is not full waits for more records.",
		0, time.Minute, func(c *Config) *time.Duration { return &c.Batch.Linger }),
	intSetting("batchConcurrencyMax", "64", "Most records of one batch in progress at once: while the code of one waits (asyncio.sleep, a topicSend with ack), records with other keys begin. 1: one after the other.",
		1, 10_000, func(c *Config) *int { return &c.Batch.ConcurrencyMax }),
	durationSetting("commitInterval", "100ms", "How often outputs, table changes and offsets are committed; readers of committed records see outputs this much later. The original's brokerCommitInterval, there 2s.",
		time.Millisecond, 10*time.Minute, func(c *Config) *time.Duration { return &c.CommitInterval }, alias("brokerCommitInterval")),
	intSetting("commitEvery", "10000", "There is a commit at the latest after this many records.",
		1, math.MaxInt32, func(c *Config) *int { return &c.CommitEvery }, alias("brokerCommitEvery")),
	intSetting("queueRecordsMax", "4096", "Most records of one partition that wait for an agent; more are not fetched.",
		1, 10_000_000, func(c *Config) *int { return &c.QueueRecordsMax }, alias("streamBufferMaxsize")),
	durationSetting("shutdownTimeout", "30s", "How long a stop may take to finish what is running, commit and leave the group.",
		0, time.Hour, func(c *Config) *time.Duration { return &c.ShutdownTimeout }, process()),
	wordSetting("onOffsetLost", OffsetFail, "When the records behind the stored position are gone (retention, or a topic made anew): stop, or go on with the earliest or latest record.",
		[]string{OffsetFail, OffsetEarliest, OffsetLatest}, func(c *Config) *string { return &c.OnOffsetLost }),
	durationSetting("transactionTimeout", "15s", "The broker aborts a transaction after this time, also that of a process which died. A call with topicSend and ack must end within it.",
		time.Second, 15*time.Minute, func(c *Config) *time.Duration { return &c.TransactionTimeout }),
	intSetting("standbyReplicas", "1", "Warm copies of every table partition on other workers, as far as there are any; 0 saves their disks and takes longer when a worker is gone.",
		0, 100, func(c *Config) *int { return &c.StandbyReplicas }),
	durationSetting("streamRecoveryDelay", "10s", "Settle time between a rebalance and the recovery of tables.",
		0, time.Hour, func(c *Config) *time.Duration { return &c.RecoveryDelay }, later("recovery begins at once: the broker tells where a changelog ends")),
	boolSetting("streamWaitEmpty", "true", "Finish records in work before a rebalance or stop.",
		func(c *Config) *bool { return &c.WaitEmpty }, later("they are always finished")),

	group("Sandbox"),
	durationSetting("sandboxDeadline", "5s", "How long Python may work on one record.",
		time.Millisecond, time.Hour, func(c *Config) *time.Duration { return &c.Sandbox.Deadline }),
	durationSetting("sandboxLoadDeadline", "60s", "How long imports and init may take.",
		time.Millisecond, time.Hour, func(c *Config) *time.Duration { return &c.Sandbox.LoadDeadline }),
	sizeSetting("sandboxMemoryMax", "256MiB", "Memory of one instance of Python.",
		32<<20, 4<<30, func(c *Config) *int64 { return &c.Sandbox.MemoryMax }),
	durationSetting("sandboxTick", "5ms", "How often running Python is interrupted, to look at its deadline and to let others in.",
		time.Millisecond, time.Second, func(c *Config) *time.Duration { return &c.Sandbox.Tick }, process()),

	group("Logs"),
	levelSetting(),
	wordSetting("logFormat", "text", "How log lines are written, to standard error.", []string{"text", "json"},
		func(c *Config) *string { return &c.Log.Format }, process()),

	wordSetting("tracing", TracingOff, "What becomes of W3C trace contexts (headers traceparent and tracestate of records): off, pass them on, unchanged, to what is made of the records, or export: make spans of records and requests whose traces are sampled, too, and send them to otlpEndpoint.",
		[]string{TracingOff, TracingPass, TracingExport}, func(c *Config) *string { return &c.Tracing }, process()),
	urlSetting("otlpEndpoint", "http://localhost:4318", "Collector of spans, which speaks OTLP over HTTP; they go to /v1/traces below it.",
		func(c *Config) *string { return &c.OTLP.Endpoint }, process()),
	pairsSetting("otlpHeaders", "HTTP headers sent with spans, such as a token.",
		func(c *Config) *map[string]string { return &c.OTLP.Headers }, httpHeader, secret(), process()),
	ratioSetting("tracingSampleRatio", "0", "Share of records and requests that come without a trace context for which a trace is begun. With 0 only traces are continued that others have begun.",
		func(c *Config) *float64 { return &c.OTLP.Ratio }, process()),

	group("HTTP"),
	textSetting("webHost", "", "Host name under which other workers reach this one; the machine's when empty.",
		func(c *Config) *string { return &c.Web.Host }, process()),
	portSetting("webPort", "6065", "Port of the HTTP server of `kaspr run`, on all interfaces; 0: none. `kaspr dev` has one only with --http.",
		func(c *Config) *int { return &c.Web.Port }),
	textSetting("webBasePath", "", "Path before every web view's.",
		func(c *Config) *string { return &c.Web.BasePath }),
	textSetting("webMetricsBasePath", "", "Path before /metrics.",
		func(c *Config) *string { return &c.Web.MetricsBasePath }),
	durationSetting("webDeadline", "5s", "How long Python may work on one request of a web view.",
		time.Millisecond, time.Hour, func(c *Config) *time.Duration { return &c.Web.Deadline }),
	intSetting("webInstances", "0", "Instances of each web view's code that run side by side; 0 is twice the processors.",
		0, 1024, func(c *Config) *int { return &c.Web.Instances }, process()),
	intSetting("webQueueMax", "1000", "Most requests that wait for one web view; those beyond are answered with 503 and Retry-After.",
		1, 1_000_000, func(c *Config) *int { return &c.Web.QueueMax }),
	durationSetting("webTimeout", "30s", "How long a request may take, from its arrival to its answer; then it is answered with 503.",
		time.Millisecond, time.Hour, func(c *Config) *time.Duration { return &c.Web.Timeout }),
	sizeSetting("webBodyBytesMax", "1MiB", "Most bytes of a request's body; a larger one is answered with 413.",
		0, 1<<30, func(c *Config) *int64 { return &c.Web.BodyBytesMax }),
	intSetting("webConnectionsMax", "1024", "Most connections of clients to the HTTP server; those beyond are answered with 503.",
		1, 1_000_000, func(c *Config) *int { return &c.Web.ConnectionsMax }),
	boolSetting("webDebug", "false", "Show tracebacks in the error bodies of web views. They tell strangers what the code looks like.",
		func(c *Config) *bool { return &c.Web.Debug }),
	textSetting("webToken", "", "Bearer token that requests to web views, for /schedule and for /signal/rebalance must have; without one they are open to everybody. Health, metrics and status need none.",
		func(c *Config) *string { return &c.Web.Token }, secret(), process()),
	pathSetting("webTlsCertFile", "", "PEM file of the HTTP server's certificate and those that vouch for it; with it the server speaks HTTPS only. Read again when it changes.",
		func(c *Config) *string { return &c.Web.TLS.CertFile }, process()),
	pathSetting("webTlsKeyFile", "", "PEM file of the certificate's key.",
		func(c *Config) *string { return &c.Web.TLS.KeyFile }, process()),
	pathSetting("webTlsClientCaFile", "", "PEM file of authorities: requests to web views, for /schedule and for /signal/rebalance must come with a client certificate of one of them. Health, metrics and status need none.",
		func(c *Config) *string { return &c.Web.TLS.ClientCAFile }, process()),
	pathSetting("webTlsCaFile", "", "PEM file of the authorities that vouch for the other processes of the app, which this one reads tables from; the system's without it. Read at the start.",
		func(c *Config) *string { return &c.Web.PeerCAFile }, process()),
	textSetting("adminListen", AdminListenDefault, "host:port of the admin server with the console, which shows data of tables, or off. An address that others reach needs adminToken or adminTlsClientCaFile. "+
		"If another process has the default port, a free one is taken, which the log names.",
		func(c *Config) *string { return &c.Web.AdminListen }, process()),
	textSetting("adminToken", "", "Bearer token that requests to the admin server must have.",
		func(c *Config) *string { return &c.Web.AdminToken }, secret(), process()),
	pathSetting("adminTlsCertFile", "", "PEM file of the admin server's certificate and those that vouch for it; with it the server speaks HTTPS only. Read again when it changes.",
		func(c *Config) *string { return &c.Web.AdminTLS.CertFile }, process()),
	pathSetting("adminTlsKeyFile", "", "PEM file of the certificate's key.",
		func(c *Config) *string { return &c.Web.AdminTLS.KeyFile }, process()),
	pathSetting("adminTlsClientCaFile", "", "PEM file of authorities: connections to the admin server must have a client certificate of one of them.",
		func(c *Config) *string { return &c.Web.AdminTLS.ClientCAFile }, process()),
	boolSetting("webStaleReads", "false", "Let web views read a standby copy, of this process or another, which may be behind, while the owner of a table's partition does not answer.",
		func(c *Config) *bool { return &c.Web.StaleReads }),

	wordSetting("console", ConsoleLoopback, "Who may open the console at /console/ of the admin server, which shows records and tables: requests from this machine only, all that the admin server answers, or nobody.",
		[]string{ConsoleLoopback, ConsoleAll, ConsoleOff}, func(c *Config) *string { return &c.Web.Console }, process()),

	group("Message scheduler"),
	boolSetting("schedulerEnabled", "false", "Messages for later: see docs/scheduler.md. schedulerCronEnabled implies it.",
		func(c *Config) *bool { return &c.Scheduler.Enabled }),
	boolSetting("schedulerDebugStatsEnabled", "false", "The scheduler's numbers in the log every 5 s.",
		func(c *Config) *bool { return &c.Scheduler.DebugStatsEnabled }),
	intSetting("schedulerTopicPartitions", "0", "Partitions of the scheduler's topics when they are made; 0 is topicPartitions. They cannot be changed later.",
		0, math.MaxInt32, func(c *Config) *int { return &c.Scheduler.TopicPartitions }),
	positive("schedulerCheckpointSaveIntervalSeconds", "1.3s", "How often the checkpoint is saved.",
		func(c *Config) *time.Duration { return &c.Scheduler.CheckpointSaveInterval }, later(positionsCommitted)),
	intSetting("schedulerDispatcherDefaultCheckpointLookbackDays", "7", "Days back to which missed firings of cron entries are made up. A first start scans nothing.",
		0, 36500, func(c *Config) *int { return &c.Scheduler.DispatcherLookbackDays }),
	positive("schedulerDispatcherCheckpointInterval", "10s", "How often the dispatcher's position is kept.",
		func(c *Config) *time.Duration { return &c.Scheduler.DispatcherCheckpointInterval }, later(positionsCommitted)),
	positive("schedulerJanitorCheckpointInterval", "10s", "How often the janitor's position is kept.",
		func(c *Config) *time.Duration { return &c.Scheduler.JanitorCheckpointInterval }, later(positionsCommitted)),
	positive("schedulerJanitorCleanIntervalSeconds", "3s", "How often request ids are looked for that may be forgotten.",
		func(c *Config) *time.Duration { return &c.Scheduler.JanitorCleanInterval }),
	durationSetting("schedulerJanitorHighwaterOffsetSeconds", "4h", "How long request ids are remembered after their message has left.",
		0, forever, func(c *Config) *time.Duration { return &c.Scheduler.JanitorHighwaterOffset }),
	boolSetting("schedulerCronEnabled", "false", "Messages on cron.",
		func(c *Config) *bool { return &c.Scheduler.CronEnabled }),
	positive("schedulerCronTickIntervalSeconds", "30s", "A firing that is later than this was missed.",
		func(c *Config) *time.Duration { return &c.Scheduler.CronTickInterval }),
	positive("schedulerCronTickBufferSeconds", "10m", "How far ahead firings are written; longer than the interval and at least twice the smallest gap.",
		func(c *Config) *time.Duration { return &c.Scheduler.CronTickBuffer }, later("nothing is written ahead")),
	positive("schedulerCronMinIntervalSeconds", "5s", "Smallest gap of a cron entry.",
		func(c *Config) *time.Duration { return &c.Scheduler.CronMinInterval }),
	wordSetting("schedulerPastDue", PastDueDeliver, "Messages whose time is over when their request comes: deliver them at once, or reject them.",
		[]string{PastDueDeliver, PastDueReject}, func(c *Config) *string { return &c.Scheduler.PastDue }),
	wordSetting("schedulerDuplicateId", DuplicateReject, "An ADD whose request id has another message that waits: reject it, or let it replace that message.",
		[]string{DuplicateReject, DuplicateReplace}, func(c *Config) *string { return &c.Scheduler.DuplicateID }),
	durationSetting("schedulerHorizon", "0s", "How far ahead a message may be scheduled; 0 is no limit.",
		0, forever, func(c *Config) *time.Duration { return &c.Scheduler.Horizon }),
	boolSetting("schedulerInterleave", "false", "While messages are late, half of what is delivered are those that have just come due: a hot second does not hold up all others, but messages do not leave in the order of their times then.",
		func(c *Config) *bool { return &c.Scheduler.Interleave }),
	boolSetting("schedulerProvenanceEnabled", "false", "Delivered messages have headers that tell their request, when they were due and when they left.",
		func(c *Config) *bool { return &c.Scheduler.Provenance }),
	boolSetting("schedulerResultsEnabled", "false", "What becomes of every request and message is written to `<id>-schedule-results`.",
		func(c *Config) *bool { return &c.Scheduler.Results }),
	boolSetting("schedulerWebEnabled", "false", "Answer /schedule on webPort: which messages wait, without keys, values and headers. It asks for webToken and a client certificate as web views do.",
		func(c *Config) *bool { return &c.Scheduler.Web }),

	group("Table store"),
	sizeSetting("storeMemoryMax", "0", "Memory that all stores of the process take together, outside of Go and Python; 0 is a third of the container's memory.",
		0, math.MaxInt64, func(c *Config) *int64 { return &c.Store.MemoryMax }),
	sizeSetting("storeRocksdbWriteBufferSize", "64MiB", "Size of a memtable.",
		64<<10, math.MaxInt64, func(c *Config) *int64 { return &c.Store.WriteBufferSize }),
	intSetting("storeRocksdbMaxWriteBufferNumber", "3", "Memtables of a store.",
		1, math.MaxInt32, func(c *Config) *int { return &c.Store.MaxWriteBufferNumber }),
	sizeSetting("storeRocksdbTargetFileSizeBase", "64MiB", "Size of a file of level 1.",
		64<<10, math.MaxInt64, func(c *Config) *int64 { return &c.Store.TargetFileSizeBase }),
	sizeSetting("storeRocksdbBlockCacheSize", "0", "Block cache, shared by all stores; 0 is two thirds of storeMemoryMax.",
		0, math.MaxInt64, func(c *Config) *int64 { return &c.Store.BlockCacheSize }),
	sizeSetting("storeRocksdbBlockCacheCompressedSize", "256MiB", "Cache of compressed blocks, beside storeMemoryMax. Made only when it is asked for: the default stands for none.",
		0, math.MaxInt64, func(c *Config) *int64 { return &c.Store.BlockCacheCompressedSize }),
	intSetting("storeRocksdbBloomFilterSize", "3", "Bits of the bloom filter for each key; 0 is no filter. With 3 one lookup in four of a missing key reads a block, with 10 one in a hundred.",
		0, 100, func(c *Config) *int { return &c.Store.BloomFilterSize }),
	boolSetting("storeRocksdbSetCacheIndexAndFilterBlocks", "false", "Keep index and filter blocks in the block cache.",
		func(c *Config) *bool { return &c.Store.CacheIndexAndFilter }),
	durationSetting("storeCleanupDelay", "10m", "The store of a partition that went to another process is deleted from the disk after this time, unless a standby copy stays or the partition comes back; 0: never.",
		0, forever, func(c *Config) *time.Duration { return &c.Store.CleanupDelay }),
}

// refused are names that mean something elsewhere and are not offered here, with what to do instead.
var refused = map[string]string{
	"kafkaInsecureSkipVerify":    "certificates are always verified: trust the CA with kafkaTlsCaFile, or name the brokers with kafkaTlsServerName",
	"kafkaTlsInsecureSkipVerify": "certificates are always verified: trust the CA with kafkaTlsCaFile, or name the brokers with kafkaTlsServerName",
	"insecureSkipVerify":         "certificates are always verified: trust the CA with kafkaTlsCaFile, or name the brokers with kafkaTlsServerName",
	"tlsInsecureSkipVerify":      "certificates are always verified: trust the CA with kafkaTlsCaFile, or name the brokers with kafkaTlsServerName",
}

// group is a heading among the settings.
func group(name string) setting { return setting{group: name} }

func positive(key, text, doc string, field func(*Config) *time.Duration, opts ...option) setting {
	return durationSetting(key, text, doc, time.Millisecond, forever, field, opts...)
}

// checkedSetting is checked and goes nowhere: it has no get.
func checkedSetting(key, text, what, doc string, check func(string) error, opts ...option) setting {
	s := define(key, text, what, doc, opts)
	s.set = func(_ *Config, value string, _ given) error { return check(value) }
	return s
}

func ordinalSetting() setting {
	s := intSetting("workerOrdinalNumber", "-1", "Number of this worker; -1 takes the number the host name ends with.",
		-1, math.MaxInt32, func(c *Config) *int { return &c.WorkerOrdinal }, later(laterWorkers), process())
	return s
}

func levelSetting() setting {
	s := define("logLevel", "info", "debug, info, warn, error", "Least severe log lines that are written.", []option{process()})
	words := map[string]slog.Level{"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "warning": slog.LevelWarn, "error": slog.LevelError}
	s.set = func(c *Config, value string, _ given) error {
		level, ok := words[strings.ToLower(value)]
		if !ok {
			return wrong("must be one of debug, info, warn, error, not %q", manifest.Suggest(value, []string{"debug", "info", "warn", "error"}), value)
		}
		c.Log.Level = level
		return nil
	}
	s.get = func(c *Config) any { return c.Log.Level }
	return s
}

// pairsSetting is a list of names with their values; check says what is wrong with one of them.
func pairsSetting(key, doc string, field func(*Config) *map[string]string, check func(name, text string) error, opts ...option) setting {
	s := define(key, "", "list of name=value", doc, opts)
	s.pairs = true
	s.set = func(c *Config, value string, _ given) error {
		pairs := map[string]string{}
		for _, item := range strings.Split(value, ",") {
			if item = strings.TrimSpace(item); item == "" {
				continue
			}
			name, text, ok := strings.Cut(item, "=")
			if !ok || name == "" {
				if s.secret {
					return wrong("must be a list of name=value", "")
				}
				return wrong("must be a list of name=value, not %q", "", value)
			}
			if err := check(name, text); err != nil {
				return err
			}
			pairs[name] = text
		}
		*field(c) = pairs
		return nil
	}
	s.get = func(c *Config) any {
		var items []string
		for _, name := range sortedKeys(*field(c)) {
			items = append(items, name+"="+(*field(c))[name])
		}
		return items
	}
	return s
}

func anyPair(string, string) error { return nil }

var headerName = regexp.MustCompile("^[-!#$%&'*+.^_`|~0-9A-Za-z]+$")

// httpHeader does not repeat what it refuses: it may be a secret.
func httpHeader(name, text string) error {
	if !headerName.MatchString(name) || strings.ContainsFunc(text, unicode.IsControl) {
		return wrong("must be a list of name=value, with names of HTTP headers and no control characters", "")
	}
	return nil
}

func anyName(string) error { return nil }

func hostAndPort(item string) error {
	host, port, err := net.SplitHostPort(item)
	if err != nil {
		return wrong("must be a list of host:port, and %q is not one", "", item)
	}
	if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 || host == "" {
		return wrong("must be a list of host:port, and %q is not one", "", item)
	}
	return nil
}

func httpURL(item string) error {
	u, err := url.Parse(item)
	if err == nil && u.User != nil { // it would be logged
		return wrong("must be a list of URLs without a user or password: schemaRegistryUsername and schemaRegistryPassword are for them", "")
	}
	if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" {
		return wrong("must be a list of http or https URLs, and %q is not one", "", item)
	}
	return nil
}

func atLeastOne(value string) error {
	if n, err := strconv.Atoi(value); err != nil || n < 1 {
		return wrong("must be a whole number of at least 1, not %q", "", value)
	}
	return nil
}

func aDuration(value string) error {
	if _, ok := parseDuration(value); !ok {
		return wrong("must be a duration such as 250ms, 2s or 1h, or seconds as a number, not %q", "", value)
	}
	return nil
}

func allAcks(value string) error {
	if value != "-1" && value != "all" {
		return wrong("must be -1 or all, not %q: less would lose records", "", value)
	}
	return nil
}
