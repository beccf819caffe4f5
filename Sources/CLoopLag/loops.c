/* The registry of loops: which thread owns which slot of the segment, and what is a loop at all.
 *
 * A loop is (thread, its primary epoll descriptor). Runs on loop threads at a loop's first wait, at a nested wait and at
 * thread exit; the watchdog may retire a slot at any time. Ownership is one word, live->keys[index]: whoever clears it
 * retires the loop, and its thread registers anew at its next wait.
 */
#include "internal.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

LAG_SMALL_CODE_BEGIN

struct lag_live *lag_live_page;
static bool is_wiped_on_fork;
static struct lag_header *segment;
static struct lag_loop_slot *slots;
static uint32_t slot_count;
static uint32_t slots_used;
/* Rises for ever, also across fork: a key of a parent's thread can never equal one of its child's loops. */
static uint32_t last_generation;
static pthread_key_t exit_key;
static bool exit_key_made;
static uint64_t main_stack_end;

enum {
    NESTED_CHECK_NS = 10 * 1000 * 1000,
    REFUSED_NS = 1000 * 1000 * 1000,
    /* A slot taken away from a thread is nobody's for this long: the thread may be in the middle of an update of it. */
    SETTLE_NS = 100 * 1000 * 1000,
    SWITCHES_UNTIL_MERGED = 4,
    /* What the handler needs beyond the kernel's own frame. */
    HANDLER_STACK_BYTES = 2048,
};
static const uint32_t CLAIMED = UINT32_MAX;

/* Who has which slot. Private: the file may be written by any process of the same user, so nothing in it decides. */
static struct tenancy {
    uint32_t holder;      /* the tenant's generation; 0 = to let, CLAIMED = about to get one */
    uint32_t takes_signal;
    uint64_t left_ns;     /* when the last tenant went, 0 = there was none */
    uint64_t reusable_ns; /* and from when on the next may come */
} tenancies[LAG_MAX_LOOPS];

