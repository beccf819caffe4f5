/* The C floor of the agent: loop slots, wait hooks, signal capture, fork handling and the few system calls that
 * Embedded Swift cannot reach. Used by LoopLagAgent (and its Embedded twin) only.
 *
 * Every function says from where it may be called:
 *   LAG_SIGNAL_SAFE   also from a signal handler: no malloc, no lock, no lazy TLS, no loader call, bounded work
 *   LAG_LOOP_THREAD   from a host thread that is about to wait, in ordinary (not handler) context
 *   LAG_ANY_THREAD    from any thread in ordinary context
 * Nothing here aborts. There is no constructor: the preload object alone names its start-up function to the linker.
 */
#ifndef CLOOPLAG_H
#define CLOOPLAG_H

#include "looplag_layout.h"

#pragma clang diagnostic ignored "-Wnullability-completeness" /* only the accessors at the end are annotated */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define LAG_SIGNAL_SAFE
#define LAG_LOOP_THREAD
#define LAG_ANY_THREAD

#include "lag_node.h"
/* How often the watchdog looks at the fastest, how often it samples one stall, and how often before it does so more
 * rarely; its budget a second, one per cent of a core. A build made for tests (-Xcc -DLAG_STRESS) samples at every look,
 * also a wait that it has just sampled, over a thousand times a second even where it does not get a CPU at once, whatever
 * that costs: nothing but the build can ask for it. */
#ifdef LAG_STRESS
enum {
    LAG_SAMPLES_ALWAYS = 1, LAG_TICK_NS = 250000, LAG_STALL_SAMPLES = 1 << 30, LAG_DENSE_SAMPLES = 1 << 30,
    LAG_BUDGET_NS = 1000000000
};
#else
enum {
    LAG_SAMPLES_ALWAYS = 0, LAG_TICK_NS = 5000000, LAG_STALL_SAMPLES = 24, LAG_DENSE_SAMPLES = 8, LAG_BUDGET_NS = 10000000
};
#endif

#include "lag_v8.h"

/* ---- life cycle (lifecycle.c) ------------------------------------------------------------------------------- */

/* Life of the agent in this process. A forked child begins again at ARMED. */
enum {
    LAG_LIFE_OFF = 0,      /* never asked for, disabled, or failed: hooks pass through */
    LAG_LIFE_ARMED = 1,    /* starts at the first hooked wait */
    LAG_LIFE_STARTING = 2, /* one thread is starting it; others pass through */
    LAG_LIFE_RUNNING = 3,
    LAG_LIFE_PARKED = 4,   /* detached: hooks pass through for good */
};

/* Which families of waits are loops; LOOPLAG_WAITS. */
enum { LAG_FAMILY_EPOLL = 1, LAG_FAMILY_POLL = 2, LAG_FAMILY_PYTHON = 4 };

/* Creates the segment and the watchdog; returns false when the agent must stay off. Runs on a loop thread. */
typedef bool (*lag_starter)(void);

/* Makes the hooks live: resolves the real calls, remembers how to start. Nothing else happens before the first hooked
 * wait. False where the process must be left alone (AT_SECURE, LOOPLAG_DISABLE, another agent already there). */
LAG_ANY_THREAD bool lag_life_arm(uint32_t mode, lag_starter starter);
/* Starts at once instead of at the first wait (linked build). True when running afterwards. */
LAG_ANY_THREAD bool lag_life_start_now(void);
LAG_ANY_THREAD uint32_t lag_life_state(void);
LAG_ANY_THREAD uint32_t lag_life_mode(void);
/* Ends measuring: hooks pass through, every loop loses its slot, the watchdog ends at its next tick. */
LAG_ANY_THREAD void lag_life_park(void);
LAG_ANY_THREAD uint32_t lag_life_epoch(void);
/* True in the process (not a fork of it) that started the running agent. */
LAG_SIGNAL_SAFE bool lag_life_is_ours(void);
/* Starts on a thread of the agent's own, so that the caller (a thread that was borrowed for it) goes back to its work
 * after some ten microseconds. False where no thread can be had. */
