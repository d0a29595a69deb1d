package abi

// KindTask is the kind of a program whose first operation is called without a value, and whose records are none: it is called when it
// is due. As in a web view's, there is no event, and what it does to a table in the partition of the record (-1) is meant for the
// partition that has the key.
const KindTask = "KasprTask"

// Program is everything the guest must know of one component: its Code blocks with their places in the manifests, its
// pipeline, its codecs. It crosses as JSON to kaspr_load, once per image.
type Program struct {
	Kind      string            `json:"kind"` // "KasprAgent"
	Name      string            `json:"name"` // metadata.name
	App       AppInfo           `json:"app"`
	Env       map[string]string `json:"env"` // os.environ, all of it
	Init      *Code             `json:"init,omitempty"`
	Input     Input             `json:"input"`
	Ops       []Operation       `json:"operations"` // the pipeline, in order; an operation named twice stands here twice
	Outputs   []Output          `json:"outputs"`
	Tables    []Table           `json:"tables"`         // those the code may touch; their index is the table's number in a call
	View      *View             `json:"view,omitempty"` // of a KasprWebView, whose records are requests
	Blocks    []Block           `json:"blocks,omitempty"`
	JSONExact bool              `json:"jsonExact"` // values too with the original's separators and ", " ": "; keys always have them
}

// View is how a web view is called and how it answers.
type View struct {
	Params          []string    `json:"params"`            // of the path, in its order; the first operation gets them by name
	ContentType     string      `json:"contentType"`       // text/plain, text/html, application/json, application/octet-stream
	Status          int         `json:"status,omitempty"`  // of success; 0: 200
	Headers         [][2]string `json:"headers,omitempty"` // where no selector gives others
	StatusSelector  Selector    `json:"statusSelector"`
	HeadersSelector Selector    `json:"headersSelector"`
	BodySelector    Selector    `json:"bodySelector"`
	Debug           bool        `json:"debug,omitempty"` // show tracebacks in error bodies
}

// ViewParamsMax is how many parameters a path may have (PARAMS_MAX of kaspr.h).
const ViewParamsMax = 32

// Selector has a function for either outcome.
type Selector struct {
	OnSuccess *Code `json:"onSuccess,omitempty"`
	OnError   *Code `json:"onError,omitempty"`
}

// Block is Code with a role of its own beside the pipeline, such as a selector of a web view's response.
type Block struct {
	Role string `json:"role"` // map: it may yield; any other word: it must return a value
	Code *Code  `json:"code"`
}

// AppInfo is what context["app"] shows.
type AppInfo struct {
	Name string         `json:"name"` // KasprApp metadata.name
	ID   string         `json:"id"`   // application id, "<name>-app"
	Conf map[string]any `json:"conf"` // settings by their snake_case name
}

// Code is one Python block and where it stands.
type Code struct {
	Python     string `json:"python"`
	Entrypoint string `json:"entrypoint,omitempty"` // empty: the first function defined in the block
	File       string `json:"file"`                 // file name in tracebacks
	Line       int    `json:"line"`                 // line of the file where the block's first line stands, from 1
	Where      string `json:"where"`                // such as: operation "enrich", map
}

// Input says how records are decoded.
type Input struct {
	KeySerializer   string `json:"keySerializer"` // raw, str, json, pickle, binary, avro, protobuf, jsonschema
	ValueSerializer string `json:"valueSerializer"`
}

// Operation is one pipeline step; exactly one of Map, Filter and Send is set.
type Operation struct {
	Name        string     `json:"name"`
	Map         *Code      `json:"map,omitempty"`
	Filter      *Code      `json:"filter,omitempty"`
	Send        *Output    `json:"topicSend,omitempty"`
	PassThrough bool       `json:"passThrough,omitempty"` // with Send
	Tables      []TableRef `json:"tables,omitempty"`
}

// TableRef hands a table to an operation's functions as a keyword argument.
type TableRef struct {
	Name      string `json:"name"`
	ParamName string `json:"paramName"`
}

