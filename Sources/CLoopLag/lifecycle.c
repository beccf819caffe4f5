/* When the agent lives: armed by its owner, started by the first hooked wait, begun anew in a forked child, removed at
 * a clean exit.
 *
 * Fork: the segment is mapped MADV_DONTFORK and the live page MADV_WIPEONFORK, so that a child can neither write into
 * its parent's segment nor take its loops for its own, even after a raw clone that skips atfork handlers. A child starts
 * its own agent at its first hooked wait; fork+exec pays nothing.
 */
#include "internal.h"

#include <dlfcn.h>
#include <link.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <unistd.h>

LAG_SMALL_CODE_BEGIN

uint32_t lag_life_word = LAG_LIFE_OFF;
static uint32_t life_mode;
static uint32_t life_epoch; /* one more with every start: an old watchdog ends when it sees a newer one */
static lag_starter life_starter;
static char segment_path[256];
static int32_t segment_owner;
static struct lag_header *segment_header;
static pthread_mutex_t scan_mutex = PTHREAD_MUTEX_INITIALIZER;
static bool atfork_registered;

void lag_scan_lock(void) { pthread_mutex_lock(&scan_mutex); }
void lag_scan_unlock(void) { pthread_mutex_unlock(&scan_mutex); }

static void begin_again_in_child(void) {
    /* The lock's owner may not exist here: a fresh mutex is the only safe one. */
    pthread_mutex_t fresh = PTHREAD_MUTEX_INITIALIZER;
    memcpy(&scan_mutex, &fresh, sizeof fresh);
    lag_thread_go_off_duty(); /* the parent's watchdog is not here */
    segment_path[0] = 0;
    segment_owner = 0;
    segment_header = NULL;
    uint32_t state = __atomic_load_n(&lag_life_word, __ATOMIC_ACQUIRE);
    if (state == LAG_LIFE_RUNNING || state == LAG_LIFE_STARTING)
        __atomic_store_n(&lag_life_word, LAG_LIFE_ARMED, __ATOMIC_RELEASE);
}

/* A raw clone's child that forks before it has waited: its parent's watchdog may hold the mutex, and is not here. */
static void before_fork(void) {
    if (lag_life_state() == LAG_LIFE_RUNNING && !lag_life_is_ours()) begin_again_in_child();
    pthread_mutex_lock(&scan_mutex);
}
static void after_fork_parent(void) { pthread_mutex_unlock(&scan_mutex); }
/* What a child of an attached process loads later (a prefork worker its event loop) has slots that nobody has patched,
 * so no wait would start its agent: a thread does, unless an exec or exit comes first. */
static void after_fork_child(void) {
    enum { LATE_NS = 50 * 1000 * 1000 };
    begin_again_in_child();
    if (life_mode == LAG_MODE_ATTACHED && lag_life_state() == LAG_LIFE_ARMED) (void)lag_thread_start_late(LATE_NS);
}

bool lag_life_other_agent(void) { return dlsym(RTLD_DEFAULT, "lag_agent_abi") != NULL; }

bool lag_life_arm(uint32_t mode, lag_starter starter) {
    /* An injected object stands behind everything that is loaded: what its neighbours call is the global symbol, which
     * may be another tool's wrapper of libc's. */
    lag_hooks_resolve(mode != LAG_MODE_ATTACHED);
    if (getauxval(AT_SECURE) != 0) return false;
    lag_env_remember();
    lag_loops_resolve();
    const char *disable = lag_env("LOOPLAG_DISABLE");
    if (disable != NULL && disable[0] != 0 && !(disable[0] == '0' && disable[1] == 0)) return false;
    life_mode = mode;
    life_starter = starter;
    if (!atfork_registered) {
        if (pthread_atfork(before_fork, after_fork_parent, after_fork_child) != 0) return false;
        atfork_registered = true;
    }
    uint32_t state = __atomic_load_n(&lag_life_word, __ATOMIC_ACQUIRE);
    while (state == LAG_LIFE_OFF || state == LAG_LIFE_PARKED) {
        if (__atomic_compare_exchange_n(&lag_life_word, &state, LAG_LIFE_ARMED, false, __ATOMIC_ACQ_REL,
                                        __ATOMIC_ACQUIRE)) {
            __atomic_fetch_add(&life_epoch, 1, __ATOMIC_ACQ_REL);
            break;
        }
    }
    lag_boards_want(true);
    return true;
}

