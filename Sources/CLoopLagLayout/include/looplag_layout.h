/* The telemetry segment: the one ABI between a host process and the looplag command line.
 *
 * Written by the agent inside the host (CLoopLag, LoopLagAgent), read by LoopLagTelemetry with pread. Nothing else may
 * know these offsets. Every field has a single writer, named beside it:
 *   [L] the loop's own thread   [W] the watchdog thread   [S] start-up, before `state` becomes RUNNING   [R] a reader
 *
 * Times are CLOCK_MONOTONIC nanoseconds unless a name says otherwise. All integers are little-endian and naturally
 * aligned. A reader treats every byte as hostile: offsets, counts and lengths are checked against the file's size
 * before they are used. Later versions only append fields; LAG_ABI_VERSION changes when an old reader would be wrong.
 */
#ifndef LOOPLAG_LAYOUT_H
#define LOOPLAG_LAYOUT_H

#include <stddef.h>
#include <stdint.h>

#if !defined(__x86_64__)
#error "LoopLag's segment and capture code knows x86_64 only"
#endif

/* "LOOPLAG\0" read as a little-endian word. */
#define LAG_SEGMENT_MAGIC 0x0047414c504f4f4cULL
#define LAG_ABI_VERSION 2

enum {
    LAG_HEADER_BYTES = 4096,
    LAG_SEGMENT_BYTES = 1 << 20,         /* the default, and the most */
    LAG_SEGMENT_BYTES_SMALL = 256 << 10, /* counters and stalls only, where there is no room */
    LAG_MAX_LOOPS = 64,
    LAG_MAX_LOOPS_SMALL = 24,
    LAG_MAX_POOLS = 16,
    LAG_MAX_STALLS = 128,
    LAG_MAX_STALLS_SMALL = 64,
    LAG_MAX_MODULES = 192,
    LAG_STRING_BYTES = 32 << 10,
    LAG_MAX_LEASES = 16,
    LAG_LEASE_SECONDS = 5, /* a lease whose `beat` has not moved for this long is dead */
    LAG_MAX_NSPIDS = 8,
    LAG_RECENT_LONG = 8,
    LAG_STACK_COPY_BYTES = 32 << 10,
    LAG_STACK_COPY_BYTES_V8 = 64 << 10,
    LAG_MANAGED_BYTES = 32 << 10, /* most of one sample's managed section */
    LAG_MAX_MANAGED_FRAMES = 256,
};

/* ---- histogram of iteration times: log-linear, 32 sub-buckets an octave, error <= 3.1 % -------------------------- */

enum {
    LAG_HISTOGRAM_SUB_BITS = 5,
    LAG_HISTOGRAM_FIRST_OCTAVE = 10, /* below 1,024 ns: 32 linear buckets of 32 ns */
    LAG_HISTOGRAM_LAST_OCTAVE = 37,  /* up to 2^38 ns = 275 s; longer ones count in the last bucket */
    LAG_HISTOGRAM_BUCKETS = 32 + (LAG_HISTOGRAM_LAST_OCTAVE - LAG_HISTOGRAM_FIRST_OCTAVE + 1) * 32,
};

static inline uint32_t lag_histogram_index(uint64_t ns) {
    if (ns < (1u << LAG_HISTOGRAM_FIRST_OCTAVE)) return (uint32_t)(ns >> LAG_HISTOGRAM_SUB_BITS);
    uint32_t octave = 63u - (uint32_t)__builtin_clzll(ns);
    if (octave > LAG_HISTOGRAM_LAST_OCTAVE) return LAG_HISTOGRAM_BUCKETS - 1;
    return 32u + (octave - LAG_HISTOGRAM_FIRST_OCTAVE) * 32u + (uint32_t)((ns >> (octave - LAG_HISTOGRAM_SUB_BITS)) & 31u);
}

