package wasmhost_test

import (
	"fmt"
	"testing"

	"kaspr.io/kaspr/wasmhost"
	"kaspr.io/kaspr/wasmhost/abi"
)

// Who asks where the time goes must be told the operation that takes it.
func TestPlaces(t *testing.T) {
	p := agent("", "def enrich(value):\n    return value")
	p.Ops = append(p.Ops, abi.Operation{Name: "slow", Map: &abi.Code{
		Python: "def slow(value):\n    n = 0\n    for i in range(200_000):\n        n += i\n    return n", File: "agents/orders.yaml", Line: 60, Where: `operation "slow", map`,
	}})
	c := load(t, p, wasmhost.Options{})
	for range 40 {
		if _, err := c.Call(t.Context(), 0, values("1", "2")); err != nil {
			t.Fatal(err)
		}
	}
	places := c.Places()
	var names []string
	for _, p := range places {
		names = append(names, p.Where)
	}
	if got, want := fmt.Sprint(names), `[operation "enrich", map operation "slow", map output "out" codec]`; got != want {
		t.Fatalf("places %s, want %s", got, want)
	}
	if enrich, slow := places[0].Ran, places[1].Ran; slow < 20*wasmhost.DefaultTick || slow < 5*enrich || slow > 2*c.Stats().WasmTime() {
		t.Errorf("slow ran for %v, enrich for %v, all for %v", slow, enrich, c.Stats().WasmTime())
	}
	if m := c.Memory(); m[0] <= 0 || m[1] != 0 {
		t.Errorf("memory of instances %v: the first runs, the others do not", m)
	}
}
