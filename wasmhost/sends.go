package wasmhost

import (
	"context"
	"sync"
	"time"

	"kaspr.io/kaspr/engine/record"
	"kaspr.io/kaspr/wasmhost/abi"
)

// sends is the messages a call has started to send (abi.OpSendStart). Answers that come when the call is over are kept by nobody.
type sends struct {
	last  uint32        // ticket
	open  map[int32]int // by unit; sends whose answer the guest does not have
	units []int32       // by ticket-1
	ready chan struct{} // capacity 1: there may be answers

	mu      sync.Mutex
	answers []sendReply // guarded by mu; for the guest
}

type sendReply struct {
	ticket uint32
	answer []byte
}

// repliesBytesMax bounds one answer to a wait, unless it is one large reply: the guest's buffer for it holds 64 KiB.
const repliesBytesMax = 32 << 10

// startSend begins to send out and returns its ticket.
func (in *Instance) startSend(out record.Output) uint32 {
	s := in.call.sends
	if s == nil {
		s = &sends{open: map[int32]int{}, ready: make(chan struct{}, 1)}
		in.call.sends = s
	}
	s.last++
	s.open[out.Record]++
	s.units = append(s.units, out.Record)
	ticket := s.last
	done := func(answer []byte, err error) {
		s.mu.Lock()
		s.answers = append(s.answers, sendReply{ticket, sendAnswer(answer, err)})
		s.mu.Unlock()
		select {
		case s.ready <- struct{}{}:
		default:
		}
	}
	in.wait(func(ctx context.Context) { in.program.Host.Send(ctx, out, done) }) // the first one of a call may wait for a transaction
	return ticket
}

// take appends the answers that are there, as abi.OpWait gives them.
func (s *sends) take(dst []byte) []byte {
	if s == nil {
		return dst
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.answers) > 0 {
		r := s.answers[0]
		if len(dst) > 0 && len(dst)+8+len(r.answer) > repliesBytesMax {
			break
		}
		dst = le.AppendUint32(le.AppendUint32(dst, r.ticket), uint32(len(r.answer)))
		dst = append(dst, r.answer...)
		s.answers[0] = sendReply{}
		s.answers = s.answers[1:]
		unit := s.units[r.ticket-1]
		if s.open[unit]--; s.open[unit] == 0 {
			delete(s.open, unit)
		}
	}
	return dst
}

// some says whether there are answers.
func (s *sends) some() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.answers) > 0
}

// idle waits for an answer to one of the call's sends, but not longer than d. For a unit that waits for an answer itself that is not
// the guest's time; for any other it is, and ends at the unit's deadline.
func (in *Instance) idle(d time.Duration) {
	s, c := in.call.sends, &in.call
	now := time.Now()
	in.look(now)
	excused := false
	var ready chan struct{}
	if s != nil {
		if s.some() || d <= 0 {
			return
		}
		excused = s.open[int32(c.unit)] > 0
		ready = s.ready
	}
	if !excused {
		d = min(d, in.left(now))
	}
	if d > 0 {
		in.pause(func() {
			timer := time.NewTimer(d)
			defer timer.Stop()
			select {
			case <-ready:
			case <-timer.C:
			case <-c.ctx.Done():
			}
			took := time.Since(now)
			c.waited += took
			c.outside += took
			c.looked = c.looked.Add(took)
			if excused {
				c.began, c.since = c.began.Add(took), c.since.Add(took)
			}
		})
	}
	in.setWord(abi.StateInterrupt, 1) // look at the deadline at once
}
