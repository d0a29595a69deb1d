//go:build integration

package child

import (
	"fmt"
	"os"
	"strings"
	"time"
)

// FollowParent ends this process when its parent has ended, if that is the command of this name: the go command, when it is killed,
// leaves the test binary behind, which would go on for as long as its test takes.
func FollowParent(command string) {
	parent := os.Getppid()
	name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", parent))
	if err != nil || strings.TrimSpace(string(name)) != command {
		return
	}
	go func() {
		for os.Getppid() == parent {
			time.Sleep(200 * time.Millisecond)
		}
		fmt.Fprintln(os.Stderr, command, "was killed: this test ends, too")
		os.Exit(1)
	}()
}