/* The smallest value that falls into a bucket; one past the last bucket gives its upper bound. */
static inline uint64_t lag_histogram_lower(uint32_t index) {
    if (index < 32u) return (uint64_t)index << LAG_HISTOGRAM_SUB_BITS;
    uint32_t octave = LAG_HISTOGRAM_FIRST_OCTAVE + (index - 32u) / 32u;
    return ((uint64_t)(32u + (index & 31u))) << (octave - LAG_HISTOGRAM_SUB_BITS);
}

/* ---- loop slots ---------------------------------------------------------------------------------------------- */

enum { LAG_LOOP_FREE = 0, LAG_LOOP_LIVE = 1, LAG_LOOP_RETIRED = 2 };

enum {
    LAG_WAIT_EPOLL_WAIT = 1,
    LAG_WAIT_EPOLL_PWAIT = 2,
    LAG_WAIT_EPOLL_PWAIT2 = 3,
    LAG_WAIT_POLL = 4,
    LAG_WAIT_PPOLL = 5,
    LAG_WAIT_SELECT = 6,
    LAG_WAIT_PSELECT = 7,
};

/* What the agent itself knows of a loop's role; a reader refines UNKNOWN from `caller_pc` and the thread's name. */
enum { LAG_ROLE_UNKNOWN = 0, LAG_ROLE_SERVER = 1, LAG_ROLE_HELPER = 2 };

/* An iteration at or above the capture threshold, as the loop thread saw it end. */
struct lag_long_iteration {
    uint64_t start_ns;
    uint64_t duration_ns;
};

/* Which of a record's optional counters are measured here; the others are unknown, not zero. */
enum { LAG_KNOWN_GIL_WAIT = 1, LAG_KNOWN_GC = 2, LAG_KNOWN_EVENTS = 4 };

/* Iterations run from a wait's return to the next wait on the same loop. Exactly one of busy_since_ns and
 * idle_since_ns is non-zero once the loop has waited once. `seq` is odd while the loop thread updates the counters. */
struct lag_loop_slot {
    uint32_t seq;              /* [L] */
    uint32_t state;            /* [L] free->live, [W] live->retired, [L] retired->live for the next tenant */
    uint32_t generation;       /* [L] raised for each tenant */
    int32_t tid;               /* [L] as the host sees it */
    int32_t epfd;              /* [L] primary descriptor; -2 for a poll or select loop */
    uint32_t wait_kind;        /* [L] LAG_WAIT_* of the wait that registered the loop */
    uint32_t role;             /* [L] LAG_ROLE_* */
    uint32_t long_head;        /* [L] long iterations ever recorded; entry i lies at i % LAG_RECENT_LONG */
    uint64_t caller_pc;        /* [L] return address of the registering wait */
    uint64_t stack_low;        /* [L] the thread's stack, 0 when unknown */
    uint64_t stack_high;       /* [L] */
    uint64_t registered_ns;    /* [L] */
    uint64_t retired_ns;       /* [W] or [L]: whoever retires it */
    char thread_name[16];      /* [L] NUL-terminated */
    uint64_t busy_since_ns;    /* [L] 0 while waiting */
    uint64_t idle_since_ns;    /* [L] 0 while busy */
    uint64_t iterations;       /* [L] closed ones */
    uint64_t busy_ns;          /* [L] of closed iterations */
    uint64_t idle_ns;          /* [L] of closed waits */
    uint64_t events;           /* [L] sum of the waits' positive results */
    uint64_t stall_count;      /* [L] closed iterations >= start_threshold_ns */
    uint64_t stalled_ns;       /* [L] their total */
    uint64_t max_ns;           /* [L] */
    uint64_t min_ns;           /* [L] UINT64_MAX before the first */
    struct lag_long_iteration recent_long[LAG_RECENT_LONG]; /* [L] */
    uint64_t sched_run_ns;     /* [W] the thread's own schedstat, at sched_at_ns */
    uint64_t sched_wait_ns;    /* [W] time runnable but not running */
    uint64_t sched_at_ns;      /* [W] 0 = never read */
    uint64_t sched_first_wait_ns; /* [W] sched_wait_ns at the first look */
    uint64_t known;            /* [L] [W] atomic, LAG_KNOWN_* */
    uint64_t gil_wait_ns;      /* [L] total time this thread waited for the interpreter's lock, closed waits */
    uint64_t gil_wait_since_ns; /* [L] of an open wait, 0 = none */
    uint64_t gc_ns;            /* [W] or [L], whoever the runtime makes it: total time of garbage collections on it */
    uint64_t iteration_events; /* [L] what the wait that began the open iteration returned */
    uint32_t recent_events[LAG_RECENT_LONG]; /* [L] the same for each entry of recent_long */
    uint64_t reserved[6];
    uint64_t histogram[LAG_HISTOGRAM_BUCKETS]; /* [L] of closed iterations */
};

