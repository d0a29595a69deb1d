package state

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/linxGnu/grocksdb"
)

// Options are those of a Dir. The zero value of a field is its default.
type Options struct {
	Dir string // required

	// MemoryLimit bounds what all stores of the process take together outside of Go: block cache and write buffers. The
	// default is a third of the container's memory limit, never a share of the node; see ContainerMemory.
	MemoryLimit int64
	// BlockCacheSize is the block cache of the process: default two thirds of MemoryLimit.
	BlockCacheSize int64
	// BlockCacheCompressedSize is a second cache, of compressed blocks, in addition; default none.
	BlockCacheCompressedSize int64
	// WriteBuffersSize bounds all write buffers of the process: default a third of MemoryLimit.
	WriteBuffersSize int64

	WriteBufferSize      int64 // when a store's write buffer goes to disk; default 64 MiB
	MaxWriteBufferNumber int   // write buffers of a store, those under flush included; default 3
	TargetFileSizeBase   int64 // table files; default 64 MiB
	BloomFilterBits      int   // per key; default 10, negative for no filter
	CacheIndexAndFilter  bool  // index and filter blocks in the block cache, and so within its bound
	MaxOpenFiles         int   // table files a store keeps open; default 256, negative for all

	// FlushInterval is after what time changes go to disk when no write buffer is full: default 5 s. It bounds what a
	// crash leaves to restore.
	FlushInterval time.Duration

	// Tables are options of single tables (the manifest's options), by table name; see CheckTableOptions.
	Tables map[string]map[string]string

	Log *slog.Logger // default: discarded
}

// Without a container's limit we assume this: a share of the node could be the share of many.
const memoryAssumed = 1 << 30

// complete fills in the defaults and finds every problem at once.
func (o Options) complete() (Options, map[string]tableOptions, error) {
	var errs []error
	if o.Dir == "" {
		errs = append(errs, errors.New("no state directory"))
	}
	number := func(name string, v int64) {
		if v < 0 {
			errs = append(errs, fmt.Errorf("%s is %d", name, v))
		}
	}
	number("MemoryLimit", o.MemoryLimit)
	number("BlockCacheSize", o.BlockCacheSize)
	number("BlockCacheCompressedSize", o.BlockCacheCompressedSize)
	number("WriteBuffersSize", o.WriteBuffersSize)
	number("WriteBufferSize", o.WriteBufferSize)
	number("MaxWriteBufferNumber", int64(o.MaxWriteBufferNumber))
	number("TargetFileSizeBase", o.TargetFileSizeBase)
	number("FlushInterval", int64(o.FlushInterval))

	o.MemoryLimit = or(o.MemoryLimit, DefaultMemoryLimit())
	o.BlockCacheSize = or(o.BlockCacheSize, o.MemoryLimit/3*2)
	o.WriteBuffersSize = or(o.WriteBuffersSize, o.MemoryLimit/3)
	o.WriteBufferSize = or(o.WriteBufferSize, 64<<20)
	o.MaxWriteBufferNumber = or(o.MaxWriteBufferNumber, 3)
	o.TargetFileSizeBase = or(o.TargetFileSizeBase, 64<<20)
	o.BloomFilterBits = or(o.BloomFilterBits, 10)
	o.MaxOpenFiles = max(-1, or(o.MaxOpenFiles, 256))
	o.FlushInterval = or(o.FlushInterval, 5*time.Second)
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	tables := map[string]tableOptions{}
	for _, table := range slices.Sorted(maps.Keys(o.Tables)) {
		t, err := parseTableOptions(o.Tables[table])
		if err != nil {
			errs = append(errs, fmt.Errorf("table %q: %w", table, err))
		}
		tables[table] = t
	}
	return o, tables, errors.Join(errs...)
}

// DefaultMemoryLimit is a third of what the container has.
func DefaultMemoryLimit() int64 {
	limit, ok := ContainerMemory()
	if !ok {
		limit = memoryAssumed
	}
	return limit / 3
}

func or[T comparable](v, otherwise T) T {
	var zero T
	if v == zero {
		return otherwise
	}
	return v
}

// tableOptions are what one table has different.
type tableOptions struct {
	blockCacheSize int64 // its own cache; 0 is the process's
	bloomBits      int   // 0 is the process's
	cacheIndex     *bool
	blockSize      int
	set            []func(*grocksdb.Options)
}

