// Command kaspr runs Kaspr apps: people's Python on Kafka streams, in a sandbox.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"kaspr.io/kaspr/engine/cli"
)

// version is set by the linker: -ldflags "-X main.version=…".
var version = "devel"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := cli.Main(ctx, version, os.Args[1:], cli.Std())
	stop()
	os.Exit(code)
}
