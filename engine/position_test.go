package engine

import (
	"math/rand/v2"
	"testing"

	"kaspr.io/kaspr/engine/broker"
)

// Agents that read one partition at different speeds must each go on where they were, none at the slowest one's place.
func TestPositionRoundTrip(t *testing.T) {
	for seed := range uint64(500) {
		g := rand.New(rand.NewPCG(seed, 3))
		var readers []progress
		for i := range 1 + g.IntN(6) {
			readers = append(readers, progress{string(rune('a' + i)), g.Int64N(1 << uint(1+g.IntN(60))), g.IntN(3) == 0})
		}
		at, ok := positionOf(readers)
		if !ok {
			t.Fatalf("seed %d: no position of %v", seed, readers)
		}
		for _, r := range readers {
			if next, named := nextOf(at, r.agent); r.next < at.Offset || next != r.next || r.named && !named {
				t.Fatalf("seed %d: %s goes on at %d, was at %d (%+v)", seed, r.agent, next, r.next, at)
			}
		}
		if got, named := nextOf(at, "new"); got != at.Offset || named {
			t.Fatalf("seed %d: a new agent begins at %d, the offset is %d", seed, got, at.Offset)
		}
	}
	if _, ok := positionOf([]progress{{"a", 4, false}, {"b", -1, false}}); ok {
		t.Fatal("a position although it is not known where b begins")
	}
}

// Metadata is what anybody in the group may have written: it must not move an agent to a wrong place.
func FuzzPosition(f *testing.F) {
	f.Add("kaspr1 1y2p0ij32e8e7=a", int64(5))
	f.Add("kaspr1 x=-1 y==", int64(1<<62))
	f.Fuzz(func(t *testing.T, metadata string, offset int64) {
		if offset < 0 {
			return
		}
		if got, _ := nextOf(broker.Position{Offset: offset, Metadata: metadata}, "a"); got < offset {
			t.Fatalf("goes back from %d to %d", offset, got)
		}
	})
}
