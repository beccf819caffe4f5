/* The system calls that the agent's Swift needs, in shapes that Embedded Swift can call, and the watchdog's thread.
 * Runs on the watchdog and on the thread that starts the agent. Opens nothing that it does not close, except the
 * segment's memfd.
 */
#include "internal.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

LAG_SMALL_CODE_BEGIN

static uint32_t on_duty;

bool lag_thread_go_on_duty(void) {
    uint32_t nobody = 0;
    return __atomic_compare_exchange_n(&on_duty, &nobody, 1, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
}

void lag_thread_go_off_duty(void) { __atomic_store_n(&on_duty, 0, __ATOMIC_RELEASE); }

static void (*watchdog_body)(void *);

static void *run_thread(void *argument) {
    lag_thread_self()->in_setup = 1; /* whatever this thread waits in is nobody's loop */
    (void)prctl(PR_SET_NAME, "looplag");
    watchdog_body(argument);
    return NULL;
}

static bool start_thread(void *(*routine)(void *), void *argument) {
    pthread_attr_t attributes;
    if (pthread_attr_init(&attributes) != 0) return false;
    (void)pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    sigset_t all, old;
    sigfillset(&all);
    bool started = false;
    /* The new thread inherits the mask: no signal of the host's may ever run on it. */
    if (pthread_sigmask(SIG_SETMASK, &all, &old) == 0) {
        /* glibc takes the host's static TLS out of the stack, and some have a lot; untouched pages cost nothing. */
        for (size_t bytes = 512 << 10; !started && bytes <= 8 << 20; bytes <<= 2) {
            pthread_t thread;
            (void)pthread_attr_setstacksize(&attributes, bytes);
            started = pthread_create(&thread, &attributes, routine, argument) == 0;
        }
        (void)pthread_sigmask(SIG_SETMASK, &old, NULL);
    }
    pthread_attr_destroy(&attributes);
    return started;
}

bool lag_thread_start(void (*body)(void *), void *argument) {
    watchdog_body = body; /* always the same one */
    return start_thread(run_thread, argument);
}

static void *run_late_start(void *delay) {
    lag_thread_self()->in_setup = 1;
    (void)prctl(PR_SET_NAME, "looplag");
    if (delay != NULL) lag_sleep_until(lag_now() + (uint64_t)delay);
    if (lag_life_state() == LAG_LIFE_ARMED) (void)lag_life_start_now();
    return NULL;
}

bool lag_thread_start_late(uint64_t delay_ns) { return start_thread(run_late_start, (void *)delay_ns); }

bool lag_thread_exists(int32_t tid) {
    return lag_syscall6(SYS_tgkill, getpid(), tid, 0, 0, 0, 0) != -ESRCH;
}

#ifndef SYS_close_range
#define SYS_close_range 436
#endif

/* While the watchdog shares the host's descriptor table the host may close what it opened and reuse the number at any
 * moment: then every use is preceded by a look whether the descriptor still lies in /proc. */
static bool descriptors_are_shared = true;

static bool is_still_ours(int fd) {
    struct statfs status;
    return !descriptors_are_shared || (syscall(SYS_fstatfs, fd, &status) == 0 && status.f_type == PROC_SUPER_MAGIC);
}

/* Where close_range is unknown (before Linux 5.9): a copy of the whole table, closed number by number. */
static bool private_descriptors_one_by_one(int keep) {
    enum { CLONE_FILES_FLAG = 0x400 };
    char text[4096];
    long n = lag_file_read("/proc/thread-self/status", text, sizeof text - 1);
    if (n <= 0) return false;
    text[n] = 0;
    const char *line = strstr(text, "\nFDSize:");
    long size = line != NULL ? strtol(line + 8, NULL, 10) : 0;
    if (size <= 0 || syscall(SYS_unshare, CLONE_FILES_FLAG) != 0) return false;
    for (long fd = 0; fd < size; fd++)
        if (fd != keep) (void)close((int)fd);
    return true;
}

bool lag_thread_private_descriptors(int keep) {
    enum { UNSHARE = 2 }; /* CLOSE_RANGE_UNSHARE: the new table is made without the closed ones, nothing is flushed */
    bool done;
    descriptors_are_shared = true;
    if (keep <= 0) {
        done = syscall(SYS_close_range, keep < 0 ? 0u : 1u, ~0u, UNSHARE) == 0;
    } else {
        done = syscall(SYS_close_range, (unsigned)keep + 1, ~0u, UNSHARE) == 0 &&
               syscall(SYS_close_range, 0u, (unsigned)keep - 1, 0) == 0;
    }
    if (!done) done = private_descriptors_one_by_one(keep);
    descriptors_are_shared = !done;
    return done;
}

uint64_t lag_clock_now(void) { return lag_now(); }

static uint64_t read_clock(clockid_t clock) {
    struct timespec t = {0, 0};
    clock_gettime(clock, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

uint64_t lag_clock_realtime(void) { return read_clock(CLOCK_REALTIME); }
uint64_t lag_clock_thread_cpu(void) { return read_clock(CLOCK_THREAD_CPUTIME_ID); }

void lag_sleep_until(uint64_t ns) {
    struct timespec until = {(time_t)(ns / 1000000000u), (long)(ns % 1000000000u)};
    (void)clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
}

int32_t lag_gettid(void) { return (int32_t)syscall(SYS_gettid); }
int32_t lag_getpid(void) { return (int32_t)getpid(); }
uint32_t lag_geteuid(void) { return (uint32_t)geteuid(); }

int lag_file_open(const char *path) {
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
    return fd >= 0 ? fd : -errno;
}

long lag_file_next(int fd, void *into, size_t capacity) {
    if (!is_still_ours(fd)) return -EBADF;
    ssize_t n;
    do n = read(fd, into, capacity);
    while (n < 0 && errno == EINTR);
    return n >= 0 ? n : -errno;
}

void lag_file_close(int fd) {
    if (is_still_ours(fd)) (void)close(fd);
}

long lag_file_read_at(int fd, uint64_t offset, void *into, size_t bytes) {
    long n = lag_syscall6(SYS_pread64, fd, (long)into, (long)bytes, (long)offset, 0, 0);
    return n;
}

long lag_file_read(const char *path, void *into, size_t capacity) {
    int fd = lag_file_open(path);
    if (fd < 0) return fd;
    long n = lag_file_next(fd, into, capacity);
    lag_file_close(fd);
    return n;
}

long lag_link_read(const char *path, void *into, size_t capacity) {
    ssize_t n = readlink(path, into, capacity);
    return n >= 0 ? n : -errno;
}

uint64_t lag_file_inode(const char *path) {
    struct stat status;
    return stat(path, &status) == 0 ? status.st_ino : 0;
}

/* The environment is read once, when the agent is armed: in the preload object before main, when no other thread can
 * be inside setenv. */
static struct {
    const char *name;
    char value[256];
} variables[] = {{"LOOPLAG_THRESHOLD", ""}, {"LOOPLAG_DIR", ""},    {"LOOPLAG_WAITS", ""},
                 {"LOOPLAG_SIGNAL", ""},    {"LOOPLAG_STACKS", ""}, {"LOOPLAG_DISABLE", ""},
                 {"LOOPLAG_BUDGET", ""}};

static void set_variable(size_t i, const char *value) {
    size_t bytes = value != NULL ? strlen(value) : 0;
    if (bytes >= sizeof variables[i].value) bytes = 0; /* half a value is none */
    if (bytes != 0) memcpy(variables[i].value, value, bytes);
    variables[i].value[bytes] = 0;
}

static bool were_taken; /* then the process's own, which may change at any moment, is not looked at again */

void lag_env_remember(void) {
    if (were_taken) return;
    for (size_t i = 0; i < sizeof variables / sizeof variables[0]; i++) set_variable(i, getenv(variables[i].name));
}

bool lag_env_take(const char *block, size_t bytes) {
    if (block == NULL || bytes == 0 || block[bytes - 1] != 0) return false;
    bool is_known = false;
    were_taken = true;
    for (size_t i = 0; i < sizeof variables / sizeof variables[0]; i++) set_variable(i, NULL);
    for (const char *text = block; text < block + bytes; text += strlen(text) + 1) {
        const char *sign = strstr(text, "=");
        if (sign == NULL) continue;
        size_t name = (size_t)(sign - text);
        if (name == 3 && memcmp(text, "ABI", 3) == 0) is_known = strtol(sign + 1, NULL, 10) == LAG_ABI_VERSION;
        for (size_t i = 0; i < sizeof variables / sizeof variables[0]; i++)
            if (strlen(variables[i].name) == name && memcmp(variables[i].name, text, name) == 0)
                set_variable(i, sign + 1);
    }
    return is_known;
}

const char *lag_env(const char *name) {
    for (size_t i = 0; i < sizeof variables / sizeof variables[0]; i++)
        if (strcmp(variables[i].name, name) == 0 && variables[i].value[0] != 0) return variables[i].value;
    return NULL;
}

static void *map_segment(int fd, size_t bytes, int *error) {
    /* Beyond a host's limit on file sizes the kernel would send it SIGXFSZ. */
    struct rlimit64 limit;
    if (syscall(SYS_prlimit64, 0, RLIMIT_FSIZE, NULL, &limit) == 0 && limit.rlim_cur < bytes) {
        *error = -EFBIG;
        return NULL;
    }
    /* Reserved now, so that a full tmpfs is an error here and never a SIGBUS later. */
    int refused = posix_fallocate(fd, 0, (off_t)bytes);
    if (refused != 0) {
        *error = -refused;
        return NULL;
    }
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (memory == MAP_FAILED) {
        *error = -errno;
        return NULL;
    }
    (void)madvise(memory, bytes, MADV_DONTFORK);
    return memory;
}

void *lag_segment_create(const char *path, size_t bytes, int *error) {
    int flags = O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC;
    int fd = open(path, flags, 0600);
    if (fd < 0 && errno == EEXIST && unlink(path) == 0) {
        /* Our own pid and start time: what this process left before an exec. */
        fd = open(path, flags, 0600);
    }
    if (fd < 0) {
        *error = -errno;
        return NULL;
    }
    (void)fchmod(fd, 0600); /* whatever the umask took away */
    void *memory = map_segment(fd, bytes, error);
    if (memory == NULL) unlink(path);
    close(fd);
    return memory;
}

void *lag_segment_create_memfd(size_t bytes, int *fd, int *error) {
    *fd = (int)syscall(SYS_memfd_create, "looplag", 1u /* MFD_CLOEXEC */);
    if (*fd < 0) {
        *error = -errno;
        return NULL;
    }
    (void)fchmod(*fd, 0600);
    void *memory = map_segment(*fd, bytes, error);
    if (memory == NULL) {
        close(*fd);
        *fd = -1;
    }
    return memory;
}

void lag_segment_abandon(void *memory, size_t bytes) {
    (void)mmap(memory, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
}

void *lag_memory_zeroed(size_t bytes) {
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return memory == MAP_FAILED ? NULL : memory;
}

void lag_memory_free(void *memory, size_t bytes) { (void)munmap(memory, bytes); }

uint32_t lag_runtime_detect(const char **version) {
    *version = NULL;
    lag_v8_resolve();
    if (lag_v8_is_present()) {
        *version = lag_v8_node_version();
        return LAG_RUNTIME_NODE;
    }
    const char *(*python)(void) = (const char *(*)(void))dlsym(RTLD_DEFAULT, "Py_GetVersion");
    if (python != NULL) {
        *version = python(); /* a static string, made without the GIL */
        lag_python_detect(*version);
        lag_python_prepare_check();
        lag_families |= LAG_FAMILY_PYTHON;
        return LAG_RUNTIME_CPYTHON;
    }
    if (lag_life_mode() == LAG_MODE_LINKED || dlsym(RTLD_DEFAULT, "swift_retain") != NULL) return LAG_RUNTIME_SWIFT;
    return LAG_RUNTIME_NATIVE;
}

uint32_t lag_runtime_thread_role(void) {
    if (!lag_v8_is_present()) return LAG_ROLE_UNKNOWN;
    return lag_v8_current_isolate() != 0 ? LAG_ROLE_SERVER : LAG_ROLE_HELPER;
}

LAG_SMALL_CODE_END