// Table is one KasprTable as the guest sees it.
type Table struct {
	Name            string  `json:"name"` // metadata.name
	Help            string  `json:"help"` // description
	Changelog       string  `json:"changelog"`
	KeySerializer   string  `json:"keySerializer"` // raw, json
	ValueSerializer string  `json:"valueSerializer"`
	Global          bool    `json:"global,omitempty"`
	PartitionByKey  bool    `json:"partitionByKey,omitempty"` // a write goes to murmur2(key) % partitions, not to the record's partition
	TTL             int64   `json:"ttl,omitempty"`            // milliseconds after its last write an entry is deleted; 0: never
	Default         *Code   `json:"default,omitempty"`        // defaultSelector
	Window          *Window `json:"window,omitempty"`
}

// Window is a table's window. Times are milliseconds.
type Window struct {
	Size       int64  `json:"size"`
	Step       int64  `json:"step"`              // equal to Size for tumbling windows
	Expires    int64  `json:"expires,omitempty"` // after a window's end; 0: never
	RelativeTo string `json:"relativeTo"`        // stream, now, custom
	Selector   *Code  `json:"selector,omitempty"`
}

// Output is one target of values: an agent output or a topicSend. Topic and NameSelector exclude each other.
type Output struct {
	Topic             string       `json:"topic,omitempty"`
	NameSelector      *Code        `json:"nameSelector,omitempty"`
	KeySerializer     string       `json:"keySerializer"`
	ValueSerializer   string       `json:"valueSerializer"`
	KeySchema         int          `json:"keySchema,omitempty"` // number of what describes keys, of which the engine has a list; 0: nothing but the topic
	ValueSchema       int          `json:"valueSchema,omitempty"`
	Ack               bool         `json:"ack,omitempty"`
	KeySelector       *Code        `json:"keySelector,omitempty"`
	ValueSelector     *Code        `json:"valueSelector,omitempty"`
	PartitionSelector *Code        `json:"partitionSelector,omitempty"`
	HeadersSelector   *Code        `json:"headersSelector,omitempty"`
	Predicate         *Code        `json:"predicate,omitempty"`
	Declare           *Declaration `json:"declare,omitempty"`  // create the topic before the first send
	Carry             bool         `json:"carry,omitempty"`    // what no selector says is the record's own: key and partition, headers
	CarryKey          bool         `json:"carryKey,omitempty"` // the key is the record's own; without KeySelector and Carry
	NoValue           bool         `json:"noValue,omitempty"`  // the message has a key only
	Label             string       `json:"label,omitempty"`    // what failures call it; empty: output and the topic's name
	Schedule          *Scheduled   `json:"schedule,omitempty"`
}

// Scheduled makes an output a request to the scheduler, whose topic Output.Topic is then; Topic or NameSelector says where the message
// goes in the end. Exactly one of DeliverAt and Delay is there.
type Scheduled struct {
	Topic        string `json:"topic,omitempty"`
	NameSelector *Code  `json:"nameSelector,omitempty"`
	DeliverAt    *Code  `json:"deliverAt,omitempty"`
	Delay        *Code  `json:"delay,omitempty"`
	RequestID    *Code  `json:"requestId,omitempty"`
	Replace      bool   `json:"replace,omitempty"`
}

// Codes is all Code of an output; some are nil.
func (o *Output) Codes() []*Code {
	list := []*Code{o.NameSelector, o.KeySelector, o.ValueSelector, o.PartitionSelector, o.HeadersSelector, o.Predicate}
	if s := o.Schedule; s != nil {
		list = append(list, s.NameSelector, s.DeliverAt, s.Delay, s.RequestID)
	}
	return list
}

// Declaration is how a topic is created. Zero counts mean the app's defaults.
type Declaration struct {
	Partitions int32             `json:"partitions,omitempty"`
	Replicas   int16             `json:"replicas,omitempty"`
	Config     map[string]string `json:"config,omitempty"` // retention.ms, cleanup.policy and the manifest's own, merged
}

// Problem is one thing wrong with a Program, found while loading it.
type Problem struct {
	File      string `json:"file"`
	Line      int    `json:"line"`
	Column    int    `json:"column"` // from 1; 0 when unknown
	Where     string `json:"where"`
	Type      string `json:"type"` // Python exception class, or "Entrypoint"
	Message   string `json:"message"`
	Traceback string `json:"traceback,omitempty"`
}

// TopicRequest is the request of OpEnsureTopic.
type TopicRequest struct {
	Name string `json:"name"`
	Declaration
}
