/* See the header: the part of an attach in which a thread of the target is stopped. */
#include "frame.h"
#include "inject.h"

#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern const uint8_t lag_stub_begin[], lag_stub_end[];

enum {
    PAGE_BYTES = 4096,
    RIDE_CALLS = 4000,
    SYSCALL_TRAP = SIGTRAP | 0x80,
    EVENT_STOP = 128,
    RESTORER_BYTES = 9,      /* mov $15, %rax; syscall */
    ERESTARTNOHAND_CODE = 514,
    ERESTART_BLOCK_CODE = 516,
    STUB_SPACE = 1024,
    PATH_BYTES = 48,
};

/* In the layout that stub.S reads. */
struct stub_parameters {
    uint64_t frame, control_offset, descriptor, dlopen, mode, entry, dlerror, errno_location, munmap, variables_bytes;
    int64_t stale[LAG_INJECT_STALE];
    uint64_t reserved;
    char path[PATH_BYTES];
    char variables[LAG_INJECT_VARIABLES];
};
_Static_assert(offsetof(struct stub_parameters, stale) == 80, "as stub.S has it");
_Static_assert(offsetof(struct stub_parameters, path) == 120, "as stub.S has it");
_Static_assert(offsetof(struct stub_parameters, variables) == 168, "as stub.S has it");
_Static_assert(STUB_SPACE + sizeof(struct stub_parameters) <= PAGE_BYTES, "one page");

struct control {
    uint64_t state, handle, answer, began_ns, ended_ns;
    uint64_t reserved[3];
    char message[LAG_INJECT_MESSAGE];
};

struct session {
    const struct lag_inject_plan *plan;
    struct lag_inject_result *result;
    bool is_stopped;
    uint64_t stopped_since;
    uint64_t frame;    /* of the target's stack; 0 until it is laid */
    uint64_t name;     /* where the memory file's name lies */
    int memory;        /* our descriptor of it */
    uint64_t control_offset;
    int64_t slept;     /* in its wait, before it was stopped; -1 = not known */
    uint64_t slept_at; /* when that was asked */
};

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void step(const struct session *session, uint32_t number) {
    if (number != 0 && session->plan->kill_at == number) raise(SIGKILL);
}

static bool fail(struct session *session, int outcome, int code, const char *message) {
    session->result->outcome = outcome;
    session->result->code = code;
    if (message != NULL) snprintf(session->result->message, sizeof session->result->message, "%s", message);
    return false;
}

static bool resume(struct session *session, int request, int signal) {
    session->result->stopped_ns += now_ns() - session->stopped_since;
    session->is_stopped = false;
    if (ptrace(request, session->plan->tid, NULL, (void *)(intptr_t)signal) == 0) return true;
    return fail(session, LAG_INJECT_ENDED, errno, NULL);
}

/* The next stop's wait status; 0 when the time is over, -1 when the thread has gone. Signals that arrive meanwhile are
 * passed on. */
static int next_stop(struct session *session, int request, uint64_t deadline) {
    for (unsigned turn = 0;; turn++) {
        int status = 0;
        pid_t found = waitpid(session->plan->tid, &status, __WALL | WNOHANG);
        if (found < 0 && errno != EINTR) return -1;
        if (found > 0) {
            if (!WIFSTOPPED(status)) return -1;
            session->is_stopped = true;
            session->stopped_since = now_ns();
            int signal = WSTOPSIG(status);
            if (signal == SYSCALL_TRAP || status >> 16 != 0) return status;
            if (!resume(session, request, signal)) return -1;
            continue;
        }
        if (now_ns() >= deadline) return 0;
        if (turn < 400) {
            sched_yield();
        } else {
            struct timespec pause = {0, turn < 2000 ? 20000 : 500000};
            nanosleep(&pause, NULL);
        }
    }
}

static bool get_registers(struct session *session, struct user_regs_struct *registers) {
    if (ptrace(PTRACE_GETREGS, session->plan->tid, NULL, registers) == 0) return true;
    return fail(session, LAG_INJECT_ENDED, errno, NULL);
}

static bool set_registers(struct session *session, const struct user_regs_struct *registers) {
    if (ptrace(PTRACE_SETREGS, session->plan->tid, NULL, registers) == 0) return true;
    return fail(session, LAG_INJECT_ENDED, errno, NULL);
}

static bool read_target(struct session *session, uint64_t address, void *into, size_t bytes) {
    struct iovec local = {into, bytes}, remote = {(void *)address, bytes};
    return process_vm_readv(session->plan->pid, &local, 1, &remote, 1, 0) == (ssize_t)bytes;
}