/* ---- pool slots ---------------------------------------------------------------------------------------------- */

enum { LAG_METHOD_EXACT = 1, LAG_METHOD_PROBE = 2, LAG_METHOD_ESTIMATE = 3 };
enum { LAG_POOL_LIBUV = 1, LAG_POOL_ANYIO = 2, LAG_POOL_EXECUTOR = 3, LAG_POOL_NIO = 4, LAG_POOL_SWIFT_CONCURRENCY = 5 };

/* A gauge sampled by the agent; INT64_MIN in `last` = unknown. */
struct lag_gauge {
    int64_t last;
    int64_t max;
    uint64_t sum;
    uint64_t count;
};

struct lag_pool_slot {
    uint32_t seq;       /* [W] */
    uint32_t state;     /* [W] 0 free, 1 live */
    uint32_t kind;      /* [W] LAG_POOL_* */
    uint32_t method;    /* [W] LAG_METHOD_* */
    int32_t threads;    /* [W] -1 = unknown */
    uint32_t wait_method; /* [W] LAG_METHOD_* of the waits, 0 = as the row */
    char name[32];      /* [W] */
    struct lag_gauge busy;
    struct lag_gauge queue_depth;
    struct lag_gauge in_flight;
    uint64_t wait_p50_ns, wait_p99_ns, wait_max_ns, wait_count;
    uint64_t reserved[9];
};

/* ---- stalls -------------------------------------------------------------------------------------------------- */

enum {
    LAG_STALL_EMPTY = 0,
    LAG_STALL_OPEN = 1,
    LAG_STALL_CLOSED = 2,
    LAG_STALL_DROPPED = 3, /* the loop went away before the iteration ended: nothing is known of its length */
};

/* What a look at the stalled thread found; the time since the look before counts for it. */
enum {
    LAG_LOOK_ON_CPU = 0,
    LAG_LOOK_SYSCALL = 1,
    LAG_LOOK_LOCK = 2,
    LAG_LOOK_STOPPED = 3,
    LAG_LOOK_PAGE_FAULT = 4,
    LAG_LOOK_RUN_QUEUE = 5,
    LAG_LOOK_UNKNOWN = 6,
    LAG_LOOK_GIL_WAIT = 7,
    LAG_LOOK_GC = 8,
    LAG_LOOKS = 9,
};

