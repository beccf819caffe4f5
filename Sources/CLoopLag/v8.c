/* The isolates of the loop threads: which loop has which, when it collects garbage, and the one interrupt that the
 * watchdog may ask for.
 *
 * Entries are made on the loop thread inside its first wait, where it runs no JavaScript; an environment's clean-up
 * hook forgets the isolate before it is disposed of. V8 is called on the loop thread alone, but for RequestInterrupt,
 * which V8 allows from anywhere and which happens under the entry's lock. The watchdog asks for one interrupt at a
 * time; an interrupt that comes after its time writes nothing.
 */
#include "internal.h"

#include <dlfcn.h>
#include <string.h>

LAG_SMALL_CODE_BEGIN

/* v8::Location: both counted from 0. */
struct location {
    int line, column;
};
typedef void (*gc_callback)(void *isolate, int type, int flags, void *data);

/* v8:: and node:: by their mangled names, the same from node 18 to 24. Classes that hold one pointer come back in a
 * register, and a handle is the address of a slot. */
static struct {
    void *(*try_get_current)(void);
    void (*request_interrupt)(void *isolate, void (*callback)(void *isolate, void *data), void *data);
    void (*add_gc_prologue)(void *isolate, gc_callback callback, void *data, int types);
    void (*add_gc_epilogue)(void *isolate, gc_callback callback, void *data, int types);
    bool (*in_context)(void *isolate);
    void *(*current_context)(void *isolate);
    void (*handle_scope_begin)(void *scope, void *isolate);
    void (*handle_scope_end)(void *scope);
    void *(*stack_trace)(void *isolate, int frames, int options);
    int (*frame_count)(const void *trace);
    void *(*frame_at)(const void *trace, void *isolate, uint32_t index);
    struct location (*frame_location)(const void *frame);
    void *(*frame_script)(const void *frame);
    void *(*frame_function)(const void *frame);
    int (*write_utf8)(const void *string, void *isolate, char *into, int capacity, int *characters, int options);
    void *(*environment)(void *context);
    void *(*event_loop)(void *isolate);
    void (*add_cleanup_hook)(void *isolate, void (*hook)(void *), void *argument);
} v8;

enum { HANDLE_SCOPE_WORDS = 8, OVERVIEW_OF_EVERY_ORIGIN = 0x10f, GC_ALL = 31, RECENT_ITERATIONS = 8 };

struct entry {
    uint64_t isolate;     /* 0 = free, CLAIMED = being made */
    uint32_t lock;        /* held round RequestInterrupt and while the isolate is forgotten */
    uint32_t unserved;    /* an interrupt that has been asked for and has not been served */
    uint32_t index, generation;
    struct lag_loop_slot *slot;
    uint64_t uv_loop;
    uint64_t gc_since_ns;
    uint32_t gc_count;
    bool follows_gc, has_cleanup;
    /* Collections by iteration, newest at gc_head - 1. Written by the loop thread alone. */
    uint32_t gc_head;
    struct {
        uint64_t iteration, ns;
    } gc[RECENT_ITERATIONS];
};

static struct entry entries[LAG_MAX_LOOPS];
static struct entry *entry_of_loop[LAG_MAX_LOOPS];
static const uint64_t CLAIMED_ENTRY = 1;

static bool is_present;

bool lag_v8_is_present(void) { return is_present; }

