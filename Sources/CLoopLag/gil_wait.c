/* How long a loop's thread waits for CPython's lock: the interpreter does that in pthread_cond_timedwait, five
 * milliseconds at a time, and in no other call of its own that has a time limit.
 *
 * Called by host threads in place of libc's function (preload: as the exported symbol; attached: through patched slots).
 * It changes neither the result nor the length of the wait, and counts only on a thread that runs a loop, and only calls
 * that come from the interpreter's own object.
 */
#include "internal.h"

#include <dlfcn.h>
#include <pthread.h>

int lag_hook_pthread_cond_timedwait(pthread_cond_t *condition, pthread_mutex_t *mutex, const struct timespec *until);
int (*lag_real_cond_timedwait)(pthread_cond_t *, pthread_mutex_t *, const struct timespec *);

static void *in_scope(void *scope) {
    /* The base version, 2.2.5, has another layout of the condition variable. */
    void *found = dlvsym(scope, "pthread_cond_timedwait", "GLIBC_2.3.2");
    if (found == NULL) found = dlsym(scope, "pthread_cond_timedwait");
    return found != (void *)lag_hook_pthread_cond_timedwait ? found : NULL;
}

void lag_gil_wait_resolve(bool next_object) {
    if (__atomic_load_n(&lag_real_cond_timedwait, __ATOMIC_ACQUIRE) != NULL) return;
    void *found = next_object ? in_scope(RTLD_NEXT) : NULL;
    if (found == NULL) found = in_scope(RTLD_DEFAULT);
    __atomic_store_n((void **)&lag_real_cond_timedwait, found, __ATOMIC_RELEASE);
}

static inline void count(struct lag_loop_slot *slot, uint64_t since, uint64_t waited) {
    uint32_t seq = slot->seq;
    __atomic_store_n(&slot->seq, seq + 1, __ATOMIC_RELEASE);
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    slot->gil_wait_since_ns = since;
    slot->gil_wait_ns += waited;
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    __atomic_store_n(&slot->seq, seq + 2, __ATOMIC_RELEASE);
}

int lag_hook_pthread_cond_timedwait(pthread_cond_t *condition, pthread_mutex_t *mutex, const struct timespec *until) {
    if (LAG_UNLIKELY(lag_real_cond_timedwait == NULL)) lag_gil_wait_resolve(true);
    struct lag_thread *self = lag_thread_self();
    uint64_t key = self->key;
    if (LAG_LIKELY(key == 0) || self->in_setup || !lag_python_is_text((uint64_t)__builtin_return_address(0)) ||
        __atomic_load_n(&lag_live_page->keys[self->index], __ATOMIC_ACQUIRE) != key)
        return lag_real_cond_timedwait(condition, mutex, until);
    struct lag_loop_slot *slot = self->slot;
    uint64_t began = lag_now();
    count(slot, began, 0);
    int result = lag_real_cond_timedwait(condition, mutex, until);
    /* Retired meanwhile: the slot may be somebody else's. */
    if (self->key == key && __atomic_load_n(&lag_live_page->keys[self->index], __ATOMIC_ACQUIRE) == key)
        count(slot, 0, lag_now() - began);
    return result;
}
