package wasmhost

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"kaspr.io/kaspr/engine/record"
)

// Component runs a program for workers: each has a slot with an Instance of its own, made when it is first used.
type Component struct {
	snapshot *Snapshot
	slots    []slot
	closed   atomic.Bool

	lastLog atomic.Int64 // when a lost instance was logged, at most once a second
	losses  atomic.Int64 // since then
}

// slot is one worker's instance. Its worker owns it; busy only notices two workers.
type slot struct {
	busy     atomic.Bool
	instance *Instance    // nil until the next call
	memory   atomic.Int64 // of instance, for others to read
	used     bool         // instance has run a call
	// doubted has the partition numbers of calls whose result was not taken: what the instance remembers of their tables
	// counts for nothing, whatever record.Batch.CacheValid says.
	doubted map[int32]struct{}
}

// NewComponent takes over s: Close of the Component closes it too.
func NewComponent(s *Snapshot, slots int) *Component {
	return &Component{snapshot: s, slots: make([]slot, slots)}
}

// Call runs b in the slot's instance. Whatever a record does, it ends in Outputs or in one Failure and leaves the other
// records unharmed:
//
//   - An instance that ends by deadline fails the record that ran. One that ends by trap, memory or exit is restored and
//     the record is run again alone, once, before it fails: it may have paid for an earlier one.
//   - A take batch that fails is halved until single failing records are found; the others come as smaller lists. Records
//     that cannot be decoded fail alone and without that. With StopOnFailure they are halved too: no list may hold
//     records behind the failed one.
//   - Order is kept, and StopOnFailure is respected.
//   - When several records are in progress (Concurrency) and the instance ends, those up to the one at fault are run again one after
//     the other.
//   - Result.Repeated says when records that were run again, or are left, had sent messages by then. A batch of one record that is Fresh
//     repeats nothing.
//   - With tables in the program, a call that ended abnormally returns what was finished: Done may be less than the batch
//     without an error, but never 0 for a batch that is not empty. Records behind must see the changes of those before, so the
//     caller applies the Result and calls again with the rest.
//
// What is run again repeats its effects outside of the Result: log lines, and messages that were sent and waited for.
//
// An error means that ctx ended or no instance could be made; the Result is what was finished before, so records from
// Done on are untouched. A restored instance starts from the image: what init built is new, what calls changed is gone.
func (c *Component) Call(ctx context.Context, slot int, b *record.Batch) (record.Result, error) {
	s := &c.slots[slot]
	if !s.busy.CompareAndSwap(false, true) {
		panic(fmt.Sprintf("BUG: two calls in slot %d of a wasmhost.Component at once", slot))
	}
	defer s.busy.Store(false)
	if c.closed.Load() {
		return record.Result{}, ErrClosed
	}
	r := runner{Component: c, slot: s, ctx: ctx, stop: b.StopOnFailure, each: b.Fresh, own: -1, valid: b.CacheValid, concurrency: b.Concurrency}
	if len(b.Records) > 0 {
		r.own = b.Records[0].Partition
	}
	var err error
	if b.Take {
		err = r.take(b.Records)
	} else {
		err = r.records(b.Records)
	}
	return r.result, err
}

// MemoryBytes is the sum over the live instances.
func (c *Component) MemoryBytes() int64 {
	var sum int64
	for i := range c.slots {
		sum += c.slots[i].memory.Load()
	}
	return sum
}

// Stats counts what the component did.
func (c *Component) Stats() *Stats { return c.snapshot.Stats() }

// Close frees all instances and the Snapshot. No call may be running. It is idempotent.
func (c *Component) Close() error {
	if !c.closed.CompareAndSwap(false, true) {
		return nil
	}
	var errs []error
	for i := range c.slots {
		if !c.slots[i].busy.CompareAndSwap(false, true) {
			panic(fmt.Sprintf("BUG: wasmhost.Component closed while slot %d runs", i))
		}
		errs = append(errs, c.slots[i].drop())
		c.slots[i].busy.Store(false)
	}
	return errors.Join(append(errs, c.snapshot.Close())...)
}

func (s *slot) drop() error {
	if s.instance == nil {
		return nil
	}
	err := s.instance.Close()
	s.instance, s.used, s.doubted = nil, false, nil
	s.memory.Store(0)
	return err
}

// runner takes one batch through a slot.
type runner struct {
	*Component
	*slot
	ctx         context.Context
	stop        bool   // at the first failure
	each        bool   // attempt has an instance of its own
	own         int32  // partition number of the batch
	valid       uint32 // its CacheValid
	result      record.Result
	concurrency int // records in progress at once, but
	alone       int // records before this one run one after the other
	reruns      int // of records behind one that ran out of memory
}

// rerunsMax bounds how often in one call the work behind a record without memory is thrown away to keep the order.
const rerunsMax = 4

