// Package abi is the byte layout between the engine and the Python guest: a batch in, a result out.
//
// It is the one source of pyguest/include/abi.h (make generate). All integers are little-endian; offsets are in bytes
// from the start of the buffer they stand in. The guest is not trusted: the decoder checks every length.
//
// Exports of the guest:
//
//	kaspr_state            i32 global: address of the State struct below
//	kaspr_start() i32      start Python and import the runtime; 0 or an error (text in the result)
//	kaspr_input(n) i32     address of the input buffer, at least n bytes; valid until the next kaspr_input
//	kaspr_load(n) i32      the n input bytes are a program (JSON, see Program); 0, or 1 and a JSON list of Problem in the result
//	kaspr_check(n) i32     the same, but only compiles; runs no user code
//	kaspr_process(n) i32   the n input bytes are a batch; 0, or 1 (the guest could not read the batch; text in the result)
//	kaspr_reseed(n) i32    the n input bytes (64) are fresh random bytes: random, uuid and tempfile are reseeded from them
//	kaspr_tick()           called by the loop checks the rewriter inserts; never by the host
//
// Imports of the guest, module "kaspr":
//
//	tick() i32             asks what to do: TickContinue, TickRaise or TickDie
//	die()                  ends the call; does not return. The traceback of the running code is in the state's report
//	host(op, req, reqLen, resp, respCap i32) i32
//	                       host call: writes its answer to resp, returns its length, or -1-needed when respCap is too
//	                       small, or math.MinInt32 on a refused call. Ops are below
package abi

// State is a struct in the guest's memory at the address held by the export kaspr_state. Field = byte offset, all u32.
const (
	StateInterrupt = 0  // host ticker writes 1; loop checks read it; kaspr_tick clears it
	StateProgress  = 4  // index of the unit (record, or take batch) in progress; ProgressIdle between calls
	StateResultPtr = 8  // result of the last call: address
	StateResultLen = 12 // and length
	StateCommitted = 16 // bytes of the result that belong to finished units; valid even when the call dies
	StateReportPtr = 20 // traceback written before die(): address
	StateReportLen = 24 // and length (UTF-8, one frame a line: "file:line\tfunction\n", oldest first, user frames only)
	StatePhase     = 28 // what runs now: Phase*
	StateOperation = 32 // index of the operation (or PhaseOutput's output) in progress
	StateRepeated  = 36 // 1: records that had started to send (OpSendStart) were given up and run again, or are left undone
	StateDeadline  = 40 // of a unit, in milliseconds; 0: the guest need not look (the host does)
	StateSize      = 64
)

// ProgressIdle is StateProgress while no unit is in progress.
const ProgressIdle = 0xFFFFFFFF

// Phases of a unit, for naming what was running when an instance died.
const (
	PhaseIdle        = 0
	PhaseDecodeKey   = 1
	PhaseDecodeValue = 2
	PhaseOperation   = 3 // StateOperation is the index into Program.Operations
	PhaseOutput      = 4 // StateOperation is the index into Program.Outputs
)

// Answers of tick.
const (
	TickContinue = 0
	TickRaise    = 1 // raise DeadlineExceeded in the running Python code, at its next evaluation check
	TickDie      = 2 // write the report, then call die
)

// Batch: a header of BatchHeaderSize bytes, Count record entries of RecordSize bytes, then topics, headers and bytes in
// any order. A length of -1 is Kafka's null.
//
//	header: u32 magic, u32 count, u32 flags, u32 topicCount, u32 topicsOff, u32 cacheValid (record.Batch), u32 formsOff (0: there
//	        are none), u32 concurrency (record.Batch)
//	record: u32 topic (index), i32 partition, i64 offset, i64 timestamp (ms), u32 timestampType, u32 attempt,
//	        u32 keyOff, i32 keyLen, u32 valueOff, i32 valueLen, u32 headersOff, u32 headerCount
//	topic:  u32 off, u32 len                                   (at topicsOff)
//	header: u32 keyOff, u32 keyLen, u32 valueOff, i32 valueLen (at headersOff)
//	forms:  u32 keyOff, i32 keyLen, u32 valueOff, i32 valueLen (at formsOff, one for each record; record.Forms)
const (
	BatchMagic       = 0x3142534B // "KSB1"
	BatchHeaderSize  = 32
	BatchConcurrency = 28 // offset of the header's concurrency
	RecordSize       = 56
	TopicSize        = 8
	HeaderSize       = 16
	FormsSize        = 16

	FlagTake          = 1 // the whole batch is one unit: one list of values
	FlagStopOnFailure = 2 // stop after the first failed unit
)

