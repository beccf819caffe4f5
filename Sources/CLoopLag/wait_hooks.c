/* The hooks: what the host's epoll_wait & co. become. Two clock reads and one histogram add per iteration.
 *
 * Called by host threads (preload: as the exported symbols; linked and attached: through patched GOT slots). A hook
 * never changes what the call returns, its errno, or how long it waits; it refuses nothing. The names are lag_hook_*,
 * because in a dlopened object the expression (void *)epoll_wait resolves to libc's.
 *
 * Memory order: a slot has one writer, its loop thread. `seq` is odd while counters change; on x86_64 stores are seen in
 * order, so release stores (plain moves) are enough for a reader that reads seq, data, seq.
 */
#include "internal.h"

#include <poll.h>
#include <pthread.h>
#include <sys/select.h>
#include <time.h>

static int (*real_epoll_wait)(int, struct epoll_event *, int, int);
static int (*real_epoll_pwait)(int, struct epoll_event *, int, int, const sigset_t *);
static int (*real_epoll_pwait2)(int, struct epoll_event *, int, const struct timespec *, const sigset_t *);
static int (*real_epoll_create)(int);
static int (*real_epoll_create1)(int);
static int (*real_poll)(struct pollfd *, nfds_t, int);
static int (*real_ppoll)(struct pollfd *, nfds_t, const struct timespec *, const sigset_t *);
static int (*real_poll_chk)(struct pollfd *, nfds_t, int, size_t);
static int (*real_ppoll_chk)(struct pollfd *, nfds_t, const struct timespec *, const sigset_t *, size_t);
static int (*real_select)(int, fd_set *, fd_set *, fd_set *, struct timeval *);
static int (*real_pselect)(int, fd_set *, fd_set *, fd_set *, const struct timespec *, const sigset_t *);

static __thread struct lag_thread lag_self __attribute__((tls_model("initial-exec")));
static uint64_t capture_threshold = UINT64_MAX;
static uint64_t start_threshold = UINT64_MAX;
uint32_t lag_families = LAG_FAMILY_EPOLL;

void lag_hooks_set_thresholds(uint64_t start, uint64_t capture) {
    if (start != 0) __atomic_store_n(&start_threshold, start, __ATOMIC_RELAXED);
    __atomic_store_n(&capture_threshold, capture, __ATOMIC_RELAXED);
}

void lag_loops_set_capture_threshold(uint64_t ns) { lag_hooks_set_thresholds(0, ns); }

struct lag_thread *lag_thread_self(void) { return &lag_self; }

#define CALLER ((uint64_t)__builtin_return_address(0))
#define FRAME ((uint64_t)__builtin_frame_address(0))

static inline bool is_current(const struct lag_thread *self, int fd) {
    return self->key != 0 && (uint32_t)self->key == (uint32_t)(fd + 1) &&
           __atomic_load_n(&lag_live_page->keys[self->index], __ATOMIC_ACQUIRE) == self->key;
}

/* In a debug build nine copies of these would be a tenth of the object. */
#ifdef __OPTIMIZE__
#define LAG_HOT static inline __attribute__((always_inline))
#else
#define LAG_HOT static __attribute__((noinline))
#endif

/* Ends the open iteration and begins the wait; NULL when this wait is not measured. */
LAG_HOT struct lag_loop_slot *wait_begins(int fd, uint32_t kind, uint64_t caller, uint64_t frame, uint64_t *since) {
    struct lag_thread *self = &lag_self;
    if (LAG_UNLIKELY(!is_current(self, fd))) {
        uint32_t life = __atomic_load_n(&lag_life_word, __ATOMIC_RELAXED);
        if (LAG_LIKELY(life == LAG_LIFE_OFF || life == LAG_LIFE_PARKED)) return NULL;
        if (!lag_wait_admit(self, fd, kind, caller, frame)) return NULL;
    }
    struct lag_loop_slot *slot = self->slot;
    if (LAG_UNLIKELY(__atomic_load_n(&lag_uv_probe_wanted, __ATOMIC_RELAXED) != 0)) lag_uv_probe_send(self);
    uint64_t now = lag_now();
    *since = now;
    uint64_t began = slot->busy_since_ns;
    uint32_t seq = slot->seq;
    __atomic_store_n(&slot->seq, seq + 1, __ATOMIC_RELEASE);
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    slot->idle_since_ns = now;
    slot->busy_since_ns = 0;
    if (LAG_LIKELY(began != 0)) {
        uint64_t length = now - began;
        slot->iterations += 1;
        slot->busy_ns += length;
        slot->histogram[lag_histogram_index(length)] += 1;
        if (length < slot->min_ns) slot->min_ns = length;
        if (LAG_UNLIKELY(length > slot->max_ns)) slot->max_ns = length;
        if (LAG_UNLIKELY(length >= __atomic_load_n(&start_threshold, __ATOMIC_RELAXED))) {
            slot->stall_count += 1;
            slot->stalled_ns += length;
        }
        if (LAG_UNLIKELY(length >= __atomic_load_n(&capture_threshold, __ATOMIC_RELAXED))) {
            struct lag_long_iteration *entry = &slot->recent_long[slot->long_head % LAG_RECENT_LONG];
            entry->start_ns = began;
            entry->duration_ns = length;
            slot->recent_events[slot->long_head % LAG_RECENT_LONG] = (uint32_t)slot->iteration_events;
            struct lag_python_loop *python = &lag_python_loops[self->index];
            python->recent_gil_wait[slot->long_head % LAG_RECENT_LONG] =
                slot->gil_wait_ns - python->gil_wait_at_start;
            slot->long_head += 1;
        }
    }
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    __atomic_store_n(&slot->seq, seq + 2, __ATOMIC_RELEASE);
    return slot;
}

