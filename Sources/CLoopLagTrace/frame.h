/* The signal frame that puts a borrowed thread back. Used by inject.c only. */
#ifndef LOOPLAG_FRAME_H
#define LOOPLAG_FRAME_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/user.h>

enum { LAG_FRAME_STATE_MOST = 16384, LAG_FRAME_MOST = LAG_FRAME_STATE_MOST + 2048 };

struct lag_frame_place {
    uint64_t frame; /* address of its first byte in the target, 16 n + 8 */
    uint64_t bytes; /* from there on, all that `buffer` holds */
    uint64_t name;  /* address of the memory file's name */
};

/* Lays out, for the stack below `registers`' red zone, what a signal return needs to restore them, the extended state
 * (as PTRACE_GETREGSET gives it) and the signal mask. False where that has no room. */
bool lag_frame_build(const struct user_regs_struct *registers, const uint8_t *state, uint32_t bytes_of_state,
                     uint64_t mask, uint64_t restorer, uint8_t buffer[LAG_FRAME_MOST], struct lag_frame_place *place);

#endif
