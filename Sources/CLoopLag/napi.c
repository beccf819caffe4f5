/* What node's `process.dlopen` finds in this object: `attach`, the way in for a command line that may not trace the
 * process, and `board`, the memory in which `looplag --requests` notes which request the thread is at.
 *
 * node calls in here on the thread of the environment that loads the object, with JavaScript below; the functions of its
 * native interface are looked up there, once. A board belongs to one thread: JavaScript writes it, the watchdog reads it,
 * and it is given to another thread only after its environment has ended.
 */
#include "internal.h"

#include <dlfcn.h>
#include <string.h>

LAG_SMALL_CODE_BEGIN

typedef void *environment;
typedef void *value;
typedef value (*callback)(environment, void *info);

/* By node's js_native_api.h and node_api.h, which never change a function: 0 = napi_ok. */
static struct {
    int (*create_function)(environment, const char *name, size_t bytes, callback, void *data, value *result);
    int (*set_named_property)(environment, value object, const char *name, value property);
    int (*get_cb_info)(environment, void *info, size_t *count, value *arguments, value *self, void **data);
    int (*get_value_string_utf8)(environment, value text, char *into, size_t capacity, size_t *bytes);
    int (*create_uint32)(environment, uint32_t number, value *result);
    int (*create_external_arraybuffer)(environment, void *memory, size_t bytes, void *finalize, void *hint, value *result);
    int (*add_env_cleanup_hook)(environment, void (*hook)(void *), void *argument);
} napi;

enum { VARIABLES_BYTES = 2048, BOARD_SLOTS = 32, BOARD_SLOT_TEXT = 504 };

/* As the program in NodeProgram.swift writes it. `current` is a slot's number and 1, 0 = none; `turns` is raised before
 * each change of it, so that two looks with the same number saw the same request all the time in between. A slot's `seq`
 * is odd while its text is written. */
struct lag_board {
    uint32_t current, turns;
    uint32_t wanted; /* [C] whether anybody reads it */
    uint32_t tid;    /* [C] 0 = free */
    uint32_t reserved[12];
    struct {
        uint32_t seq;
        uint16_t method_bytes, path_bytes;
        uint8_t text[BOARD_SLOT_TEXT];
    } slots[BOARD_SLOTS];
};
_Static_assert(sizeof(struct lag_board) == 64 + BOARD_SLOTS * 512, "as NodeProgram.swift has it");

static struct lag_board *boards[LAG_MAX_LOOPS];
static lag_attach_function attach_function;

static bool resolve(void) {
    static const char *const names[] = {
        "napi_create_function",       "napi_set_named_property", "napi_get_cb_info",
        "napi_get_value_string_utf8", "napi_create_uint32",      "napi_create_external_arraybuffer",
        "napi_add_env_cleanup_hook",
    };
    void **into = (void **)&napi;
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if ((into[i] = dlsym(RTLD_DEFAULT, names[i])) == NULL) return false;
    return true;
}

/* attach(variables): LAG_ATTACH_*, or undefined where the argument is none. */
static value attach(environment node, void *info) {
    static char variables[VARIABLES_BYTES]; /* read before this returns; one thread of a process attaches */
    size_t count = 1, bytes = 0;
    value argument = NULL, answer = NULL;
    if (napi.get_cb_info(node, info, &count, &argument, NULL, NULL) != 0 || count == 0 ||
        napi.get_value_string_utf8(node, argument, variables, sizeof variables, &bytes) != 0)
        return NULL;
    (void)napi.create_uint32(node, attach_function(variables, bytes), &answer);
    return answer;
}

static void release_board(void *raw) {
    struct lag_board *board = raw;
    __atomic_store_n(&board->current, 0, __ATOMIC_RELEASE);
    __atomic_store_n(&board->tid, 0, __ATOMIC_RELEASE);
}

