package engine

import (
	"testing"

	"kaspr.io/kaspr/engine/plan"
	"kaspr.io/kaspr/wasmhost/abi"
)

// A key asked for as text must be the bytes that Python's json.dumps wrote: any other form would find nothing.
func TestKeyBytes(t *testing.T) {
	table := &plan.Table{Guest: abi.Table{KeySerializer: "json"}}
	for key, want := range map[string]string{
		"ada": `"ada"`, "ä": `"\u00e4"`, "😀": `"\ud83d\ude00"`, "a\"b\\c\n\t\r\b\f": `"a\"b\\c\n\t\r\b\f"`, "\x01": `"\u0001"`, "<&>/\x7f": "\"<&>/\x7f\"",
	} {
		if got, err := keyBytes(table, key, false); err != nil || string(got) != want {
			t.Errorf("%q: %s, %v; want %s", key, got, err, want)
		}
	}
	if got, err := keyBytes(table, "7", true); err != nil || string(got) != "7" {
		t.Errorf("JSON key: %s, %v", got, err)
	}
	if _, err := keyBytes(table, "{", true); err == nil {
		t.Error("a key that is no JSON is taken")
	}
	if got, err := keyBytes(&plan.Table{Guest: abi.Table{KeySerializer: "raw"}}, "ä", false); err != nil || string(got) != "ä" {
		t.Errorf("raw key: %q, %v", got, err)
	}
	if _, err := keyBytes(&plan.Table{Guest: abi.Table{Window: &abi.Window{}}}, "a", false); err == nil {
		t.Error("a windowed table's key is taken")
	}
}

// The secret that lets other processes read tables must never be shown.
func TestShownAddress(t *testing.T) {
	if got := shownAddress("http://SECRET@host:6065"); got != "http://host:6065" {
		t.Error(got)
	}
}
