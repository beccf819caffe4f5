/* One job of no length through libuv's thread pool, to learn how long work waits in its queue where that queue cannot be
 * read: the watchdog asks while the pool is full, the main thread hands the job in at its next wait, a thread of the
 * pool notes the time.
 *
 * The job belongs to the default loop alone, which node never closes: a worker's loop must have nothing under way when
 * its worker ends. While it is under way that loop is alive, so that a process which has nothing else to do any more
 * ends when the job has had its turn, behind the work that was there before. One job at a time; none while the pool is
 * calm.
 */
#include "internal.h"

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

LAG_SMALL_CODE_BEGIN

enum { UV_WORK = 7, JOB_BYTES = 256, MOST_THREADS = 1024, DEFAULT_THREADS = 4, MOST_VARIABLES = 4096 };

/* By their public signatures; a uv_work_t is as large as uv_req_size says. */
static int (*queue_work)(void *loop, void *job, void (*work)(void *), void (*after)(void *, int));
static void *(*default_loop)(void);

static uint64_t job[JOB_BYTES / 8];
static int32_t sent_by; /* the process whose job is under way, 0 = none: a forked child starts with its parent's */
static uint64_t sent_ns;
static uint64_t wait_ns; /* measured, and not taken yet */
static uint32_t threads; /* that the pool was said to have */

uint32_t lag_uv_probe_wanted;

void lag_uv_resolve(void) {
    size_t (*req_size)(int) = (size_t (*)(int))dlsym(RTLD_DEFAULT, "uv_req_size");
    default_loop = (void *(*)(void))dlsym(RTLD_DEFAULT, "uv_default_loop");
    queue_work = NULL;
    if (req_size != NULL && default_loop != NULL && req_size(UV_WORK) <= sizeof job)
        *(void **)&queue_work = dlsym(RTLD_DEFAULT, "uv_queue_work");
}

uint32_t lag_uv_threads(void) {
    /* The host's own environment may be changing: no getenv here. */
    static const char name[] = "UV_THREADPOOL_SIZE=";
    char text[sizeof name + 8];
    uint64_t at;
    for (uint64_t i = 0; i < MOST_VARIABLES; i++) {
        if (lag_safe_read((uint64_t)environ + i * 8, &at, 8) != 8 || at == 0) break;
        memset(text, 0, sizeof text);
        if (lag_safe_read(at, text, sizeof text - 1) == 0 || memcmp(text, name, sizeof name - 1) != 0) continue;
        long count = strtol(text + sizeof name - 1, NULL, 10);
        if (count == 0) count = 1; /* as libuv does */
        return count > 0 && count < MOST_THREADS ? (uint32_t)count : MOST_THREADS;
    }
    return DEFAULT_THREADS;
}

bool lag_uv_probe_is_out(void) { return __atomic_load_n(&sent_by, __ATOMIC_ACQUIRE) == lag_getpid(); }

bool lag_uv_probe_ask(uint32_t pool_threads) {
    if (queue_work == NULL || lag_uv_probe_is_out()) return false;
    __atomic_store_n(&threads, pool_threads, __ATOMIC_RELAXED);
    __atomic_store_n(&lag_uv_probe_wanted, 1, __ATOMIC_RELEASE);
    return true;
}

uint64_t lag_uv_probe_take(void) { return __atomic_exchange_n(&wait_ns, 0, __ATOMIC_ACQ_REL); }

/* On a thread of the pool. */
static void work(void *raw) {
    (void)raw;
    __atomic_store_n(&wait_ns, (lag_now() - sent_ns) | 1, __ATOMIC_RELEASE);
}

/* On the main thread, in an iteration of its own. */
static void after(void *raw, int status) {
    (void)raw;
    (void)status;
    __atomic_store_n(&sent_by, 0, __ATOMIC_RELEASE);
}

void lag_uv_probe_send(const struct lag_thread *self) {
    int32_t pid = lag_getpid();
    struct lag_v8_loop loop;
    if (lag_gettid() != pid || !lag_v8_loop_read(self->index, (uint32_t)(self->key >> 32), &loop) || loop.uv_loop == 0)
        return;
    int saved = errno;
    __atomic_store_n(&lag_uv_probe_wanted, 0, __ATOMIC_RELEASE);
    uint64_t active = 0;
    /* It may be calm by now. */
    if (!lag_uv_probe_is_out() && (uint64_t)default_loop() == loop.uv_loop && lag_v8_active_requests(&active) &&
        active > __atomic_load_n(&threads, __ATOMIC_RELAXED)) {
        sent_ns = lag_now();
        __atomic_store_n(&sent_by, pid, __ATOMIC_RELEASE);
        if (queue_work(default_loop(), job, work, after) != 0) __atomic_store_n(&sent_by, 0, __ATOMIC_RELEASE);
    }
    errno = saved;
}

LAG_SMALL_CODE_END
