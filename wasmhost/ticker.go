package wasmhost

/*
#cgo LDFLAGS: -lpthread
#define _GNU_SOURCE
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

// A slot is one instance's interrupt word, and whether the instance runs. Go writes active without a cgo call.
typedef struct slot {
	struct slot *next, *prev;
	uint32_t *word;
	uint32_t active;
} slot;

typedef struct {
	pthread_t thread;
	pthread_mutex_t mu; // guards the list; held while words are written, so that remove means "never written again"
	slot list;
	uint32_t idle; // 1: the thread sleeps until somebody stores 0 and wakes it
	uint32_t stop;
	uint64_t ticks; // written by the thread only, for tests
	struct timespec period;
} ticker;

// Nothing ran for this many ticks: sleep.
enum { TICKS_BEFORE_IDLE = 100 };

static int ticker_scan(ticker *t) {
	int active = 0;
	pthread_mutex_lock(&t->mu);
	for (slot *s = t->list.next; s != &t->list; s = s->next) {
		if (__atomic_load_n(&s->active, __ATOMIC_SEQ_CST)) {
			__atomic_store_n(s->word, 1, __ATOMIC_RELAXED);
			active++;
		}
	}
	pthread_mutex_unlock(&t->mu);
	return active;
}

static void *ticker_run(void *arg) {
	ticker *t = arg;
	int quiet = 0;
	while (!__atomic_load_n(&t->stop, __ATOMIC_SEQ_CST)) {
		clock_nanosleep(CLOCK_MONOTONIC, 0, &t->period, NULL);
		__atomic_fetch_add(&t->ticks, 1, __ATOMIC_RELAXED);
		quiet = ticker_scan(t) ? 0 : quiet + 1;
		if (quiet < TICKS_BEFORE_IDLE) continue;
		// Whoever starts a call stores active first and reads idle then; here it is the other way round, so that one
		// of the two sees the other.
		__atomic_store_n(&t->idle, 1, __ATOMIC_SEQ_CST);
		if (!ticker_scan(t)) {
			while (__atomic_load_n(&t->idle, __ATOMIC_SEQ_CST) && !__atomic_load_n(&t->stop, __ATOMIC_SEQ_CST))
				syscall(SYS_futex, &t->idle, FUTEX_WAIT_PRIVATE, 1, NULL, NULL, 0);
		}
		__atomic_store_n(&t->idle, 0, __ATOMIC_SEQ_CST);
		quiet = 0;
	}
	return NULL;
}

static ticker *ticker_start(int64_t nanos) {
	ticker *t = calloc(1, sizeof *t);
	if (!t) return NULL;
	t->list.next = t->list.prev = &t->list;
	t->period.tv_sec = nanos / 1000000000;
	t->period.tv_nsec = nanos % 1000000000;
	pthread_mutex_init(&t->mu, NULL);
	sigset_t all, old; // signals are for Go's threads
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	int err = pthread_create(&t->thread, NULL, ticker_run, t);
	if (!err) pthread_setname_np(t->thread, "kaspr-ticker");
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (err) {
		free(t);
		return NULL;
	}
	return t;
}

static void ticker_stop(ticker *t) {
	__atomic_store_n(&t->stop, 1, __ATOMIC_SEQ_CST);
	__atomic_store_n(&t->idle, 0, __ATOMIC_SEQ_CST);
	syscall(SYS_futex, &t->idle, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
	pthread_join(t->thread, NULL);
	pthread_mutex_destroy(&t->mu);
	free(t);
}

static slot *ticker_add(ticker *t, void *word) {
	slot *s = calloc(1, sizeof *s);
	if (!s) return NULL;
	s->word = word;
	pthread_mutex_lock(&t->mu);
	s->prev = &t->list;
	s->next = t->list.next;
	s->next->prev = s->prev->next = s;
	pthread_mutex_unlock(&t->mu);
	return s;
}

static void ticker_remove(ticker *t, slot *s) {
	pthread_mutex_lock(&t->mu);
	s->next->prev = s->prev;
	s->prev->next = s->next;
	pthread_mutex_unlock(&t->mu);
	free(s);
}
*/
import "C"

import (
	"errors"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ticker is a C thread that sets the interrupt word of every running instance once per period. It is no goroutine,
// because it must go on while the Go world is stopped: the collector that stopped it is waiting for those guests.
// While nothing runs it sleeps.
type ticker struct {
	c *C.ticker
}

// tickerSlot is an instance's place in the ticker. Its owner is the instance.
type tickerSlot struct {
	t *ticker
	c *C.slot
}

func newTicker(period time.Duration) (*ticker, error) {
	c := C.ticker_start(C.int64_t(period.Nanoseconds()))
	if c == nil {
		return nil, errors.New("start the ticker thread")
	}
	return &ticker{c: c}, nil
}

// stop joins the thread. All slots must be removed before.
func (t *ticker) stop() {
	if t.c != nil {
		C.ticker_stop(t.c)
		t.c = nil
	}
}

// add takes the address of an interrupt word. The word must stay mapped and in place until remove.
func (t *ticker) add(word *byte) (tickerSlot, error) {
	c := C.ticker_add(t.c, unsafe.Pointer(word))
	if c == nil {
		return tickerSlot{}, errors.New("no memory for a ticker slot")
	}
	return tickerSlot{t: t, c: c}, nil
}

// remove returns when the word will not be written again.
func (s *tickerSlot) remove() {
	if s.c != nil {
		C.ticker_remove(s.t.c, s.c)
		s.c = nil
	}
}

// activate starts the ticks. It calls no C.
func (s *tickerSlot) activate() {
	atomic.StoreUint32((*uint32)(&s.c.active), 1)
	idle := (*uint32)(&s.t.c.idle)
	if atomic.LoadUint32(idle) == 1 {
		atomic.StoreUint32(idle, 0)
		_, _, _ = unix.RawSyscall(unix.SYS_FUTEX, uintptr(unsafe.Pointer(idle)), C.FUTEX_WAKE_PRIVATE, 1)
	}
}

// deactivate ends the ticks; one may still come.
func (s *tickerSlot) deactivate() {
	atomic.StoreUint32((*uint32)(&s.c.active), 0)
}

// ticks counts how often the thread woke up.
func (t *ticker) ticks() uint64 { return atomic.LoadUint64((*uint64)(&t.c.ticks)) }
