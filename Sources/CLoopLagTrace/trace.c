/* See the header. Any thread; no state. */
#include "CLoopLagTrace.h"

#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <stddef.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

static int lag_result(long status) { return status < 0 ? errno : 0; }

int lag_trace_seize(pid_t tid) { return lag_result(ptrace(PTRACE_SEIZE, tid, NULL, NULL)); }

int lag_trace_interrupt(pid_t tid) { return lag_result(ptrace(PTRACE_INTERRUPT, tid, NULL, NULL)); }

int lag_trace_detach(pid_t tid, int signal)
{
    return lag_result(ptrace(PTRACE_DETACH, tid, NULL, (void *)(intptr_t)signal));
}

pid_t lag_trace_wait(pid_t tid, int *status)
{
    /* __WALL: a thread is a clone child. */
    return waitpid(tid, status, __WALL | WNOHANG);
}

int lag_trace_registers(pid_t tid, uint64_t registers[LAG_TRACE_REGISTERS], int64_t *call)
{
    struct user_regs_struct r;
    memset(&r, 0, sizeof r);
    if (ptrace(PTRACE_GETREGS, tid, NULL, &r) < 0)
        return errno;
    const uint64_t in_order[LAG_TRACE_REGISTERS] = {
        r.rax, r.rdx, r.rcx, r.rbx, r.rsi, r.rdi, r.rbp, r.rsp, r.r8,
        r.r9,  r.r10, r.r11, r.r12, r.r13, r.r14, r.r15, r.rip,
    };
    memcpy(registers, in_order, sizeof in_order);
    *call = (int64_t)r.orig_rax;
    return 0;
}

int lag_trace_set_result(pid_t tid, int64_t result)
{
    return lag_result(ptrace(PTRACE_POKEUSER, tid, (void *)offsetof(struct user, regs.rax), (void *)result));
}

ssize_t lag_trace_read(pid_t pid, uint64_t address, void *buffer, size_t count)
{
    struct iovec local = {buffer, count};
    struct iovec remote = {(void *)(uintptr_t)address, count};
    return process_vm_readv(pid, &local, 1, &remote, 1, 0);
}

int lag_trace_probe_close_range(void)
{
#ifdef SYS_close_range
    /* Nothing is open up there, and without CLOSE_RANGE_UNSHARE nothing is unshared. */
    return lag_result(syscall(SYS_close_range, UINT_MAX - 1, UINT_MAX, 0));
#else
    return ENOSYS;
#endif
}

int lag_trace_epoll_create(void) { return epoll_create1(EPOLL_CLOEXEC); }

int lag_trace_epoll_wait(int descriptor, int milliseconds)
{
    struct epoll_event event;
    return epoll_wait(descriptor, &event, 1, milliseconds);
}

struct filter_request {
    pid_t pid;
    uint32_t index;
    uint64_t *code;
    uint32_t capacity;
    long answer;
};

/* A thread of its own, whose end takes the tracing back. */
static void *read_filter(void *argument)
{
    struct filter_request *request = argument;
    enum { SECCOMP_GET_FILTER = 0x420c };
    request->answer = -EPERM;
    if (ptrace(PTRACE_SEIZE, request->pid, NULL, NULL) != 0 || ptrace(PTRACE_INTERRUPT, request->pid, NULL, NULL) != 0)
        return NULL;
    int status = 0;
    for (int turn = 0; turn < 2000; turn++) {
        pid_t found = lag_trace_wait(request->pid, &status);
        if (found < 0 && errno != EINTR)
            return NULL;
        if (found == request->pid) {
            long count = syscall(SYS_ptrace, SECCOMP_GET_FILTER, request->pid, (long)request->index, NULL);
            if (count >= 0 && count <= (long)request->capacity)
                count = syscall(SYS_ptrace, SECCOMP_GET_FILTER, request->pid, (long)request->index, request->code);
            request->answer = count < 0 ? -errno : count;
            uint64_t registers[LAG_TRACE_REGISTERS];
            int64_t call = -1;
            /* As ThreadTrace does: an epoll wait that the stop cut short starts again. */
            if (status >> 16 == LAG_TRACE_EVENT_STOP && lag_trace_registers(request->pid, registers, &call) == 0 &&
                (call == SYS_epoll_wait || call == SYS_epoll_pwait || call == 441) && (int64_t)registers[0] == -EINTR)
                (void)lag_trace_set_result(request->pid, -LAG_TRACE_ERESTARTNOHAND);
            (void)lag_trace_detach(request->pid, status >> 16 == LAG_TRACE_EVENT_STOP ? 0 : WSTOPSIG(status));
            return NULL;
        }
        usleep(turn < 100 ? 20 : 500);
    }
    return NULL;
}

long lag_inject_read_filter(pid_t pid, uint32_t index, uint64_t *code, uint32_t capacity)
{
    struct filter_request request = {pid, index, code, capacity, -EPERM};
    pthread_t thread;
    if (pthread_create(&thread, NULL, read_filter, &request) != 0)
        return -EAGAIN;
    pthread_join(thread, NULL);
    return request.answer;
}
