package plan

import (
	"time"

	"kaspr.io/kaspr/engine/manifest"
	"kaspr.io/kaspr/wasmhost/abi"
)

// Table is one KasprTable, resolved. Its Program entry is what guests see of it.
type Table struct {
	Name      string
	Label     string // table "users", for messages
	Pos       manifest.Pos
	Changelog Topic // <id>-<table>-changelog, to be created when it does not exist
	// Writes is the internal topic that takes writes to the partition's owner (partitionBy: key, writes from elsewhere); its
	// name is always set, it is created only when something needs it.
	Writes  Topic
	Guest   abi.Table
	Options map[string]string // RocksDB options of this table, as state.Options.Tables takes them
	// Retention is how long an entry lives after its last write; 0: for ever.
	Retention time.Duration
}

// TableUse is a table an agent's code may touch.
type TableUse struct {
	Table int // index into Plan.Tables
	// Declared: an operation names it. Otherwise the code reaches it, if at all, through app.tables.
	Declared bool
}
