package main

import (
	"bytes"
	"os"
	"testing"
)

// A stale header would make the guest write what the host does not expect.
func TestHeaderIsUpToDate(t *testing.T) {
	want, err := generate("../../..")
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile("../../../pyguest/include/abi.h")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("pyguest/include/abi.h is stale: run make generate")
	}
}
