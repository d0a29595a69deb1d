package engine

import (
	"bytes"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// memory is what /proc tells of this process and the machine, in bytes. In a container the machine is the node: limits of the
// container are not in it, as in the original.
type memory struct {
	Resident, Total, Available, SwapTotal, SwapFree float64
}

// memoryNow reads it; what the system does not tell is 0.
func memoryNow() memory {
	var m memory
	if text, err := os.ReadFile("/proc/self/statm"); err == nil {
		if fields := bytes.Fields(text); len(fields) > 1 {
			pages, _ := strconv.ParseFloat(string(fields[1]), 64) // the kernel's own text
			m.Resident = pages * float64(os.Getpagesize())
		}
	}
	if text, err := os.ReadFile("/proc/meminfo"); err == nil {
		m.parse(text)
	}
	return m
}

// parse reads /proc/meminfo: lines such as "MemTotal:  16384 kB".
func (m *memory) parse(text []byte) {
	for line := range bytes.Lines(text) {
		fields := bytes.Fields(line)
		if len(fields) < 2 {
			continue
		}
		kib, err := strconv.ParseFloat(string(fields[1]), 64)
		if err != nil {
			continue
		}
		switch string(fields[0]) {
		case "MemTotal:":
			m.Total = kib * 1024
		case "MemAvailable:":
			m.Available = kib * 1024
		case "SwapTotal:":
			m.SwapTotal = kib * 1024
		case "SwapFree:":
			m.SwapFree = kib * 1024
		}
	}
}

// percent is a part of a whole; 0 where there is no whole.
func percent(part, whole float64) float64 {
	if whole <= 0 {
		return 0
	}
	return part / whole * 100
}

// processor tells how much of one processor the process used lately: 200 is two of them.
type processor struct {
	mu    sync.Mutex
	at    time.Time     // guarded by mu; of the last look
	spent time.Duration // guarded by mu; until then
	used  float64       // guarded by mu; what the last look said
}

// processorEvery is the shortest time a use is told of. Who asks sooner gets the last one.
const processorEvery = time.Second

func (p *processor) percent(now time.Time) float64 {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	spent := time.Duration(u.Utime.Nano() + u.Stime.Nano())
	p.mu.Lock()
	defer p.mu.Unlock()
	if passed := now.Sub(p.at); passed >= processorEvery {
		if !p.at.IsZero() {
			p.used = percent(float64(spent-p.spent), float64(passed))
		}
		p.at, p.spent = now, spent
	}
	return p.used
}
