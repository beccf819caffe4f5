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
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

struct lag_live *lag_live_page;
static struct lag_header *segment;
static struct lag_loop_slot *slots;
static uint32_t slot_count;
/* Rises for ever, also across fork: a key of a parent's thread can never equal one of its child's loops. */
static uint32_t last_generation;
static pthread_key_t exit_key;
static bool exit_key_made;

enum {
    NESTED_CHECK_NS = 10 * 1000 * 1000,
    REFUSED_NS = 1000 * 1000 * 1000,
    SWITCHES_UNTIL_MERGED = 4,
};

void lag_life_set_header(struct lag_header *header);

static void thread_ends(void *value) {
    struct lag_thread *self = value;
    if (self->key != 0 && lag_life_is_ours()) lag_loop_retire(self->index, (uint32_t)(self->key >> 32));
    self->key = 0;
}

bool lag_loops_open(struct lag_header *header, struct lag_loop_slot *loops, uint32_t count, uint64_t threshold_ns) {
    if (lag_live_page == NULL) {
        void *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (page == MAP_FAILED) return false;
        /* Before Linux 4.14 there is no such advice: then only atfork protects a child. */
        (void)madvise(page, 4096, MADV_WIPEONFORK);
        lag_live_page = page;
    }
    if (!exit_key_made) {
        if (pthread_key_create(&exit_key, thread_ends) != 0) return false;
        exit_key_made = true;
    }
    memset(lag_live_page, 0, sizeof *lag_live_page);
    segment = header;
    slots = loops;
    slot_count = count < LAG_MAX_LOOPS ? count : LAG_MAX_LOOPS;
    lag_life_set_header(header);
    lag_hooks_set_thresholds(threshold_ns, threshold_ns);
    __atomic_store_n(&lag_live_page->cookie, 1, __ATOMIC_RELEASE);
    return true;
}

void lag_loops_close(void) {
    if (lag_live_page == NULL) return;
    /* The segment stays mapped: a loop thread may be writing to its slot at this moment. */
    for (uint32_t i = 0; i < LAG_MAX_LOOPS; i++) __atomic_store_n(&lag_live_page->keys[i], 0, __ATOMIC_RELEASE);
    __atomic_store_n(&lag_live_page->cookie, 0, __ATOMIC_RELEASE);
}

