//go:generate go test . -run "TestCases|TestDocs" -rewrite

// Package config reads settings from defaults, the KasprApp, a file, the environment and flags into one plain value.
package config

import (
	"log/slog"
	"runtime"
	"time"
)

// Config is every setting, resolved and validated. It is passed by value and never changed.
type Config struct {
	App            string // KasprApp to run; empty: the only one in the manifests
	AppName        string // application id; empty: "<app>-app"
	DefinitionsDir string
	DataDir        string
	TableDir       string   // absolute or below DataDir, already joined
	CacheDir       string   // compiled modules
	Definitions    bool     // appBuilderEnabled: false ignores the manifests
	CodeEnv        []string // names of variables Code sees, beside the app's own

	Kafka    Kafka
	Topics   Topics
	Registry Registry

	KeySerializer   string // default of agents' inputs and outputs
	ValueSerializer string
	JSONValueStyle  string // JSONCompact, JSONOriginal

	ProcessingGuarantee string // AtLeastOnce, ExactlyOnce
	OnOffsetLost        string // OffsetFail, OffsetEarliest, OffsetLatest
	TransactionTimeout  time.Duration
	StandbyReplicas     int
	Workers             int // at least 1
	Batch               Batch
	CommitInterval      time.Duration
	CommitEvery         int // records
	QueueRecordsMax     int
	ShutdownTimeout     time.Duration
	RecoveryDelay       time.Duration // streamRecoveryDelay
	WaitEmpty           bool          // streamWaitEmpty
	WorkerOrdinal       int           // -1: from the host name

	Sandbox   Sandbox
	Log       Log
	Tracing   string // TracingOff, TracingPass, TracingExport
	OTLP      OTLP
	Web       Web
	Scheduler Scheduler
	Store     Store

	environ map[string]string // of the process, for the app's declared environment; never changed
	values  []Explained       // every setting with its source, in table order
}

// Processors is how many processors the machine, or the container's limit, gave this process at its start. The engine
// raises GOMAXPROCS above it later.
var Processors = runtime.GOMAXPROCS(0)

// Processing guarantees.
const (
	AtLeastOnce = "at_least_once"
	ExactlyOnce = "exactly_once"
)

// What becomes of trace contexts.
const (
	TracingOff    = "off"
	TracingPass   = "pass"
	TracingExport = "export"
)

// What to do when the records behind a stored position are gone.
const (
	OffsetFail     = "fail"
	OffsetEarliest = "earliest"
	OffsetLatest   = "latest"
)

// Styles of JSON values; keys always have the original's bytes.
const (
	JSONCompact  = "compact"
	JSONOriginal = "original"
)

// Kafka is how to reach the cluster.
type Kafka struct {
	BootstrapServers  []string // host:port
	SecurityProtocol  string   // PLAINTEXT, SSL, SASL_PLAINTEXT, SASL_SSL
	SASL              SASL
	TLS               TLS
	GroupInstanceID   string // static membership; empty: none
	SessionTimeout    time.Duration
	HeartbeatInterval time.Duration
	RequestTimeout    time.Duration
}

// UsesTLS tells whether connections are encrypted.
func (k Kafka) UsesTLS() bool { return k.SecurityProtocol == "SSL" || k.SecurityProtocol == "SASL_SSL" }

// UsesSASL tells whether connections log in.
func (k Kafka) UsesSASL() bool {
	return k.SecurityProtocol == "SASL_PLAINTEXT" || k.SecurityProtocol == "SASL_SSL"
}

// SASL mechanisms.
const (
	Plain       = "PLAIN"
	ScramSHA256 = "SCRAM-SHA-256"
	ScramSHA512 = "SCRAM-SHA-512"
	OAuthBearer = "OAUTHBEARER"
)

// SASL is how to log in. The files are read again at every login, so that rotated secrets are picked up.
type SASL struct {
	Mechanism    string
	Username     string
	Password     string
	PasswordFile string // instead of Password
	OAuth        OAuth
}

// OAuth is where an OAUTHBEARER token comes from: exactly one of Token, TokenFile and TokenEndpoint.
type OAuth struct {
	Token            string
	TokenFile        string
	TokenEndpoint    string // client credentials grant
	ClientID         string
	ClientSecret     string
	ClientSecretFile string // instead of ClientSecret
	Scope            string
	Extensions       map[string]string // SASL extensions sent with the token
}

// TLS is whom to trust and who to be. Without a CA the system's are trusted.
type TLS struct {
	CAFile     string
	CAPath     string // every *.pem and *.crt in it
	CAData     string // PEM text
	CertFile   string
	KeyFile    string
	ServerName string // expected name instead of the broker's host name
}