void lag_v8_resolve(void) {
    struct {
        const char *name;
        void **into;
    } const wanted[] = {
        {"_ZN2v87Isolate13TryGetCurrentEv", (void **)&v8.try_get_current},
        {"_ZN2v87Isolate16RequestInterruptEPFvPS0_PvES2_", (void **)&v8.request_interrupt},
        {"_ZN2v87Isolate21AddGCPrologueCallbackEPFvPS0_NS_6GCTypeENS_15GCCallbackFlagsEPvES4_S2_",
         (void **)&v8.add_gc_prologue},
        {"_ZN2v87Isolate21AddGCEpilogueCallbackEPFvPS0_NS_6GCTypeENS_15GCCallbackFlagsEPvES4_S2_",
         (void **)&v8.add_gc_epilogue},
        {"_ZN2v87Isolate9InContextEv", (void **)&v8.in_context},
        {"_ZN2v87Isolate17GetCurrentContextEv", (void **)&v8.current_context},
        {"_ZN2v811HandleScopeC1EPNS_7IsolateE", (void **)&v8.handle_scope_begin},
        {"_ZN2v811HandleScopeD1Ev", (void **)&v8.handle_scope_end},
        {"_ZN2v810StackTrace17CurrentStackTraceEPNS_7IsolateEiNS0_17StackTraceOptionsE", (void **)&v8.stack_trace},
        {"_ZNK2v810StackTrace13GetFrameCountEv", (void **)&v8.frame_count},
        {"_ZNK2v810StackTrace8GetFrameEPNS_7IsolateEj", (void **)&v8.frame_at},
        {"_ZNK2v810StackFrame11GetLocationEv", (void **)&v8.frame_location},
        {"_ZNK2v810StackFrame13GetScriptNameEv", (void **)&v8.frame_script},
        {"_ZNK2v810StackFrame15GetFunctionNameEv", (void **)&v8.frame_function},
        {"_ZNK2v86String9WriteUtf8EPNS_7IsolateEPciPii", (void **)&v8.write_utf8},
        {"_ZN4node21GetCurrentEnvironmentEN2v85LocalINS0_7ContextEEE", (void **)&v8.environment},
        {"_ZN4node19GetCurrentEventLoopEPN2v87IsolateE", (void **)&v8.event_loop},
        {"_ZN4node25AddEnvironmentCleanupHookEPN2v87IsolateEPFvPvES3_", (void **)&v8.add_cleanup_hook},
    };
    for (size_t i = 0; i < sizeof wanted / sizeof wanted[0]; i++)
        *wanted[i].into = dlsym(RTLD_DEFAULT, wanted[i].name);
    is_present = v8.try_get_current != NULL;
    if (!is_present) return;
    lag_v8_layout_resolve((uint64_t)v8.try_get_current);
    lag_uv_resolve();
}

uint64_t lag_v8_current_isolate(void) { return v8.try_get_current != NULL ? (uint64_t)v8.try_get_current() : 0; }

static void acquire(struct entry *entry) {
    uint32_t is_free = 0;
    while (!__atomic_compare_exchange_n(&entry->lock, &is_free, 1, false, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED)) {
        is_free = 0;
        lag_sleep_until(lag_now() + 50 * 1000); /* RequestInterrupt takes microseconds */
    }
}

static void release(struct entry *entry) { __atomic_store_n(&entry->lock, 0, __ATOMIC_RELEASE); }

/* The environment of the isolate ends, on its own thread; the isolate is disposed of later. */
static void forget(void *raw) {
    struct entry *entry = raw;
    acquire(entry);
    uint32_t index = entry->index;
    if (index < LAG_MAX_LOOPS && __atomic_load_n(&entry_of_loop[index], __ATOMIC_ACQUIRE) == entry)
        __atomic_store_n(&entry_of_loop[index], NULL, __ATOMIC_RELEASE);
    entry->has_cleanup = false;
    entry->gc_since_ns = 0;
    __atomic_store_n(&entry->isolate, 0, __ATOMIC_RELEASE);
    release(entry);
}

/* Collections: a time stamp at either end and nothing else, since V8 is in the middle of one. */
static void collection_begins(void *isolate, int type, int flags, void *data) {
    (void)type;
    (void)flags;
    struct entry *entry = data;
    if (entry->isolate != (uint64_t)isolate || entry->gc_since_ns != 0) return;
    __atomic_store_n(&entry->gc_since_ns, lag_now(), __ATOMIC_RELEASE);
}

