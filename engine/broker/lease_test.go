package broker

import (
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// A process that was put out of the group while it was stopped must not answer for partitions that have another owner.
func TestLease(t *testing.T) {
	l := &lease{length: time.Minute}
	now := time.Now()
	write := func(key int16) { l.OnBrokerWrite(kgo.BrokerMetadata{}, key, 1, 0, 0, nil) }
	if l.held(now) {
		t.Error("held before the group was joined")
	}
	write(joinKey)
	write(syncKey)
	if l.held(time.Now()) {
		t.Error("held before the sync was answered")
	}
	l.assigned()
	if !l.held(time.Now()) || l.held(time.Now().Add(time.Minute)) {
		t.Error("not held for its length after the assignment")
	}
	// A heartbeat whose answer is not known counts for nothing.
	l.counted = time.Now().Add(-59 * time.Second)
	l.sent = time.Time{}
	write(heartbeatKey)
	if l.held(time.Now().Add(2 * time.Second)) {
		t.Error("a heartbeat that may have been refused makes the lease longer")
	}
	write(heartbeatKey)
	if !l.held(time.Now().Add(2 * time.Second)) {
		t.Error("the heartbeat before the last one does not count")
	}
	// Refused, the client joins anew: what it was sent before must not count.
	l.counted = time.Now().Add(-2 * time.Minute)
	write(joinKey)
	write(heartbeatKey)
	if l.held(time.Now()) {
		t.Error("held although the session had ended")
	}
	// The machine slept: the monotonic clock did not go on.
	l.counted = time.Now()
	if l.held(time.Now().Round(0).Add(2 * time.Minute)) {
		t.Error("held by a clock that stood still")
	}
}
