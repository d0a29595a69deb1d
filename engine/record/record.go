// Package record holds the values that travel through the engine: Kafka records, batches of them and what a call makes of them.
//
// It imports nothing of ours, so every other package may use it. Byte slices are shared, never copied, unless a
// function says so; whoever hands a value on gives it away.
package record

import "time"

// Partition names one partition of a topic.
type Partition struct {
	Topic  string
	Number int32
}

// TimestampType says who set a record's timestamp (Kafka message format v2, attribute bit 3).
type TimestampType uint8

const (
	CreateTime    TimestampType = 0
	LogAppendTime TimestampType = 1
)

// Header is one record header. A nil Value is Kafka's null.
type Header struct {
	Key   string
	Value []byte
}

// Record is one consumed Kafka message. A nil Key or Value is Kafka's null, an empty one is not.
type Record struct {
	Topic         string
	Partition     int32
	Offset        int64
	Timestamp     int64 // milliseconds since the Unix epoch
	TimestampType TimestampType
	Attempt       int32 // 1 for the first delivery to user code, more after a retry
	Key           []byte
	Value         []byte
	Headers       []Header
	Forms         *Forms // of a record whose key or value a schema describes, on its way into a call; else nil
}

// Forms are a record's key and value as plain values, made by the engine of what a schema describes (abi.Form*). Nil is what a
// serializer without schema decodes, and Kafka's null.
type Forms struct {
	Key   []byte
	Value []byte
}

// Batch is what one call takes: consecutive records of one partition number (of one topic, or of the co-partitioned
// topics of one agent), in the order they are to be processed.
type Batch struct {
	Records []Record
	// Take makes the whole batch one unit: user code gets one list of values (KasprAgent input.take).
	Take bool
	// Tick says that the time has come for code that acts by itself: Records is one that is in no topic, with the time as its
	// timestamp and an offset of -1; where code acts in no partition either, the number of its ticks that count.
	Tick bool
	// StopOnFailure ends the call at the first failed record, so that it can be retried before the ones behind it.
	StopOnFailure bool
	// CacheValid has bit i set when nothing but this instance's own, applied calls has changed Program.Tables[i] in this
	// batch's partition since its last call for that partition: what it remembers of the table may be used.
	CacheValid uint32
	// Concurrency is how many records may be in progress at once: while the code of one waits, those behind it with other keys begin.
	// Up to 1 they run one after the other.
	Concurrency int
	// Fresh says that each record is to run in an instance in which nothing has run: then it is never run again.
	Fresh bool
}

// PartitionByKey as Output.Partition lets the producer choose: murmur2 of the key, or any partition for a null key.
const PartitionByKey int32 = -1

// Output is one message user code wants produced. Its bytes belong to the Result that holds it.
type Output struct {
	Record    int32 // index into Batch.Records of the record it came from
	Topic     string
	Partition int32 // or PartitionByKey
	Timestamp int64 // milliseconds; 0 means the time of sending
	Key       []byte
	Value     []byte
	Headers   []Header
	// Of is what code that acts by itself knows the output by when it is told that it was refused; nil from guests.
	Of any
}

// RecordPartition as Change.Partition is the partition of the record the change came from.
const RecordPartition int32 = -1

// Change is one table write of user code: the last one of its key by its record. Its bytes belong to the Result that
// holds it.
type Change struct {
	Record    int32  // index into Batch.Records of the record it came from
	Table     int32  // index into the program's tables
	Partition int32  // of the changelog, or RecordPartition
	Key       []byte // as in the changelog; a windowed table's has the window's start behind it (8 bytes, big endian)
	Value     []byte // nil deletes; an empty value does not
	Expires   int64  // when the entry is due for deletion, in milliseconds since the Unix epoch; 0 is never
}

// FailureKind tells how a record failed.
type FailureKind uint8

const (
	FailureCode        FailureKind = 1 // user code raised
	FailureDecodeKey   FailureKind = 2 // the key's bytes are not what keySerializer says
	FailureDecodeValue FailureKind = 3 // the value's bytes are not what valueSerializer says
	FailureEncode      FailureKind = 4 // a result could not be encoded or addressed (codec, topic name, header, partition)
	FailureDeadline    FailureKind = 5 // the record ran longer than its deadline
	FailureMemory      FailureKind = 6 // the instance reached its memory limit
	FailureTrap        FailureKind = 7 // the instance trapped (wasm fault, stack overflow)
	FailureSend        FailureKind = 8 // the broker refused for good what the record sent
)

// String is the kind's name as it appears in logs, metrics and the kaspr-error-kind header.
func (k FailureKind) String() string {
	switch k {
	case FailureCode:
		return "code"
	case FailureDecodeKey:
		return "decode-key"
	case FailureDecodeValue:
		return "decode-value"
	case FailureEncode:
		return "encode"
	case FailureDeadline:
		return "deadline"
	case FailureMemory:
		return "memory"
	case FailureTrap:
		return "trap"
	case FailureSend:
		return "send"
	}
	return "unknown"
}

// Failure is why one record of a batch failed. None of the record's outputs or changes are in the Result.
type Failure struct {
	Record    int32 // index into Batch.Records; the first of the unit for a Take batch
	Kind      FailureKind
	Type      string // Python exception class, such as "KeyError"
	Message   string
	Traceback string // the user's frames only, with the manifest's file and line, oldest first
	Operation string // operation or selector that failed, such as `operation "enrich"`; empty while decoding
}

// Result is what one call made of a batch.
type Result struct {
	Outputs  []Output  // in record order, and in pipeline order within a record
	Changes  []Change  // in record order; one for each table, partition and key of a record
	Failures []Failure // in record order
	// Done counts the records of the batch that were processed or failed, from the front. Less than the batch when
	// StopOnFailure ended the call early (then the record at Done-1 is the failed one).
	Done int
	// Repeated says that records had sent messages ahead of the Result and were run again, or are left to be: what they sent is out
	// twice unless it is taken back.
	Repeated bool
	Elapsed  time.Duration // time inside the guest
	Waited   time.Duration // and time it waited, asleep or for an answer of the host
	// Wake is when code that acts by itself wants its next tick: the zero time is never after a tick, and changes nothing after records,
	// which may only bring the next tick forward.
	Wake time.Time
	// Kept, if there is one, is called once the result is committed, from any goroutine and in no order; never if it is taken back.
	Kept func()
}
