/* What Swift's Glibc module leaves out: ptrace (variadic), process_vm_readv, close_range, epoll.
 *
 * Who calls it: LoopLagAttach, in the command line's process. ptrace belongs to threads: all calls for one traced
 * thread come from the thread that seized it. Nothing here decides anything; every function is one system call, and
 * those that can fail return 0 or an errno value. */
#ifndef LOOPLAG_CLOOPLAGTRACE_H
#define LOOPLAG_CLOOPLAGTRACE_H

#include <stdint.h>
#include <sys/types.h>

#include "inject.h"

#if !defined(__x86_64__)
#error "LoopLag reads the registers of x86_64 threads only"
#endif

enum {
    LAG_TRACE_REGISTERS = 17,
    /* PTRACE_EVENT_STOP: the stop that PTRACE_INTERRUPT asked for, or a group stop. */
    LAG_TRACE_EVENT_STOP = 128,
    /* include/linux/errno.h, never seen by a program: restart the call unless a handler runs; then it is EINTR. */
    LAG_TRACE_ERESTARTNOHAND = 514,
};

/* Becomes the tracer without stopping the thread. */
int lag_trace_seize(pid_t tid);

/* Asks for a stop; lag_trace_wait tells when it has come. */
int lag_trace_interrupt(pid_t tid);

/* 0 while nothing has happened, `tid` with its wait status, or -1 when it is not ours (any more). */
pid_t lag_trace_wait(pid_t tid, int *status);

/* Lets the thread run on, with `signal` delivered when not 0. Only while it is stopped. */
int lag_trace_detach(pid_t tid, int signal);

/* By DWARF number (0...15 rax...r15, 16 rip), and orig_rax: the system call, or negative outside of one. */
int lag_trace_registers(pid_t tid, uint64_t registers[LAG_TRACE_REGISTERS], int64_t *call);

/* Replaces rax alone: the result of the call that the thread is about to return from. */
int lag_trace_set_result(pid_t tid, int64_t result);

/* Reads another process's memory without stopping it; a short count where it ends, else -1 with errno. */
ssize_t lag_trace_read(pid_t pid, uint64_t address, void *buffer, size_t count);

/* close_range(first, last, CLOSE_RANGE_UNSHARE) needs Linux 5.9: 0, or why not, for an empty range of numbers. */
int lag_trace_probe_close_range(void);

/* An epoll descriptor with nothing in it, and a wait on it: a loop to be measured. -1 with errno. */
int lag_trace_epoll_create(void);
int lag_trace_epoll_wait(int descriptor, int milliseconds);

#endif