// A tableOption is one key of a manifest's options. Both ways to write it are accepted: this API's, and that of RocksDB, which
// manifests written for the original use.
type tableOption struct {
	name  string // write_buffer_size; writeBufferSize is the same
	help  string
	parse func(t *tableOptions, value string) error
}

func numberOption(least int64, set func(t *tableOptions, n int64)) func(*tableOptions, string) error {
	return func(t *tableOptions, value string) error {
		n, err := strconv.ParseInt(value, 10, 64)
		if err != nil || n < least {
			return fmt.Errorf("%q is not a whole number of at least %d", value, least)
		}
		set(t, n)
		return nil
	}
}

func rocksOption(set func(o *grocksdb.Options, n int64)) func(*tableOptions, int64) {
	return func(t *tableOptions, n int64) {
		t.set = append(t.set, func(o *grocksdb.Options) { set(o, n) })
	}
}

var compressions = map[string]grocksdb.CompressionType{
	"none": grocksdb.NoCompression, "snappy": grocksdb.SnappyCompression, "lz4": grocksdb.LZ4Compression,
	"lz4hc": grocksdb.LZ4HCCompression, "zstd": grocksdb.ZSTDCompression, "zlib": grocksdb.ZLibCompression,
}

func compressionOption(set func(o *grocksdb.Options, c grocksdb.CompressionType)) func(*tableOptions, string) error {
	return func(t *tableOptions, value string) error {
		c, ok := compressions[strings.ToLower(value)]
		if !ok {
			return fmt.Errorf("%q is none of %s", value, strings.Join(slices.Sorted(maps.Keys(compressions)), ", "))
		}
		t.set = append(t.set, func(o *grocksdb.Options) { set(o, c) })
		return nil
	}
}

var tableOptionList = []tableOption{
	{"write_buffer_size", "bytes after which the write buffer goes to disk", numberOption(64<<10, rocksOption(func(o *grocksdb.Options, n int64) { o.SetWriteBufferSize(uint64(n)) }))},
	{"max_write_buffer_number", "write buffers, those under flush included", numberOption(2, rocksOption(func(o *grocksdb.Options, n int64) { o.SetMaxWriteBufferNumber(int(n)) }))},
	{"target_file_size_base", "bytes of a table file", numberOption(64<<10, rocksOption(func(o *grocksdb.Options, n int64) { o.SetTargetFileSizeBase(uint64(n)) }))},
	{"max_open_files", "table files kept open", numberOption(20, rocksOption(func(o *grocksdb.Options, n int64) { o.SetMaxOpenFiles(int(n)) }))},
	{"block_cache_size", "bytes of a block cache of the table's own, in place of the process's", numberOption(64<<10, func(t *tableOptions, n int64) { t.blockCacheSize = n })},
	{"bloom_filter_size", "bits of the Bloom filter for each key; 0 for none", numberOption(0, func(t *tableOptions, n int64) { t.bloomBits = or(int(n), -1) })},
	{"cache_index_and_filter_blocks", "true: index and filter blocks in the block cache", func(t *tableOptions, value string) error {
		b, err := strconv.ParseBool(value)
		if err != nil {
			return fmt.Errorf("%q is neither true nor false", value)
		}
		t.cacheIndex = &b
		return nil
	}},
	{"block_size", "bytes of a data block before compression", numberOption(1<<10, func(t *tableOptions, n int64) { t.blockSize = int(n) })},
	{"compression", "none, snappy, lz4 (default), lz4hc, zlib or zstd", compressionOption((*grocksdb.Options).SetCompression)},
	{"bottommost_compression", "the same for the last level, where most data is", compressionOption((*grocksdb.Options).SetBottommostCompression)},
	{"level0_file_num_compaction_trigger", "flushed files after which they are compacted", numberOption(1, rocksOption(func(o *grocksdb.Options, n int64) { o.SetLevel0FileNumCompactionTrigger(int(n)) }))},
	{"max_bytes_for_level_base", "bytes of level 1", numberOption(64<<10, rocksOption(func(o *grocksdb.Options, n int64) { o.SetMaxBytesForLevelBase(uint64(n)) }))},
}

// CheckTableOptions finds every problem of a table's options. The keys are those of RocksDB, in its spelling or in camel case;
// TableOptionNames lists them.
func CheckTableOptions(options map[string]string) error {
	_, err := parseTableOptions(options)
	return err
}

