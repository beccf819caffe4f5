/* What only C can do for a CPython host: find the interpreter when the agent starts, remember which of its thread states
 * belongs to which loop, copy a thread's interpreter frames without faulting, and ask the interpreter once for its own
 * view, to hold the agent's against it.
 *
 * Detection runs on the thread that starts the agent (loader calls); `lag_python_thread_begins` on a loop thread that is
 * about to wait; `lag_python_copy` in the capture handler, on the watchdog, and inside the one pending call. Nothing here
 * takes the interpreter's lock, and no pointer of the interpreter is followed but through lag_safe_read.
 */
#include "internal.h"

#include <dlfcn.h>
#include <link.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

LAG_SMALL_CODE_BEGIN

struct lag_python_loop lag_python_loops[LAG_MAX_LOOPS];
static struct lag_python python;
static struct lag_python_layout layout;
static void *(*current_thread_state)(void);
static uint64_t text_low, text_high;

/* ---- at the start -------------------------------------------------------------------------------------------- */

static uint32_t hex_of_version(const char *text) {
    char *end;
    uint32_t major = (uint32_t)strtoul(text, &end, 10);
    if (*end != '.') return 0;
    uint32_t minor = (uint32_t)strtoul(end + 1, &end, 10);
    uint32_t micro = *end == '.' ? (uint32_t)strtoul(end + 1, &end, 10) : 0;
    return major << 24 | (minor & 0xff) << 16 | (micro & 0xff) << 8;
}

/* The executable mapping of the object that holds the interpreter: whoever waits in pthread_cond_timedwait from there
 * waits for its lock. */
static int find_text(struct dl_phdr_info *info, size_t size, void *context) {
    (void)size;
    uint64_t inside = (uint64_t)context;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *header = &info->dlpi_phdr[i];
        uint64_t low = info->dlpi_addr + header->p_vaddr;
        if (header->p_type != PT_LOAD || (header->p_flags & PF_X) == 0) continue;
        if (inside < low || inside - low >= header->p_memsz) continue;
        text_low = low;
        text_high = low + header->p_memsz;
        return 1;
    }
    return 0;
}

static uint64_t symbol(const char *name) { return (uint64_t)dlsym(RTLD_DEFAULT, name); }

void lag_python_detect(const char *version) {
    memset(&python, 0, sizeof python);
    memset(&layout, 0, sizeof layout);
    lag_fallback_forget();
    python.version = hex_of_version(version);
    python.runtime = symbol("_PyRuntime");
    python.code_type = symbol("PyCode_Type");
    python.unicode_type = symbol("PyUnicode_Type");
    python.dict_type = symbol("PyDict_Type");
    python.set_type = symbol("PySet_Type");
    python.ordered_dict_type = symbol("PyODict_Type");
    python.long_type = symbol("PyLong_Type");
    python.float_type = symbol("PyFloat_Type");
    python.coroutine_type = symbol("PyCoro_Type");
    python.generator_type = symbol("PyGen_Type");
    python.module_type = symbol("PyModule_Type");
    current_thread_state = (void *(*)(void))dlsym(RTLD_DEFAULT, "PyGILState_GetThisThreadState");
    uint64_t inside = symbol("PyEval_RestoreThread");
    text_low = text_high = 0;
    if (inside != 0) {
        lag_scan_lock();
        dl_iterate_phdr(find_text, (void *)inside);
        lag_scan_unlock();
    }
}

const struct lag_python *lag_python_found(void) { return &python; }

void lag_python_set_layout(const struct lag_python_layout *known) { layout = *known; }

bool lag_python_is_text(uint64_t address) { return address - text_low < text_high - text_low; }

/* ---- loop threads ---------------------------------------------------------------------------------------------- */

static void ask_interpreter(void);