static bool is_wait(long number) {
    switch (number) {
    case SYS_epoll_wait:
    case SYS_epoll_pwait:
    case 441: /* epoll_pwait2 */
    case SYS_poll:
    case SYS_ppoll:
    case SYS_select:
    case SYS_pselect6: return true;
    default: return false;
    }
}

/* Calls whose EINTR means that nothing was done: the kernel may start them again. As in ThreadTrace.swift. */
static bool is_repeatable(long number) {
    static const short calls[] = {0,  1,  19, 20, 43,  44,  45,  46,  47,  65,  128,
                                  208, 220, 232, 281, 288, 299, 307, 333, 426, 441};
    for (size_t i = 0; i < sizeof calls / sizeof calls[0]; i++)
        if (calls[i] == number) return true;
    return false;
}

/* The instruction before the program counter is the one that entered the kernel. */
static bool entered_by_syscall(struct session *session, const struct user_regs_struct *registers) {
    uint8_t code[2] = {0, 0};
    return read_target(session, registers->rip - 2, code, 2) && code[0] == 0x0f && code[1] == 0x05;
}

/* ---- coming to a wait ------------------------------------------------------------------------------------------ */

/* Gives an interrupted wait with a time-out its rest. False where that cannot be said in a register. */
static bool shorten(struct session *session, struct user_regs_struct *registers, long call) {
    unsigned long long *register_of_time = call == SYS_poll ? &registers->rdx : &registers->r10;
    if (call == 441) return registers->r10 == 0;
    /* select, pselect and ppoll write their rest back themselves. */
    if (call != SYS_poll && call != SYS_epoll_wait && call != SYS_epoll_pwait) return true;
    int32_t wanted = (int32_t)*register_of_time;
    if (wanted <= 0) return true;
    /* Not known: it looks once more and comes back, as a loop whose timer is due. Longer it must never wait. */
    int64_t passed = session->slept < 0 ? INT32_MAX : (session->slept + (int64_t)(now_ns() - session->slept_at)) / 1000000;
    int64_t rest = wanted - passed;
    if (rest < 0) rest = 0;
    if (rest > wanted) rest = wanted;
    *register_of_time = (unsigned long long)rest;
    return true;
}

/* Stops the thread in a wait, or at the entrance of its next one; `registers` then repeat that wait when restored. */
static bool come_to_wait(struct session *session, struct user_regs_struct *registers) {
    const struct lag_inject_plan *plan = session->plan;
    /* Asked before the stop, which wakes it. Where it has begun another wait since, that one ends too early. */
    session->slept = lag_inject_slept_ns(plan->pid, plan->tid);
    session->slept_at = now_ns();
    if (ptrace(PTRACE_SEIZE, plan->tid, NULL, (void *)PTRACE_O_TRACESYSGOOD) != 0)
        return fail(session, errno == ESRCH ? LAG_INJECT_ENDED : LAG_INJECT_REFUSED, errno, NULL);
    step(session, 1);
    if (ptrace(PTRACE_INTERRUPT, plan->tid, NULL, NULL) != 0) return fail(session, LAG_INJECT_ENDED, errno, NULL);
    int status = next_stop(session, PTRACE_CONT, now_ns() + plan->stop_limit_ns);
    if (status == 0) return fail(session, LAG_INJECT_MISSED, 0, NULL);
    if (status < 0) return fail(session, LAG_INJECT_ENDED, 0, NULL);
    if (WSTOPSIG(status) != SIGTRAP) return fail(session, LAG_INJECT_STOPPED, 0, NULL);
    step(session, 2);
    if (!get_registers(session, registers)) return false;
    long call = (long)registers->orig_rax;
    long code = (long)registers->rax;
    bool was_cut = call >= 0 && (code == -EINTR || code == -ERESTARTNOHAND_CODE || code == -ERESTART_BLOCK_CODE);
    if (was_cut && is_wait(call) && entered_by_syscall(session, registers) && shorten(session, registers, call)) {
        registers->rip -= 2;
        registers->rax = (unsigned long long)call;
        return true;
    }
    /* Elsewhere: it goes on with what it does, and is met where it waits next. */
    if (call >= 0 && code == -EINTR && is_repeatable(call)) {
        struct user_regs_struct again = *registers;
        again.rax = (unsigned long long)-ERESTARTNOHAND_CODE;
        if (!set_registers(session, &again)) return false;
    }
    uint64_t deadline = now_ns() + plan->ride_limit_ns;
    for (uint32_t calls = 0; calls < 2 * RIDE_CALLS; calls++) {
        if (!resume(session, PTRACE_SYSCALL, 0)) return false;
        status = next_stop(session, PTRACE_SYSCALL, deadline);
        if (status < 0) return fail(session, LAG_INJECT_ENDED, 0, NULL);
        if (status == 0) return fail(session, LAG_INJECT_MISSED, 0, NULL);
        if (WSTOPSIG(status) != SYSCALL_TRAP) {
            if (WSTOPSIG(status) != SIGTRAP) return fail(session, LAG_INJECT_STOPPED, 0, NULL);
            continue;
        }
        if (!get_registers(session, registers)) return false;
        if ((long)registers->rax != -ENOSYS) continue; /* on its way out */
        session->result->rode += 1;
        if (!is_wait((long)registers->orig_rax) || !entered_by_syscall(session, registers)) continue;
        registers->rax = registers->orig_rax;
        registers->rip -= 2;
        return true;
    }
    return fail(session, LAG_INJECT_MISSED, 0, NULL);
}