struct lag_stall {
    uint32_t seq;              /* [W] odd while being written */
    uint32_t state;            /* [W] LAG_STALL_* */
    uint64_t id;               /* [W] 1, 2, ... unique in this segment; entry lies at id % count */
    uint32_t loop_index;       /* [W] */
    uint32_t loop_generation;  /* [W] */
    int32_t tid;               /* [W] */
    uint32_t samples;          /* [W] written to the ring for this stall */
    uint64_t start_ns;         /* [W] */
    uint64_t duration_ns;      /* [W] exact once closed */
    uint64_t detected_ns;      /* [W] when the watchdog saw it; 0 = only after it had ended */
    uint64_t observed_ns;      /* [W] from the first look to the last */
    uint64_t look_ns[LAG_LOOKS]; /* [W] */
    uint64_t cpu_ns;           /* [W] schedstat run time between first and last look */
    uint64_t run_queue_ns;     /* [W] schedstat wait between first and last look */
    uint64_t major_faults;     /* [W] */
    uint64_t watchdog_late_ns; /* [W] the watchdog's own worst lateness during the stall */
    int32_t syscall_nr;        /* [W] the call it was most seen in, -1 = none */
    uint32_t looks;            /* [W] */
    char wait_channel[32];     /* [W] wchan of that look, "" = unknown */
    uint64_t known;            /* [W] LAG_KNOWN_* of this record */
    uint64_t gil_wait_ns;      /* [W] within the iteration, as the loop's thread measured it */
    uint64_t gc_ns;            /* [W] */
    uint64_t events;           /* [W] what the wait that began the iteration returned */
    uint64_t reserved[2];
};

/* ---- raw samples --------------------------------------------------------------------------------------------- */

enum { LAG_SAMPLE_MAGIC = 0x4c504d53, LAG_SAMPLE_FILLER = 0x4c4c4946 };

enum { LAG_SAMPLE_SIGNAL = 1, LAG_SAMPLE_PASSIVE = 2, LAG_SAMPLE_INTERRUPT = 3 };

enum {
    LAG_SAMPLE_TRUNCATED = 1, /* the stack went on beyond the copy */
    LAG_SAMPLE_NO_STACK = 2,  /* `no_stack_reason` says why */
    LAG_SAMPLE_LATE = 4,      /* the managed frames were served after the moment they were asked for */
    LAG_SAMPLE_IN_GC = 8,     /* a garbage collection was running */
};

enum {
    LAG_DROP_NONE = 0,
    LAG_DROP_TIMEOUT = 1,      /* the thread was not scheduled, or blocks the signal */
    LAG_DROP_MOVED = 2,        /* the thread moved on while we looked */
    LAG_DROP_NO_EVIDENCE = 3,  /* blocked, and /proc may not be read: never signal */
    LAG_DROP_NO_ROOM = 4,      /* the ring is too small */
    LAG_DROP_READ_FAILED = 5,  /* the stack could not be read */
    LAG_DROP_NO_SIGNAL = 6,    /* no free realtime signal, or delivery refused */
    LAG_DROP_DISABLED = 7,     /* LOOPLAG_STACKS=0 */
    LAG_DROP_BUDGET = 8,       /* the agent backed off */
    LAG_DROP_GONE = 9,         /* the thread has ended */
    LAG_DROPS = 12,
};

/* DWARF register numbers of x86_64: rax rdx rcx rbx rsi rdi rbp rsp r8...r15, then the return address column = rip. */
enum { LAG_REG_RBP = 6, LAG_REG_RSP = 7, LAG_REG_RIP = 16, LAG_REGS = 17 };

/* Records follow one another in a byte ring, 8-aligned, and never wrap: a FILLER record pads to the ring's end. */
struct lag_sample {
    uint32_t magic;        /* LAG_SAMPLE_MAGIC or LAG_SAMPLE_FILLER */
    uint32_t total_bytes;  /* of this record with its stack, a multiple of 8 */
    uint64_t position;     /* absolute: bytes ever written before it */
    uint64_t stall_id;
    uint64_t time_ns;
    uint64_t offset_ns;    /* since the stall's iteration began */
    uint64_t pause_ns;     /* what the capture cost the host's thread; 0 for a passive one */
    uint32_t loop_index;
    int32_t tid;
    uint8_t method;        /* LAG_SAMPLE_SIGNAL or _PASSIVE */
    uint8_t thread_state;  /* 'R', 'S', 'D', 'T' ... from /proc */
    uint16_t flags;
    int32_t syscall_nr;    /* -1 = not in a system call */
    uint32_t no_stack_reason;
    uint32_t regs_valid;   /* bit i: regs[i] is known; a passive sample knows rip and rsp only */
    uint64_t regs[LAG_REGS];
    uint64_t stack_base;   /* the address of the first copied byte */
    uint32_t stack_bytes;
    uint32_t managed_bytes; /* struct lag_managed with what follows it, behind the stack copy; 0 = none */
    char wait_channel[32];
    uint64_t dump;  /* the dump_request that it answers; 0 = it belongs to a stall */
    uint32_t pool;  /* of a dump: 1 + the index of the pool's slot whose worker it is, 0 = none; loop_index is then ~0 */
    uint32_t reserved;
    /* stack_bytes of stack follow (a multiple of 8), then managed_bytes */
};