void lag_loop_retire(uint32_t index, uint32_t generation) {
    if (index >= slot_count) return;
    uint64_t key = __atomic_load_n(&lag_live_page->keys[index], __ATOMIC_ACQUIRE);
    if (key == 0 || (uint32_t)(key >> 32) != generation) return;
    if (!__atomic_compare_exchange_n(&lag_live_page->keys[index], &key, 0, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
        return;
    /* The open iteration is dropped: nobody knows when it would have ended. */
    struct lag_loop_slot *slot = &slots[index];
    slot->retired_ns = lag_now();
    slot->busy_since_ns = 0;
    slot->idle_since_ns = 0;
    __atomic_store_n(&slot->state, LAG_LOOP_RETIRED, __ATOMIC_RELEASE);
}

void lag_loops_descriptor_created(int fd) {
    if (lag_life_word != LAG_LIFE_RUNNING || !lag_life_is_ours()) return;
    for (uint32_t i = 0; i < slot_count; i++) {
        uint64_t key = __atomic_load_n(&lag_live_page->keys[i], __ATOMIC_ACQUIRE);
        if (key != 0 && (uint32_t)key == (uint32_t)(fd + 1)) lag_loop_retire(i, (uint32_t)(key >> 32));
    }
}

/* False only when the descriptor is surely closed or something else by now. */
static bool is_still_epoll(int fd) {
    if (fd < 0) return true;
    char path[40], link[64];
    snprintf(path, sizeof path, "/proc/thread-self/fd/%d", fd);
    ssize_t n = readlink(path, link, sizeof link - 1);
    if (n < 0) return errno != ENOENT && fcntl(fd, F_GETFD) >= 0;
    link[n] = 0;
    return strstr(link, "[eventpoll]") != NULL;
}

static void stack_bounds(struct lag_loop_slot *slot) {
    slot->stack_low = slot->stack_high = 0;
    if (lag_gettid() == getpid()) {
        /* pthread_getattr_np would parse /proc/self/maps with stdio here; ld.so knows the end of the main stack. */
        void **end = dlsym(RTLD_DEFAULT, "__libc_stack_end");
        if (end != NULL) slot->stack_high = ((uint64_t)*end + 4095) & ~(uint64_t)4095;
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

static struct lag_loop_slot *claim_slot(uint32_t *index) {
    for (int pass = 0; pass < 2; pass++) {
        uint32_t best = slot_count;
        for (uint32_t i = 0; i < slot_count; i++) {
            uint32_t state = __atomic_load_n(&slots[i].state, __ATOMIC_ACQUIRE);
            if (state == LAG_LOOP_FREE) { best = i; break; }
            if (state == LAG_LOOP_RETIRED && (best == slot_count || slots[i].retired_ns < slots[best].retired_ns)) best = i;
        }
        if (best == slot_count) return NULL;
        uint32_t state = __atomic_load_n(&slots[best].state, __ATOMIC_ACQUIRE);
        if (state == LAG_LOOP_LIVE) continue;
        if (__atomic_compare_exchange_n(&slots[best].state, &state, LAG_LOOP_LIVE, false, __ATOMIC_ACQ_REL,
                                        __ATOMIC_ACQUIRE)) {
            *index = best;
            return &slots[best];
        }
    }
    return NULL;
}

static bool register_loop(struct lag_thread *self, int fd, uint32_t kind, uint64_t caller, uint64_t sp) {
    self->key = 0;
    uint64_t now = lag_now();
    if (self->nested_check != 0 && self->slot == NULL && now - self->nested_check < REFUSED_NS) return false;
    uint32_t index;
    struct lag_loop_slot *slot = claim_slot(&index);
    if (slot == NULL) {
        self->slot = NULL;
        self->nested_check = now;
        __atomic_fetch_add(&segment->loops_refused, 1, __ATOMIC_RELAXED);
        return false;
    }
    uint32_t generation = __atomic_add_fetch(&last_generation, 1, __ATOMIC_RELAXED);
    uint32_t seq = slot->seq;
    __atomic_store_n(&slot->seq, seq | 1, __ATOMIC_RELEASE);
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
    prctl(PR_GET_NAME, slot->thread_name);
    slot->thread_name[15] = 0;
    stack_bounds(slot);
    self->slot = slot;
    self->index = index;
    self->primary_sp = sp;
    self->nested_check = 0;
    self->key = (uint64_t)generation << 32 | (uint32_t)(fd + 1);
    __atomic_store_n(&lag_live_page->keys[index], self->key, __ATOMIC_RELEASE);
    __atomic_store_n(&slot->seq, (seq | 1) + 1, __ATOMIC_RELEASE);
    pthread_setspecific(exit_key, self);
    return true;
}

static bool admit(struct lag_thread *self, int fd, uint32_t kind, uint64_t caller, uint64_t sp) {
    if (!lag_life_admit()) return false;
    if (self->key == 0 || __atomic_load_n(&lag_live_page->keys[self->index], __ATOMIC_ACQUIRE) != self->key)
        return register_loop(self, fd, kind, caller, sp);

    int primary = self->slot->epfd;
    if (fd < 0 && primary >= 0) return false; /* a poll in the callback of an epoll loop is busy time */
    if (sp >= self->primary_sp || primary < 0) {
        /* Not deeper than the primary's wait: that loop's frame has returned, and the thread runs another one now. A
         * thread that goes on alternating between descriptors at one depth has one loop with several of them. */
        if (self->switches >= SWITCHES_UNTIL_MERGED && primary >= 0) return true;
        self->switches += 1;
    } else {
        /* Deeper: a nested loop (node's execSync), busy time of the outer one, unless that one's descriptor is gone. */
        uint64_t now = lag_now();
        if (now - self->nested_check < NESTED_CHECK_NS) return false;
        self->nested_check = now;
        if (is_still_epoll(primary)) return false;
    }
    lag_loop_retire(self->index, (uint32_t)(self->key >> 32));
    self->nested_check = 0;
    return register_loop(self, fd, kind, caller, sp);
}

bool lag_wait_admit(struct lag_thread *self, int fd, uint32_t kind, uint64_t caller, uint64_t sp) {
    if (self->in_setup) return false;
    int saved = errno;
    self->in_setup = 1;
    bool measured = admit(self, fd, kind, caller, sp);
    self->in_setup = 0;
    errno = saved;
    return measured;
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
        __atomic_thread_fence(__ATOMIC_ACQUIRE);
        if ((before & 1) == 0 && __atomic_load_n(&slot->seq, __ATOMIC_ACQUIRE) == before) return true;
        __builtin_ia32_pause();
    }
    return false;
}
