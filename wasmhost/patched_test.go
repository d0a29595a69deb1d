package wasmhost_test

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"kaspr.io/kaspr/pyguest"
	"kaspr.io/kaspr/wasmhost"
)

// A kaspr that make builds and tests runs user code in about half of the time, because wazero is patched (wasmhost/wazero). Without the patches in
// the build nothing else would tell.
func TestWazeroIsPatched(t *testing.T) {
	if os.Getenv("KASPR_PATCHED") == "" {
		t.Skip("only the Makefile's targets take the patches")
	}
	if runtime.GOARCH != "amd64" {
		return // the patches are of its code generator
	}
	// The sequence that leaves a function loads the address of the next instruction into the frame pointer. There is one for each function, register and
	// reason, and a jump to it for each access that is checked.
	count := func(check bool) (exits, jumps int) {
		dir := t.TempDir()
		r, err := wasmhost.New(t.Context(), wasmhost.Config{Module: pyguest.Module(), Stdlib: pyguest.Stdlib(), CacheDir: dir, CheckAddresses: check})
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		err = filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			if !strings.Contains(path, "-kaspr") {
				t.Errorf("%s is in the released wazero's cache", path)
			}
			code, err := os.ReadFile(path)
			for i := 0; i+7 <= len(code); i++ {
				switch {
				case code[i] == 0x48 && code[i+1] == 0x8d && code[i+2] == 0x2d && binary.LittleEndian.Uint32(code[i+3:]) == 0: // lea rbp, [rip]
					exits++
				case code[i] == 0x0f && code[i+1] == 0x82: // jb
					jumps++
				}
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return exits, jumps
	}
	exits, jumps := count(true)
	if exits == 0 || jumps < 3*exits {
		t.Errorf("%d exits for %d jumps to them", exits, jumps)
	}
	if reason := wasmhost.SpillRefused(); reason != "" {
		t.Skip(reason)
	}
	if _, left := count(false); left*10 > jumps {
		t.Errorf("%d jumps are left of %d, without checks of addresses", left, jumps)
	}
}