/* ---- the frame that puts everything back ------------------------------------------------------------------------ */

static bool lay_frame(struct session *session, const struct user_regs_struct *registers) {
    pid_t tid = session->plan->tid;
    /* The C library's thread control block begins with a pointer, and holds its own address at 16. */
    uint64_t self = 0;
    if (registers->fs_base == 0 || !read_target(session, registers->fs_base + 16, &self, 8) ||
        self != registers->fs_base)
        return fail(session, LAG_INJECT_UNSAFE, 0, "it is no thread of the C library");
    uint8_t state[LAG_FRAME_STATE_MOST] __attribute__((aligned(64)));
    struct iovec vector = {state, sizeof state};
    if (ptrace(PTRACE_GETREGSET, tid, (void *)NT_X86_XSTATE, &vector) != 0 || vector.iov_len < 576)
        return fail(session, LAG_INJECT_UNSAFE, errno, "its floating-point state cannot be read");
    uint64_t mask = 0;
    if (ptrace(PTRACE_GETSIGMASK, tid, (void *)sizeof mask, &mask) != 0)
        return fail(session, LAG_INJECT_UNSAFE, errno, "its signal mask cannot be read");
    uint8_t buffer[LAG_FRAME_MOST] __attribute__((aligned(16)));
    struct lag_frame_place place;
    if (!lag_frame_build(registers, state, (uint32_t)vector.iov_len, mask, session->plan->restorer, buffer, &place))
        return fail(session, LAG_INJECT_UNSAFE, 0, "its floating-point state is too large");
    uint64_t frame = place.frame, total = place.bytes;
    struct iovec local = {buffer, total}, remote = {(void *)frame, total};
    if (process_vm_writev(session->plan->pid, &local, 1, &remote, 1, 0) != (ssize_t)total)
        return fail(session, LAG_INJECT_UNSAFE, errno, "its stack has no room");
    step(session, 3);

    struct user_regs_struct to_restorer = *registers;
    to_restorer.rsp = frame + 8;
    to_restorer.rip = session->plan->restorer;
    to_restorer.orig_rax = ~0ull; /* no call to restart or to make */
    to_restorer.rax = 0;
    if (!set_registers(session, &to_restorer)) return false;
    session->frame = frame;
    session->name = place.name;
    step(session, 4);
    /* The frame brings the mask back. */
    uint64_t every = ~0ull;
    if (ptrace(PTRACE_SETSIGMASK, tid, (void *)sizeof every, &every) != 0)
        return fail(session, LAG_INJECT_UNSAFE, errno, "its signals cannot be blocked");
    step(session, 5);
    return true;
}

/* ---- system calls in the target --------------------------------------------------------------------------------- */

/* Runs to the entrance of the signal return. */
static bool to_signal_return(struct session *session) {
    uint64_t deadline = now_ns() + session->plan->stop_limit_ns;
    for (int stops = 0; stops < 8; stops++) {
        if (!resume(session, PTRACE_SYSCALL, 0)) return false;
        int status = next_stop(session, PTRACE_SYSCALL, deadline);
        if (status < 0) return fail(session, LAG_INJECT_ENDED, 0, NULL);
        if (status == 0) return fail(session, LAG_INJECT_MISSED, 0, NULL);
        struct user_regs_struct registers;
        if (!get_registers(session, &registers)) return false;
        if (WSTOPSIG(status) == SYSCALL_TRAP && registers.orig_rax == SYS_rt_sigreturn &&
            (long)registers.rax == -ENOSYS && registers.rip == session->plan->restorer + RESTORER_BYTES)
            return true;
    }
    return fail(session, LAG_INJECT_UNSAFE, 0, "it did not come to its signal return");
}