static void collection_ends(void *isolate, int type, int flags, void *data) {
    (void)type;
    (void)flags;
    struct entry *entry = data;
    uint64_t since = entry->gc_since_ns;
    if (entry->isolate != (uint64_t)isolate || since == 0) return;
    uint64_t now = lag_now();
    __atomic_store_n(&entry->gc_count, entry->gc_count + 1, __ATOMIC_RELEASE);
    __atomic_store_n(&entry->gc_since_ns, 0, __ATOMIC_RELEASE);
    /* The slot lies in the segment, which a forked child does not have and a retired loop does not own. */
    if (!lag_life_is_ours() || entry->index >= LAG_MAX_LOOPS ||
        (uint32_t)(__atomic_load_n(&lag_live_page->keys[entry->index], __ATOMIC_ACQUIRE) >> 32) != entry->generation)
        return;
    struct lag_loop_slot *slot = entry->slot;
    slot->gc_ns += now - since;
    uint64_t iteration = slot->busy_since_ns;
    uint32_t last = (entry->gc_head - 1) % RECENT_ITERATIONS;
    if (entry->gc_head == 0 || entry->gc[last].iteration != iteration) {
        last = entry->gc_head % RECENT_ITERATIONS;
        __atomic_store_n(&entry->gc[last].iteration, 0, __ATOMIC_RELEASE);
        __atomic_store_n(&entry->gc[last].ns, 0, __ATOMIC_RELEASE);
        __atomic_store_n(&entry->gc[last].iteration, iteration, __ATOMIC_RELEASE);
        entry->gc_head += 1;
    }
    __atomic_store_n(&entry->gc[last].ns, entry->gc[last].ns + (now - since), __ATOMIC_RELEASE);
}

static struct entry *entry_for(uint64_t isolate) {
    for (int i = 0; i < LAG_MAX_LOOPS; i++)
        if (__atomic_load_n(&entries[i].isolate, __ATOMIC_ACQUIRE) == isolate) return &entries[i];
    return NULL;
}

static struct entry *new_entry(void) {
    for (int i = 0; i < LAG_MAX_LOOPS; i++) {
        uint64_t nobody = 0;
        if (__atomic_compare_exchange_n(&entries[i].isolate, &nobody, CLAIMED_ENTRY, false, __ATOMIC_ACQ_REL,
                                        __ATOMIC_RELAXED))
            return &entries[i];
    }
    return NULL;
}

/* Everything that needs a context: without one these calls abort, or answer nothing. */
static void enter_environment(struct entry *entry, void *isolate) {
    if (v8.in_context == NULL || v8.current_context == NULL || v8.environment == NULL ||
        v8.handle_scope_begin == NULL || v8.handle_scope_end == NULL || !v8.in_context(isolate))
        return;
    uint64_t scope[HANDLE_SCOPE_WORDS];
    v8.handle_scope_begin(scope, isolate);
    bool has_environment = v8.environment(v8.current_context(isolate)) != NULL;
    v8.handle_scope_end(scope);
    if (!has_environment) return;
    if (v8.event_loop != NULL) entry->uv_loop = (uint64_t)v8.event_loop(isolate);
    /* Without the hook nobody says when the isolate dies: then nothing is ever asked of it. */
    if (v8.add_cleanup_hook == NULL) return;
    v8.add_cleanup_hook(isolate, forget, entry);
    entry->has_cleanup = true;
}

