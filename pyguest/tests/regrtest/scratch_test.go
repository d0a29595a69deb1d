package regrtest

import (
	"os"
	"testing"
	"time"

	"kaspr.io/kaspr/wasmhost"
	"kaspr.io/kaspr/wasmhost/abi"
)

func TestScratch(t *testing.T) {
	r := newRuntime(t, library(t, nil))
	code, _ := os.ReadFile(os.Getenv("SCRATCH"))
	got := &report{}
	begin := time.Now()
	d, _ := time.ParseDuration(os.Getenv("LIMIT"))
	if d == 0 {
		d = 2 * time.Minute
	}
	s, err := r.Load(t.Context(), &abi.Program{Kind: "KasprAgent", Name: "x", Init: &abi.Code{Python: string(code), File: "x.yaml", Line: 1, Where: "init"}},
		wasmhost.Options{Host: got, LoadDeadline: d, MemoryMax: memoryMax})
	t.Logf("%v: %v %v", time.Since(begin), err, got.other)
	if err == nil {
		s.Close()
	}
}
