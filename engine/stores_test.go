package engine

import (
	"flag"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"kaspr.io/kaspr/engine/config"
	"kaspr.io/kaspr/engine/manifest"
	"kaspr.io/kaspr/engine/plan"
	"kaspr.io/kaspr/state"
)

//go:generate go test . -run TestCheckOptions -rewrite

var rewrite = flag.Bool("rewrite", false, "rewrite the expected text in testdata")

// An option that a store refuses is reported at its place, before anything runs. testdata/options.golden has the
// problems of one app.
func TestCheckOptions(t *testing.T) {
	content, err := os.ReadFile("testdata/options.yaml")
	if err != nil {
		t.Fatal(err)
	}
	set, problems := manifest.Parse("options.yaml", content)
	if problems.Fatal() {
		t.Fatal(problems)
	}
	var out strings.Builder
	for _, e := range CheckOptions(set, "shop") {
		out.WriteString(e.Error() + "\n")
	}
	if *rewrite {
		if err := os.WriteFile("testdata/options.golden", []byte(out.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile("testdata/options.golden")
	if err != nil {
		t.Fatal(err)
	}
	if out.String() != string(want) {
		t.Errorf("got\n%swant\n%s", out.String(), want)
	}
	docs, err := os.ReadFile("../docs/tables.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range state.TableOptionNames() {
		if row := "| `" + o[0] + "` | " + o[1] + " |\n"; !strings.Contains(string(docs), row) {
			t.Errorf("docs/tables.md lacks %s", row)
		}
	}
	if all := CheckOptions(set, ""); len(all) != 4 {
		t.Errorf("of all apps: %v", all)
	}
}

// Settings of stores that are read and then get lost, or are taken for one another: the original asked for as many bits of the Bloom filter as
// the compressed cache had bytes, and tables saw none of them (settings.md S-1, Q2).
func TestStoreSettings(t *testing.T) {
	tables := []plan.Table{{Name: "plain"}, {Name: "own", Options: map[string]string{"write_buffer_size": "131072"}}}
	// opened is what RocksDB was opened with, and how many bytes 5,000 keys take on the disk.
	opened := func(table string, settings ...string) (options string, bytes int64, memory state.Memory) {
		t.Helper()
		cfg, problems := config.Read(config.Sources{Environ: append(settings, "K_TABLE_DIR="+t.TempDir(), "K_STORE_MEMORY_MAX=96MiB")}).Config(nil)
		if len(problems) > 0 {
			t.Fatal(problems)
		}
		dir, err := openStores(cfg, &plan.Plan{Tables: tables}, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = dir.Close() })
		s, err := dir.Open(table, 0)
		if err != nil {
			t.Fatal(err)
		}
		changes := make([]state.Change, 5000)
		for i := range changes {
			changes[i] = state.Change{Key: fmt.Appendf(nil, "%05d", i), Value: []byte("1")}
		}
		if err := s.Apply(changes, 1); err != nil {
			t.Fatal(err)
		}
		if err := s.Flush(); err != nil {
			t.Fatal(err)
		}
		bytes, memory = s.Metrics().DiskBytes, dir.Memory()
		files, err := filepath.Glob(filepath.Join(dir.Root(), table, "0", "OPTIONS-*"))
		if err != nil || len(files) == 0 {
			t.Fatal(files, err)
		}
		text, err := os.ReadFile(files[len(files)-1])
		if err != nil {
			t.Fatal(err)
		}
		return string(text), bytes, memory
	}
	wants := func(options string, want ...string) {
		t.Helper()
		for _, w := range want {
			if !strings.Contains(options, "  "+w+"\n") {
				t.Errorf("RocksDB was opened without %s", w)
			}
		}
	}
	options, usual, memory := opened("plain")
	wants(options, "write_buffer_size=67108864", "max_write_buffer_number=3", "target_file_size_base=67108864", "cache_index_and_filter_blocks=false")
	if memory.BlockCacheSize != 64<<20 || memory.WriteBuffersSize != 32<<20 {
		t.Errorf("of 96 MiB: %+v", memory)
	}
	set := []string{
		"K_STORE_ROCKSDB_WRITE_BUFFER_SIZE=1048576", "K_STORE_ROCKSDB_MAX_WRITE_BUFFER_NUMBER=4", "K_STORE_ROCKSDB_TARGET_FILE_SIZE_BASE=2097152",
		"K_STORE_ROCKSDB_SET_CACHE_INDEX_AND_FILTER_BLOCKS=true", "K_STORE_ROCKSDB_BLOCK_CACHE_SIZE=8388608",
	}
	options, _, memory = opened("plain", set...)
	wants(options, "write_buffer_size=1048576", "max_write_buffer_number=4", "target_file_size_base=2097152", "cache_index_and_filter_blocks=true")
	if memory.BlockCacheSize != 8<<20 {
		t.Errorf("a block cache of 8 MiB: %+v", memory)
	}
	options, _, _ = opened("own", set...)
	wants(options, "write_buffer_size=131072", "max_write_buffer_number=4", "target_file_size_base=2097152")

	_, none, _ := opened("plain", "K_STORE_ROCKSDB_BLOOM_FILTER_SIZE=0")
	_, many, _ := opened("plain", "K_STORE_ROCKSDB_BLOOM_FILTER_SIZE=40")
	if grown := many - none; grown < 5000*40/8 || usual-none < 5000*3/8 || usual-none > grown/4 {
		t.Errorf("5,000 keys take %d bytes without a filter, %d with 3 bits each, %d with 40", none, usual, many)
	}
	_, compressed, _ := opened("plain", "K_STORE_ROCKSDB_BLOCK_CACHE_COMPRESSED_SIZE=268435456")
	if grown := compressed - usual; grown < -100 || grown > 100 {
		t.Errorf("a compressed cache changes the bytes on the disk from %d to %d", usual, compressed)
	}
}