void lag_v8_loop_begins(uint32_t index, uint32_t generation, struct lag_loop_slot *slot) {
    if (v8.try_get_current == NULL || index >= LAG_MAX_LOOPS) return;
    __atomic_store_n(&entry_of_loop[index], NULL, __ATOMIC_RELEASE);
    void *isolate = v8.try_get_current();
    if (isolate == NULL) return;
    struct entry *entry = entry_for((uint64_t)isolate);
    bool is_new = entry == NULL;
    if (is_new) {
        entry = new_entry();
        if (entry == NULL) return;
        entry->unserved = 0;
        entry->uv_loop = 0;
        entry->gc_since_ns = 0;
        entry->has_cleanup = false;
    }
    entry->index = index;
    entry->generation = generation;
    entry->slot = slot;
    entry->gc_head = 0;
    memset(entry->gc, 0, sizeof entry->gc);
    if (is_new) {
        enter_environment(entry, isolate);
        entry->follows_gc = entry->has_cleanup && v8.add_gc_prologue != NULL && v8.add_gc_epilogue != NULL;
        __atomic_store_n(&entry->isolate, (uint64_t)isolate, __ATOMIC_RELEASE);
        if (entry->follows_gc) {
            v8.add_gc_prologue(isolate, collection_begins, entry, GC_ALL);
            v8.add_gc_epilogue(isolate, collection_ends, entry, GC_ALL);
        }
    }
    if (entry->follows_gc) slot->known |= LAG_KNOWN_GC;
    __atomic_store_n(&entry_of_loop[index], entry, __ATOMIC_RELEASE);
}

static struct entry *entry_of(uint32_t index, uint32_t generation) {
    if (index >= LAG_MAX_LOOPS) return NULL;
    struct entry *entry = __atomic_load_n(&entry_of_loop[index], __ATOMIC_ACQUIRE);
    return entry != NULL && entry->generation == generation && entry->index == index ? entry : NULL;
}

bool lag_v8_has_traces(void) {
    return v8.add_cleanup_hook != NULL && v8.request_interrupt != NULL && v8.stack_trace != NULL &&
           v8.frame_count != NULL && v8.frame_at != NULL && v8.frame_location != NULL && v8.frame_script != NULL &&
           v8.frame_function != NULL;
}

bool lag_v8_loop_read(uint32_t index, uint32_t generation, struct lag_v8_loop *view) {
    struct entry *entry = entry_of(index, generation);
    if (entry == NULL) return false;
    view->isolate = __atomic_load_n(&entry->isolate, __ATOMIC_ACQUIRE);
    view->uv_loop = entry->uv_loop;
    view->gc_since_ns = __atomic_load_n(&entry->gc_since_ns, __ATOMIC_ACQUIRE);
    view->gc_count = __atomic_load_n(&entry->gc_count, __ATOMIC_ACQUIRE);
    view->follows_gc = entry->follows_gc;
    view->can_interrupt = entry->has_cleanup && lag_v8_has_traces();
    return view->isolate > CLAIMED_ENTRY;
}

bool lag_v8_gc_within(uint32_t index, uint32_t generation, uint64_t start, uint64_t *ns) {
    struct entry *entry = entry_of(index, generation);
    if (entry == NULL || !entry->follows_gc) return false;
    *ns = 0;
    for (int i = 0; i < RECENT_ITERATIONS; i++) {
        if (__atomic_load_n(&entry->gc[i].iteration, __ATOMIC_ACQUIRE) != start) continue;
        uint64_t found = __atomic_load_n(&entry->gc[i].ns, __ATOMIC_ACQUIRE);
        if (__atomic_load_n(&entry->gc[i].iteration, __ATOMIC_ACQUIRE) == start) *ns += found;
    }
    uint64_t since = __atomic_load_n(&entry->gc_since_ns, __ATOMIC_ACQUIRE), now = lag_now();
    /* One that runs now is this iteration's only while that iteration is still open. */
    if (since > start && now > since && lag_load_u64(&entry->slot->busy_since_ns) == start) *ns += now - since;
    return true;
}

bool lag_v8_active_requests(uint64_t *count) {
    /* uv_loop_t, by its public header: data, active_handles, a queue of two pointers, then active_reqs. */
    enum { ACTIVE_REQUESTS = 32 };
    bool is_known = false;
    *count = 0;
    for (int i = 0; i < LAG_MAX_LOOPS; i++) {
        uint32_t active = 0;
        if (__atomic_load_n(&entries[i].isolate, __ATOMIC_ACQUIRE) <= CLAIMED_ENTRY || entries[i].uv_loop == 0 ||
            lag_safe_read(entries[i].uv_loop + ACTIVE_REQUESTS, &active, sizeof active) != sizeof active)
            continue;
        *count += active;
        is_known = true;
    }
    return is_known;
}