/* Ends the wait and begins the next iteration. errno is the real call's: the clock leaves it alone. */
LAG_HOT void wait_ended(struct lag_loop_slot *slot, uint64_t since, int result) {
    struct lag_thread *self = &lag_self;
    /* Retired while it waited (its descriptor was closed by another thread, or this is a forked child): the slot may
     * already belong to somebody else. A signal handler that waits can even have given this thread another slot. */
    if (LAG_UNLIKELY(self->slot != slot ||
                     __atomic_load_n(&lag_live_page->keys[self->index], __ATOMIC_ACQUIRE) != self->key))
        return;
    uint64_t now = lag_now();
    uint32_t seq = slot->seq;
    __atomic_store_n(&slot->seq, seq + 1, __ATOMIC_RELEASE);
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    slot->idle_ns += now - since;
    slot->idle_since_ns = 0;
    slot->busy_since_ns = now;
    slot->iteration_events = result > 0 ? (uint64_t)result : 0;
    slot->events += slot->iteration_events;
    struct lag_python_loop *python = &lag_python_loops[self->index];
    python->gil_wait_at_start = slot->gil_wait_ns;
    if (result > 0 && __atomic_load_n(&python->first_event_ns, __ATOMIC_RELAXED) == 0)
        __atomic_store_n(&python->first_event_ns, now, __ATOMIC_RELAXED);
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    __atomic_store_n(&slot->seq, seq + 2, __ATOMIC_RELEASE);
}

#define MEASURED(fd, kind, call)                                                \
    uint64_t since;                                                             \
    struct lag_loop_slot *slot = wait_begins((fd), (kind), CALLER, FRAME, &since); \
    int result = (call);                                                        \
    if (LAG_LIKELY(slot != NULL)) wait_ended(slot, since, result);              \
    return result

/* A hook can be reached before anything resolved the real calls (another object's constructor waits): do it then. */
#define NEEDS(real) \
    if (LAG_UNLIKELY((real) == NULL)) lag_hooks_resolve(true)

int lag_hook_epoll_wait(int fd, struct epoll_event *events, int max, int timeout);
int lag_hook_epoll_wait(int fd, struct epoll_event *events, int max, int timeout) {
    NEEDS(real_epoll_wait);
    MEASURED(fd, LAG_WAIT_EPOLL_WAIT, real_epoll_wait(fd, events, max, timeout));
}

int lag_hook_epoll_pwait(int fd, struct epoll_event *events, int max, int timeout, const sigset_t *mask);
int lag_hook_epoll_pwait(int fd, struct epoll_event *events, int max, int timeout, const sigset_t *mask) {
    NEEDS(real_epoll_pwait);
    MEASURED(fd, LAG_WAIT_EPOLL_PWAIT, real_epoll_pwait(fd, events, max, timeout, mask));
}

int lag_hook_epoll_pwait2(int fd, struct epoll_event *events, int max, const struct timespec *timeout,
                          const sigset_t *mask);
int lag_hook_epoll_pwait2(int fd, struct epoll_event *events, int max, const struct timespec *timeout,
                          const sigset_t *mask) {
    NEEDS(real_epoll_pwait2);
    if (real_epoll_pwait2 == NULL) { /* glibc before 2.35: the caller found our symbol where there was none */
        errno = ENOSYS;
        return -1;
    }
    MEASURED(fd, LAG_WAIT_EPOLL_PWAIT2, real_epoll_pwait2(fd, events, max, timeout, mask));
}

/* poll and select are loops only where LOOPLAG_WAITS asks for them; a thread that has an epoll loop keeps it, and its
 * polls are busy time (lag_wait_admit). */
static inline bool polls_are_loops(void) { return (lag_families & LAG_FAMILY_POLL) != 0; }

/* Out of line: six more copies would cost more room than a call costs these rare loops time. */
static __attribute__((noinline)) struct lag_loop_slot *poll_begins(uint32_t kind, uint64_t caller, uint64_t frame,
                                                                   uint64_t *since) {
    return wait_begins(LAG_POLL_DESCRIPTOR, kind, caller, frame, since);
}

static __attribute__((noinline)) void poll_ended(struct lag_loop_slot *slot, uint64_t since, int result) {
    wait_ended(slot, since, result);
}

#define MEASURED_POLL(kind, call)                                        \
    if (LAG_LIKELY(!polls_are_loops())) return (call);                   \
    uint64_t since;                                                      \
    struct lag_loop_slot *slot = poll_begins((kind), CALLER, FRAME, &since); \
    int result = (call);                                                 \
    if (LAG_LIKELY(slot != NULL)) poll_ended(slot, since, result);       \
    return result

