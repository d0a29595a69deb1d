package cli

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

// childEnv makes the test binary behave as kaspr.
const childEnv = "KASPR_TEST_CHILD"

// childMain is main of a child process.
func childMain() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := Main(ctx, "test", os.Args[1:], Std())
	stop()
	os.Exit(code)
}