void lag_python_thread_begins(uint32_t index) {
    struct lag_python_loop *loop = &lag_python_loops[index];
    memset(loop, 0, sizeof *loop);
    if (python.version == 0 || current_thread_state == NULL) return;
    loop->pthread = (uint64_t)pthread_self();
    /* Reads one thread-specific value; needs no lock. NULL on a thread that never ran Python. */
    loop->thread_state = (uint64_t)current_thread_state();
    /* Only the main thread: while it waits in its loop the interpreter cannot be shutting down. */
    if (loop->thread_state != 0 && lag_gettid() == getpid()) ask_interpreter();
}

/* ---- frames ---------------------------------------------------------------------------------------------------- */

static inline uint64_t word_at(uint64_t address) {
    uint64_t value;
    return lag_safe_read(address, &value, sizeof value) == sizeof value ? value : 0;
}

static void copy_chain(uint64_t frame, struct lag_python_frames *frames) {
    frames->count = 0;
    frames->is_complete = 0;
    while (frame != 0 && frames->count < LAG_PYTHON_FRAMES) {
        uint8_t *bytes = frames->bytes[frames->count];
        if ((frame & 7) != 0) return;
        size_t n = lag_safe_read(frame, bytes, layout.frame_bytes);
        if (n < layout.frame_least) return;
        if (n < layout.frame_bytes) memset(bytes + n, 0, layout.frame_bytes - n);
        frames->address[frames->count] = frame;
        frames->count += 1;
        memcpy(&frame, bytes + layout.frame_previous, sizeof frame);
    }
    frames->is_complete = frame == 0;
}

static bool has_code(const uint8_t *bytes) {
    uint64_t code;
    memcpy(&code, bytes + layout.frame_code, sizeof code);
    return code != 0 && (code & 7) == 0 && word_at(code + 8) == python.code_type;
}

/* 3.11 and 3.12 make their evaluation loop's C frame the thread's before it says which frame runs in it: a few
 * instructions long that field is whatever lay on the C stack. Once it is filled in, and until it is left, its run of
 * frames begins where the run before has stopped. */
static bool is_run_of(uint64_t before, const struct lag_python_frames *frames) {
    for (uint32_t i = 0; i < frames->count; i++) {
        const uint8_t *bytes = frames->bytes[i];
        if (bytes[layout.frame_entry] < layout.frame_entry_least) continue;
        uint64_t previous;
        memcpy(&previous, bytes + layout.frame_previous, sizeof previous);
        return previous == before;
    }
    /* A run that is longer than the copy. */
    return frames->count == LAG_PYTHON_FRAMES && has_code(frames->bytes[0]) &&
           has_code(frames->bytes[LAG_PYTHON_FRAMES - 1]);
}

void lag_python_copy(uint64_t thread_state, struct lag_python_frames *frames) {
    frames->count = 0;
    frames->is_complete = 0;
    frames->thread_state = thread_state;
    frames->cframe = 0;
    if (thread_state == 0 || !layout.ready) return;
    uint64_t cframe = layout.thread_cframe != 0 ? word_at(thread_state + layout.thread_cframe) : 0;
    frames->cframe = cframe;
    if (!layout.frame_is_in_cframe) {
        copy_chain(word_at(thread_state + layout.thread_frame), frames);
        return;
    }
    for (int tries = 0; cframe != 0 && tries < 2; tries++) {
        uint64_t outer = word_at(cframe + layout.cframe_previous);
        uint64_t before = outer != 0 ? word_at(outer + layout.cframe_frame) : 0;
        frames->cframe = cframe;
        copy_chain(word_at(cframe + layout.cframe_frame), frames);
        if (is_run_of(before, frames)) return;
        cframe = outer;
    }
    frames->count = 0;
    frames->is_complete = 0;
}

/* ---- the interpreter's own view, once ------------------------------------------------------------------------------
 *
 * A pending call runs on the main thread between two bytecodes, with the lock held by that thread anyway. It writes down
 * what the interpreter's API says of its own frames and what lag_python_copy sees at the same moment; the watchdog
 * compares them later.
 */

