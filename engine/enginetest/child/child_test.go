//go:build integration

package child_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"kaspr.io/kaspr/engine/enginetest/child"
)

// What a process started again as a part of these tests is to be.
const role = "KASPR_CHILD_TEST"

func TestMain(m *testing.M) {
	switch os.Getenv(role) {
	case "":
		os.Exit(m.Run())
	case "server's owner":
		p, err := child.Start(exec.Command("sleep", "600"))
		if err != nil {
			panic(err)
		}
		fmt.Println(p.Cmd.Process.Pid)
	case "go command":
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), role+"=test binary")
		cmd.Stdout = os.Stdout
		if err := cmd.Start(); err != nil {
			panic(err)
		}
	case "test binary":
		self, err := os.ReadFile("/proc/self/comm")
		if err != nil {
			panic(err)
		}
		child.FollowParent(strings.TrimSpace(string(self)))
		fmt.Println(os.Getpid())
	}
	time.Sleep(10 * time.Minute)
}

// A benchmark that is killed must not leave brokers and engines behind, which would spoil the next one.
func TestServerEndsWithItsOwner(t *testing.T) { endsWith(t, "server's owner") }

// Nor must what a killed go command leaves behind go on by itself.
func TestTestEndsWithTheGoCommand(t *testing.T) { endsWith(t, "go command") }

// endsWith kills a process of a role without warning; the process that it told the id of has to end, too.
func endsWith(t *testing.T, of string) {
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), role+"="+of)
	out, in, err := os.Pipe() // a pipe of cmd's would make Wait wait for whoever else has it
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd.Stdout = in
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	in.Close()
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	for until := time.Now().Add(20 * time.Second); running(pid); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(until) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
			t.Fatalf("process %d outlives what it belongs to", pid)
		}
	}
}

// running says whether a process is there and not only waits to be buried.
func running(pid int) bool {
	text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(text), ") ")
	return !strings.HasPrefix(rest, "Z")
}
