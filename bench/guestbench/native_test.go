//go:build guestbench && integration

package guestbench

import (
	"bufio"
	"encoding/binary"
	"io"
	"os"
	"os/exec"
	"testing"
	"time"

	"kaspr.io/kaspr/engine/enginetest/child"
)

var le = binary.LittleEndian

// native is the glue in a process of its own over native CPython (pyguest/tests/native/main.c): frames on its stdin and stdout, as
// pyguest/tests/guest.py describes them.
type native struct {
	process *child.Process
	in      io.WriteCloser
	out     *bufio.Reader
}

func startNative(t *testing.T, command []string) *native {
	t.Helper()
	n := &native{}
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Stderr = os.Stderr
	var err error
	if n.in, err = cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	n.out = bufio.NewReader(out)
	if n.process, err = child.Start(cmd); err != nil {
		t.Fatal(err)
	}
	return n
}

func (n *native) close(t *testing.T) {
	_ = n.in.Close() // it ends with its input
	<-n.process.Done
	if !n.process.Cmd.ProcessState.Success() {
		t.Errorf("native guest: %v", n.process.Err)
	}
}

// replySize is that of the reply before a result: i32 code, u64 ns, four u32.
const replySize = 28

// call gives the code, the result and the time of one call. Host calls are answered with "refused", log lines with nothing.
func (n *native) call(t *testing.T, kind byte, payload []byte) (int32, []byte, time.Duration) {
	t.Helper()
	n.write(t, kind, payload)
	for {
		var head [5]byte
		if _, err := io.ReadFull(n.out, head[:]); err != nil {
			t.Fatalf("native guest: %v", err)
		}
		data := make([]byte, le.Uint32(head[:])-1)
		if _, err := io.ReadFull(n.out, data); err != nil {
			t.Fatalf("native guest: %v", err)
		}
		switch head[4] {
		case 'h':
			n.write(t, 'a', make([]byte, 5))
		case 'r':
			return int32(le.Uint32(data)), data[replySize:], time.Duration(le.Uint64(data[4:]))
		default:
			t.Fatalf("native guest: frame %q", head[4])
		}
	}
}

func (n *native) write(t *testing.T, kind byte, payload []byte) {
	t.Helper()
	frame := append(le.AppendUint32(nil, uint32(1+len(payload))), kind)
	if _, err := n.in.Write(append(frame, payload...)); err != nil {
		t.Fatal(err)
	}
}
