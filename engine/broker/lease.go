package broker

import (
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// lease tells how long this member can be sure that the group has not given its partitions to another.
//
// The coordinator puts a member out no sooner than the session timeout after it took the last heartbeat, and while it rebalances no sooner
// than the rebalance timeout after that. A heartbeat counts from when it was sent, and only once the next request of the session
// is sent, for the client ends the session when the coordinator does not know it any more.
type lease struct {
	length time.Duration

	mu      sync.Mutex
	sent    time.Time // guarded by mu; when the last request of the session was sent; zero: none whose answer would count
	counted time.Time // guarded by mu; when the last one was sent that is known to have been taken
}

var _ kgo.HookBrokerWrite = (*lease)(nil)

var (
	heartbeatKey = (&kmsg.HeartbeatRequest{}).Key()
	joinKey      = (&kmsg.JoinGroupRequest{}).Key()
	syncKey      = (&kmsg.SyncGroupRequest{}).Key()
)

// OnBrokerWrite is the client's, after each request.
func (l *lease) OnBrokerWrite(_ kgo.BrokerMetadata, key int16, _ int, _, took time.Duration, err error) {
	if err != nil {
		return
	}
	began := time.Now().Add(-took)
	l.mu.Lock()
	defer l.mu.Unlock()
	switch key {
	case heartbeatKey:
		l.count()
		l.sent = began
	case syncKey:
		l.sent = began
	case joinKey:
		l.sent = time.Time{} // the session before it may have ended
	}
}

// assigned says that the coordinator has answered the last sync.
func (l *lease) assigned() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.count()
}

// count takes the last request as answered. mu is held.
func (l *lease) count() {
	if !l.sent.IsZero() {
		l.counted = l.sent
	}
}

// held tells whether the lease lasts at now. Both clocks must say so: the monotonic one stands still while the machine sleeps.
func (l *lease) held(now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return !l.counted.IsZero() && now.Sub(l.counted) < l.length && now.Round(0).Sub(l.counted.Round(0)) < l.length
}

// Holds tells whether the partitions assigned to this member are surely no other's at this moment: of a process that was stopped for long,
// the group knows before it does that it is out.
func (m *Member) Holds() bool { return m.lease.held(time.Now()) }