LAG_ANY_THREAD bool lag_life_start_soon(void);
/* True in an object that was loaded into a running process, by an injector or by node's process.dlopen: it must not arm
 * itself, nor read the environment that another thread may be changing. Iterates the loaded objects. */
LAG_ANY_THREAD bool lag_life_was_injected(void);
/* True when an agent object is already loaded in this process (preload beside a linked build). */
LAG_ANY_THREAD bool lag_life_other_agent(void);
/* The path to unlink at a clean exit; "" = none. `bytes` without the NUL, cut at 255. */
LAG_ANY_THREAD void lag_life_set_segment_path(const uint8_t *path, size_t bytes);
/* Removes the segment file and marks the segment finished, in the owning process only; idempotent. */
LAG_ANY_THREAD void lag_life_exit(void);
/* Makes a clean exit of the process do that (linked build; the preload object has its -fini). */
LAG_ANY_THREAD void lag_life_exit_with_process(void);
/* Undoes a start that failed half-way, before any loop was admitted. */
LAG_ANY_THREAD void lag_life_discard(void);

/* Held while the watchdog is inside dl_iterate_phdr, taken by the atfork prepare handler: a fork in that moment would
 * leave the loader's lock held in the child for ever (glibc 2.36). */
LAG_ANY_THREAD void lag_scan_lock(void);
LAG_ANY_THREAD void lag_scan_unlock(void);

/* ---- loops (loops.c) ------------------------------------------------------------------------------------------ */

/* Hands the mapped segment to the hooks. `loops` lies in it; thresholds are private copies. */
LAG_ANY_THREAD bool lag_loops_open(struct lag_header *header, struct lag_loop_slot *loops, uint32_t count,
                                   uint64_t threshold_ns);
/* No slot at or beyond this index has ever had a loop: each lies on pages of its own, which a tick need not touch. */
LAG_ANY_THREAD uint32_t lag_loops_used(void);
/* Iterations at or above this are written to recent_long; any thread may read it, the watchdog writes. */
LAG_ANY_THREAD void lag_loops_set_capture_threshold(uint64_t ns);
/* Takes the loop's slot away from its thread: it registers anew at its next wait. */
LAG_ANY_THREAD void lag_loop_retire(uint32_t index, uint32_t generation);
/* False for a thread whose stacks, the alternate one above all, are too small for a handler: the kernel would kill it. */
LAG_ANY_THREAD bool lag_loop_takes_signal(uint32_t index);

/* What is kept of a Python loop outside the segment, where no other process can change it; by slot index. */
struct lag_python_loop {
    uint64_t thread_state;      /* of the interpreter; 0 = none, or not known. Verified before every use */
    uint64_t pthread;           /* pthread_self(), which the interpreter calls thread_id */
    uint64_t gil_wait_at_start; /* gil_wait_ns when the open iteration began */
    uint64_t first_event_ns; /* of the first wait with a result since lag_loop_take_event, 0 = none */
    uint64_t recent_gil_wait[LAG_RECENT_LONG]; /* within each entry of recent_long */
};
/* When a wait of the loop first returned with a result since the last call of this; 0 = none has. */
LAG_ANY_THREAD uint64_t lag_loop_take_event(uint32_t index);
LAG_ANY_THREAD uint64_t lag_loop_thread_state(uint32_t index);
LAG_ANY_THREAD uint64_t lag_loop_pthread(uint32_t index);

