/* A thread that waits in epoll by a bare system call, with a pattern in every register that the call leaves alone, and
 * looks at each of them afterwards: what an attach must give back.
 *
 *   borrowed [--timeout MS]     waits for MS at a time (default: for ever, woken by a timer every 20 ms)
 *
 * Writes `listening on raw=PID` when it is ready; ends with 9 and a reason when a register, the result or the length of
 * a wait is wrong, and with 0 and `waits N` on SIGTERM.
 */
#include "host.h"

#include <signal.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <ucontext.h>

static volatile sig_atomic_t ended;
static unsigned long waits;

static void end(int number) {
    (void)number;
    ended = 1;
}

static void wrong(const char *what, long value) {
    fprintf(stderr, "wrong %s: %ld after %lu waits\n", what, value, waits);
    exit(9);
}

struct image {
    uint64_t general[6];
    uint8_t vectors[16][16];
    uint32_t control;
};

static long wait_with_patterns(int epoll, struct epoll_event *event, int timeout, struct image *before,
                               struct image *after) {
    long result;
    register long r10 __asm__("r10") = timeout;
    register long r8 __asm__("r8") = (long)(void *)before;
    register long r9 __asm__("r9") = (long)(void *)after;
    __asm__ volatile(
        "movq 0(%%r8), %%rbx\n movq 8(%%r8), %%r12\n movq 16(%%r8), %%r13\n movq 24(%%r8), %%r14\n movq 32(%%r8), %%r15\n"
        "movdqu 48(%%r8), %%xmm0\n movdqu 64(%%r8), %%xmm1\n movdqu 80(%%r8), %%xmm2\n movdqu 96(%%r8), %%xmm3\n"
        "movdqu 160(%%r8), %%xmm7\n movdqu 288(%%r8), %%xmm15\n"
        "vinsertf128 $1, %%xmm1, %%ymm5, %%ymm5\n"
        "ldmxcsr 304(%%r8)\n"
        "syscall\n"
        "movq %%rbx, 0(%%r9)\n movq %%r12, 8(%%r9)\n movq %%r13, 16(%%r9)\n movq %%r14, 24(%%r9)\n movq %%r15, 32(%%r9)\n"
        "movdqu %%xmm0, 48(%%r9)\n movdqu %%xmm1, 64(%%r9)\n movdqu %%xmm2, 80(%%r9)\n movdqu %%xmm3, 96(%%r9)\n"
        "movdqu %%xmm7, 160(%%r9)\n movdqu %%xmm15, 288(%%r9)\n"
        "vextractf128 $1, %%ymm5, 128(%%r9)\n"
        "stmxcsr 304(%%r9)\n"
        : "=a"(result), "+r"(r10), "+r"(r8), "+r"(r9)
        : "a"(SYS_epoll_wait), "D"((long)epoll), "S"(event), "d"(1L)
        : "rbx", "r12", "r13", "r14", "r15", "rcx", "r11", "memory", "xmm0", "xmm1", "xmm2", "xmm3", "xmm5", "xmm7",
          "xmm15");
    return result;
}

int main(int argc, char **argv) {
    int timeout = -1;
    for (int i = 1; i + 1 < argc; i++)
        if (!strcmp(argv[i], "--timeout")) timeout = atoi(argv[i + 1]);
    signal(SIGTERM, end);
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    int timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    host_check(epoll >= 0 && timer >= 0, "descriptors");
    if (timeout < 0) {
        struct itimerspec every = {{0, 20000000}, {0, 20000000}};
        host_check(timerfd_settime(timer, 0, &every, NULL) == 0, "timerfd_settime");
    }
    host_watch(epoll, timer);
    printf("listening on raw=%d\n", getpid());
    fflush(stdout);
    /* Flush to zero, and all exceptions masked: a control word that no library chooses. */
    const uint32_t control = 0x9f80;
    while (!ended) {
        struct image before, after;
        memset(&after, 0, sizeof after);
        for (size_t i = 0; i < sizeof before; i++) ((uint8_t *)&before)[i] = (uint8_t)(i * 37 + waits);
        before.control = control;
        struct epoll_event event;
        uint64_t start = host_now();
        errno = 77;
        long result = wait_with_patterns(epoll, &event, timeout, &before, &after);
        uint64_t length = host_now() - start;
        waits++;
        if (ended) break;
        if (errno != 77) wrong("errno", errno);
        if (result < 0) wrong("result", result);
        if (memcmp(before.general, after.general, 40) != 0) wrong("general register", 0);
        for (int i = 0; i < 16; i++)
            if ((i < 4 || i == 7 || i == 15) && memcmp(before.vectors[i], after.vectors[i], 16) != 0)
                wrong("vector register", i);
        if (memcmp(before.vectors[1], after.vectors[5], 16) != 0) wrong("upper half of a vector register", 5);
        if (after.control != control) wrong("floating-point control", (long)after.control);
        if (timeout > 0 && (length < (uint64_t)(timeout - 12) * 1000000u || length > (uint64_t)(timeout + 60) * 1000000u))
            wrong("length of a wait in microseconds", (long)(length / 1000));
        if (timeout < 0) {
            uint64_t fired;
            if (read(timer, &fired, sizeof fired) < 0) wrong("timer", errno);
        }
    }
    printf("waits %lu\n", waits);
    return 0;
}