/* Makes one system call in place of the signal return that the thread is about to make, and comes back there. */
static bool call_in_target(struct session *session, const char *name, uint32_t first_step, long number,
                           const uint64_t arguments[6], uint64_t *answer) {
    struct user_regs_struct registers;
    if (!get_registers(session, &registers)) return false;
    registers.orig_rax = (unsigned long long)number;
    registers.rip = session->plan->restorer;
    registers.rsp = session->frame + 8;
    registers.rdi = arguments[0];
    registers.rsi = arguments[1];
    registers.rdx = arguments[2];
    registers.r10 = arguments[3];
    registers.r8 = arguments[4];
    registers.r9 = arguments[5];
    if (!set_registers(session, &registers)) return false;
    step(session, first_step);
    if (!resume(session, PTRACE_SYSCALL, 0)) return false;
    int status = next_stop(session, PTRACE_SYSCALL, now_ns() + session->plan->stop_limit_ns);
    if (status <= 0) return fail(session, status < 0 ? LAG_INJECT_ENDED : LAG_INJECT_MISSED, 0, NULL);
    if (!get_registers(session, &registers)) return false;
    step(session, first_step + 1);
    *answer = registers.rax;
    if (!to_signal_return(session)) return false;
    if (*answer > (uint64_t)-4096) return fail(session, LAG_INJECT_CALL_FAILED, (int)-(int64_t)*answer, name);
    return true;
}

/* Lets the thread go back to its wait: it stands before its signal return, or does not need one yet. */
static void let_go(struct session *session) {
    if (!session->is_stopped) return; /* the end of this thread takes the tracing back */
    session->result->stopped_ns += now_ns() - session->stopped_since;
    session->is_stopped = false;
    (void)ptrace(PTRACE_DETACH, session->plan->tid, NULL, NULL);
}

static bool write_memory(int fd, const void *bytes, uint64_t count, uint64_t offset) {
    for (uint64_t done = 0; done < count;) {
        ssize_t n = pwrite(fd, (const char *)bytes + done, count - done, (off_t)(offset + done));
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return false;
        done += (uint64_t)n;
    }
    return true;
}

/* Makes the memory file, fills it, maps the stub and points the thread at it. */
static bool install(struct session *session) {
    const struct lag_inject_plan *plan = session->plan;
    enum { CLOEXEC = 1, NOEXEC_SEAL = 8 };
    uint64_t descriptor;
    if (lag_stub_end - lag_stub_begin != STUB_SPACE) return fail(session, LAG_INJECT_UNSAFE, 0, "the stub has another size");
    if (!to_signal_return(session)) return false;
    step(session, 6);
    if (!call_in_target(session, "memfd_create", 7, SYS_memfd_create, (uint64_t[6]){session->name, CLOEXEC},
                        &descriptor)) {
        /* vm.memfd_noexec=2 wants the seal, which keeps execve out and not the loader. */
        if (session->result->outcome != LAG_INJECT_CALL_FAILED || session->result->code != EACCES) return false;
        session->result->outcome = LAG_INJECT_DONE;
        if (!call_in_target(session, "memfd_create", 7, SYS_memfd_create,
                            (uint64_t[6]){session->name, CLOEXEC | NOEXEC_SEAL}, &descriptor))
            return false;
    }
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/task/%d/fd/%d", plan->pid, plan->tid, (int)descriptor);
    session->memory = open(path, O_RDWR | O_CLOEXEC);
    uint64_t stub_offset = (plan->image_bytes + PAGE_BYTES - 1) & ~(uint64_t)(PAGE_BYTES - 1);
    session->control_offset = stub_offset + PAGE_BYTES;
    uint8_t page[PAGE_BYTES] __attribute__((aligned(8))) = {0};
    memcpy(page, lag_stub_begin, (size_t)(lag_stub_end - lag_stub_begin));
    struct stub_parameters *parameters = (struct stub_parameters *)(page + STUB_SPACE);
    parameters->frame = session->frame;
    parameters->control_offset = session->control_offset;
    parameters->descriptor = descriptor;
    parameters->dlopen = plan->image_bytes != 0 ? plan->dlopen : 0;
    parameters->mode = plan->dlopen_mode;
    parameters->entry = plan->entry;
    parameters->dlerror = plan->dlerror;
    parameters->errno_location = plan->errno_location;
    parameters->munmap = plan->munmap;
    for (int i = 0; i < LAG_INJECT_STALE; i++)
        parameters->stale[i] = plan->stale[i] == (int)descriptor ? -1 : plan->stale[i];
    /* A spelling of its own: the loader takes objects of one name for one object. */
    snprintf(parameters->path, PATH_BYTES, "/proc/self/./fd/%d", (int)descriptor);
    if (plan->variables_bytes <= LAG_INJECT_VARIABLES) {
        parameters->variables_bytes = plan->variables_bytes;
        memcpy(parameters->variables, plan->variables, plan->variables_bytes);
    }
    if (session->memory < 0 || ftruncate(session->memory, (off_t)(session->control_offset + PAGE_BYTES)) != 0 ||
        !write_memory(session->memory, plan->image, plan->image_bytes, 0) ||
        !write_memory(session->memory, page, sizeof page, stub_offset)) {
        int code = errno;
        uint64_t ignored;
        (void)call_in_target(session, "close", 0, SYS_close, (uint64_t[6]){descriptor}, &ignored);
        return fail(session, LAG_INJECT_FILL_FAILED, code, NULL);
    }
    step(session, 9);
    uint64_t stub;
    enum { READ_EXECUTE = 5, PRIVATE = 2 };
    if (!call_in_target(session, "mmap", 10, SYS_mmap,
                        (uint64_t[6]){0, PAGE_BYTES, READ_EXECUTE, PRIVATE, descriptor, stub_offset}, &stub)) {
        if (session->result->outcome != LAG_INJECT_CALL_FAILED) return false;
        int code = session->result->code;
        uint64_t ignored;
        (void)call_in_target(session, "close", 0, SYS_close, (uint64_t[6]){descriptor}, &ignored);
        return fail(session, LAG_INJECT_CALL_FAILED, code, "mmap");
    }
    struct user_regs_struct registers;
    if (!get_registers(session, &registers)) return false;
    registers.orig_rax = ~0ull; /* no signal return yet */
    registers.rax = 0;
    registers.rip = stub;
    registers.rsp = session->frame;
    if (!set_registers(session, &registers)) return false;
    step(session, 12);
    return true;
}