/* The interpreter's side of a sample, decoded by the agent while the objects were there to be read: frames of the
 * sampled thread, then frames of the thread that blocks it, then the bytes of all texts. Written by the watchdog. */
struct lag_text {
    uint32_t offset; /* from the first text byte of this section */
    uint32_t bytes;  /* UTF-8; 0 = unknown */
};

enum { LAG_MANAGED_PYTHON = 1, LAG_MANAGED_JAVASCRIPT = 2 };

enum {
    LAG_FRAME_COROUTINE = 1,
    LAG_FRAME_ENTRY = 2,       /* the interpreter was entered from native code here: the root of its run of frames */
    LAG_FRAME_LATE = 4,
    LAG_FRAME_APPROXIMATE = 8, /* `line` is where the function begins, not where it stands */
};

struct lag_managed_frame {
    uint64_t stack_address; /* an address on the thread's stack that belongs to this frame, or to its run; 0 = unknown */
    struct lag_text function;
    struct lag_text file;
    uint32_t line;   /* 1, 2, ...; 0 = unknown */
    uint32_t column; /* 1, 2, ...; 0 = unknown */
    uint16_t kind;   /* LAG_MANAGED_* */
    uint16_t flags;  /* LAG_FRAME_* */
    uint32_t reserved;
};

struct lag_managed {
    uint32_t frames;         /* of the sampled thread, leaf first */
    uint32_t blocker_frames; /* of the thread that holds what it waits for, leaf first */
    uint32_t text_bytes;
    int32_t blocker_tid;     /* 0 = unknown */
    struct lag_text blocker_name;
    struct lag_text task;
    struct lag_text method;
    struct lag_text path;
    struct lag_text phase;
    uint64_t reserved;
};

/* ---- modules and strings --------------------------------------------------------------------------------------- */

enum { LAG_MODULE_DELETED = 1, LAG_MODULE_VDSO = 2 };

/* A mapped ELF file. Entries below `modules_used` are complete; a module that was unmapped stays, with unmapped_ns. */
struct lag_module {
    uint32_t path_offset;  /* [W] into the string table */
    uint32_t path_bytes;
    uint32_t flags;
    uint32_t build_id_bytes;
    uint8_t build_id[24];
    uint64_t load_bias;    /* run-time address minus the ELF file's own address */
    uint64_t start;        /* [start, end) covers every mapping of the file */
    uint64_t end;
    uint64_t seen_ns;
    uint64_t unmapped_ns;  /* 0 while mapped */
    uint64_t device;       /* st_dev and inode of the mapped file: a replaced file shows */
    uint64_t inode;
};

/* ---- header ---------------------------------------------------------------------------------------------------- */

enum { LAG_STATE_STARTING = 0, LAG_STATE_RUNNING = 1, LAG_STATE_PARKED = 2, LAG_STATE_FINISHED = 3 };
enum { LAG_MODE_LINKED = 1, LAG_MODE_PRELOAD = 2, LAG_MODE_ATTACHED = 3 };
enum { LAG_RUNTIME_UNKNOWN = 0, LAG_RUNTIME_SWIFT = 1, LAG_RUNTIME_NODE = 2, LAG_RUNTIME_CPYTHON = 3, LAG_RUNTIME_NATIVE = 4 };

