/* Shared by the C files of the agent only. */
#ifndef LAG_INTERNAL_H
#define LAG_INTERNAL_H

#include "CLoopLag.h"

#include <errno.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <time.h>

/* Round what is not on the path of every wait: the object goes into other people's servers, and smaller is better there
 * than faster. Nothing unwinds through it either: no exception and no cancellation passes, and the frames of the hooks,
 * which are not in here, are those that a host's stacks hold. */
#if defined(__clang__)
#define LAG_NO_TABLE __attribute__((nouwtable))
#define LAG_SMALL_CODE_BEGIN                                                      \
    _Pragma("clang attribute push(__attribute__((minsize)), apply_to = function)") \
    _Pragma("clang attribute push(__attribute__((nouwtable)), apply_to = hasType(functionType))")
#define LAG_SMALL_CODE_END _Pragma("clang attribute pop") _Pragma("clang attribute pop")
#else
#define LAG_NO_TABLE
#define LAG_SMALL_CODE_BEGIN
#define LAG_SMALL_CODE_END
#endif

#define LAG_LIKELY(x) __builtin_expect(!!(x), 1)
#define LAG_UNLIKELY(x) __builtin_expect(!!(x), 0)

/* A thread's own view of its loop: initial-exec TLS, so that reaching it never calls the loader. `key` is 0 while the
 * thread has no loop; else it must equal live->keys[index], which any retirement or fork clears. */
struct lag_thread {
    struct lag_loop_slot *slot;
    uint64_t key;          /* generation << 32 | (uint32_t)(primary descriptor + 1) */
    uint64_t primary_sp;   /* stack pointer at the registering wait: a nested wait is deeper */
    uint64_t nested_check; /* when a nested wait last verified the primary */
    uint32_t index;
    uint16_t in_setup;     /* inside registration: a wait made by it is nobody's loop */
    uint16_t switches;     /* changes of primary at the same depth; past a few, its descriptors are one loop */
};
_Static_assert(sizeof(struct lag_thread) <= 64, "static TLS is scarce in dlopened objects");

/* The primary "descriptor" of a thread whose loop waits in poll or select. */
enum { LAG_POLL_DESCRIPTOR = -2 };

/* One page, wiped in every child by MADV_WIPEONFORK (also after a raw clone, which skips atfork handlers). */
struct lag_live {
    uint64_t cookie;
    uint64_t keys[LAG_MAX_LOOPS];
    int64_t pid; /* 0 = ask: a wiped page, or a kernel that does not wipe */
};
extern struct lag_live *lag_live_page;

/* Called by a hook whose fast path did not match. Decides whether this wait is measured: registers the thread's loop,
 * starts the agent, or passes (nested wait, agent off). */
LAG_LOOP_THREAD bool lag_wait_admit(struct lag_thread *thread, int fd, uint32_t kind, uint64_t caller, uint64_t sp);
LAG_LOOP_THREAD bool lag_life_admit(void);
LAG_LOOP_THREAD void lag_loops_descriptor_created(int fd);
LAG_ANY_THREAD void lag_loops_close(void);
LAG_ANY_THREAD void lag_loops_resolve(void);
LAG_ANY_THREAD void lag_life_set_header(struct lag_header *header);
LAG_ANY_THREAD void lag_env_remember(void);
/* Starts a thread that starts the agent after `delay_ns`, if it still is to be started then. */
LAG_ANY_THREAD bool lag_thread_start_late(uint64_t delay_ns);
LAG_LOOP_THREAD void lag_v8_layout_resolve(uint64_t address_in_v8);
LAG_LOOP_THREAD const char *lag_v8_node_version(void);
LAG_LOOP_THREAD void lag_uv_resolve(void);
extern uint32_t lag_uv_probe_wanted;
LAG_LOOP_THREAD void lag_uv_probe_send(const struct lag_thread *self);
extern uint32_t lag_life_word;
extern uint32_t lag_families;
extern struct lag_python_loop lag_python_loops[LAG_MAX_LOOPS];
LAG_ANY_THREAD void lag_gil_wait_resolve(bool next_object);
struct lag_thread *lag_thread_self(void);
void lag_hooks_set_thresholds(uint64_t start, uint64_t capture);

/* Inline twin of lag_clock_now for the hooks: one vdso call. Where it is not inlined it wants no table either: one
 * function with a table makes its whole file have them. */
LAG_NO_TABLE static inline uint64_t lag_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Raw system calls for the handler: no errno, no PLT. */
static inline long lag_syscall6(long n, long a, long b, long c, long d, long e, long f) {
    long result;
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    register long r9 __asm__("r9") = f;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}

#endif