/* The part of a slot that the watchdog needs, read consistently; false while the loop thread keeps changing it. */
struct lag_loop_view {
    uint32_t state;
    uint32_t generation;
    int32_t tid;
    int32_t epfd;
    uint64_t busy_since_ns;
    uint64_t iterations;
    uint32_t long_head;
    uint32_t role;
    struct lag_long_iteration recent_long[LAG_RECENT_LONG];
    uint32_t recent_events[LAG_RECENT_LONG];
    uint64_t iteration_events;
    uint64_t known;
    uint64_t gil_wait_since_ns;
    uint64_t iteration_gil_wait; /* of the open iteration, closed waits */
    uint64_t recent_gil_wait[LAG_RECENT_LONG];
};
/* `known` is written by the loop thread and by the watchdog. */
static inline void lag_loop_add_known(struct lag_loop_slot *slot, uint64_t bits) {
    __atomic_fetch_or(&slot->known, bits, __ATOMIC_RELAXED);
}
LAG_ANY_THREAD bool lag_loop_read(const struct lag_loop_slot *slot, struct lag_loop_view *view);

/* ---- hooks (wait_hooks.c, got.c) ------------------------------------------------------------------------------ */

/* Points every loaded object's slots for the hooked calls at the hooks; returns how many it changed. Idempotent, so a
 * rescan after a dlopen costs 0.1-0.5 ms and changes only what is new. Takes the scan lock. */
LAG_ANY_THREAD uint32_t lag_got_patch(void);
/* True when objects were loaded or unloaded since lag_got_patch last ran. Takes the scan lock. */
LAG_ANY_THREAD bool lag_got_is_stale(void);
/* Puts every slot back that still points at a hook. */
LAG_ANY_THREAD uint32_t lag_got_restore(void);

/* One row per hooked call, for patching and for tests. */
struct lag_hook {
    const char *name;
    void *replacement;
    void **real;
    uint32_t family;
};
LAG_ANY_THREAD const struct lag_hook *lag_hooks(size_t *count);
LAG_ANY_THREAD void lag_hooks_resolve(bool next_object);
LAG_ANY_THREAD void lag_hooks_set_families(uint32_t families);

/* ---- CPython (cpython.c) -------------------------------------------------------------------------------------- */

/* Where the interpreter keeps what the agent reads; addresses in this process, 0 = not exported. */
struct lag_python {
    uint32_t version; /* as PY_VERSION_HEX without the level: 0x030b0700; 0 = no interpreter here */
    uint32_t reserved;
    uint64_t runtime;
    uint64_t code_type, unicode_type, dict_type, set_type, ordered_dict_type, long_type, float_type;
    uint64_t coroutine_type, generator_type, module_type;
};
/* Looks for the interpreter's symbols. Loader calls: at the start only. */
LAG_LOOP_THREAD void lag_python_detect(const char *version);
LAG_LOOP_THREAD void lag_python_prepare_check(void);
LAG_ANY_THREAD const struct lag_python *_Nonnull lag_python_found(void);
/* True for code of the object that holds the interpreter. */
LAG_SIGNAL_SAFE bool lag_python_is_text(uint64_t address);
/* Called by a thread whose loop got the slot `index`. */
LAG_LOOP_THREAD void lag_python_thread_begins(uint32_t index);

/* What the copier has to know of this version's structures; offsets in bytes. */
struct lag_python_layout {
    uint32_t ready;
    uint32_t thread_frame;
    uint32_t thread_cframe; /* 0 = this version has none */
    uint32_t frame_is_in_cframe;
    uint32_t cframe_frame;
    uint32_t cframe_previous;
    uint32_t frame_code;
    uint32_t frame_entry;       /* the byte that tells where a run of frames begins: at least frame_entry_least */
    uint32_t frame_entry_least;
    uint32_t frame_previous;
    uint32_t frame_bytes; /* to copy of each frame, with its first locals; at most LAG_PYTHON_FRAME_BYTES */
    uint32_t frame_least; /* fewer are no frame */
    uint32_t has_shims;   /* where a run of frames begins there is one that is none (3.12 and later) */
    uint32_t is_certain;  /* this version has been tried */
};
LAG_LOOP_THREAD void lag_python_set_layout(const struct lag_python_layout *layout);

