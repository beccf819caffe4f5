/* Loads the agent into one running process, through one thread that sits in a wait.
 *
 * Who calls it: LoopLagAttach's Injector, with everything looked up and read beforehand: what happens here is what the
 * target's thread is stopped for. Decides nothing about the process; a thread that turns out to be unfit is let go as it
 * was, and the answer says why.
 *
 * The law: at no moment may the death of this process leave the target in a state that it does not recover from by
 * itself. Therefore the first thing written is a signal frame of the thread's own registers, floating-point state and
 * signal mask, below its red zone; from then on whatever the thread executes ends in the C library's own signal return
 * with that frame, and the kernel puts everything back, wait included. Nothing depends on a stop that only a living
 * tracer would handle: a small piece of code (stub.S) loads the object after we have let go, cleans up and returns. */
#ifndef LOOPLAG_INJECT_H
#define LOOPLAG_INJECT_H

#include "looplag_layout.h"

#include <stdint.h>
#include <sys/types.h>

enum {
    LAG_INJECT_STALE = 4,
    LAG_INJECT_MESSAGE = 448,
    /* What fits behind the stub's code and parameters. */
    LAG_INJECT_VARIABLES = 2048,
};

enum lag_inject_outcome {
    LAG_INJECT_DONE = 0,        /* the agent's entry was called; `answer` is its word */
    LAG_INJECT_MISSED = 1,      /* the thread was not in a wait and came to none in time: choose again */
    LAG_INJECT_REFUSED = 2,     /* it may not be traced; `code` */
    LAG_INJECT_ENDED = 3,       /* thread or process went away */
    LAG_INJECT_STOPPED = 4,     /* the process is stopped (SIGSTOP) */
    LAG_INJECT_UNSAFE = 5,      /* this thread is no place for it; `message` */
    LAG_INJECT_CALL_FAILED = 6, /* a system call in the target failed; `message` names it, `code` */
    LAG_INJECT_FILL_FAILED = 7, /* the memory file could not be opened or written; `code` */
    LAG_INJECT_LOAD_FAILED = 8, /* the target's loader refused; `message` is its reason */
    LAG_INJECT_SLOW = 9,        /* on its way, but waiting for a lock of the process */
};

/* Addresses are the target's. */
struct lag_inject_plan {
    pid_t pid, tid;
    uint64_t restorer;       /* mov $15, %rax; syscall */
    uint64_t dlopen, dlerror, errno_location, munmap;
    uint32_t dlopen_mode;
    uint32_t kill_at;        /* for tests: end this process by SIGKILL at this step */
    const void *image;       /* the object; none: `entry` is the address of a loaded agent's function */
    uint64_t image_bytes;
    uint64_t entry;
    const void *variables;   /* NAME=VALUE, each with its NUL */
    uint64_t variables_bytes;
    int32_t stale[LAG_INJECT_STALE]; /* descriptors that an injector left behind, -1 = none */
    uint64_t stop_limit_ns;  /* for the thread to stop */
    uint64_t ride_limit_ns;  /* for a thread that runs to come to its wait */
    uint64_t load_limit_ns;  /* for the loading, once we have let go */
};

struct lag_inject_result {
    int32_t outcome;
    int32_t code;
    uint32_t answer;
    uint32_t rode;           /* system calls of the host that were stepped over until it waited */
    uint64_t stopped_ns;     /* all the time in which the thread did not do its own work */
    uint64_t held_ns;        /* of that, until we let go */
    char message[LAG_INJECT_MESSAGE];
};

/* Runs on a thread of its own, whose end takes back any tracing. */
void lag_inject(const struct lag_inject_plan *plan, struct lag_inject_result *result);

/* How long a sleeping thread has been off the processor, by the scheduler's clock; -1 = not known. */
int64_t lag_inject_slept_ns(pid_t pid, pid_t tid);

/* The instructions of a process's `index`-th seccomp filter, newest first; their number, or a negative errno: -ENOENT
 * behind the last. Stops its main thread for an instant, as PTRACE_SECCOMP_GET_FILTER asks. */
long lag_inject_read_filter(pid_t pid, uint32_t index, uint64_t *code, uint32_t capacity);

#endif