// attempt runs one batch in the slot's instance, made anew if there is none. Fresh says that no call had run in it
// before. The instance is gone afterwards when it ended, or holds too much memory.
func (r *runner) attempt(b *record.Batch) (res record.Result, fresh bool, err error) {
	if err := r.ctx.Err(); err != nil {
		return res, false, err
	}
	if r.each && r.used {
		if err := r.renew(); err != nil {
			return res, false, err
		}
	}
	if r.instance == nil {
		if r.instance, err = r.snapshot.NewInstance(r.ctx); err != nil {
			return res, false, err
		}
	}
	fresh, r.used = !r.used, true
	b.CacheValid = r.doubt()
	res, err = r.instance.Call(r.ctx, b)
	r.memory.Store(r.instance.MemoryBytes())
	// What is not finished is run again, or the caller's to run: as is what is behind a record that ran out of memory, and a list that failed.
	kept := res.Done
	if i := outOfMemory(&res); i >= 0 {
		kept = int(res.Failures[i].Record)
	}
	if b.Take && listFailed(&res) {
		kept = 0
	}
	if b.Concurrency > 1 && res.Repeated || r.instance.call.sentBy >= kept {
		r.result.Repeated = true
	}
	switch {
	case r.instance.ended:
		r.lose("ended", err)
	case outOfMemory(&res) >= 0:
		r.lose("ran out of memory", nil)
	case r.instance.MemoryBytes() > r.memoryKept():
		r.lose("holds too much memory", nil)
	}
	return res, fresh, err
}

// doubt says which tables the instance may remember, and doubts it from now on unless merge takes the attempt's result.
func (r *runner) doubt() (valid uint32) {
	if r.snapshot.program.tables() == 0 {
		return 0
	}
	if _, doubted := r.doubted[r.own]; !doubted {
		valid = r.valid
	}
	if r.doubted == nil {
		r.doubted = map[int32]struct{}{}
	}
	r.doubted[r.own] = struct{}{}
	return valid
}

// memoryKept is how much memory an instance may hold between calls: three quarters of the limit, or, when its image
// comes close to that, half of what the image leaves.
func (c *Component) memoryKept() int64 {
	limit, image := c.snapshot.program.MemoryMax, c.snapshot.image.size
	return max(limit/4*3, image+(limit-image)/2)
}

func (r *runner) lose(why string, err error) {
	logger := r.snapshot.program.Logger
	if now := time.Now().UnixNano(); r.ctx.Err() == nil {
		r.losses.Add(1)
		if last := r.lastLog.Load(); now-last > int64(time.Second) && r.lastLog.CompareAndSwap(last, now) {
			logger.Warn("instance restored from its image; what calls changed since init is lost",
				"reason", why, "times", r.losses.Swap(0), "memory", r.instance.MemoryBytes(), "err", err)
		}
	}
	if err := r.renew(); err != nil {
		logger.Error("free instance", "err", err)
	}
}

// renew gives the slot a fresh instance: the one it has, taken back to its image, or none, and then the next attempt makes one.
func (r *runner) renew() error {
	if r.instance != nil && r.ctx.Err() == nil && r.snapshot.reset(r.ctx, r.instance) {
		r.used, r.doubted = false, nil
		return nil
	}
	return r.drop()
}

// records runs records one unit each.
func (r *runner) records(records []record.Record) error {
	most := len(records) // to run at once
	for r.result.Done < len(records) {
		first := r.result.Done
		n, concurrency := min(most, len(records)-first), r.concurrency
		if first < r.alone {
			n, concurrency = min(n, r.alone-first), 1
		}
		res, fresh, err := r.attempt(&record.Batch{Records: records[first : first+n], StopOnFailure: r.stop, Concurrency: concurrency})
		if i := outOfMemory(&res); i >= 0 && err == nil {
			unit := int(res.Failures[i].Record)
			alone := fresh && unit == 0
			if !alone && (res.Done == unit+1 || r.reruns < rerunsMax) {
				if res.Done > unit+1 {
					r.reruns++
				}
				cut(&res, unit)
				r.merge(&res)
				if r.early() {
					return nil
				}
				if err := r.retry(records[r.result.Done]); err != nil {
					return err
				}
				if r.stopped() || r.early() {
					return nil
				}
				continue
			}
		}
		r.merge(&res)
		if err != nil {
			var ended *CallError
			switch unit := r.result.Done; {
			case !errors.As(err, &ended) || r.ctx.Err() != nil:
				return err
			case concurrency > 1 && n > 1 && unit < first+n && !(errors.Is(ended.Err, ErrDeadline) && first+ended.Unit == unit):
				r.alone = first + n
				if ended.Unit >= 0 {
					r.alone = first + ended.Unit + 1 // or one before it did what it paid for
				}
			case ended.Unit < 0 && n > 1:
				most = max(n/2, 1) // it is not known whose fault it was
			case unit == first+n:
				// all had finished
			case errors.Is(ended.Err, ErrDeadline) || fresh && unit == first:
				r.fail(ended)
			case r.early():
				// its own call tells whose fault it was
			default:
				if err := r.retry(records[unit]); err != nil {
					return err
				}
			}
		}
		if r.stopped() || r.early() {
			return nil
		}
	}
	return nil
}

// early says whether to return what is finished instead of going on in a new instance: records behind must see the table
// changes of those before them, and only the caller can make it so.
func (r *runner) early() bool { return r.snapshot.program.tables() > 0 && r.result.Done > 0 }