enum { LAG_PYTHON_FRAMES = 128, LAG_PYTHON_FRAME_BYTES = 480, LAG_CHECK_FRAMES = 24 };

/* The memory of a thread's interpreter frames, leaf first, as it was at one moment. */
struct lag_python_frames {
    uint64_t thread_state;
    uint64_t cframe;
    uint32_t count;
    uint32_t is_complete; /* the chain ended within the copy */
    uint64_t address[LAG_PYTHON_FRAMES];
    uint8_t bytes[LAG_PYTHON_FRAMES][LAG_PYTHON_FRAME_BYTES];
};
LAG_SIGNAL_SAFE void lag_python_copy(uint64_t thread_state, struct lag_python_frames *frames);

/* The interpreter's own account of its main thread's frames, and the copy of them made at the same moment. */
enum { LAG_CHECK_NONE = 0, LAG_CHECK_ASKED = 1, LAG_CHECK_RUNS = 2, LAG_CHECK_ANSWERED = 3 };
struct lag_python_check {
    uint32_t state;
    uint32_t count;
    uint32_t agrees; /* each code object was found, in this order, among the copied frames */
    uint32_t reserved;
    uint32_t line[LAG_CHECK_FRAMES];
    uint32_t place[LAG_CHECK_FRAMES]; /* which copied frame it is */
    struct lag_python_frames frames;
};
/* NULL until it is there. */
LAG_ANY_THREAD const struct lag_python_check *_Nullable lag_python_answer(void);

/* ---- CPython's own account (python_fallback.c) ---------------------------------------------------------------- */

/* In a pending call only: makes the interpreter's faulthandler callable by lag_fallback_dump, where that is safe. */
LAG_LOOP_THREAD void lag_fallback_register(uint32_t version);
/* Gives its memory back; the agent starts, perhaps in a forked child. */
LAG_LOOP_THREAD void lag_fallback_forget(void);
LAG_ANY_THREAD bool lag_fallback_ready(void);
/* The thread that registered it, by the C library's number. */
LAG_ANY_THREAD uint64_t lag_fallback_thread(void);
/* On the interpreter's main thread only: writes its frames as text, returns how many bytes. */
LAG_SIGNAL_SAFE uint32_t lag_fallback_dump(void);
LAG_ANY_THREAD const uint8_t *_Nullable lag_fallback_text(void);

/* ---- capture (capture.c) -------------------------------------------------------------------------------------- */

/* What the handler copies. One request at a time: only the watchdog asks. */
struct lag_capture {
    uint64_t regs[LAG_REGS];
    uint64_t stack_base;
    uint64_t pause_ns;
    uint64_t time_ns;
    uint32_t stack_bytes;
    uint32_t truncated;
    uint32_t fallback_bytes; /* of lag_fallback_text, written at the same moment */
    uint32_t reserved;
    uint8_t stack[LAG_STACK_COPY_BYTES_V8];
    struct lag_python_frames python; /* when a thread state was given */
};

/* Pre-faults the slot. */
LAG_ANY_THREAD void lag_capture_prepare(void);
/* The first signal number that the agent tries: SIGRTMIN + 9. */
LAG_ANY_THREAD int lag_signal_default(void);
/* Installs the handler on a free realtime signal from `first` upward; 0 when none is free. */
LAG_ANY_THREAD int lag_capture_install(int first);
/* Lets the installed signal through to the calling thread if it has libdispatch's mask: that library blocks every
 * signal on its threads but the synchronous ones and SIGPROF, and loops that Swift code starts from there inherit it. A
 * mask that the host chose is left alone, and such a thread is never signalled. */
LAG_LOOP_THREAD void lag_capture_let_in(void);
/* Signals one thread and waits for its handler at most `timeout_ns`. LAG_DROP_NONE: the capture is valid until the
 * next call. */