// Registry is the schema registry, how to reach it and how to use it.
type Registry struct {
	URLs         []string // none: there is no registry
	Username     string
	Password     string
	PasswordFile string // instead of Password, read again at every request
	Token        string // bearer token, instead of a user
	TokenFile    string
	TLS          TLS
	Timeout      time.Duration // of a request
	CacheMax     int           // schemas
	AutoRegister bool
	Subjects     string // how subjects are named: TopicName, RecordName, TopicRecordName
	ValidateJSON bool
}

// Topics are the defaults of topics the app creates.
type Topics struct {
	Partitions        int
	ReplicationFactor int
	AllowDeclare      bool
}

// Batch bounds what one call takes.
type Batch struct {
	RecordsMax     int
	BytesMax       int64
	Linger         time.Duration
	ConcurrencyMax int // records of one call that are in progress at once
}

// Sandbox bounds user code.
type Sandbox struct {
	Deadline     time.Duration // of one record's processing
	LoadDeadline time.Duration // of imports and init
	MemoryMax    int64         // bytes of one instance
	Tick         time.Duration // how often running code is asked to let others in
}

// Log is what is logged and how.
type Log struct {
	Level  slog.Level
	Format string // text, json
}

// OTLP is where spans go, with TracingExport.
type OTLP struct {
	Endpoint string // URL, to which /v1/traces is added
	Headers  map[string]string
	Ratio    float64 // of traces begun here, for what comes without one
}

// Web is the HTTP server.
type Web struct {
	Host            string
	Port            int
	BasePath        string
	MetricsBasePath string

	Deadline       time.Duration // of one request's Python
	Instances      int           // of each view's code, at least 1
	QueueMax       int           // requests that wait for a view
	Timeout        time.Duration // of a request, waiting included
	BodyBytesMax   int64
	ConnectionsMax int
	Debug          bool   // tracebacks in error bodies
	Token          string // that requests to web views must bear; empty: none
	TLS            ListenerTLS
	PeerCAFile     string // authorities of the app's other processes; empty: the system's
	AdminListen    string // as it was set; AdminAddress says what it means
	AdminToken     string // that its requests must bear
	AdminTLS       ListenerTLS
	StaleReads     bool   // of standby copies, when the owner does not answer
	Console        string // who may open it
}

// ListenerTLS are the PEM files of a listener; without a certificate it speaks plain HTTP.
type ListenerTLS struct {
	CertFile, KeyFile string
	ClientCAFile      string // authorities of the clients' certificates; empty: clients need none
}

// AdminListenDefault is an address for one engine on a machine; AdminOff is for none.
const (
	AdminListenDefault = "127.0.0.1:6165"
	AdminOff           = "off"
)

// AdminAddress is the host:port of the admin server; empty for none. Without an HTTP server there is one only if it was asked for.
func (w Web) AdminAddress() string {
	if w.AdminListen == AdminOff || w.Port == 0 && w.AdminListen == AdminListenDefault {
		return ""
	}
	return w.AdminListen
}

// Who may open the console.
const (
	ConsoleLoopback = "loopback"
	ConsoleAll      = "all"
	ConsoleOff      = "off"
)

// Scheduler is the message scheduler.
type Scheduler struct {
	Enabled                      bool
	DebugStatsEnabled            bool
	TopicPartitions              int
	CheckpointSaveInterval       time.Duration
	DispatcherLookbackDays       int
	DispatcherCheckpointInterval time.Duration
	JanitorCheckpointInterval    time.Duration
	JanitorCleanInterval         time.Duration
	JanitorHighwaterOffset       time.Duration
	CronEnabled                  bool
	CronTickInterval             time.Duration
	CronTickBuffer               time.Duration
	CronMinInterval              time.Duration
	PastDue                      string
	DuplicateID                  string
	Horizon                      time.Duration // 0: none
	Interleave                   bool
	Provenance                   bool
	Results                      bool
	Web                          bool
}

// What becomes of a message whose time is over when its request comes.
const (
	PastDueDeliver = "deliver"
	PastDueReject  = "reject"
)

// What becomes of an ADD whose request id has another message that waits.
const (
	DuplicateReject  = "reject"
	DuplicateReplace = "replace"
)

// Store is RocksDB.
type Store struct {
	MemoryMax                int64 // 0: a third of the container's
	WriteBufferSize          int64
	MaxWriteBufferNumber     int
	TargetFileSizeBase       int64
	BlockCacheSize           int64 // 0: two thirds of MemoryMax
	BlockCacheCompressedSize int64
	BloomFilterSize          int // bits per key
	CacheIndexAndFilter      bool
	CleanupDelay             time.Duration // 0: never
	Apps                     int           // of the process, that share the default of MemoryMax; 0: one
}