// retry runs the record at result.Done alone in a fresh instance; what happens now is its own doing.
func (r *runner) retry(rec record.Record) error {
	r.Stats().Retries.Add(1)
	if err := r.renew(); err != nil {
		return err
	}
	res, _, err := r.attempt(&record.Batch{Records: []record.Record{rec}})
	if err == nil || res.Done == 1 {
		r.merge(&res)
		return nil
	}
	var ended *CallError
	if !errors.As(err, &ended) || r.ctx.Err() != nil {
		return err
	}
	r.fail(ended)
	return nil
}

// take runs records as one list, and as smaller ones until those that fail are single.
func (r *runner) take(records []record.Record) error {
	if len(records) == 0 {
		return nil
	}
	b := &record.Batch{Records: records, Take: true, StopOnFailure: r.stop}
	res, fresh, err := r.attempt(b)
	if !fresh && (err != nil && !errors.Is(err, ErrDeadline) || outOfMemory(&res) >= 0) && r.ctx.Err() == nil {
		r.Stats().Retries.Add(1)
		if err := r.renew(); err != nil {
			return err
		}
		res, _, err = r.attempt(b)
	}
	var ended *CallError
	switch {
	case err == nil && !listFailed(&res) && !(r.stop && len(res.Failures) > 0 && len(records) > 1):
		r.merge(&res)
	case err != nil && (!errors.As(err, &ended) || r.ctx.Err() != nil):
		return err
	case len(records) > 1:
		half := len(records) / 2
		if err := r.take(records[:half]); err != nil || r.stopped() || r.early() {
			return err
		}
		return r.take(records[half:])
	case err == nil:
		r.merge(&res)
	default:
		r.fail(ended)
	}
	return nil
}

// listFailed says whether more failed of a take batch than records that could not be decoded.
func listFailed(res *record.Result) bool {
	for i := range res.Failures {
		if kind := res.Failures[i].Kind; kind != record.FailureDecodeKey && kind != record.FailureDecodeValue {
			return true
		}
	}
	return false
}

func (r *runner) stopped() bool { return r.stop && len(r.result.Failures) > 0 }

// merge adds what an attempt that began at result.Done finished.
func (r *runner) merge(res *record.Result) {
	first := int32(r.result.Done)
	for i := range res.Outputs {
		res.Outputs[i].Record += first
	}
	for i := range res.Changes {
		res.Changes[i].Record += first
	}
	for i := range res.Failures {
		res.Failures[i].Record += first
	}
	if r.result.Outputs == nil {
		r.result.Outputs = res.Outputs
	} else {
		r.result.Outputs = append(r.result.Outputs, res.Outputs...)
	}
	r.result.Changes = append(r.result.Changes, res.Changes...)
	r.result.Failures = append(r.result.Failures, res.Failures...)
	r.result.Done += res.Done
	delete(r.doubted, r.own)
	r.result.Elapsed += res.Elapsed
	r.result.Waited += res.Waited
}

// fail makes the record at result.Done one that ended its instance.
func (r *runner) fail(ended *CallError) {
	f := record.Failure{
		Record: int32(r.result.Done), Kind: record.FailureTrap, Message: ended.Err.Error(),
		Operation: ended.Where, Traceback: ended.Traceback,
	}
	if ended.Detail != "" {
		f.Message += ": " + ended.Detail
	}
	switch {
	case errors.Is(ended.Err, ErrDeadline):
		f.Kind, f.Type = record.FailureDeadline, "DeadlineExceeded"
	case errors.Is(ended.Err, ErrMemoryLimit):
		f.Kind, f.Type = record.FailureMemory, "MemoryError"
		f.Message = fmt.Sprintf("%v of %d MiB: %s", ended.Err, r.snapshot.program.MemoryMax>>20, ended.Detail)
	case errors.Is(ended.Err, ErrStackOverflow):
		f.Type = "StackOverflow"
	case errors.Is(ended.Err, ErrExit):
		f.Type = "SystemExit"
	default:
		f.Type = "Trap"
	}
	r.result.Failures = append(r.result.Failures, f)
	r.result.Done++
}

// outOfMemory is the index of the first failure for lack of memory, or -1.
func outOfMemory(res *record.Result) int {
	for i := range res.Failures {
		if res.Failures[i].Kind == record.FailureMemory {
			return i
		}
	}
	return -1
}

// cut drops what unit and the units behind it did.
func cut(res *record.Result, unit int) {
	for i := range res.Outputs {
		if int(res.Outputs[i].Record) >= unit {
			clear(res.Outputs[i:])
			res.Outputs = res.Outputs[:i]
			break
		}
	}
	for i := range res.Changes {
		if int(res.Changes[i].Record) >= unit {
			clear(res.Changes[i:])
			res.Changes = res.Changes[:i]
			break
		}
	}
	for i := range res.Failures {
		if int(res.Failures[i].Record) >= unit {
			res.Failures = res.Failures[:i]
			break
		}
	}
	res.Done = unit
}
