package engine

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"kaspr.io/kaspr/engine/broker"
	"kaspr.io/kaspr/engine/enginetest"
)

// A broker that is restarted while a process starts is waited for, as one that is not up yet; a broker that refuses ends the start.
func TestTakeOver(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().(*net.TCPAddr)
	l.Close() // nobody listens there for now
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var log enginetest.Buffer
	a := &App{log: slog.New(slog.NewTextHandler(&log, nil))}
	p, err := broker.NewProducer(broker.Options{
		Brokers: []string{addr.String()}, TransactionTimeout: time.Minute, Log: slog.New(slog.DiscardHandler),
	}, "id")
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	done := make(chan error, 1)
	go func() { done <- a.takeOver(ctx, p) }()
	for !strings.Contains(log.String(), "no broker gives a producer session yet") {
		select {
		case err := <-done:
			t.Fatalf("it does not wait for a broker: %v", err)
		case <-time.After(10 * time.Millisecond):
		}
	}
	fake, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.Ports(addr.Port))
	if err != nil {
		t.Fatal(err)
	}
	defer fake.Close()
	if err := <-done; err != nil {
		t.Fatal(err)
	}

	fake.ControlKey(int16(kmsg.InitProducerID), func(req kmsg.Request) (kmsg.Response, error, bool) {
		fake.KeepControl()
		resp := req.ResponseKind().(*kmsg.InitProducerIDResponse)
		resp.ErrorCode = kerr.TransactionalIDAuthorizationFailed.Code
		return resp, nil, true
	})
	if err := p.Reopen(ctx); !errors.Is(err, kerr.TransactionalIDAuthorizationFailed) {
		t.Fatal(err)
	}
	if err := a.takeOver(ctx, p); !errors.Is(err, kerr.TransactionalIDAuthorizationFailed) {
		t.Errorf("a refusal gives %v", err)
	}
}