// TableOptionNames lists the keys a table's options may have, each with what it means.
func TableOptionNames() [][2]string {
	list := make([][2]string, len(tableOptionList))
	for i, o := range tableOptionList {
		list[i] = [2]string{o.name, o.help}
	}
	return list
}

func parseTableOptions(options map[string]string) (tableOptions, error) {
	var t tableOptions
	var errs []error
	for _, key := range slices.Sorted(maps.Keys(options)) {
		i := slices.IndexFunc(tableOptionList, func(o tableOption) bool { return o.name == snake(key) })
		if i < 0 {
			names := make([]string, len(tableOptionList))
			for i, o := range tableOptionList {
				names[i] = o.name
			}
			errs = append(errs, fmt.Errorf("unknown option %q; there are %s", key, strings.Join(names, ", ")))
		} else if err := tableOptionList[i].parse(&t, strings.TrimSpace(options[key])); err != nil {
			errs = append(errs, fmt.Errorf("option %q: %w", key, err))
		}
	}
	return t, errors.Join(errs...)
}

// snake turns writeBufferSize into write_buffer_size.
func snake(s string) string {
	var b strings.Builder
	for _, r := range s {
		if 'A' <= r && r <= 'Z' {
			b.WriteByte('_')
			r += 'a' - 'A'
		}
		b.WriteRune(r)
	}
	return b.String()
}

// rocksOptions are what a table's databases are opened with.
func (d *Dir) rocksOptions(table string, create bool) (*grocksdb.Options, error) {
	// What neither grocksdb nor the C interface has a function for: our own flush comes before a close, and fails visibly
	// (a store on a full disk must still close); and RocksDB must not retry for ever after a full disk, with writers
	// waiting behind it.
	base := grocksdb.NewDefaultOptions()
	defer base.Destroy()
	o, err := grocksdb.GetOptionsFromString(base, "avoid_flush_during_shutdown=true;max_bgerror_resume_count=0")
	if err != nil {
		return nil, fmt.Errorf("RocksDB options: %w", err)
	}
	o.SetCreateIfMissing(create)
	o.SetParanoidChecks(true)
	o.SetWriteBufferSize(uint64(d.opts.WriteBufferSize))
	o.SetMaxWriteBufferNumber(d.opts.MaxWriteBufferNumber)
	o.SetArenaBlockSize(arenaBlockSize)
	o.SetTargetFileSizeBase(uint64(d.opts.TargetFileSizeBase))
	o.SetLevelCompactionDynamicLevelBytes(true) // at most a ninth more than the data, whatever its size
	o.SetCompression(grocksdb.LZ4Compression)
	o.SetMaxOpenFiles(d.opts.MaxOpenFiles)
	o.SetMaxFileOpeningThreads(1) // stores are opened in parallel
	o.SetAllowConcurrentMemtableWrites(false)
	o.SetEnableWriteThreadAdaptiveYield(false) // one writer
	o.SetInfoLogLevel(grocksdb.WarnInfoLogLevel)
	o.SetKeepLogFileNum(2)
	o.SetMaxLogFileSize(1 << 20)
	o.SetStatsDumpPeriodSec(0)

	t := d.tables[table]
	b := grocksdb.NewDefaultBlockBasedTableOptions()
	defer b.Destroy()
	cache := d.cache
	if own := d.own[table]; own != nil {
		cache = own
	}
	b.SetBlockCache(cache)
	if d.compressed != nil {
		b.SetBlockCacheCompressed(d.compressed)
	}
	if bits := or(t.bloomBits, d.opts.BloomFilterBits); bits > 0 {
		b.SetFilterPolicy(grocksdb.NewBloomFilterFull(float64(bits)))
	}
	cacheIndex := d.opts.CacheIndexAndFilter
	if t.cacheIndex != nil {
		cacheIndex = *t.cacheIndex
	}
	b.SetCacheIndexAndFilterBlocks(cacheIndex)
	b.SetPinL0FilterAndIndexBlocksInCache(cacheIndex)
	b.SetCacheIndexAndFilterBlocksWithHighPriority(cacheIndex)
	if t.blockSize > 0 {
		b.SetBlockSize(t.blockSize)
	}
	b.SetFormatVersion(5)
	o.SetBlockBasedTableFactory(b)
	for _, set := range t.set {
		set(o)
	}
	return o, nil
}

// A write buffer grows by this much; the least a store that is written to takes.
const arenaBlockSize = 32 << 10
