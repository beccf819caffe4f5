/* Copies the registers and the stack of a thread of this process: by a signal to a running thread, or from outside for
 * a blocked one. Nothing is unwound here; the command line does that.
 *
 * The watchdog asks (one request at a time), the handler runs on the stalled thread. The handler makes raw system calls
 * only: no malloc, lock, lazy TLS, lazy binding, loader call or abort, and it copies at most 64 KiB.
 *
 * A thread that is found running can enter a wait before the signal arrives. Waits of that kind (epoll_wait, poll,
 * nanosleep ...) return EINTR in spite of SA_RESTART. The handler finds that state in the interrupted registers (rax =
 * -EINTR right behind a `syscall`) and rewinds: instruction pointer back by two, rax = the call's number; the kernel
 * has kept every other argument register. So neither a result nor a sleep of the host changes. When a signal of the
 * host's own came in with ours, the kernel shows us that handler's entry instead, and nothing is rewound. From glibc
 * 2.41 on the number is not in the code any more: there such a wait ends with EINTR.
 */
#include "internal.h"

#include <linux/futex.h>
#include <string.h>
#include <sys/uio.h>
#include <ucontext.h>
#include <unistd.h>

LAG_SMALL_CODE_BEGIN

/* The state of a request lies in the two low bits of its cookie: one word, so that a signal that comes late, between
 * two of the handler's own instructions, cannot fill another thread's slot. */
enum { REQUEST_IDLE, REQUEST_WANTED, REQUEST_COPYING, REQUEST_DONE };

static struct lag_capture capture;
static uint64_t request;
static uint64_t request_stack_high;
static uint32_t request_max_bytes;
static uint64_t request_thread_state;
static bool request_fallback;
static int capture_signal;
static uint64_t signals_sent;

/* A sample of Python's frames reads hundreds of times: without this every second system call would be getpid. */
static inline long own_pid(void) {
    const struct lag_live *page = __atomic_load_n(&lag_live_page, __ATOMIC_ACQUIRE);
    long pid = page != NULL ? (long)__atomic_load_n(&page->pid, __ATOMIC_ACQUIRE) : 0;
    return pid != 0 ? pid : lag_syscall6(SYS_getpid, 0, 0, 0, 0, 0, 0);
}

size_t lag_safe_read(uint64_t address, void *into, size_t bytes) {
    /* A vector entry per page: the kernel stops at the first page that is not there and returns what it has. */
    struct iovec remote[17];
    size_t done = 0;
    while (done < bytes) {
        size_t batch = 0;
        unsigned long count = 0;
        while (count < 17 && done + batch < bytes) {
            uint64_t at = address + done + batch;
            size_t piece = 4096 - (at & 4095);
            if (piece > bytes - done - batch) piece = bytes - done - batch;
            remote[count].iov_base = (void *)at;
            remote[count].iov_len = piece;
            batch += piece;
            count += 1;
        }
        struct iovec local = {(char *)into + done, batch};
        long n = lag_syscall6(SYS_process_vm_readv, own_pid(), (long)&local, 1, (long)remote, (long)count, 0);
        if (n <= 0) break;
        done += (size_t)n;
        if ((size_t)n < batch) break;
    }
    return done;
}

bool lag_safe_read_works(void) {
    uint64_t probe = 0x6c61672d70726f62ULL, copy = 0;
    return lag_safe_read((uint64_t)&probe, &copy, sizeof copy) == sizeof copy && copy == probe;
}

static void copy_stack(uint64_t sp, uint64_t stack_high, uint32_t max_bytes) {
    uint64_t wanted = max_bytes < sizeof capture.stack ? max_bytes : sizeof capture.stack;
    capture.truncated = 1;
    if (stack_high > sp && stack_high - sp <= wanted) {
        wanted = stack_high - sp;
        capture.truncated = 0;
    }
    capture.stack_base = sp;
    capture.stack_bytes = (uint32_t)lag_safe_read(sp, capture.stack, wanted) & ~7u;
    if (capture.stack_bytes < wanted && stack_high == 0) capture.truncated = 0; /* ran into the stack's end */
}

/* Calls that a handled signal ends early whatever SA_RESTART says (signal(7)), and that may be made again. */
static bool is_cut_short(uint32_t nr) {
    switch (nr) {
    case SYS_epoll_wait:
    case SYS_epoll_pwait:
    case 441: /* epoll_pwait2 */
    case SYS_poll:
    case SYS_ppoll:
    case SYS_select:
    case SYS_pselect6:
    case SYS_nanosleep:
    case SYS_clock_nanosleep:
    case SYS_futex:
    case SYS_recvfrom:
    case SYS_recvmsg:
    case SYS_recvmmsg:
    case SYS_sendto:
    case SYS_sendmsg:
    case SYS_accept:
    case SYS_accept4:
    case SYS_rt_sigtimedwait:
    case SYS_semop:
    case SYS_semtimedop:
    case SYS_msgrcv:
    case SYS_msgsnd:
    case SYS_io_getevents:
    case 426: /* io_uring_enter */
        return true;
    default:
        return false;
    }
}