// Result: entries one after another, unaligned. Every entry starts with u32 size (of the whole entry), u32 kind, u32 unit.
//
//	EntryOutput:  i32 output (index into Program.Outputs, -1: the topic's name follows), u32 topicLen, i32 partition,
//	              i64 timestamp, i32 keyLen, i32 valueLen, u32 headerCount, then topic, key, value bytes, then for each
//	              header u32 keyLen, i32 valueLen, key, value
//	EntryFailure: u32 failureKind (record.FailureKind), u32 typeLen, u32 messageLen, u32 tracebackLen, u32 operationLen,
//	              then those bytes
//	              In a take batch, whose unit is 0, failures of the decode kinds stand for single records: their unit is the
//	              record's index. They come in order, before the list's own failure, which is about the others.
//	EntryChange:  u32 table (index into Program.Tables), i32 partition (-1: the record's), i32 keyLen, i32 valueLen (-1: delete),
//	              i64 expires (ms, 0: never), then key, value. One for each table, partition and key of a unit.
//	EntryDone:    nothing more; the unit is finished (written for every unit, failed or not, as its last entry)
const (
	EntryHeaderSize  = 12
	OutputFixedSize  = EntryHeaderSize + 32
	FailureFixedSize = EntryHeaderSize + 20
	ChangeFixedSize  = EntryHeaderSize + 24

	EntryOutput  = 1
	EntryFailure = 2
	EntryDone    = 3
	EntryChange  = 4
)

// ResponseTopic is the topic of the EntryOutput that is a web view's response to the request of its unit: not a name a topic can
// have. The partition is the status, the value the body, the headers the response's. A unit has at most one; of a unit that failed
// it is kept, when it stands behind the failure.
//
// A request is a record without a partition (-1): its key is the head (pyguest/runtime/kaspr_request.py), its value the body, and its
// headers, without names, are the values of the path's parameters. What it does to a table in the partition of the record (-1)
// is meant for the partition that has the key, wherever that is: the host finds it.
const ResponseTopic = ":response"

// Types of failures that are the engine's own exceptions, or of classes made from them. That of any other exception has no dot, whatever
// code calls its classes.
const (
	HTTPError = "kaspr.HTTPError"
	NotReady  = "kaspr.NotReady"
)

// Host call operations.
const (
	OpLog         = 1 // req: u8 level (10 debug, 20 info, 30 warning, 40 error, as Python's logging), text; resp: empty
	OpSleep       = 2 // req: u64 nanoseconds; returns early when the deadline is reached; resp: empty
	OpSend        = 3 // req: one EntryOutput; waits for the broker; resp: JSON {"topic","partition","offset","timestamp","timestamp_type"} or {"error"}
	OpEnsureTopic = 4 // req: JSON {"name","partitions","replicas","config"}; resp: JSON {} or {"error"}

	// Table reads: what was there before this call; the guest lays its own changes of the call over it. Every answer begins
	// with a status byte, Table*; with TableError the rest is a text for a Python exception.
	OpTableGet  = 5 // req: u32 table, i32 partition (or TableOthers), key; resp: status, value
	OpTableScan = 6 // req: u32 table, i32 partition, u32 most (bytes), u32 prefixLen, i32 afterLen (-1: from the start), prefix, after;
	// resp: status (TableFound: there may be more, TableMissing: this is the end), then for each entry u32 keyLen, u32 valueLen,
	// key, value, in key order, keys greater than after. At least one entry, if there is one, however large
	OpTableInfo = 7 // req: u32 table; resp: status, u64 size estimate, u32 partitions of the table, u32 count,
	// i32 partitions that are active here, in order
	OpEncode = 8 // req: u8 serializer (Serializer*), u8 1 for a key, u16 reserved, i32 schema (as Output.ValueSchema), u32 topicLen, topic, form of
	// the value; resp: status (TableFound, TableError), bytes
	OpIsLeader  = 9  // req: empty; resp: u8 1 in the process that leads the app, else 0
	OpSendStart = 10 // req: as OpSend's; does not wait; resp: u32 ticket, never 0. OpWait gives the answer OpSend would have given
	OpWait      = 11 // req: u64 nanoseconds (2^64-1: no limit); waits until one of the call's started sends is answered, or so long, or
	// to the deadline of the unit in progress unless it has a send that is not answered; resp: for each u32 ticket, u32 length, answer
)

