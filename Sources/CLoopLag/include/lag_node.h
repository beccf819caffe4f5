/* What node's own loader finds in the agent's object, and the boards on which `--requests` notes what each thread is at.
 * Part of CLoopLag.h.
 */
#ifndef CLOOPLAG_NODE_H
#define CLOOPLAG_NODE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct lag_board;

typedef uint32_t (*lag_attach_function)(const char *variables, size_t bytes);
/* Behind napi_register_module_v1: gives `exports` its functions `attach` and `board`. Loader calls: on the thread of the
 * environment that loads the object. Returns `exports`. */
LAG_LOOP_THREAD void *lag_node_register(void *node, void *exports, lag_attach_function attach_with);
/* Tells the programs in the process whether anybody reads what they note. */
LAG_ANY_THREAD void lag_boards_want(bool wanted);

/* A look at a thread's board; `board` is NULL where it has none. */
struct lag_request_mark {
    const struct lag_board *board;
    uint32_t turns, current;
    uint32_t seq;    /* of the text that `current` names */
    bool is_its_own; /* made by the thread itself: what it was at then needs no second look */
};
enum { LAG_REQUEST_TEXT = 504 };
struct lag_request {
    uint32_t method_bytes, path_bytes;
    uint8_t text[LAG_REQUEST_TEXT]; /* the method, and behind it the path */
};
LAG_SIGNAL_SAFE struct lag_request_mark lag_request_now(int32_t tid);
/* The request that the thread was at, of a mark of its own; else the one that it has been at ever since. False = none, it
 * was at others in between, or the text has given way to that of another one. */
LAG_ANY_THREAD bool lag_request_read(struct lag_request_mark mark, int32_t tid, struct lag_request *request);

#pragma clang assume_nonnull begin
static inline const uint8_t *lag_request_text(const struct lag_request *request) { return request->text; }
#pragma clang assume_nonnull end

#endif