/* The number of the call that ends at `pc`, from the instruction that loaded it: glibc writes `mov $nr, %eax` a few
 * bytes ahead of `syscall`. 0 is read(2), which is never cut short, so it means "not found". */
static uint32_t call_number(uint64_t pc) {
    enum { REACH = 27 };
    uint8_t code[REACH];
    /* Any code may hold -4 in rax: it can begin a page, and it need not be readable. */
    if (lag_safe_read(pc - REACH, code, sizeof code) != sizeof code) return 0;
    const uint8_t *after = code + REACH;
    if (after[-2] != 0x0f || after[-1] != 0x05) return 0;
    for (int back = 7; back < REACH; back++) {
        const uint8_t *at = after - back;
        if (at[0] != 0xb8 || at[-1] == 0x41) continue;
        uint32_t nr;
        memcpy(&nr, at + 1, sizeof nr);
        if (nr < 512) return nr;
    }
    return 0;
}

static void rewind_cut_call(ucontext_t *context) {
    greg_t *regs = context->uc_mcontext.gregs;
    if (regs[REG_RAX] != -EINTR) return;
    uint32_t nr = call_number((uint64_t)regs[REG_RIP]);
    if (nr == 0 || !is_cut_short(nr)) return;
    regs[REG_RAX] = (greg_t)nr;
    regs[REG_RIP] -= 2;
}

static void handle_capture(int signal_number, siginfo_t *info, void *raw) {
    (void)signal_number;
    int saved = errno;
    ucontext_t *context = raw;
    uint64_t cookie = (uint64_t)info->si_value.sival_ptr;
    uint64_t wanted = cookie | REQUEST_WANTED;
    if (info->si_code == SI_QUEUE) rewind_cut_call(context);
    if (info->si_code == SI_QUEUE && (cookie & 3) == 0 &&
        __atomic_compare_exchange_n(&request, &wanted, cookie | REQUEST_COPYING, false, __ATOMIC_ACQ_REL,
                                    __ATOMIC_ACQUIRE)) {
        uint64_t began = lag_now();
        const greg_t *regs = context->uc_mcontext.gregs;
        static const int order[LAG_REGS] = {REG_RAX, REG_RDX, REG_RCX, REG_RBX, REG_RSI, REG_RDI, REG_RBP, REG_RSP,
                                            REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15, REG_RIP};
        for (int i = 0; i < LAG_REGS; i++) capture.regs[i] = (uint64_t)regs[order[i]];
        copy_stack((uint64_t)regs[REG_RSP], request_stack_high, request_max_bytes);
        if (request_thread_state != 0) lag_python_copy(request_thread_state, &capture.python);
        if (request_fallback) capture.fallback_bytes = lag_fallback_dump();
        capture.time_ns = began;
        capture.pause_ns = lag_now() - began;
        __atomic_store_n(&request, cookie | REQUEST_DONE, __ATOMIC_RELEASE);
        lag_syscall6(SYS_futex, (long)&request, FUTEX_WAKE_PRIVATE, 1, 0, 0, 0);
    }
    errno = saved;
}

void lag_capture_prepare(void) { memset(&capture, 0, sizeof capture); }

void lag_capture_wants_python(uint64_t thread_state) {
    request_thread_state = thread_state;
    capture.python.count = 0;
    capture.python.thread_state = 0;
}

void lag_capture_wants_fallback(bool wanted) {
    request_fallback = wanted;
    capture.fallback_bytes = 0;
}

/* Free in node, python, redis and NIO; SIGPROF, SIGURG, SIGUSR1 and SIGUSR2 have owners. */
int lag_signal_default(void) { return SIGRTMIN + 9; }

static bool is_installed(int number) {
    struct sigaction now;
    return number > 0 && sigaction(number, NULL, &now) == 0 && (now.sa_flags & SA_SIGINFO) != 0 &&
           now.sa_sigaction == handle_capture;
}