LAG_ANY_THREAD uint32_t lag_capture_signal(int32_t tid, uint64_t stack_high, uint32_t max_bytes, uint64_t timeout_ns,
                                           const struct lag_capture **capture);
/* The interpreter's thread state whose frames the next capture copies with the stack; 0 = none. */
LAG_ANY_THREAD void lag_capture_wants_python(uint64_t thread_state);
/* Whether the next capture by signal has the interpreter write its frames itself; its main thread only. */
LAG_ANY_THREAD void lag_capture_wants_fallback(bool wanted);
/* Copies [sp, sp + max_bytes) of this process without faulting, into the same slot. */
LAG_ANY_THREAD const struct lag_capture *lag_capture_passive(uint64_t sp, uint64_t pc, uint64_t stack_high,
                                                             uint32_t max_bytes);
/* The same with a frame pointer that is known. */
LAG_ANY_THREAD const struct lag_capture *lag_capture_passive_frame(uint64_t sp, uint64_t pc, uint64_t frame,
                                                                   uint64_t stack_high, uint32_t max_bytes);
LAG_ANY_THREAD uint64_t lag_capture_signals_sent(void);

/* Reads this process's memory; returns the bytes read before the first unmapped page, 0 when none. */
LAG_SIGNAL_SAFE size_t lag_safe_read(uint64_t address, void *into, size_t bytes);
/* False where process_vm_readv is refused. */
LAG_ANY_THREAD bool lag_safe_read_works(void);

/* ---- threads and system calls (system.c) ---------------------------------------------------------------------- */

/* Starts a plain detached thread: all signals blocked, named "looplag", small stack. */
LAG_ANY_THREAD bool lag_thread_start(void (*body)(void *), void *argument);
/* One watchdog at a time: after a stop and a new start the old one may still be asleep, and both would use the one capture
 * slot. False while another one is on duty. */
LAG_ANY_THREAD bool lag_thread_go_on_duty(void);
LAG_ANY_THREAD void lag_thread_go_off_duty(void);
/* True while the kernel knows a thread of this process by that number; works without /proc. */
LAG_ANY_THREAD bool lag_thread_exists(int32_t tid);
/* Gives the calling thread a descriptor table of its own, empty but for `keep` (-1 = none): the host can then neither
 * close nor inherit what the watchdog opens, nor run out of numbers by it. */
LAG_ANY_THREAD bool lag_thread_private_descriptors(int keep);

LAG_SIGNAL_SAFE uint64_t lag_clock_now(void);
LAG_ANY_THREAD uint64_t lag_clock_realtime(void);
LAG_ANY_THREAD uint64_t lag_clock_thread_cpu(void);
LAG_ANY_THREAD void lag_sleep_until(uint64_t monotonic_ns);
LAG_ANY_THREAD int32_t lag_gettid(void);
LAG_ANY_THREAD int32_t lag_getpid(void);
LAG_ANY_THREAD uint32_t lag_geteuid(void);
/* Opens, reads at most `capacity` bytes and closes; negative errno on failure. */
LAG_ANY_THREAD long lag_file_read(const char *path, void *into, size_t capacity);
LAG_ANY_THREAD int lag_file_open(const char *path);
LAG_ANY_THREAD long lag_file_next(int fd, void *into, size_t capacity);
LAG_ANY_THREAD void lag_file_close(int fd);
/* Reads at a place in an ordinary file; the bytes read or a negative errno. */
LAG_ANY_THREAD long lag_file_read_at(int fd, uint64_t offset, void *into, size_t bytes);
LAG_ANY_THREAD long lag_link_read(const char *path, void *into, size_t capacity);
/* The inode of a file, 0 = unknown. */
LAG_ANY_THREAD uint64_t lag_file_inode(const char *path);
/* A LOOPLAG_* variable as it was when the agent was armed, or NULL: later another thread may be in setenv. */
LAG_ANY_THREAD const char *lag_env(const char *name);
/* Takes the variables from `NAME=VALUE` strings, each with its NUL, in place of the environment. `ABI=N` must be there
 * and be this layout's: false otherwise. */