/* Waits for the stub's word. */
static void await(struct session *session, uint64_t held_until) {
    struct lag_inject_result *result = session->result;
    uint64_t deadline = held_until + session->plan->load_limit_ns;
    struct control control;
    for (;;) {
        memset(&control, 0, sizeof control);
        (void)pread(session->memory, &control, sizeof control, (off_t)session->control_offset);
        if (control.state == 2) break;
        uint64_t now = now_ns();
        if (now >= deadline || (syscall(SYS_tgkill, session->plan->pid, session->plan->tid, 0) != 0 && errno == ESRCH)) {
            result->stopped_ns += now - held_until;
            (void)fail(session, now >= deadline ? LAG_INJECT_SLOW : LAG_INJECT_ENDED, 0, NULL);
            return;
        }
        struct timespec pause = {0, 50000};
        nanosleep(&pause, NULL);
    }
    uint64_t now = now_ns();
    /* In a time namespace its clock is not ours: then our own look has to do. */
    bool is_sane = control.ended_ns >= held_until && control.ended_ns <= now;
    result->stopped_ns += (is_sane ? control.ended_ns : now) - held_until;
    result->answer = (uint32_t)control.answer;
    control.message[sizeof control.message - 1] = 0;
    if (control.answer == ~0ull) {
        (void)fail(session, LAG_INJECT_LOAD_FAILED, 0, control.message);
    } else if (control.answer == ~1ull) {
        (void)fail(session, LAG_INJECT_CALL_FAILED, (int)control.handle, "mmap");
    }
}

static void *run(void *argument) {
    struct session *session = argument;
    struct user_regs_struct registers;
    bool is_in = come_to_wait(session, &registers);
    bool is_laid = is_in && lay_frame(session, &registers);
    if (is_laid) {
        bool is_installed = install(session);
        session->result->held_ns = session->result->stopped_ns + (session->is_stopped ? now_ns() - session->stopped_since : 0);
        uint64_t held_until = now_ns();
        let_go(session);
        step(session, 13);
        if (is_installed) await(session, held_until);
    } else {
        /* Registers that were changed for the frame repeat the wait; else the wait itself has to be repeated. */
        if (is_in && session->frame == 0 && session->is_stopped) {
            registers.orig_rax = ~0ull;
            (void)set_registers(session, &registers);
        }
        let_go(session);
    }
    if (session->memory >= 0) close(session->memory);
    return NULL;
}

void lag_inject(const struct lag_inject_plan *plan, struct lag_inject_result *result) {
    memset(result, 0, sizeof *result);
    struct session session = {.plan = plan, .result = result, .memory = -1};
    pthread_t thread;
    int status = pthread_create(&thread, NULL, run, &session);
    if (status != 0) {
        (void)fail(&session, LAG_INJECT_REFUSED, status, NULL);
        return;
    }
    pthread_join(thread, NULL);
}