// Serializers of OpEncode.
const (
	SerializerAvro       = 1
	SerializerProtobuf   = 2
	SerializerJSONSchema = 3
)

// A form is one plain value between the engine, which knows schemas, and the guest, which knows Python: a tag byte and what follows
// it. Lengths and counts are u32, numbers 8 bytes.
const (
	FormNull     = 'n'
	FormTrue     = 't'
	FormFalse    = 'f'
	FormInt      = 'i' // i64
	FormUint     = 'u' // u64, above what an i64 holds
	FormBigInt   = 'I' // length, decimal digits: beyond both; only from the guest
	FormFloat    = 'd' // f64
	FormText     = 's' // length, UTF-8
	FormBytes    = 'b' // length, bytes
	FormList     = 'l' // count, forms
	FormTuple    = 'T' // count, forms: a Python tuple; only from the guest
	FormMap      = 'm' // count, for each a form of the key and one of the value
	FormDecimal  = 'D' // length, text
	FormUUID     = 'U' // length, text
	FormDate     = 'y' // i64 days since 1970
	FormTime     = 'c' // i64 microseconds since midnight
	FormInstant  = 'z' // i64 microseconds since 1970, UTC: an aware datetime
	FormDatetime = 'w' // i64 microseconds since 1970 of a naive datetime
	FormJSON     = 'J' // length, JSON text; only as a whole
	FormError    = 'E' // length, text: there is no value, and the record fails with this; only as a whole, never from the guest
)

// FormDepthMax bounds how deep forms nest: user data must not overflow a stack.
const FormDepthMax = 100

// TableOthers as the partition of OpTableGet: every partition that is here but the batch's own, in order.
const TableOthers = -2

// Status bytes of table answers.
const (
	TableMissing = 0
	TableFound   = 1
	TableError   = 2
	// TableNotReady: it cannot be read now; the rest is a text for kaspr.NotReady.
	TableNotReady = 3
)

// A key or value of a channel (serializer Channel), which only guests and joins read and write: its kind, then what the kind says.
//
//	ChannelRaw:    bytes
//	ChannelJSON:   JSON text
//	ChannelPickle: a pickle
//	ChannelJoined: a join's result: u8 change (Joined*), then left, right and the right key, each i32 length (-1: None) and an
//	               item of kind ChannelRaw or ChannelJSON
const (
	ChannelRaw    = 1
	ChannelJSON   = 2
	ChannelPickle = 3
	ChannelJoined = 4

	JoinedLeft  = 1 // the result of a change of the left row
	JoinedRight = 2 // of the right row
)

// ChangeBytesMax bounds one table write, key and value: brokers take messages of 1 MiB by default (message.max.bytes), with some
// room for what Kafka adds. The guest refuses a larger one in the line that makes it.
const ChangeBytesMax = 1<<20 - 1<<10

// HostRefused is host's answer to an operation it does not offer or a request it cannot read.
const HostRefused = -1 << 31
