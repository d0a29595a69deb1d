package wasmhost

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"kaspr.io/kaspr/engine/record"
	"kaspr.io/kaspr/wasmhost/abi"
)

// Config is what a Runtime is made of. Zero fields take their default.
type Config struct {
	Module   []byte // the guest, as pyguest.Module gives it
	Stdlib   []byte // zip of the standard library, as pyguest.Stdlib gives it; the guest sees it as /lib/stdlib.zip
	CacheDir string // keeps compiled code between processes; empty: compile anew in every process (seconds)

	CheckAddresses bool // compiled code checks addresses, as it does where memories cannot have a spill

	Tick time.Duration // how often running guests are asked to yield; default 5 ms
	Gate *Gate         // limits how many instances run at once; nil: no limit

	Defaults Options // for programs whose own Options leave a field zero
}

// Options bound one program's instances. Zero fields take the value of Config.Defaults, then the default.
type Options struct {
	Logger       *slog.Logger  // lost instances and their lost state; of Config.Defaults also why code checks addresses; default: none
	Host         Host          // what the guest may ask of the engine; default: log lines dropped, all else refused
	Tables       Tables        // the program's tables; default: none
	Deadline     time.Duration // longest run of one unit (a record, or a take batch's list); default 10 s
	LoadDeadline time.Duration // longest load of a program: imports, init, compilation; default 30 s
	MemoryMax    int64         // bytes of memory an instance may have; default 256 MiB, at most 4 GiB
}

// Defaults of Config and Options.
const (
	DefaultTick         = 5 * time.Millisecond
	DefaultDeadline     = 10 * time.Second
	DefaultLoadDeadline = 30 * time.Second
	DefaultMemoryMax    = 256 << 20

	memoryMaxCeiling = 4 << 30
	pageSize         = 64 << 10 // of WebAssembly
)

// Host is what a guest can ask of the engine, beyond its own memory. One Host serves one program; its methods are called
// from the goroutine that runs the call, while no turn of the Gate is held. Time spent in them, or waiting for an answer, does not
// count against the unit's deadline, except that ctx ends when the call's context does: bound the waiting.
type Host interface {
	// Log takes one line the guest logged or printed. Levels are Python's: 10 debug, 20 info, 30 warning, 40 error.
	Log(level int, text string)
	// Send begins to produce out. done is called once, from any goroutine and also when the call is over by then, with the JSON
	// object that describes the stored record (see abi.OpSend), or with an error, whose text reaches Python as an exception. out's
	// bytes belong to the host.
	Send(ctx context.Context, out record.Output, done func(answer []byte, err error))
	// EnsureTopic creates a topic unless it exists.
	EnsureTopic(ctx context.Context, topic abi.TopicRequest) error
	// IsLeader tells whether this process leads the app at this moment. It does not wait.
	IsLeader() bool
	// Encode appends the bytes of a value that a schema describes. ErrNoSchema asks for a call of Prepare first, which may
	// wait. An error's text reaches Python as an exception. What req holds is the guest's memory.
	Encode(dst []byte, req *abi.EncodeRequest) ([]byte, error)
	Prepare(ctx context.Context, req *abi.EncodeRequest) error
}

// Tables is what a guest reads of the program's tables: what was there before the running call. Table is an index into
// Program.Tables, own the partition number of the batch of the running call (-1 without one): reads of it see what was
// staged, reads of others what is committed. Returned bytes are copied before the next call. An error's text reaches
// Python as an exception.
type Tables interface {
	// TableGet is the value of a key, nil when there is none. Partition may be abi.TableOthers.
	TableGet(own int32, table int, partition int32, key []byte) ([]byte, error)
	// TableScan calls each with entries in key order, those with the prefix and greater than after (nil: from the start),
	// until it returns false. Each must not keep the slices.
	TableScan(own int32, table int, partition int32, prefix, after []byte, each func(key, value []byte) bool) error
	// TableInfo is how many partitions the table has, which of them are active here, in order, and about how many entries
	// those have.
	TableInfo(table int) (partitions int32, active []int32, entries int64, err error)
}

// RemoteTables are Tables some of which are elsewhere: of the program of a web view, whose requests have no partition. Where Tables gives
// ErrElsewhere, the same is asked for again of these, outside of the guest's time and of its turn of the Gate. What they give is
// copied before the next call, too.
type RemoteTables interface {
	Tables
	// TableFetch is TableGet, and TablePage is TableScan of at most about most bytes: entries in key order, and whether there
	// may be more.
	TableFetch(ctx context.Context, table int, partition int32, key []byte) ([]byte, error)
	TablePage(ctx context.Context, table int, partition int32, prefix, after []byte, most int) (entries []TableEntry, more bool, err error)
}

// TableEntry is a key and its value.
type TableEntry struct{ Key, Value []byte }

// ErrElsewhere says that what is read is not here, and may be had of RemoteTables.
var ErrElsewhere = errors.New("the partition is elsewhere")

// ErrNotReady is wrapped by what Tables say of a partition that can be read nowhere now.
var ErrNotReady = errors.New("not ready")

func (o Options) withDefaults(d Options) Options {
	if o.Logger == nil {
		o.Logger = d.Logger
	}
	if o.Host == nil {
		o.Host = d.Host
	}
	if o.Tables == nil {
		o.Tables = d.Tables
	}
	if o.Deadline == 0 {
		o.Deadline = d.Deadline
	}
	if o.LoadDeadline == 0 {
		o.LoadDeadline = d.LoadDeadline
	}
	if o.MemoryMax == 0 {
		o.MemoryMax = d.MemoryMax
	}
	return o
}

func (o Options) validate() error {
	switch {
	case o.Deadline < 0, o.LoadDeadline < 0:
		return fmt.Errorf("wasmhost: a deadline is negative")
	case o.MemoryMax < pageSize || o.MemoryMax > memoryMaxCeiling:
		return fmt.Errorf("wasmhost: memory limit of %d bytes is not between 64 KiB and 4 GiB", o.MemoryMax)
	}
	return nil
}

func (c Config) withDefaults() Config {
	if c.Tick == 0 {
		c.Tick = DefaultTick
	}
	c.Defaults = c.Defaults.withDefaults(Options{
		Logger: slog.New(slog.DiscardHandler), Host: refuseAll{}, Tables: refuseAll{}, Deadline: DefaultDeadline, LoadDeadline: DefaultLoadDeadline, MemoryMax: DefaultMemoryMax,
	})
	return c
}

// refuseAll is the Host of a program that was given none.
type refuseAll struct{}

func (refuseAll) Log(int, string) {}

func (refuseAll) Send(_ context.Context, _ record.Output, done func([]byte, error)) {
	done(nil, fmt.Errorf("sending is not available here"))
}

func (refuseAll) Encode([]byte, *abi.EncodeRequest) ([]byte, error) {
	return nil, errors.New("no schema registry here")
}

func (refuseAll) Prepare(context.Context, *abi.EncodeRequest) error { return nil }

func (refuseAll) IsLeader() bool { return false }

func (refuseAll) EnsureTopic(context.Context, abi.TopicRequest) error {
	return fmt.Errorf("declaring topics is not available here")
}

var errNoTables = errors.New("tables are not available here")

func (refuseAll) TableGet(int32, int, int32, []byte) ([]byte, error) { return nil, errNoTables }

func (refuseAll) TableScan(int32, int, int32, []byte, []byte, func(key, value []byte) bool) error {
	return errNoTables
}

func (refuseAll) TableInfo(int) (int32, []int32, int64, error) { return 0, nil, 0, errNoTables }
