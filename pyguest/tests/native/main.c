/* The glue in a native process, for tests: the same exports over a native CPython. Frames on stdin and stdout take the
 * place of the host: u32 length, u8 type, payload. Written for guest.py, which describes them.
 *
 *   guest PATH...     module search path */
#include "kaspr.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

const wchar_t *kaspr_paths[32];

static int in = 0, out = 1;
static uint8_t answers[64]; /* of tick, in order; the last one is repeated */
static uint32_t answer_count, answer_next;
static volatile sig_atomic_t in_call;

static void full_read(void *to, size_t n)
{
    for (char *p = to; n > 0;) {
        ssize_t got = read(in, p, n);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            _exit(got < 0);
        p += got, n -= (size_t)got;
    }
}

static void full_write(const void *from, size_t n)
{
    for (const char *p = from; n > 0;) {
        ssize_t put = write(out, p, n);
        if (put < 0 && errno == EINTR)
            continue;
        if (put <= 0)
            _exit(1);
        p += put, n -= (size_t)put;
    }
}

static char *frame;
static uint32_t frame_len; /* of the payload */

static char read_frame(void)
{
    char type;
    full_read(&frame_len, 4);
    full_read(&type, 1);
    frame_len--;
    frame = realloc(frame, frame_len + 1);
    full_read(frame, frame_len);
    return type;
}

static void write_frame(char type, const void *a, size_t an, const void *b, size_t bn)
{
    uint32_t len = (uint32_t)(1 + an + bn);
    full_write(&len, 4);
    full_write(&type, 1);
    full_write(a, an);
    full_write(b, bn);
}

static uint64_t now(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

typedef struct __attribute__((packed)) {
    int32_t rc;
    uint64_t ns;
    uint32_t progress, phase, operation, committed;
} reply_t;

static reply_t reply_of(int32_t rc, uint64_t ns)
{
    return (reply_t){rc, ns, kaspr_state.progress, kaspr_state.phase, kaspr_state.operation, kaspr_state.committed};
}

int32_t kaspr_host_tick(void)
{
    if (answer_count == 0)
        return KASPR_TICK_CONTINUE;
    uint32_t i = answer_next < answer_count ? answer_next++ : answer_count - 1;
    return answers[i];
}

void kaspr_host_die(void)
{
    reply_t r = reply_of(-1, 0);
    uint32_t report_len = kaspr_state.report_len;
    uint32_t len = (uint32_t)(1 + sizeof r + 4 + report_len + kaspr_state.committed);
    char type = 'd';
    full_write(&len, 4);
    full_write(&type, 1);
    full_write(&r, sizeof r);
    full_write(&report_len, 4);
    full_write(kaspr_report(), report_len);
    full_write(kaspr_result.data, kaspr_state.committed);
    _exit(0);
}

static void on_alarm(int signum)
{
    (void)signum;
    if (in_call)
        kaspr_tick();
}

int32_t kaspr_host_call(int32_t op, const void *req, int32_t req_len, void *resp, int32_t resp_cap)
{
    write_frame('h', &op, 4, req, (size_t)req_len);
    if (read_frame() != 'a')
        _exit(1);
    int32_t rc;
    memcpy(&rc, frame, 4);
    int32_t n = (int32_t)frame_len - 5;
    if (rc == 0 && n > resp_cap)
        rc = -1 - n;
    else if (rc == 0) {
        if (n > 0)
            memcpy(resp, frame + 5, (size_t)n);
        rc = n;
    }
    if (frame[4] > 0) { /* as if the guest met a loop check here */
        answers[0] = (uint8_t)(frame[4] - 1);
        answer_count = 1, answer_next = 0;
        kaspr_tick();
        answer_count = 0;
    } else if (op == KASPR_OP_SLEEP && rc >= 0) {
        uint64_t ns;
        memcpy(&ns, req, 8);
        struct timespec t = {(time_t)(ns / 1000000000), (long)(ns % 1000000000)};
        nanosleep(&t, NULL); /* ends early with a tick, as the host's does */
    }
    return rc;
}

static void set_timer(uint32_t first, uint32_t every)
{
    struct itimerval t = {.it_value = {first / 1000, (first % 1000) * 1000}, .it_interval = {every / 1000, (every % 1000) * 1000}};
    setitimer(ITIMER_REAL, &t, NULL);
}

int main(int argc, char **argv)
{
    for (int i = 1; i < argc && i < 31; i++) {
        size_t n = strlen(argv[i]);
        wchar_t *w = calloc(n + 1, sizeof *w);
        mbstowcs(w, argv[i], n);
        kaspr_paths[i - 1] = w;
    }
    in = fcntl(0, F_DUPFD_CLOEXEC, 100);
    out = fcntl(1, F_DUPFD_CLOEXEC, 101);
    int null = open("/dev/null", O_RDWR);
    dup2(null, 0);
    dup2(null, 1);
    struct sigaction action = {.sa_handler = on_alarm};
    sigaction(SIGALRM, &action, NULL);
    uint32_t first = 0, every = 0;
    for (;;) {
        char type = read_frame();
        uint32_t n = frame_len;
        int32_t rc = 0;
        if (type == 'T') { /* u32 first ms, u32 every ms, answers: for the next call */
            memcpy(&first, frame, 4);
            memcpy(&every, frame + 4, 4);
            answer_count = n - 8;
            answer_next = 0;
            memcpy(answers, frame + 8, answer_count);
            continue;
        }
        uint32_t repeat = 1;
        size_t skip = 0;
        if (type == 'B') { /* u32 repetitions, batch: the last result; the processor time of all */
            memcpy(&repeat, frame, 4);
            skip = 4;
        }
        if (type != 'S')
            memcpy(kaspr_input((int32_t)(n - skip)), frame + skip, n - skip);
        if (first > 0)
            set_timer(first, every);
        in_call = 1;
        clockid_t clock = type == 'B' ? CLOCK_PROCESS_CPUTIME_ID : CLOCK_MONOTONIC; /* a busy machine spoils less of it */
        uint64_t start = now(clock);
        switch (type) {
        case 'S': rc = kaspr_start(); break;
        case 'L': rc = kaspr_load((int32_t)n); break;
        case 'C': rc = kaspr_check((int32_t)n); break;
        case 'R': rc = kaspr_reseed((int32_t)n); break;
        case 'P':
        case 'B':
            while (repeat-- > 0)
                rc = kaspr_process((int32_t)(n - skip));
            break;
        default: _exit(1);
        }
        uint64_t ns = now(clock) - start;
        in_call = 0;
        set_timer(0, 0);
        first = every = answer_count = 0;
        reply_t r = reply_of(rc, ns);
        write_frame('r', &r, sizeof r, kaspr_result.data, kaspr_result.len);
    }
}
