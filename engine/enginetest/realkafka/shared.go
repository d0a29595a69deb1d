//go:build integration

package realkafka

import (
	"context"
	"sync"
	"testing"
)

var shared struct {
	sync.Mutex
	broker *Broker
	err    error
}

// Shared is the one broker of the test binary, started by the first test that asks; TestMain must end with Run. Tests that
// stop, kill or pause it start it again before they end, and do not run in parallel with others.
func Shared(t testing.TB) *Broker {
	t.Helper()
	shared.Lock()
	defer shared.Unlock()
	if shared.broker == nil && shared.err == nil {
		shared.broker, shared.err = Start(context.WithoutCancel(t.Context()), Options{})
	}
	if shared.err != nil {
		t.Fatalf("start Kafka: %v", shared.err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("end of the broker's log:\n%s", shared.broker.Log(30))
		}
	})
	return shared.broker
}

// Run runs the tests of a binary and closes the shared broker: os.Exit(realkafka.Run(m)).
func Run(m *testing.M) int {
	code := m.Run()
	shared.Lock()
	defer shared.Unlock()
	if shared.broker != nil {
		shared.broker.Close()
		shared.broker = nil
	}
	return code
}
