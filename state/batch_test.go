package state_test

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"kaspr.io/kaspr/state"
)

// We build WriteBatches ourselves. If the library's format ever differs, stores would be garbled: this pins it, byte for byte.
func TestBatchFormat(t *testing.T) {
	rnd := rand.New(rand.NewPCG(7, 7))
	blob := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(rnd.Uint32())
		}
		return b
	}
	for _, sizes := range [][2]int{{0, 0}, {1, 1}, {16, 100}, {126, 126}, {127, 127}, {128, 118}, {200, 119}, {16383, 16383}, {20000, 70000}, {3, 1 << 21}} {
		for _, n := range []int{0, 1, 3, 300} {
			if n*sizes[1] > 10<<20 {
				continue
			}
			var changes []state.Change
			for i := range n {
				c := state.Change{Key: blob(sizes[0]), Value: blob(sizes[1])}
				switch i % 3 {
				case 1:
					c.Value = nil
				case 2:
					c.Expires = rnd.Int64()
				}
				changes = append(changes, c)
			}
			offset, origin := rnd.Int64(), string(blob(n%17))
			ours, theirs := state.EncodeBatch(changes, offset, origin), state.LibraryBatch(changes, offset, origin)
			if !bytes.Equal(ours, theirs) {
				t.Fatalf("%d changes of %v bytes: %d bytes, the library has %d", n, sizes, len(ours), len(theirs))
			}
		}
	}
}