/* A word that nobody writes by chance. */
#define LAG_CONTROL_DETACH 0x6863617465444c4cULL

/* What lag_agent_attach answers to whoever called it into a running process. */
enum {
    LAG_ATTACH_STARTED = 1, /* a thread was made that creates the segment and patches the slots */
    LAG_ATTACH_RUNNING = 2, /* it measures already */
    LAG_ATTACH_DISABLED = 3, /* LOOPLAG_DISABLE, or a privileged process */
    LAG_ATTACH_NO_THREAD = 4,
    LAG_ATTACH_OTHER_VERSION = 5, /* asked for by a command line of another layout */
};

/* Bits of `degraded`: what the agent found it cannot do here. */
enum {
    LAG_DEGRADED_NO_SYSCALL_FILE = 1,   /* /proc/self/task/TID/syscall is not readable */
    LAG_DEGRADED_NO_SIGNAL = 2,         /* no free realtime signal */
    LAG_DEGRADED_NO_SAFE_READ = 4,      /* process_vm_readv is refused */
    LAG_DEGRADED_SMALL_SEGMENT = 8,     /* no room for the full segment */
    LAG_DEGRADED_NO_PRIVATE_FDS = 16,   /* close_range(CLOSE_RANGE_UNSHARE) is refused */
    LAG_DEGRADED_BUDGET = 32,           /* backing off: over its CPU budget */
    LAG_DEGRADED_MODULES_FULL = 64,
    LAG_DEGRADED_LOOPS_FULL = 128,
    LAG_DEGRADED_NO_TASK_DIR = 256,     /* /proc/self/task/TID is missing (foreign pid namespace) */
    LAG_DEGRADED_MEMFD = 512,           /* no directory took the segment: it dies with the process */
    LAG_DEGRADED_STACKS_OFF = 1024,     /* LOOPLAG_STACKS=0 */
    LAG_DEGRADED_NO_PYTHON = 2048,      /* the interpreter's layout is not known, or the self-check failed */
    LAG_DEGRADED_NO_JAVASCRIPT = 4096,  /* V8's layout was not found, or the self-check failed */
    LAG_DEGRADED_NO_POOLS = 8192,       /* the runtime has pools that cannot be read here */
    LAG_DEGRADED_PYTHON_FALLBACK = 16384, /* Python frames are those of faulthandler, of a running main thread only */
};

/* A reader's wish for a threshold. A reader owns an entry while it holds an open-file-description write lock on its
 * bytes, and raises `beat` at least once a second; the agent measures the beat with its own clock. */
struct lag_lease {
    uint64_t threshold_ns; /* [R] 0 = none */
    uint64_t beat;         /* [R] */
    uint64_t reader_pid;   /* [R] for people */
    uint64_t reserved;
};

struct lag_table {
    uint32_t offset; /* from the start of the segment */
    uint32_t count;  /* entries; bytes for strings and samples */
    uint32_t stride; /* bytes an entry; 1 for strings and samples */
    uint32_t reserved;
};

struct lag_header {
    uint64_t magic;           /* [S] written last */
    uint32_t abi_version;     /* [S] */
    uint32_t header_bytes;    /* [S] sizeof(struct lag_header) of the writer */
    uint64_t total_bytes;     /* [S] */
    uint32_t state;           /* [S] [W] LAG_STATE_* */
    uint32_t mode;            /* [S] LAG_MODE_* */
    struct lag_table loops, pools, stalls, samples, modules, strings; /* [S] */

