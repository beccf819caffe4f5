/* Python frames of an interpreter whose structures are not known, or are not what they should be: its own faulthandler
 * writes them as text, when the capture handler asks it to.
 *
 * `lag_fallback_register` runs in a pending call, on the interpreter's main thread with its lock held. It registers
 * faulthandler on a realtime signal that nobody ever sends, with a sealed memfd for its output, and keeps the address of
 * the handler. `lag_fallback_dump` calls that handler, on the main thread inside the capture handler; it is made for
 * being called anywhere. It follows the interpreter's pointers, though, without asking whether it may: 3.11 and 3.12
 * leave one of them unset for some instructions, so this stays off there, and before 3.7. Only the main thread is ever
 * sampled so: it alone cannot be inside the handler while the interpreter shuts down and frees what the handler reads.
 */
#include "internal.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <linux/memfd.h>
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

LAG_SMALL_CODE_BEGIN

enum { TEXT_BYTES = 64 << 10, HIGH_DESCRIPTOR = 1000 };

/* As the kernel takes it. */
struct kernel_action {
    uint64_t handler, flags, restorer, mask;
};

static struct {
    uint32_t ready;
    int signal;
    int fd;
    dev_t device;
    ino_t inode;
    uint64_t handler;
    uint64_t thread;
    const uint8_t *text;
} fallback = {.fd = -1};

static struct kernel_action action_of(int number) {
    struct kernel_action action = {0, 0, 0, 0};
    if (lag_syscall6(SYS_rt_sigaction, number, 0, (long)&action, 8, 0, 0) != 0) action.handler = (uint64_t)SIG_IGN;
    return action;
}

/* A host may have closed the descriptor and have another file under its number. */
static bool is_ours(void) {
    struct stat now;
    return lag_syscall6(SYS_fstat, fallback.fd, (long)&now, 0, 0, 0, 0) == 0 && now.st_dev == fallback.device &&
           now.st_ino == fallback.inode;
}

void lag_fallback_forget(void) {
    __atomic_store_n(&fallback.ready, 0, __ATOMIC_RELEASE);
    if (fallback.text != NULL) munmap((void *)fallback.text, TEXT_BYTES);
    if (fallback.fd >= 0 && is_ours()) close(fallback.fd);
    fallback.text = NULL;
    fallback.fd = -1;
}

static bool make_file(void) {
    int fd = (int)syscall(SYS_memfd_create, "looplag-python", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0) return false;
    int high = fcntl(fd, F_DUPFD_CLOEXEC, HIGH_DESCRIPTOR);
    if (high >= 0) {
        close(fd);
        fd = high;
    }
    fallback.fd = fd;
    struct stat made;
    if (syscall(SYS_ftruncate, fd, TEXT_BYTES) != 0 ||
        fcntl(fd, F_ADD_SEALS, F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL) != 0 ||
        lag_syscall6(SYS_fstat, fd, (long)&made, 0, 0, 0, 0) != 0)
        return false;
    fallback.device = made.st_dev;
    fallback.inode = made.st_ino;
    void *text = mmap(NULL, TEXT_BYTES, PROT_READ, MAP_SHARED | MAP_POPULATE, fd, 0);
    if (text == MAP_FAILED) return false;
    fallback.text = text;
    return true;
}

static bool is_safe(uint32_t version) {
    uint32_t minor = version >> 16 & 0xff;
    return version >> 24 == 3 && minor >= 7 && minor != 11 && minor != 12;
}

void lag_fallback_register(uint32_t version) {
    void *(*import)(const char *) = (void *(*)(const char *))dlsym(RTLD_DEFAULT, "PyImport_ImportModule");
    void *(*call)(void *, const char *, const char *, ...) =
        (void *(*)(void *, const char *, const char *, ...))dlsym(RTLD_DEFAULT, "PyObject_CallMethod");
    void (*clear)(void) = (void (*)(void))dlsym(RTLD_DEFAULT, "PyErr_Clear");
    void (*release)(void *) = (void (*)(void *))dlsym(RTLD_DEFAULT, "Py_DecRef");
    if (!is_safe(version) || import == NULL || call == NULL || clear == NULL || release == NULL) return;
    int number = SIGRTMAX;
    while (number > SIGRTMIN && action_of(number).handler != (uint64_t)SIG_DFL) number -= 1;
    if (fallback.ready || number == SIGRTMIN || !make_file()) {
        if (!fallback.ready) lag_fallback_forget();
        return;
    }
    fallback.signal = number;
    fallback.thread = (uint64_t)pthread_self();
    void *module = import("faulthandler");
    /* The descriptor; not all threads; without the handler before. */
    void *result = module != NULL ? call(module, "register", "iiii", number, fallback.fd, 0, 0) : NULL;
    if (result != NULL) release(result);
    else clear();
    if (module != NULL) release(module);
    fallback.handler = action_of(number).handler;
    if (result == NULL || fallback.handler <= (uint64_t)SIG_IGN) lag_fallback_forget();
    else __atomic_store_n(&fallback.ready, 1, __ATOMIC_RELEASE);
}

bool lag_fallback_ready(void) { return __atomic_load_n(&fallback.ready, __ATOMIC_ACQUIRE) != 0; }

uint64_t lag_fallback_thread(void) { return fallback.thread; }

uint32_t lag_fallback_dump(void) {
    /* An interpreter that shuts down gives the signal back first, on this thread. */
    if (!lag_fallback_ready() || action_of(fallback.signal).handler != fallback.handler || !is_ours()) return 0;
    lag_syscall6(SYS_lseek, fallback.fd, 0, SEEK_SET, 0, 0, 0);
    ((void (*)(int))fallback.handler)(fallback.signal);
    long end = lag_syscall6(SYS_lseek, fallback.fd, 0, SEEK_CUR, 0, 0, 0);
    return end > 0 && end <= TEXT_BYTES ? (uint32_t)end : 0;
}

const uint8_t *lag_fallback_text(void) { return fallback.text; }

LAG_SMALL_CODE_END