LAG_ANY_THREAD bool lag_env_take(const char *block, size_t bytes);
/* Creates, reserves and maps a private (0600) file; a left-over of the same name is replaced. Descriptor closed.
 * Returns NULL with a negative errno in *error. */
LAG_ANY_THREAD void *lag_segment_create(const char *path, size_t bytes, int *error);
/* The same in a memfd, whose descriptor stays open in *fd. */
LAG_ANY_THREAD void *lag_segment_create_memfd(size_t bytes, int *fd, int *error);
/* Gives a segment's memory back and leaves zeroes at its place: a loop thread may still be storing into its slot. */
LAG_ANY_THREAD void lag_segment_abandon(void *memory, size_t bytes);
LAG_ANY_THREAD void *lag_memory_zeroed(size_t bytes);
LAG_ANY_THREAD void lag_memory_free(void *memory, size_t bytes);

/* What runs in this process: LAG_RUNTIME_*, by exported symbols; the version string where the runtime tells it
 * without being entered, else NULL. Loader calls: on a loop thread at start only. */
LAG_LOOP_THREAD uint32_t lag_runtime_detect(const char **version);
/* The role of the calling thread's loop, where its runtime tells (V8: a thread without an isolate is a helper). */
LAG_LOOP_THREAD uint32_t lag_runtime_thread_role(void);

/* Plain stores and loads with the orders the segment needs (reader side: DESIGN "sequence numbers"). On x86_64 these
 * compile to plain moves; they only stop the compiler from reordering. */
static inline void lag_store_u64(uint64_t *p, uint64_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
static inline void lag_store_u32(uint32_t *p, uint32_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
static inline uint64_t lag_load_u64(const uint64_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
static inline uint32_t lag_load_u32(const uint32_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
static inline void lag_copy(void *to, const void *from, size_t bytes) { __builtin_memcpy(to, from, bytes); }
/* Without Swift's trap on a zero divisor. */
static inline uint64_t lag_remainder(uint64_t value, uint64_t divisor) { return divisor != 0 ? value % divisor : 0; }
static inline void lag_zero(void *to, size_t bytes) { __builtin_memset(to, 0, bytes); }

/* Addresses of array members, which Swift would import as tuples. */
#pragma clang assume_nonnull begin
static inline struct lag_lease *lag_header_leases(struct lag_header *header) { return header->leases; }
static inline uint64_t *lag_header_drops(struct lag_header *header) { return header->samples_dropped; }
static inline uint64_t *lag_stall_looks(struct lag_stall *stall) { return stall->look_ns; }
static inline const void *lag_capture_stack(const struct lag_capture *capture) { return capture->stack; }
static inline const struct lag_python_frames *lag_capture_python(const struct lag_capture *capture) {
    return &capture->python;
}
static inline const uint8_t *lag_python_frame(const struct lag_python_frames *frames, uint32_t index) {
    return frames->bytes[index < LAG_PYTHON_FRAMES ? index : 0];
}
static inline uint64_t lag_python_frame_address(const struct lag_python_frames *frames, uint32_t index) {
    return index < LAG_PYTHON_FRAMES ? frames->address[index] : 0;
}
static inline uint32_t lag_python_check_place(const struct lag_python_check *check, uint32_t index) {
    return index < LAG_CHECK_FRAMES ? check->place[index] : 0;
}
static inline uint32_t lag_python_check_line(const struct lag_python_check *check, uint32_t index) {
    return index < LAG_CHECK_FRAMES ? check->line[index] : 0;
}
static inline const struct lag_python_frames *lag_python_check_copy(const struct lag_python_check *check) {
    return &check->frames;
}
#pragma clang assume_nonnull end

#endif
