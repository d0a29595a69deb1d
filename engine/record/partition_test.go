package record

import "testing"

// A key that is looked for in another partition than the one Kafka's clients sent it to is not found, or found late.
func TestPartitionOf(t *testing.T) {
	for text, want := range map[string]int32{ // of Kafka's own tests
		"21": -973932308, "foobar": -790332482, "a-little-bit-long-string": -985981536, "a-little-bit-longer-string": -1486304829,
		"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971, "abc": 479470107,
	} {
		if got := int32(murmur2([]byte(text))); got != want {
			t.Errorf("%q: %d, want %d", text, got, want)
		}
		if got, want := PartitionOf([]byte(text), 7), want&0x7fffffff%7; got != want {
			t.Errorf("%q is in partition %d, want %d", text, got, want)
		}
	}
}

func BenchmarkPartitionOf(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		PartitionOf([]byte("user-1234"), 12)
	}
}