/* ---- the interrupt ---------------------------------------------------------------------------------------------- */

enum { REQUEST_IDLE, REQUEST_WANTED, REQUEST_SERVING, REQUEST_DONE };

/* As in capture.c: the state in the two low bits of the cookie, so that a late interrupt cannot fill a newer request. */
static uint64_t request;
static struct entry *request_entry;
static uint32_t request_entry_offset;
static struct lag_v8_answer answer;
static struct lag_capture below;

static void take_text(void *isolate, void *handle, uint32_t *offset, uint32_t *bytes) {
    enum { NO_NUL = 2, REPLACE_HALVES = 8 }; /* v8::String::WriteOptions */
    *offset = answer.text_bytes;
    *bytes = 0;
    if (handle == NULL) return;
    uint8_t *into = answer.texts + answer.text_bytes;
    size_t room = sizeof answer.texts - answer.text_bytes;
    if (room > 512) room = 512;
    /* By V8 itself where it can: what is read by the layout is held against it. */
    long n = v8.write_utf8 != NULL
                 ? v8.write_utf8(handle, isolate, (char *)into, (int)room, NULL, NO_NUL | REPLACE_HALVES)
                 : lag_v8_string(*(uint64_t *)handle, into, room);
    if (n <= 0) return;
    *bytes = (uint32_t)n;
    answer.text_bytes += (uint32_t)n;
}

static void take_trace(void *isolate) {
    answer.frame_count = 0;
    answer.text_bytes = 0;
    uint64_t scope[HANDLE_SCOPE_WORDS];
    v8.handle_scope_begin(scope, isolate);
    void *trace = v8.stack_trace(isolate, LAG_V8_MAX_FRAMES, OVERVIEW_OF_EVERY_ORIGIN);
    int count = trace != NULL ? v8.frame_count(trace) : 0;
    for (int i = 0; i < count && i < LAG_V8_MAX_FRAMES; i++) {
        void *frame = v8.frame_at(trace, isolate, (uint32_t)i);
        if (frame == NULL) break;
        struct lag_v8_frame *out = &answer.frames[i];
        struct location place = v8.frame_location(frame);
        out->line = place.line >= 0 ? (uint32_t)place.line + 1 : 0;
        out->column = place.column >= 0 ? (uint32_t)place.column + 1 : 0;
        take_text(isolate, v8.frame_function(frame), &out->function_offset, &out->function_bytes);
        take_text(isolate, v8.frame_script(frame), &out->file_offset, &out->file_bytes);
        answer.frame_count = (uint32_t)i + 1;
    }
    v8.handle_scope_end(scope);
}

/* Our own thread's stack from V8's frame upward: memory that is there. */
static void take_stack(const struct entry *entry, uint64_t *frame) {
    memset(below.regs, 0, sizeof below.regs);
    uint64_t sp = (uint64_t)(frame + 2), high = entry->slot->stack_high;
    below.regs[LAG_REG_RBP] = frame[0];
    below.regs[LAG_REG_RSP] = sp;
    below.regs[LAG_REG_RIP] = frame[1];
    below.stack_base = sp;
    uint64_t bytes = high > sp ? high - sp : 0;
    below.truncated = high <= sp || bytes > sizeof below.stack;
    if (bytes > sizeof below.stack || high <= sp) bytes = sizeof below.stack;
    below.stack_bytes = (uint32_t)lag_safe_read(sp, below.stack, bytes) & ~7u;
}