    uint32_t pid;             /* [S] in the host's own pid namespace */
    uint32_t uid;             /* [S] effective */
    uint64_t start_ticks;     /* [S] field 22 of /proc/self/stat */
    uint32_t nspid_count;     /* [S] */
    uint32_t nspids[LAG_MAX_NSPIDS]; /* [S] outermost visible first */
    uint32_t runtime;         /* [S] LAG_RUNTIME_* */
    uint64_t pid_namespace;   /* [S] inodes of /proc/self/ns/... */
    uint64_t mount_namespace; /* [S] */
    uint64_t anchor_monotonic_ns; /* [S] both read at the same moment */
    uint64_t anchor_realtime_ns;  /* [S] */
    uint64_t start_threshold_ns;  /* [S] stall_count and stalled_ns use it */
    uint32_t executable_offset, executable_bytes; /* [S] string table */
    uint32_t command_offset, command_bytes;       /* [S] NUL between arguments; may be cut */
    uint32_t runtime_version_offset, runtime_version_bytes; /* [S] 0 bytes = unknown */

    uint64_t capture_threshold_ns; /* [W] the smallest live one */
    uint64_t heartbeat_ns;         /* [W] */
    int32_t watchdog_tid;          /* [W] 0 = none */
    int32_t signal_number;         /* [W] 0 = none */
    uint64_t watchdog_ticks;       /* [W] */
    uint64_t watchdog_cpu_ns;      /* [W] its own thread clock */
    uint64_t watchdog_late_max_ns; /* [W] */
    uint64_t watchdog_late_total_ns; /* [W] */
    uint64_t signals_sent;         /* [W] */
    uint64_t samples_taken;        /* [W] */
    uint64_t samples_dropped[LAG_DROPS]; /* [W] by LAG_DROP_* */
    uint64_t pause_max_ns;         /* [W] */
    uint64_t pause_total_ns;       /* [W] */
    uint64_t stalls_opened;        /* [W] the last id given */
    uint64_t stalls_missed;        /* [W] long iterations that fell out of recent_long unseen */
    uint64_t loops_refused;        /* any thread, atomic: no free slot */
    uint64_t degraded;             /* [S] [W] LAG_DEGRADED_* */
    uint64_t samples_head;         /* [W] absolute position of the next record */
    uint64_t samples_tail;         /* [W] everything before it may be overwritten; raised before overwriting */
    uint32_t modules_used;         /* [W] */
    uint32_t modules_generation;   /* [W] raised when an entry changes */
    uint32_t strings_used;         /* [S] [W] bytes */
    uint32_t slots_patched;        /* [W] GOT slots, in linked and attached mode */
    uint64_t control;         /* [R] LAG_CONTROL_DETACH: give every slot back and end; anything else is no wish */
    uint64_t dump_request;    /* [R] any number but dump_served: asks for one sample of each loop thread and busy worker */
    uint64_t dump_served;     /* [W] the last dump_request whose samples are all in the ring */
    uint64_t reserved[13];

    struct lag_lease leases[LAG_MAX_LEASES]; /* [R] */
};

_Static_assert(sizeof(struct lag_loop_slot) == 448 + 8 * LAG_HISTOGRAM_BUCKETS, "loop slot layout");
_Static_assert(LAG_HISTOGRAM_BUCKETS == 928, "histogram layout");
_Static_assert(sizeof(struct lag_pool_slot) == 256, "pool slot layout");
_Static_assert(sizeof(struct lag_stall) == 256, "stall layout");
_Static_assert(sizeof(struct lag_sample) == 272, "sample layout");
_Static_assert(sizeof(struct lag_managed_frame) == 40, "managed frame layout");
_Static_assert(sizeof(struct lag_managed) == 64, "managed section layout");
_Static_assert(sizeof(struct lag_module) == 96, "module layout");
_Static_assert(sizeof(struct lag_lease) == 32, "lease layout");
_Static_assert(offsetof(struct lag_header, loops) == 32, "header layout");
_Static_assert(offsetof(struct lag_header, leases) % 8 == 0, "leases are aligned");
_Static_assert(sizeof(struct lag_header) <= LAG_HEADER_BYTES, "header fits its page");

#endif
