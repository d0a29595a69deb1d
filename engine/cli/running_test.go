package cli

import (
	"context"
	"io"
	"testing"
	"time"

	"kaspr.io/kaspr/engine/enginetest"
)

// running is a command that runs beside its test, which it does not outlive.
type running struct {
	t         *testing.T
	out, errs enginetest.Buffer
	cancel    context.CancelFunc
	ended     chan struct{} // closed when it has, code is set before
	code      int
}

// start runs a command of the version 1.2.3 beside the test.
func start(t *testing.T, in io.Reader, args ...string) *running {
	return startIn(t, nil, in, args...)
}

// startIn is start with an environment.
func startIn(t *testing.T, environ []string, in io.Reader, args ...string) *running {
	r := &running{t: t, ended: make(chan struct{})}
	var ctx context.Context
	ctx, r.cancel = context.WithCancel(context.Background())
	go func() {
		defer close(r.ended)
		r.code = Main(ctx, "1.2.3", args, Streams{In: in, Out: &r.out, Err: &r.errs, Environ: environ})
	}()
	t.Cleanup(func() { r.stop() })
	return r
}

// stop tells it to end, as SIGTERM does, and gives its exit code. It may be called twice.
func (r *running) stop() int {
	r.cancel()
	<-r.ended
	return r.code
}

// until waits for something the command does, a minute at most.
func (r *running) until(what string, ok func() bool) {
	r.t.Helper()
	for began := time.Now(); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Since(began) > time.Minute {
			r.t.Fatalf("no %s\nstandard output:\n%s\nstandard error:\n%s", what, &r.out, &r.errs)
		}
	}
}