/* V8 calls this on the loop thread, between two instructions of JavaScript. */
static __attribute__((noinline)) void serve(void *isolate, void *data) {
    int saved = errno;
    uint64_t cookie = (uint64_t)data, wanted = cookie | REQUEST_WANTED;
    struct entry *entry = entry_for((uint64_t)isolate);
    if (entry != NULL) __atomic_store_n(&entry->unserved, 0, __ATOMIC_RELEASE);
    if (lag_life_is_ours() && __atomic_compare_exchange_n(&request, &wanted, cookie | REQUEST_SERVING, false,
                                                          __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) {
        uint64_t began = lag_now();
        answer.collections = entry != NULL ? entry->gc_count : 0;
        answer.entry_fp = 0;
        if (request_entry_offset != 0)
            (void)lag_safe_read((uint64_t)isolate + request_entry_offset, &answer.entry_fp, 8);
        take_stack(request_entry, __builtin_frame_address(0));
        take_trace(isolate);
        answer.request = lag_request_now(request_entry->slot->tid);
        answer.request.is_its_own = true;
        below.time_ns = began;
        below.pause_ns = lag_now() - began;
        __atomic_store_n(&request, cookie | REQUEST_DONE, __ATOMIC_RELEASE);
    }
    errno = saved;
}

struct lag_request_mark lag_v8_answer_request(void) { return answer.request; }

uint64_t lag_v8_ask(uint32_t index, uint32_t generation, uint32_t entry_offset) {
    static uint64_t last_cookie;
    struct entry *entry = entry_of(index, generation);
    uint64_t before = __atomic_load_n(&request, __ATOMIC_ACQUIRE);
    /* One that nobody waits for any more is withdrawn, unless it is being served just now. */
    if (entry == NULL || (before & 3) == REQUEST_SERVING ||
        ((before & 3) == REQUEST_WANTED && !__atomic_compare_exchange_n(&request, &before, REQUEST_IDLE, false,
                                                                        __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)))
        return 0;
    last_cookie += 4;
    uint64_t cookie = last_cookie | 0x4c56000000000000ULL;
    acquire(entry);
    uint64_t isolate = __atomic_load_n(&entry->isolate, __ATOMIC_ACQUIRE);
    bool can = isolate > CLAIMED_ENTRY && entry->has_cleanup && entry->generation == generation &&
               __atomic_exchange_n(&entry->unserved, 1, __ATOMIC_ACQ_REL) == 0;
    if (can) {
        request_entry = entry;
        request_entry_offset = entry_offset;
        answer.asked_ns = lag_now();
        __atomic_store_n(&request, cookie | REQUEST_WANTED, __ATOMIC_RELEASE);
        v8.request_interrupt((void *)isolate, serve, (void *)cookie);
    }
    release(entry);
    return can ? cookie : 0;
}

bool lag_v8_answered(uint64_t cookie, const struct lag_v8_answer **out, const struct lag_capture **capture) {
    *out = &answer;
    *capture = &below;
    return __atomic_load_n(&request, __ATOMIC_ACQUIRE) == (cookie | REQUEST_DONE);
}

bool lag_v8_interrupt(uint32_t index, uint32_t generation, uint32_t entry_offset, uint64_t timeout_ns,
                      const struct lag_v8_answer **out, const struct lag_capture **capture) {
    uint64_t cookie = lag_v8_ask(index, generation, entry_offset);
    if (cookie == 0) return false;
    uint64_t deadline = answer.asked_ns + timeout_ns, pause = 100 * 1000;
    for (;;) {
        if (lag_v8_answered(cookie, out, capture)) return true;
        uint64_t now = lag_now();
        if (now >= deadline) {
            uint64_t wanted = cookie | REQUEST_WANTED;
            if (__atomic_compare_exchange_n(&request, &wanted, REQUEST_IDLE, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
                return false;
            /* It is being served: the answer takes microseconds, unless the thread has lost its processor. */
            if (now >= deadline + 1000u * 1000 * 1000) return false;
        }
        lag_sleep_until(now + pause);
        if (pause < 1000 * 1000) pause *= 2;
    }
}

LAG_SMALL_CODE_END