int lag_capture_install(int first) {
    if (is_installed(capture_signal)) return capture_signal;
    for (int number = first; number <= SIGRTMAX; number++) {
        struct sigaction old;
        if (number < SIGRTMIN || sigaction(number, NULL, &old) != 0) continue;
        if ((old.sa_flags & SA_SIGINFO) != 0 ? old.sa_sigaction != handle_capture : old.sa_handler != SIG_DFL) continue;
        struct sigaction ours = {.sa_flags = SA_SIGINFO | SA_RESTART | SA_ONSTACK};
        ours.sa_sigaction = handle_capture;
        sigfillset(&ours.sa_mask);
        if (sigaction(number, &ours, NULL) != 0) continue;
        capture_signal = number;
        return number;
    }
    capture_signal = 0;
    return 0;
}

void lag_capture_let_in(void) {
    sigset_t mask, ours;
    if (capture_signal == 0 || pthread_sigmask(SIG_SETMASK, NULL, &mask) != 0) return;
    bool is_dispatch = sigismember(&mask, SIGTERM) == 1 && sigismember(&mask, SIGALRM) == 1 &&
                       sigismember(&mask, SIGPROF) == 0;
    if (!is_dispatch || sigismember(&mask, capture_signal) != 1) return;
    sigemptyset(&ours);
    sigaddset(&ours, capture_signal);
    (void)pthread_sigmask(SIG_UNBLOCK, &ours, NULL);
}

uint32_t lag_capture_signal(int32_t tid, uint64_t stack_high, uint32_t max_bytes, uint64_t timeout_ns,
                            const struct lag_capture **result) {
    static uint64_t last_cookie;
    /* The host may have taken the number for itself since. */
    if (!is_installed(capture_signal)) return LAG_DROP_NO_SIGNAL;
    request_stack_high = stack_high;
    request_max_bytes = max_bytes;
    last_cookie += 4;
    uint64_t cookie = last_cookie | 0x4c4c000000000000ULL;
    __atomic_store_n(&request, cookie | REQUEST_WANTED, __ATOMIC_RELEASE);

    siginfo_t info;
    memset(&info, 0, sizeof info);
    info.si_signo = capture_signal;
    info.si_code = SI_QUEUE;
    info.si_pid = getpid();
    info.si_uid = getuid();
    info.si_value.sival_ptr = (void *)cookie;
    if (lag_syscall6(SYS_rt_tgsigqueueinfo, getpid(), tid, capture_signal, (long)&info, 0, 0) != 0) {
        __atomic_store_n(&request, REQUEST_IDLE, __ATOMIC_RELEASE);
        return LAG_DROP_NO_SIGNAL;
    }
    signals_sent += 1;

    uint64_t deadline = lag_now() + timeout_ns;
    for (;;) {
        uint64_t state = __atomic_load_n(&request, __ATOMIC_ACQUIRE);
        if (state == (cookie | REQUEST_DONE)) {
            *result = &capture;
            return LAG_DROP_NONE;
        }
        uint64_t now = lag_now();
        if (now >= deadline) {
            uint64_t wanted = cookie | REQUEST_WANTED;
            if (__atomic_compare_exchange_n(&request, &wanted, REQUEST_IDLE, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
                return LAG_DROP_TIMEOUT;
            /* It is copying at this moment, or was preempted or stopped there: its slot must not be reused before it
             * has left. A debugger may hold it for long. */
            deadline = now + timeout_ns;
        }
        /* Woken by the handler: what it copied points to objects that the thread may be about to free. The state lies
         * in the low half of the word. */
        struct timespec left = {(long)((deadline - now) / 1000000000), (long)((deadline - now) % 1000000000)};
        lag_syscall6(SYS_futex, (long)&request, FUTEX_WAIT_PRIVATE, (long)(uint32_t)state, (long)&left, 0, 0);
    }
}

const struct lag_capture *lag_capture_passive(uint64_t sp, uint64_t pc, uint64_t stack_high, uint32_t max_bytes) {
    memset(capture.regs, 0, sizeof capture.regs);
    capture.regs[LAG_REG_RSP] = sp;
    capture.regs[LAG_REG_RIP] = pc;
    capture.pause_ns = 0;
    capture.time_ns = lag_now();
    copy_stack(sp, stack_high, max_bytes);
    if (request_thread_state != 0) lag_python_copy(request_thread_state, &capture.python);
    return &capture;
}

const struct lag_capture *lag_capture_passive_frame(uint64_t sp, uint64_t pc, uint64_t frame, uint64_t stack_high,
                                                    uint32_t max_bytes) {
    (void)lag_capture_passive(sp, pc, stack_high, max_bytes);
    capture.regs[LAG_REG_RBP] = frame;
    return &capture;
}

uint64_t lag_capture_signals_sent(void) { return signals_sent; }

LAG_SMALL_CODE_END
