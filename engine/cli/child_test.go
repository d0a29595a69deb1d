package cli

import (
	"context"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/pprof"
	"strconv"
	"syscall"
)

// childEnv makes the test binary behave as kaspr.
const childEnv = "KASPR_TEST_CHILD"

// profileEnv is a folder where each child that is not killed leaves a CPU profile, named by its process id.
const profileEnv = "KASPR_TEST_PROFILES"

// childMain is main of a child process.
func childMain() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	if dir := os.Getenv(profileEnv); dir != "" {
		f, err := os.Create(filepath.Join(dir, strconv.Itoa(os.Getpid())+".pprof"))
		if err == nil {
			err = pprof.StartCPUProfile(f)
		}
		if err != nil {
			panic(err)
		}
	}
	code := Main(ctx, "test", os.Args[1:], Std())
	stop()
	pprof.StopCPUProfile()
	os.Exit(code)
}