static struct lag_board *claim_board(uint32_t tid) {
    for (int i = 0; i < LAG_MAX_LOOPS; i++) {
        struct lag_board *board = __atomic_load_n(&boards[i], __ATOMIC_ACQUIRE), *nobody = NULL;
        uint32_t is_free = 0;
        if (board == NULL) {
            board = lag_memory_zeroed(sizeof *board);
            if (board == NULL) return NULL;
            board->tid = tid;
            if (__atomic_compare_exchange_n(&boards[i], &nobody, board, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED))
                return board;
            lag_memory_free(board, sizeof *board);
        } else if (__atomic_compare_exchange_n(&board->tid, &is_free, tid, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED)) {
            return board;
        }
    }
    return NULL;
}

/* board(): this thread's board as an ArrayBuffer; undefined where no agent is at work or on its way. */
static value board(environment node, void *info) {
    (void)info;
    uint32_t state = lag_life_state();
    if (state == LAG_LIFE_OFF || state == LAG_LIFE_PARKED) return NULL;
    struct lag_board *board = claim_board((uint32_t)lag_syscall6(SYS_gettid, 0, 0, 0, 0, 0, 0));
    if (board == NULL) return NULL;
    value memory = NULL;
    if (napi.create_external_arraybuffer(node, board, sizeof *board, NULL, NULL, &memory) != 0 ||
        napi.add_env_cleanup_hook(node, release_board, board) != 0) {
        release_board(board);
        return NULL;
    }
    board->wanted = 1;
    return memory;
}

void *lag_node_register(void *node, void *exports, lag_attach_function attach_with) {
    if (!resolve()) return exports;
    attach_function = attach_with;
    value function;
    if (napi.create_function(node, NULL, 0, attach, NULL, &function) == 0)
        (void)napi.set_named_property(node, exports, "attach", function);
    if (napi.create_function(node, NULL, 0, board, NULL, &function) == 0)
        (void)napi.set_named_property(node, exports, "board", function);
    return exports;
}

void lag_boards_want(bool wanted) {
    for (int i = 0; i < LAG_MAX_LOOPS; i++) {
        struct lag_board *board = __atomic_load_n(&boards[i], __ATOMIC_ACQUIRE);
        if (board != NULL) __atomic_store_n(&board->wanted, wanted, __ATOMIC_RELEASE);
    }
}

struct lag_request_mark lag_request_now(int32_t tid) {
    struct lag_request_mark mark = {0};
    for (int i = 0; i < LAG_MAX_LOOPS; i++) {
        const struct lag_board *board = __atomic_load_n(&boards[i], __ATOMIC_ACQUIRE);
        if (board == NULL) break;
        if (__atomic_load_n(&board->tid, __ATOMIC_ACQUIRE) != (uint32_t)tid) continue;
        mark.board = board;
        mark.turns = __atomic_load_n(&board->turns, __ATOMIC_ACQUIRE);
        mark.current = __atomic_load_n(&board->current, __ATOMIC_ACQUIRE);
        if (mark.current > BOARD_SLOTS) mark.current = 0;
        if (mark.current != 0) mark.seq = __atomic_load_n(&board->slots[mark.current - 1].seq, __ATOMIC_ACQUIRE);
        break;
    }
    return mark;
}

bool lag_request_read(struct lag_request_mark mark, int32_t tid, struct lag_request *request) {
    if (mark.board == NULL || mark.current == 0 || (mark.seq & 1) != 0) return false;
    const struct lag_board *board = mark.board;
    const uint32_t i = mark.current - 1;
    request->method_bytes = board->slots[i].method_bytes;
    request->path_bytes = board->slots[i].path_bytes;
    if (request->method_bytes + request->path_bytes > BOARD_SLOT_TEXT) return false;
    memcpy(request->text, board->slots[i].text, BOARD_SLOT_TEXT);
    __atomic_thread_fence(__ATOMIC_ACQUIRE);
    if (__atomic_load_n(&board->slots[i].seq, __ATOMIC_RELAXED) != mark.seq) return false;
    struct lag_request_mark again = lag_request_now(tid);
    return again.board == board && (mark.is_its_own || (again.turns == mark.turns && again.current == mark.current));
}

LAG_SMALL_CODE_END