/* Whoever clears the key retires the loop; `settle_ns` is 0 when that is the loop's own thread. */
static void retire(uint32_t index, uint32_t generation, uint64_t settle_ns) {
    if (index >= slot_count) return;
    struct lag_loop_slot *slot = &slots[index];
    uint64_t key = __atomic_load_n(&lag_live_page->keys[index], __ATOMIC_ACQUIRE);
    if (key == 0 || (uint32_t)(key >> 32) != generation) return;
    if (!__atomic_compare_exchange_n(&lag_live_page->keys[index], &key, 0, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
        return;
    /* The open iteration is dropped: nobody knows when it would have ended. */
    uint64_t now = lag_now();
    slot->retired_ns = now;
    slot->busy_since_ns = 0;
    slot->idle_since_ns = 0;
    __atomic_store_n(&slot->state, LAG_LOOP_RETIRED, __ATOMIC_RELEASE);
    struct tenancy *tenancy = &tenancies[index];
    __atomic_store_n(&tenancy->left_ns, now, __ATOMIC_RELAXED);
    __atomic_store_n(&tenancy->reusable_ns, now + settle_ns, __ATOMIC_RELAXED);
    /* Only if it still is this tenant's: the agent may have been stopped and started anew since. */
    (void)__atomic_compare_exchange_n(&tenancy->holder, &generation, 0, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
}

void lag_loop_retire(uint32_t index, uint32_t generation) {
    if (lag_live_page != NULL) retire(index, generation, SETTLE_NS);
}

static void thread_ends(void *value) {
    struct lag_thread *self = value;
    if (self->key != 0 && lag_life_is_ours()) retire(self->index, (uint32_t)(self->key >> 32), 0);
    self->key = 0;
}

/* Loader calls, made when the agent is armed: a loop thread must not ask for the loader's lock, which a library's
 * constructor may be holding while it waits for that very thread. */
void lag_loops_resolve(void) {
    /* pthread_getattr_np would parse /proc/self/maps with stdio; ld.so knows the end of the main stack. */
    void **end = dlsym(RTLD_DEFAULT, "__libc_stack_end");
    if (end != NULL) main_stack_end = (uint64_t)*end;
}

bool lag_loops_open(struct lag_header *header, struct lag_loop_slot *loops, uint32_t count, uint64_t threshold_ns) {
    if (lag_live_page == NULL) {
        void *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (page == MAP_FAILED) return false;
        /* Before Linux 4.14 there is no such advice: then only atfork protects a child. */
        is_wiped_on_fork = madvise(page, 4096, MADV_WIPEONFORK) == 0;
        lag_live_page = page;
    }
    if (!exit_key_made) {
        if (pthread_key_create(&exit_key, thread_ends) != 0) return false;
        exit_key_made = true;
    }
    memset(lag_live_page, 0, sizeof *lag_live_page);
    memset(tenancies, 0, sizeof tenancies);
    segment = header;
    slots = loops;
    slot_count = count < LAG_MAX_LOOPS ? count : LAG_MAX_LOOPS;
    slots_used = 0;
    lag_life_set_header(header);
    lag_hooks_set_thresholds(threshold_ns, threshold_ns);
    if (is_wiped_on_fork) __atomic_store_n(&lag_live_page->pid, getpid(), __ATOMIC_RELEASE);
    __atomic_store_n(&lag_live_page->cookie, 1, __ATOMIC_RELEASE);
    return true;
}

void lag_loops_close(void) {
    if (lag_live_page == NULL) return;
    /* The segment stays mapped: a loop thread may be writing to its slot at this moment. */
    for (uint32_t i = 0; i < LAG_MAX_LOOPS; i++) __atomic_store_n(&lag_live_page->keys[i], 0, __ATOMIC_RELEASE);
    __atomic_store_n(&lag_live_page->cookie, 0, __ATOMIC_RELEASE);
}

void lag_loops_descriptor_created(int fd) {
    if (lag_life_state() != LAG_LIFE_RUNNING || !lag_life_is_ours()) return;
    uint64_t own = lag_thread_self()->key;
    for (uint32_t i = 0; i < slot_count; i++) {
        uint64_t key = __atomic_load_n(&lag_live_page->keys[i], __ATOMIC_ACQUIRE);
        if (key == 0 || (uint32_t)key != (uint32_t)(fd + 1)) continue;
        retire(i, (uint32_t)(key >> 32), key == own ? 0 : SETTLE_NS);
    }
}

uint32_t lag_loops_used(void) { return __atomic_load_n(&slots_used, __ATOMIC_ACQUIRE); }

bool lag_loop_takes_signal(uint32_t index) {
    return index < slot_count && __atomic_load_n(&tenancies[index].takes_signal, __ATOMIC_RELAXED) != 0;
}

/* False only when the descriptor is surely closed or something else by now. */
static bool is_still_epoll(int fd) {
    if (fd < 0) return true;
    char path[40], link[64];
    snprintf(path, sizeof path, "/proc/thread-self/fd/%d", fd);
    ssize_t n = readlink(path, link, sizeof link - 1);
    if (n < 0) return fcntl(fd, F_GETFD) >= 0; /* closed, or there is no /proc here */
    link[n] = 0;
    return strstr(link, "[eventpoll]") != NULL;
}

static void stack_bounds(struct lag_loop_slot *slot, uint64_t sp) {
    slot->stack_low = slot->stack_high = 0;
    /* A child forked by a thread has that thread's stack for its main one, far below ld.so's. */
    if (lag_gettid() == getpid() && sp < main_stack_end && main_stack_end - sp < 64u << 20) {
        slot->stack_high = main_stack_end;
        return;
    }
    pthread_attr_t attributes;
    if (pthread_getattr_np(pthread_self(), &attributes) != 0) return;
    void *low = NULL;
    size_t bytes = 0;
    if (pthread_attr_getstack(&attributes, &low, &bytes) == 0) {
        slot->stack_low = (uint64_t)low;
        slot->stack_high = (uint64_t)low + bytes;
    }
    pthread_attr_destroy(&attributes);
}

/* Whether a signal's frame has room where the kernel will put it: on the alternate stack, if there is one, else on a
 * stack that is not tiny. Where it has none the kernel kills the process. */
static bool has_room_for_handler(const struct lag_loop_slot *slot) {
    uint64_t frame = getauxval(51 /* AT_MINSIGSTKSZ: the frame with all vector registers */);
    uint64_t need = (frame != 0 ? frame : 2048) + HANDLER_STACK_BYTES;
    stack_t alternate;
    if (syscall(SYS_sigaltstack, NULL, &alternate) == 0 && (alternate.ss_flags & SS_DISABLE) == 0)
        return alternate.ss_size >= need;
    return slot->stack_low == 0 || slot->stack_high - slot->stack_low >= 4 * need;
}

/* A slot that never had a tenant, else the one that has been free longest. */
static struct lag_loop_slot *claim_slot(uint64_t now, uint32_t *index) {
    /* Who loses a slot to another thread looks for the next one; more threads than slots cannot win before it. */
    for (uint32_t attempt = 0; attempt <= slot_count; attempt++) {
        uint32_t best = slot_count;
        uint64_t earliest = UINT64_MAX;
        for (uint32_t i = 0; i < slot_count; i++) {
            const struct tenancy *tenancy = &tenancies[i];
            if (__atomic_load_n(&tenancy->holder, __ATOMIC_ACQUIRE) != 0) continue;
            if (__atomic_load_n(&tenancy->reusable_ns, __ATOMIC_RELAXED) > now) continue;
            uint64_t left = __atomic_load_n(&tenancy->left_ns, __ATOMIC_RELAXED);
            if (left >= earliest) continue;
            earliest = left;
            best = i;
        }
        if (best == slot_count) return NULL;
        uint32_t nobody = 0;
        if (__atomic_compare_exchange_n(&tenancies[best].holder, &nobody, CLAIMED, false, __ATOMIC_ACQ_REL,
                                        __ATOMIC_ACQUIRE)) {
            *index = best;
            uint32_t used = __atomic_load_n(&slots_used, __ATOMIC_RELAXED);
            while (used <= best && !__atomic_compare_exchange_n(&slots_used, &used, best + 1, true, __ATOMIC_RELEASE,
                                                                __ATOMIC_RELAXED)) {
            }
            return &slots[best];
        }
    }
    return NULL;
}

static bool register_loop(struct lag_thread *self, int fd, uint32_t kind, uint64_t caller, uint64_t sp) {
    self->key = 0;
    uint64_t now = lag_now();
    bool was_refused = self->slot == NULL && self->nested_check != 0;
    if (was_refused && now - self->nested_check < REFUSED_NS) return false;
    uint32_t index;
    struct lag_loop_slot *slot = claim_slot(now, &index);
    if (slot == NULL) {
        self->slot = NULL;
        self->nested_check = now;
        if (!was_refused) __atomic_fetch_add(&segment->loops_refused, 1, __ATOMIC_RELAXED); /* threads, not attempts */
        return false;
    }
    /* Drawn with the slot in hand, so that a slot's generations only rise. */
    uint32_t generation = __atomic_add_fetch(&last_generation, 1, __ATOMIC_RELAXED);
    __atomic_store_n(&tenancies[index].holder, generation, __ATOMIC_RELEASE);
    uint32_t seq = slot->seq | 1;
    __atomic_store_n(&slot->seq, seq, __ATOMIC_RELEASE);
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    size_t first = offsetof(struct lag_loop_slot, generation);
    memset((char *)slot + first, 0, sizeof *slot - first);
    slot->generation = generation;
    slot->tid = lag_gettid();
    slot->epfd = fd;
    slot->wait_kind = kind;
    slot->role = lag_runtime_thread_role();
    slot->caller_pc = caller;
    slot->registered_ns = now;
    slot->min_ns = UINT64_MAX;
    slot->known = LAG_KNOWN_EVENTS;
    lag_python_thread_begins(index);
    if (lag_python_loops[index].thread_state != 0 && (lag_families & LAG_FAMILY_PYTHON) != 0)
        slot->known |= LAG_KNOWN_GIL_WAIT;
    prctl(PR_GET_NAME, slot->thread_name);
    slot->thread_name[15] = 0;
    stack_bounds(slot, sp);
    __atomic_store_n(&tenancies[index].takes_signal, has_room_for_handler(slot), __ATOMIC_RELAXED);
    self->slot = slot;
    self->index = index;
    self->primary_sp = sp;
    self->nested_check = 0;
    self->key = (uint64_t)generation << 32 | (uint32_t)(fd + 1);
    __atomic_store_n(&slot->state, LAG_LOOP_LIVE, __ATOMIC_RELEASE);
    __atomic_store_n(&lag_live_page->keys[index], self->key, __ATOMIC_RELEASE);
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    __atomic_store_n(&slot->seq, seq + 1, __ATOMIC_RELEASE);
    pthread_setspecific(exit_key, self);
    lag_capture_let_in();
    lag_v8_loop_begins(index, generation, slot);
    return true;
}

static bool admit(struct lag_thread *self, int fd, uint32_t kind, uint64_t caller, uint64_t sp) {
    if (fd < 0 && fd != LAG_POLL_DESCRIPTOR) return false; /* the call will fail */
    if (!lag_life_admit()) return false;
    if (self->key == 0 || __atomic_load_n(&lag_live_page->keys[self->index], __ATOMIC_ACQUIRE) != self->key)
        return register_loop(self, fd, kind, caller, sp);

    int primary = self->slot->epfd;
    if (fd < 0 && primary >= 0) return false; /* a poll in the callback of an epoll loop is busy time */
    bool is_nested = sp < self->primary_sp && primary >= 0;
    bool is_merged = !is_nested && primary >= 0 && self->switches >= SWITCHES_UNTIL_MERGED;
    if (is_nested || is_merged) {
        /* Deeper than the primary's wait: a nested loop (node's execSync), busy time of the outer one. Not deeper, and
         * again and again: one loop with several descriptors. Either way only while the primary exists. */
        uint64_t now = lag_now();
        if (now - self->nested_check < NESTED_CHECK_NS) return is_merged;
        self->nested_check = now;
        if (is_still_epoll(primary)) return is_merged;
        self->switches = 0;
    } else {
        /* That loop's frame has returned, and the thread runs another one now. */
        self->switches += 1;
    }
    retire(self->index, (uint32_t)(self->key >> 32), 0);
    self->nested_check = 0;
    return register_loop(self, fd, kind, caller, sp);
}

bool lag_wait_admit(struct lag_thread *self, int fd, uint32_t kind, uint64_t caller, uint64_t sp) {
    if (self->in_setup) return false;
    int saved = errno, cancel;
    self->in_setup = 1;
    /* A thread that is cancelled inside would leave the agent half started. */
    (void)pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel);
    bool measured = admit(self, fd, kind, caller, sp);
    (void)pthread_setcancelstate(cancel, &cancel);
    self->in_setup = 0;
    errno = saved;
    return measured;
}

uint64_t lag_loop_take_event(uint32_t index) {
    return index < LAG_MAX_LOOPS ? __atomic_exchange_n(&lag_python_loops[index].first_event_ns, 0, __ATOMIC_RELAXED) : 0;
}

uint64_t lag_loop_thread_state(uint32_t index) {
    return index < LAG_MAX_LOOPS ? __atomic_load_n(&lag_python_loops[index].thread_state, __ATOMIC_ACQUIRE) : 0;
}

uint64_t lag_loop_pthread(uint32_t index) {
    return index < LAG_MAX_LOOPS ? __atomic_load_n(&lag_python_loops[index].pthread, __ATOMIC_ACQUIRE) : 0;
}

bool lag_loop_read(const struct lag_loop_slot *slot, struct lag_loop_view *view) {
    for (int i = 0; i < 64; i++) {
        uint32_t before = __atomic_load_n(&slot->seq, __ATOMIC_ACQUIRE);
        view->state = __atomic_load_n(&slot->state, __ATOMIC_ACQUIRE);
        view->generation = slot->generation;
        view->tid = slot->tid;
        view->epfd = slot->epfd;
        view->busy_since_ns = slot->busy_since_ns;
        view->iterations = slot->iterations;
        view->long_head = slot->long_head;
        view->role = slot->role;
        memcpy(view->recent_long, slot->recent_long, sizeof view->recent_long);
        memcpy(view->recent_events, slot->recent_events, sizeof view->recent_events);
        view->iteration_events = slot->iteration_events;
        view->known = __atomic_load_n(&slot->known, __ATOMIC_RELAXED);
        view->gil_wait_since_ns = slot->gil_wait_since_ns;
        const struct lag_python_loop *python = &lag_python_loops[(size_t)(slot - slots) % LAG_MAX_LOOPS];
        view->iteration_gil_wait = slot->gil_wait_ns - python->gil_wait_at_start;
        memcpy(view->recent_gil_wait, python->recent_gil_wait, sizeof view->recent_gil_wait);
        __atomic_thread_fence(__ATOMIC_ACQUIRE);
        if ((before & 1) == 0 && __atomic_load_n(&slot->seq, __ATOMIC_ACQUIRE) == before) return true;
        __builtin_ia32_pause();
    }
    return false;
}

LAG_SMALL_CODE_END