static struct lag_python_check check;
static uint64_t check_code[LAG_CHECK_FRAMES];
/* Frames of the agent's that the interpreter hides, since they have not really begun. */
enum { HIDDEN_FRAMES = 3 };
static int (*add_pending_call)(int (*)(void *), void *);
static void *(*get_state)(void);
static void *(*get_frame)(void);
static void *(*get_back)(void *);
static void *(*get_code)(void *);
static int (*get_line)(void *);
static void (*release)(void *);

/* Finds each frame of the interpreter's account among those that were copied. */
static bool agrees(uint32_t wanted) {
    uint32_t compared = 0, hidden = 0;
    for (uint32_t i = 0; i < check.frames.count && compared < wanted; i++) {
        const uint8_t *bytes = check.frames.bytes[i];
        if (layout.has_shims && bytes[layout.frame_entry] >= layout.frame_entry_least) continue;
        uint64_t code;
        memcpy(&code, bytes + layout.frame_code, sizeof code);
        check.place[compared] = i;
        if ((code & ~3ULL) == check_code[compared]) compared += 1;
        else if (++hidden > HIDDEN_FRAMES) return false;
    }
    return wanted > 0 && compared == wanted;
}

static int answer(void *unused) {
    (void)unused;
    uint32_t asked = LAG_CHECK_ASKED;
    if (!__atomic_compare_exchange_n(&check.state, &asked, LAG_CHECK_RUNS, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
        return 0;
    void *frame = layout.ready ? get_frame() : NULL; /* borrowed */
    void *owned = NULL;
    uint32_t count = 0;
    while (frame != NULL && count < LAG_CHECK_FRAMES) {
        void *code = get_code(frame);
        check_code[count] = (uint64_t)code;
        check.line[count] = (uint32_t)get_line(frame);
        if (code != NULL) release(code);
        count += 1;
        void *back = get_back(frame);
        if (owned != NULL) release(owned);
        owned = back;
        frame = back;
    }
    if (owned != NULL) release(owned);
    check.count = count;
    if (layout.ready) lag_python_copy((uint64_t)get_state(), &check.frames);
    check.agrees = agrees(count);
    if (!check.agrees || !layout.is_certain) lag_fallback_register(python.version);
    __atomic_store_n(&check.state, LAG_CHECK_ANSWERED, __ATOMIC_RELEASE);
    return 0;
}

/* Loader calls, on the thread that starts the agent. */
void lag_python_prepare_check(void) {
    *(void **)&add_pending_call = dlsym(RTLD_DEFAULT, "Py_AddPendingCall");
    *(void **)&get_state = dlsym(RTLD_DEFAULT, "PyThreadState_Get");
    *(void **)&get_frame = dlsym(RTLD_DEFAULT, "PyEval_GetFrame");
    *(void **)&get_back = dlsym(RTLD_DEFAULT, "PyFrame_GetBack");
    *(void **)&get_code = dlsym(RTLD_DEFAULT, "PyFrame_GetCode");
    *(void **)&get_line = dlsym(RTLD_DEFAULT, "PyFrame_GetLineNumber");
    *(void **)&release = dlsym(RTLD_DEFAULT, "Py_DecRef");
    __atomic_store_n(&check.state, LAG_CHECK_NONE, __ATOMIC_RELEASE);
}

static void ask_interpreter(void) {
    /* Where nothing is known of the version there is nothing to compare, only a fallback to prepare. */
    bool may_compare = get_state != NULL && get_frame != NULL && get_back != NULL && get_code != NULL &&
                       get_line != NULL && release != NULL;
    if (add_pending_call == NULL || (layout.ready && !may_compare)) return;
    uint32_t none = LAG_CHECK_NONE;
    if (!__atomic_compare_exchange_n(&check.state, &none, LAG_CHECK_ASKED, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
        return;
    /* A full queue: the next loop that begins asks again. */
    if (add_pending_call(answer, NULL) != 0) __atomic_store_n(&check.state, LAG_CHECK_NONE, __ATOMIC_RELEASE);
}

const struct lag_python_check *lag_python_answer(void) {
    return __atomic_load_n(&check.state, __ATOMIC_ACQUIRE) == LAG_CHECK_ANSWERED ? &check : NULL;
}

LAG_SMALL_CODE_END
