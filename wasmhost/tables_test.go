package wasmhost

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"kaspr.io/kaspr/engine/record"
	"kaspr.io/kaspr/wasmhost/abi"
)

// fakeTables answers every read of one table in a way that shows what was asked.
type fakeTables struct {
	entries map[string][]byte // of partition 0
	own     int32             // as last told
	err     error
}

func (f *fakeTables) TableGet(own int32, table int, partition int32, key []byte) ([]byte, error) {
	f.own = own
	if partition != 0 {
		return fmt.Appendf(nil, "%d/%d/%s", table, partition, key), f.err
	}
	return f.entries[string(key)], f.err
}

func (f *fakeTables) TableScan(own int32, _ int, _ int32, prefix, after []byte, each func(key, value []byte) bool) error {
	f.own = own
	keys := make([]string, 0, len(f.entries))
	for k := range f.entries {
		if strings.HasPrefix(k, string(prefix)) && (after == nil || k > string(after)) {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	for _, k := range keys {
		if !each([]byte(k), f.entries[k]) {
			break
		}
	}
	return f.err
}

func (f *fakeTables) TableInfo(int) (int32, []int32, int64, error) {
	return 6, []int32{0, 3}, int64(len(f.entries)), f.err
}

// tablesInstance is an instance of a program with two tables, as it stands while a batch of partition 0 runs.
func tablesInstance(t *testing.T, tables Tables) *Instance {
	t.Helper()
	program := testProgram("")
	program.Tables = []abi.Table{{Name: "t"}, {Name: "u"}}
	s, err := newTestRuntime(t, Config{}).Load(t.Context(), program, Options{Tables: tables})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	in := newTestInstance(t, s)
	in.own = 0
	return in
}

func getRequest(table uint32, partition int32, key string) []byte {
	return append(le.AppendUint32(le.AppendUint32(nil, table), uint32(partition)), key...)
}

func scanRequest(table uint32, partition int32, most uint32, prefix string, after *string) []byte {
	b := le.AppendUint32(le.AppendUint32(le.AppendUint32(nil, table), uint32(partition)), most)
	b = le.AppendUint32(b, uint32(len(prefix)))
	if after == nil {
		return append(le.AppendUint32(b, ^uint32(0)), prefix...)
	}
	return append(append(le.AppendUint32(b, uint32(len(*after))), prefix...), *after...)
}

func TestTableGet(t *testing.T) {
	tables := &fakeTables{entries: map[string][]byte{"a": []byte("1"), "empty": {}}}
	in := tablesInstance(t, tables)
	for _, test := range []struct {
		request []byte
		want    string
	}{
		{getRequest(0, 0, "a"), "\x011"},
		{getRequest(0, 0, "empty"), "\x01"},
		{getRequest(0, 0, "gone"), "\x00"},
		{getRequest(1, 5, ""), "\x011/5/"},
		{getRequest(1, abi.TableOthers, "k"), "\x011/-2/k"},
	} {
		got, ok := in.operation(abi.OpTableGet, test.request)
		if !ok || string(got) != test.want {
			t.Errorf("%x: got %q, %v, want %q", test.request, got, ok, test.want)
		}
	}
	tables.err = errors.New("the disk is gone")
	if got, ok := in.operation(abi.OpTableGet, getRequest(0, 0, "a")); !ok || string(got) != "\x02the disk is gone" {
		t.Errorf("%q, %v", got, ok)
	}
}

// Pages are bounded by bytes, always have an entry if there is one, and put together are the range.
func TestTableScan(t *testing.T) {
	tables := &fakeTables{entries: map[string][]byte{"other": []byte("x")}}
	var want []string
	for i := range 50 {
		key := fmt.Sprintf("k%02d", i)
		tables.entries[key] = bytes.Repeat([]byte{'v'}, i*i)
		want = append(want, key)
	}
	in := tablesInstance(t, tables)
	for _, most := range []uint32{0, 1, 100, 3000, 1 << 30} {
		var got []string
		var after *string
		for {
			page, ok := in.operation(abi.OpTableScan, scanRequest(0, 0, most, "k", after))
			if !ok || len(page) == 0 {
				t.Fatalf("most %d: %v", most, ok)
			}
			more, rest, n := page[0] == abi.TableFound, page[1:], 0
			for ; len(rest) > 0; n++ {
				k, v := le.Uint32(rest), le.Uint32(rest[4:])
				key := string(rest[8 : 8+k])
				got, after = append(got, key), &key
				if !bytes.Equal(rest[8+k:8+k+v], tables.entries[key]) {
					t.Fatalf("most %d: %s has %d bytes", most, key, v)
				}
				rest = rest[8+k+v:]
			}
			if n > 1 && len(page) > int(most) {
				t.Errorf("most %d: a page of %d entries has %d bytes", most, n, len(page))
			}
			if !more {
				break
			}
			if n == 0 {
				t.Fatalf("most %d: no progress after %s", most, *after)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("most %d: %v", most, got)
		}
	}
	tables.err = errors.New("the disk is gone")
	if got, ok := in.operation(abi.OpTableScan, scanRequest(0, 0, 100, "", nil)); !ok || string(got) != "\x02the disk is gone" {
		t.Errorf("%q, %v", got, ok)
	}
}

func TestTableInfo(t *testing.T) {
	in := tablesInstance(t, &fakeTables{entries: map[string][]byte{"a": nil}})
	got, ok := in.operation(abi.OpTableInfo, []byte{1, 0, 0, 0})
	want := []byte{1, 1, 0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0}
	if !ok || !bytes.Equal(got, want) {
		t.Errorf("%v, %v", got, ok)
	}
}

// What a guest may not ask is refused before anybody's tables are asked.
func TestTableRequestsRefused(t *testing.T) {
	in := tablesInstance(t, &fakeTables{err: errors.New("asked")})
	after := "a"
	for name, test := range map[string]struct {
		op      uint32
		request []byte
	}{
		"get cut short":      {abi.OpTableGet, make([]byte, 7)},
		"get no such table":  {abi.OpTableGet, getRequest(2, 0, "k")},
		"get wrapped table":  {abi.OpTableGet, getRequest(1<<31, 0, "k")},
		"get partition -1":   {abi.OpTableGet, getRequest(0, -1, "k")},
		"get partition -3":   {abi.OpTableGet, getRequest(0, -3, "k")},
		"scan cut short":     {abi.OpTableScan, make([]byte, 19)},
		"scan no such table": {abi.OpTableScan, scanRequest(2, 0, 9, "", nil)},
		"scan others":        {abi.OpTableScan, scanRequest(0, abi.TableOthers, 9, "", nil)},
		"scan prefix beyond": {abi.OpTableScan, append(scanRequest(0, 0, 9, "", nil)[:12], 1, 0, 0, 0, 0, 0, 0, 0)},
		"scan after beyond":  {abi.OpTableScan, scanRequest(0, 0, 9, "", &after)[:20]},
		"scan after -2":      {abi.OpTableScan, append(scanRequest(0, 0, 9, "", nil)[:16], 0xFE, 0xFF, 0xFF, 0xFF)},
		"info too long":      {abi.OpTableInfo, make([]byte, 5)},
		"info no such table": {abi.OpTableInfo, []byte{2, 0, 0, 0}},
	} {
		if got, ok := in.operation(test.op, test.request); ok {
			t.Errorf("%s: answered %q", name, got)
		}
	}
}

// Without tables every read says so, as an exception of the record.
func TestNoTables(t *testing.T) {
	in := tablesInstance(t, nil)
	for op, request := range map[uint32][]byte{abi.OpTableGet: getRequest(0, 0, "k"), abi.OpTableScan: scanRequest(0, 0, 9, "", nil), abi.OpTableInfo: {0, 0, 0, 0}} {
		if got, ok := in.operation(op, request); !ok || string(got) != "\x02tables are not available here" {
			t.Errorf("operation %d: %q, %v", op, got, ok)
		}
	}
}

// Reads are told the partition number of the running batch, and none while no batch runs.
func TestTableOwner(t *testing.T) {
	tables := &fakeTables{own: 99}
	in := tablesInstance(t, tables)
	b := batch("e")
	b.Records[0].Partition = 3
	if _, err := in.Call(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	in.operation(abi.OpTableGet, getRequest(0, 0, "k"))
	if tables.own != -1 {
		t.Errorf("own partition %d after the call", tables.own)
	}
	if _, ok := in.operation(abi.OpTableGet, getRequest(0, record.RecordPartition, "k")); ok {
		t.Error("the record's partition is not for reads")
	}
}
