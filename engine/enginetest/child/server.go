//go:build integration

package child

import (
	"context"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// startTimeout bounds one start of a server: a cold JVM on a busy machine takes far longer than the usual seconds.
const startTimeout = 90 * time.Second

// stopTimeout bounds a graceful stop; after it the server is killed.
const stopTimeout = 30 * time.Second

// Server is one running (or stopped, or killed) server. What it keeps in its folder stays the same over restarts.
type Server struct {
	*Dir
	Name    string
	Command func() *exec.Cmd // made anew for each start
	// Ready tells, given what was logged since the start, whether it serves requests.
	Ready   func(log string) bool
	process *Process // nil while stopped
}

// PID is the running server's process.
func (s *Server) PID() int { return s.process.Cmd.Process.Pid }

// Restart starts a new, stopped or killed server, and waits until it serves requests.
func (s *Server) Restart(ctx context.Context) error {
	if s.process != nil {
		panic("BUG: " + s.Name + " runs")
	}
	log, err := os.OpenFile(s.logFile(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	from, err := log.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	cmd := s.Command()
	cmd.Dir, cmd.Stdout, cmd.Stderr = s.Path, log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if s.process, err = Start(cmd); err != nil {
		return err
	}
	if err := s.wait(ctx, from); err != nil {
		s.Kill()
		return err
	}
	return nil
}

// wait waits until the server serves requests; its log is looked at from a position on.
func (s *Server) wait(ctx context.Context, from int64) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready: %w", s.Name, context.Cause(ctx))
		case <-s.process.Done:
			return fmt.Errorf("%s ended at start: %w", s.Name, s.process.Err)
		case <-tick.C:
		}
		text, err := os.ReadFile(s.logFile())
		if err != nil {
			return err
		}
		if int64(len(text)) >= from && s.Ready(string(text[from:])) {
			return nil
		}
	}
}

// Stop ends the server as its operator would, with a clean shutdown.
func (s *Server) Stop() error {
	p := s.process
	if p == nil {
		return nil
	}
	s.process = nil
	_ = p.Cmd.Process.Signal(syscall.SIGCONT)
	_ = p.Cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.Done:
		return nil
	case <-time.After(stopTimeout):
		_ = p.Cmd.Process.Kill()
		<-p.Done
		return fmt.Errorf("%s did not stop by itself and was killed", s.Name)
	}
}

// Kill ends the server at once (SIGKILL), as a crash of its machine would, but for what the page cache keeps.
func (s *Server) Kill() {
	p := s.process
	if p == nil {
		return
	}
	s.process = nil
	_ = p.Cmd.Process.Kill()
	<-p.Done
}

// Pause freezes the server (SIGSTOP): connections stay up and nothing is answered, as in a long pause of its JVM.
func (s *Server) Pause() { s.signal(syscall.SIGSTOP) }

// Resume ends a Pause.
func (s *Server) Resume() { s.signal(syscall.SIGCONT) }

func (s *Server) signal(sig syscall.Signal) {
	if s.process == nil {
		panic("BUG: " + s.Name + " does not run")
	}
	_ = s.process.Cmd.Process.Signal(sig)
}

// Close kills the server and removes everything it wrote. It may be called twice.
func (s *Server) Close() {
	s.Kill()
	s.Remove()
}

// CloseAfter closes it when the test ends; when the test failed, the end of its log is shown.
func (s *Server) CloseAfter(t testing.TB) {
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("end of the log of %s:\n%s", s.Name, s.Log(50))
		}
		s.Close()
	})
}

// Log returns the last lines of the server's log.
func (s *Server) Log(lines int) string {
	text, _ := os.ReadFile(s.logFile())
	all := strings.Split(strings.TrimRight(string(text), "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

func (s *Server) logFile() string { return s.File("server.log") }

// Process is a child that is waited for. Done is closed when it has ended, Err is set before.
type Process struct {
	Cmd  *exec.Cmd
	Done chan struct{}
	Err  error
}

// Start starts cmd so that it is killed when the test binary ends, however that ends. That takes a thread that lives as long as the
// child: Pdeathsig fires when the thread ends, not the process.
func Start(cmd *exec.Cmd) (*Process, error) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	p := &Process{Cmd: cmd, Done: make(chan struct{})}
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer close(p.Done)
		err := cmd.Start()
		started <- err
		if err == nil {
			p.Err = cmd.Wait()
			if p.Err == nil {
				p.Err = errors.New("exit status 0")
			}
		}
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return p, nil
}

// FreePorts finds ports nobody listens on, below the range the kernel gives to outgoing connections: a server that is
// down for a moment must find its own ports free again.
func FreePorts(n int) ([]int, error) {
	var ports []int
	for tries := 0; len(ports) < n && tries < 1000; tries++ {
		port := 15000 + mathrand.IntN(15000)
		if slices.Contains(ports, port) {
			continue
		}
		l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port})
		if err != nil {
			continue
		}
		_ = l.Close()
		ports = append(ports, port)
	}
	if len(ports) < n {
		return nil, errors.New("no free ports")
	}
	return ports, nil
}
