package pyguest_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"kaspr.io/kaspr/pyguest"
)

// The glue's tests are written in Python (tests/test_*.py) and run against a guest: here once over native CPython, where
// a tick can come at any instruction, and once as the wasm that is shipped.

func testGlue(t *testing.T, env ...string) {
	t.Helper()
	if testing.Short() {
		t.Skip("starts hundreds of guests")
	}
	python, err := exec.Command("./build.sh", "--print", "native-python").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{"tests/test_glue.py", "tests/test_tables.py"} {
		cmd := exec.CommandContext(t.Context(), strings.TrimSpace(string(python)), file)
		cmd.Env = append(os.Environ(), env...)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
	}
}

func TestGlueNative(t *testing.T) {
	t.Parallel()
	testGlue(t, "KASPR_GUEST=", "KASPR_NATIVE_OUT="+t.TempDir())
}

func TestGlueWasm(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("starts hundreds of guests")
	}
	dir := t.TempDir() // and not build: another build may be under way
	for name, data := range map[string][]byte{"guest.wasm": pyguest.Module(), "stdlib.zip": pyguest.Stdlib()} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	runner := filepath.Join(dir, "wasm")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-tags", "guesttest", "-o", runner, "./tests/wasm").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	testGlue(t, "KASPR_GUEST="+strings.Join([]string{runner, filepath.Join(dir, "guest.wasm"), dir, t.TempDir()}, " "))
}

// Keys decide partitions: the codec's bytes must be the original's, for whatever value and however hostile the text. Its tests
// compare with stock json; the conformance cases codec-json-* see the same codec in the guest.
func TestCodecNative(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("half a minute of random documents")
	}
	if out, err := exec.CommandContext(t.Context(), "tests/run_kjson_native.sh").CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