bool lag_life_is_ours(void) {
    return lag_live_page != NULL && __atomic_load_n(&lag_live_page->cookie, __ATOMIC_ACQUIRE) != 0;
}

bool lag_life_admit(void) {
    uint32_t state = __atomic_load_n(&lag_life_word, __ATOMIC_ACQUIRE);
    if (state == LAG_LIFE_RUNNING) {
        if (LAG_LIKELY(lag_life_is_ours())) return true;
        begin_again_in_child(); /* a raw clone: no atfork handler ran here */
        state = LAG_LIFE_ARMED;
    }
    if (state != LAG_LIFE_ARMED) return false;
    if (!__atomic_compare_exchange_n(&lag_life_word, &state, LAG_LIFE_STARTING, false, __ATOMIC_ACQ_REL,
                                     __ATOMIC_ACQUIRE))
        return state == LAG_LIFE_RUNNING && lag_life_is_ours();
    bool started = life_starter != NULL && life_starter();
    __atomic_store_n(&lag_life_word, started ? LAG_LIFE_RUNNING : LAG_LIFE_OFF, __ATOMIC_RELEASE);
    return started;
}

bool lag_life_start_now(void) {
    int cancel;
    (void)pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel);
    bool running = lag_life_admit();
    while (!running && lag_life_state() == LAG_LIFE_STARTING) {
        /* Another thread is at it, for a millisecond. */
        lag_sleep_until(lag_now() + 500 * 1000);
        running = lag_life_admit();
    }
    (void)pthread_setcancelstate(cancel, &cancel);
    return running || (lag_life_state() == LAG_LIFE_RUNNING && lag_life_is_ours());
}
bool lag_life_start_soon(void) { return lag_thread_start_late(0); }

struct own_place {
    uint64_t own, libc;
    bool is_behind_libc, was_found;
};

static int visit_for_place(struct dl_phdr_info *info, size_t size, void *context) {
    (void)size;
    struct own_place *place = context;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const Elf64_Phdr *header = &info->dlpi_phdr[i];
        if (header->p_type != PT_LOAD) continue;
        uint64_t start = info->dlpi_addr + header->p_vaddr;
        if (place->libc - start < header->p_memsz) place->is_behind_libc = true;
        if (place->own - start < header->p_memsz) return place->was_found = true;
    }
    return 0;
}

/* The loader's list begins with the program and what was preloaded, then what those need; what was opened later stands
 * at the end. */
bool lag_life_was_injected(void) {
    struct own_place place = {.own = (uint64_t)&lag_life_word, .libc = (uint64_t)&__errno_location};
    dl_iterate_phdr(visit_for_place, &place);
    return place.was_found && place.is_behind_libc;
}
uint32_t lag_life_state(void) { return __atomic_load_n(&lag_life_word, __ATOMIC_ACQUIRE); }
uint32_t lag_life_mode(void) { return life_mode; }
uint32_t lag_life_epoch(void) { return __atomic_load_n(&life_epoch, __ATOMIC_ACQUIRE); }

void lag_life_park(void) {
    __atomic_store_n(&lag_life_word, LAG_LIFE_PARKED, __ATOMIC_RELEASE);
    lag_boards_want(false);
    lag_loops_close();
}

void lag_life_set_segment_path(const uint8_t *path, size_t bytes) {
    if (bytes >= sizeof segment_path) bytes = 0; /* half a path must never be unlinked */
    memcpy(segment_path, path, bytes);
    segment_path[bytes] = 0;
    segment_owner = getpid();
}

void lag_life_set_header(struct lag_header *header) { segment_header = header; }

void lag_life_exit(void) {
    if (!lag_life_is_ours() || segment_owner != getpid()) return;
    if (segment_header != NULL) lag_store_u32(&segment_header->state, LAG_STATE_FINISHED);
    if (segment_path[0] != 0) unlink(segment_path);
    segment_path[0] = 0;
}

void lag_life_exit_with_process(void) {
    static uint32_t registered;
    if (__atomic_exchange_n(&registered, 1, __ATOMIC_ACQ_REL) == 0) (void)atexit(lag_life_exit);
}

void lag_life_discard(void) {
    if (segment_path[0] != 0 && segment_owner == getpid()) unlink(segment_path);
    segment_path[0] = 0;
    segment_header = NULL;
    lag_loops_close();
}

LAG_SMALL_CODE_END
