//go:build httpbench && integration

package httpbench

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"strconv"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The load comes from one thread with raw sockets: it shares the processors with what it measures, so each microsecond it needs for a
// request is one that the faster system misses more. It is the same for all systems.

// loaded is what a load found.
type loaded struct {
	answers   int
	bad       int
	latencies []time.Duration
	own       time.Duration // processor time of the load itself
}

// connection asks one question after another.
type connection struct {
	fd    int
	asked int       // how often
	key   int       // what it was last asked for
	due   time.Time // when the request under way, or else the next one, is due
	waits bool      // for an answer
	in    []byte    // of the answer so far
}

// load asks for random keys over connections of its own for a time, as fast as they are answered, or at a rate: then a latency counts from when
// the request was due. A connection with a wrong answer is not used again.
func load(addr string, connections int, took time.Duration, rate float64) (r loaded) {
	runtime.LockOSThread() // whose processor time is counted
	defer runtime.UnlockOSThread()
	before := threadTime()
	defer func() { r.own = threadTime() - before }()
	poll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		panic(err)
	}
	defer unix.Close(poll)
	began := time.Now()
	end := began.Add(took)
	all := make([]*connection, 0, connections)
	byFD := map[int]*connection{}
	for i := range connections {
		c := &connection{due: began, in: make([]byte, 0, 8<<10)}
		if rate > 0 {
			c.due = began.Add(time.Duration(float64(i) / rate * float64(time.Second)))
		}
		if c.fd, err = dial(addr); err == nil {
			err = unix.EpollCtl(poll, unix.EPOLL_CTL_ADD, c.fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(c.fd)})
			defer unix.Close(c.fd)
		}
		if err != nil {
			r.bad++
			continue
		}
		all, byFD[c.fd] = append(all, c), c
	}
	events := make([]unix.EpollEvent, connections)
	drop := func(c *connection) {
		r.bad++
		c.waits, c.due = false, end
		_ = unix.EpollCtl(poll, unix.EPOLL_CTL_DEL, c.fd, nil) // it is closed in the end
	}
	for {
		now := time.Now()
		if !now.Before(end) {
			return r
		}
		next := end
		for _, c := range all {
			switch {
			case c.waits:
			case c.due.After(now):
				if c.due.Before(next) {
					next = c.due
				}
			case !c.ask():
				drop(c)
			}
		}
		n, err := wait(poll, events, next.Sub(now))
		if err != nil {
			panic(err)
		}
		for _, e := range events[:n] {
			c := byFD[int(e.Fd)]
			switch whole, ok := c.read(); {
			case !ok:
				drop(c)
			case whole:
				r.answers++
				now := time.Now()
				r.latencies = append(r.latencies, now.Sub(c.due))
				c.waits, c.asked = false, c.asked+1
				if rate == 0 {
					c.due = now
					if !c.ask() {
						drop(c)
					}
					break
				}
				c.due = c.due.Add(time.Duration(float64(connections) / rate * float64(time.Second)))
			}
		}
	}
}

func dial(addr string) (int, error) {
	to, err := netip.ParseAddrPort(addr)
	if err != nil {
		return -1, err
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	err = errors.Join(
		unix.Connect(fd, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}),
		unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1),
		unix.SetNonblock(fd, true),
	)
	if err != nil {
		_ = unix.Close(fd) // of no use
		return -1, err
	}
	return fd, nil
}

// wait is epoll_wait with nanoseconds.
func wait(poll int, events []unix.EpollEvent, most time.Duration) (int, error) {
	timeout := unix.NsecToTimespec(int64(most))
	n, _, errno := unix.Syscall6(unix.SYS_EPOLL_PWAIT2, uintptr(poll), uintptr(unsafe.Pointer(&events[0])), uintptr(len(events)),
		uintptr(unsafe.Pointer(&timeout)), 0, 0)
	switch errno {
	case 0:
		return int(n), nil
	case unix.EINTR:
		return 0, nil
	}
	return 0, errno
}

// ask sends a request; false: it did not go out.
func (c *connection) ask() bool {
	c.key, c.waits, c.in = rand.IntN(keys), true, c.in[:0]
	var room [160]byte
	text := strconv.AppendInt(append(room[:0], "GET /users/user-"...), int64(c.key), 10)
	text = append(text, " HTTP/1.1\r\nHost: bench\r\nAccept: application/json\r\nUser-Agent: bench\r\n\r\n"...)
	n, err := unix.Write(c.fd, text)
	return err == nil && n == len(text)
}

// read takes what is there of the answer: whether that is all of it, and whether it is right so far.
func (c *connection) read() (whole, ok bool) {
	n, err := unix.Read(c.fd, c.in[len(c.in):cap(c.in)])
	if err != nil || n <= 0 || !c.waits {
		return false, errors.Is(err, unix.EAGAIN)
	}
	c.in = c.in[:len(c.in)+n]
	head, body, found := bytes.Cut(c.in, []byte("\r\n\r\n"))
	if !found {
		return false, true
	}
	if !bytes.HasPrefix(head, []byte("HTTP/1.1 200")) {
		return false, false
	}
	const name = "content-length: "
	for line := range bytes.SplitSeq(head, []byte("\r\n")) {
		if len(line) > len(name) && bytes.EqualFold(line[:len(name)], []byte(name)) {
			length, err := strconv.Atoi(string(line[len(name):]))
			if err != nil || len(body) > length {
				return false, false
			}
			if len(body) < length {
				return false, true
			}
			var room [32]byte
			want := append(strconv.AppendInt(append(room[:0], `"User `...), int64(c.key), 10), '"')
			return true, bytes.Contains(body, want)
		}
	}
	return false, false
}

// threadTime is the processor time this thread has taken.
func threadTime() time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_THREAD, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