int lag_hook_poll(struct pollfd *fds, nfds_t count, int timeout);
int lag_hook_poll(struct pollfd *fds, nfds_t count, int timeout) {
    NEEDS(real_poll);
    MEASURED_POLL(LAG_WAIT_POLL, real_poll(fds, count, timeout));
}

int lag_hook_ppoll(struct pollfd *fds, nfds_t count, const struct timespec *timeout, const sigset_t *mask);
int lag_hook_ppoll(struct pollfd *fds, nfds_t count, const struct timespec *timeout, const sigset_t *mask) {
    NEEDS(real_ppoll);
    MEASURED_POLL(LAG_WAIT_PPOLL, real_ppoll(fds, count, timeout, mask));
}

int lag_hook___poll_chk(struct pollfd *fds, nfds_t count, int timeout, size_t size);
int lag_hook___poll_chk(struct pollfd *fds, nfds_t count, int timeout, size_t size) {
    NEEDS(real_poll_chk);
    MEASURED_POLL(LAG_WAIT_POLL, real_poll_chk(fds, count, timeout, size));
}

int lag_hook___ppoll_chk(struct pollfd *fds, nfds_t count, const struct timespec *timeout, const sigset_t *mask,
                         size_t size);
int lag_hook___ppoll_chk(struct pollfd *fds, nfds_t count, const struct timespec *timeout, const sigset_t *mask,
                         size_t size) {
    NEEDS(real_ppoll_chk);
    MEASURED_POLL(LAG_WAIT_PPOLL, real_ppoll_chk(fds, count, timeout, mask, size));
}

int lag_hook_select(int count, fd_set *reads, fd_set *writes, fd_set *errors, struct timeval *timeout);
int lag_hook_select(int count, fd_set *reads, fd_set *writes, fd_set *errors, struct timeval *timeout) {
    NEEDS(real_select);
    MEASURED_POLL(LAG_WAIT_SELECT, real_select(count, reads, writes, errors, timeout));
}

int lag_hook_pselect(int count, fd_set *reads, fd_set *writes, fd_set *errors, const struct timespec *timeout,
                     const sigset_t *mask);
int lag_hook_pselect(int count, fd_set *reads, fd_set *writes, fd_set *errors, const struct timespec *timeout,
                     const sigset_t *mask) {
    NEEDS(real_pselect);
    MEASURED_POLL(LAG_WAIT_PSELECT, real_pselect(count, reads, writes, errors, timeout, mask));
}

/* A new descriptor with a loop's number says that the loop's own was closed: the second asyncio.run of a program gets
 * the number of the first, and what lies between them is no iteration. */
int lag_hook_epoll_create(int size);
int lag_hook_epoll_create(int size) {
    NEEDS(real_epoll_create);
    int fd = real_epoll_create(size);
    if (fd >= 0) lag_loops_descriptor_created(fd);
    return fd;
}

int lag_hook_epoll_create1(int flags);
int lag_hook_epoll_create1(int flags) {
    NEEDS(real_epoll_create1);
    int fd = real_epoll_create1(flags);
    if (fd >= 0) lag_loops_descriptor_created(fd);
    return fd;
}

#define HOOK(call, real_pointer, group) {#call, (void *)lag_hook_##call, (void **)&(real_pointer), (group)}

extern int (*lag_real_cond_timedwait)(pthread_cond_t *, pthread_mutex_t *, const struct timespec *);
int lag_hook_pthread_cond_timedwait(pthread_cond_t *condition, pthread_mutex_t *mutex, const struct timespec *until);

static const struct lag_hook hooks[] = {
    HOOK(epoll_wait, real_epoll_wait, LAG_FAMILY_EPOLL),
    HOOK(epoll_pwait, real_epoll_pwait, LAG_FAMILY_EPOLL),
    HOOK(epoll_pwait2, real_epoll_pwait2, LAG_FAMILY_EPOLL),
    HOOK(epoll_create, real_epoll_create, LAG_FAMILY_EPOLL),
    HOOK(epoll_create1, real_epoll_create1, LAG_FAMILY_EPOLL),
    HOOK(poll, real_poll, LAG_FAMILY_POLL),
    HOOK(ppoll, real_ppoll, LAG_FAMILY_POLL),
    HOOK(__poll_chk, real_poll_chk, LAG_FAMILY_POLL),
    HOOK(__ppoll_chk, real_ppoll_chk, LAG_FAMILY_POLL),
    HOOK(select, real_select, LAG_FAMILY_POLL),
    HOOK(pselect, real_pselect, LAG_FAMILY_POLL),
    {"pthread_cond_timedwait", (void *)lag_hook_pthread_cond_timedwait, (void **)&lag_real_cond_timedwait,
     LAG_FAMILY_PYTHON},
};

const struct lag_hook *lag_hooks(size_t *count) {
    *count = sizeof hooks / sizeof hooks[0];
    return hooks;
}

void lag_hooks_set_families(uint32_t families) { lag_families = families; }
