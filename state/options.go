package state

import (
	"log/slog"
	"time"
)

// Options are those of a Dir. The zero value of a field is its default.
type Options struct {
	Dir string // required

	// MemoryLimit bounds what all stores of the process take together outside of Go: block cache and write buffers. The
	// default is a third of the container's memory limit (see MemoryLimit), never a share of the node.
	MemoryLimit int64
	// BlockCacheSize is the block cache of the process: default two thirds of MemoryLimit.
	BlockCacheSize int64
	// BlockCacheCompressedSize is a second cache, of compressed blocks; default none.
	BlockCacheCompressedSize int64
	// WriteBuffersSize bounds all write buffers of the process: default a third of MemoryLimit.
	WriteBuffersSize int64

	// WriteBufferSize is when a store's write buffer is flushed, MaxWriteBufferNumber how many it may have.
	WriteBufferSize      int64 // default 64 MiB, and at most a quarter of WriteBuffersSize
	MaxWriteBufferNumber int   // default 3
	TargetFileSizeBase   int64 // default 64 MiB
	BloomFilterBits      int   // bits per key; default 10, negative for none
	CacheIndexAndFilter  bool  // index and filter blocks within the block cache
	MaxOpenFiles         int   // over all stores; default half of the process's limit

	// FlushInterval is how long changes stay off the disk at most while FlushOld is called: default 30 s.
	FlushInterval time.Duration

	// Tables are options of single tables (the manifest's options), by table name; see CheckTableOptions.
	Tables map[string]map[string]string

	Log *slog.Logger // default: discarded
}
