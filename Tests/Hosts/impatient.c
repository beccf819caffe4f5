/* Threads that wait in every call which an interruption can cut short, each taking EINTR as the end of the world.
 *
 * Started by the tests of stacks taken from outside. Prints `ready N` with the number of waiting threads, waits until
 * standard input ends, then prints `ok ROUNDS WORST-OVERSHOOT-NS` and exits 0; any EINTR or early return is `cut ...`
 * and exit status 9. */
#include "host.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { WAIT_MS = 7 };

static atomic_int stopping;
static atomic_long rounds;
static _Atomic uint64_t worst;
static int pair[2], listener, semaphores;
static int epoll_fd;

static uint64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static struct timespec wait_time(void) { return (struct timespec){0, WAIT_MS * 1000000L}; }

static int in_epoll(void)
{
    struct epoll_event event;
    return epoll_wait(epoll_fd, &event, 1, WAIT_MS) == 0 ? 0 : errno;
}

static int in_epoll_pwait(void)
{
    struct epoll_event event;
    sigset_t none;
    sigemptyset(&none);
    return epoll_pwait(epoll_fd, &event, 1, WAIT_MS, &none) == 0 ? 0 : errno;
}

static int in_epoll_pwait2(void)
{
    struct epoll_event event;
    struct timespec t = wait_time();
    if (syscall(441, epoll_fd, &event, 1, &t, NULL, 8) == 0)
        return 0;
    return errno == ENOSYS ? in_epoll() : errno;
}

static int in_recv(void)
{
    char byte;
    return recv(pair[0], &byte, 1, 0) < 0 && (errno == EAGAIN || errno == EWOULDBLOCK) ? 0 : errno;
}

static int in_read(void)
{
    char byte;
    return read(pair[0], &byte, 1) < 0 && (errno == EAGAIN || errno == EWOULDBLOCK) ? 0 : errno;
}

static int in_accept(void)
{
    return accept(listener, NULL, NULL) < 0 && (errno == EAGAIN || errno == EWOULDBLOCK) ? 0 : errno;
}

static int in_semtimedop(void)
{
    struct sembuf down = {0, -1, 0};
    struct timespec t = wait_time();
    return semtimedop(semaphores, &down, 1, &t) < 0 && errno == EAGAIN ? 0 : errno;
}

static int in_sigtimedwait(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR2);
    struct timespec t = wait_time();
    return sigtimedwait(&set, NULL, &t) < 0 && errno == EAGAIN ? 0 : errno;
}

static int in_poll(void) { return poll(NULL, 0, WAIT_MS) == 0 ? 0 : errno; }

static int in_select(void)
{
    struct timeval t = {0, WAIT_MS * 1000};
    return select(0, NULL, NULL, NULL, &t) == 0 ? 0 : errno;
}

static int in_nanosleep(void)
{
    struct timespec t = wait_time();
    return nanosleep(&t, NULL) == 0 ? 0 : errno;
}

static int in_clock_nanosleep(void)
{
    struct timespec t = wait_time();
    return clock_nanosleep(CLOCK_MONOTONIC, 0, &t, NULL);
}

static int in_semaphore(void)
{
    static sem_t nobody;
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    t.tv_nsec += WAIT_MS * 1000000L;
    if (t.tv_nsec >= 1000000000L) {
        t.tv_sec += 1;
        t.tv_nsec -= 1000000000L;
    }
    return sem_timedwait(&nobody, &t) < 0 && errno == ETIMEDOUT ? 0 : errno;
}

static int in_user_code(void)
{
    uint64_t end = now() + WAIT_MS * 1000000u;
    volatile unsigned work = 0;
    while (now() < end)
        for (int i = 0; i < 1000; i++)
            work += (unsigned)i;
    return 0;
}

/* Short waits and short work by turns: caught at every edge between the two. */
static int in_turns(void)
{
    struct epoll_event event;
    uint64_t end = now() + WAIT_MS * 1000000u;
    while (now() < end) {
        volatile unsigned work = 0;
        for (int i = 0; i < 20000; i++)
            work += (unsigned)i;
        if (epoll_wait(epoll_fd, &event, 1, 0) != 0 || epoll_wait(epoll_fd, &event, 1, 1) != 0)
            return errno;
    }
    return 0;
}

static const struct {
    const char *name;
    int (*wait)(void);
} waits[] = {
    {"epoll_wait", in_epoll},     {"epoll_pwait", in_epoll_pwait},   {"epoll_pwait2", in_epoll_pwait2},
    {"recv", in_recv},            {"read", in_read},                 {"accept", in_accept},
    {"semtimedop", in_semtimedop}, {"sigtimedwait", in_sigtimedwait}, {"poll", in_poll},
    {"select", in_select},        {"nanosleep", in_nanosleep},       {"clock_nanosleep", in_clock_nanosleep},
    {"sem_timedwait", in_semaphore}, {"user code", in_user_code},    {"turns", in_turns},
};

static void *run(void *argument)
{
    size_t which = (size_t)argument;
    pthread_setname_np(pthread_self(), waits[which].name);
    while (!atomic_load(&stopping)) {
        uint64_t begin = now();
        int error = waits[which].wait();
        uint64_t took = now() - begin;
        /* A socket's time-out and select round to the kernel's tick. */
        if (error != 0 || took + 1000000u < WAIT_MS * 1000000u) {
            printf("cut %s: %s after %llu ns\n", waits[which].name, strerror(error), (unsigned long long)took);
            fflush(stdout);
            _exit(9);
        }
        uint64_t over = took - WAIT_MS * 1000000u;
        if (took > WAIT_MS * 1000000u && over > atomic_load(&worst))
            atomic_store(&worst, over);
        atomic_fetch_add(&rounds, 1);
    }
    return NULL;
}

int main(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR2);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    struct timeval limit = {0, WAIT_MS * 1000};
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    listener = socket(AF_INET, SOCK_STREAM, 0);
    semaphores = semget(IPC_PRIVATE, 1, 0600);
    if (epoll_fd < 0 || semaphores < 0 || socketpair(AF_UNIX, SOCK_STREAM, 0, pair) != 0
        || bind(listener, (struct sockaddr *)&address, sizeof address) != 0 || listen(listener, 1) != 0
        || setsockopt(pair[0], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit) != 0
        || setsockopt(listener, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit) != 0) {
        perror("impatient");
        return 1;
    }
    enum { COUNT = sizeof waits / sizeof waits[0] };
    pthread_t threads[COUNT];
    for (size_t i = 0; i < COUNT; i++)
        pthread_create(&threads[i], NULL, run, (void *)i);
    printf("ready %d\n", (int)COUNT);
    fflush(stdout);
    char buffer[64];
    while (read(STDIN_FILENO, buffer, sizeof buffer) > 0) {
    }
    atomic_store(&stopping, 1);
    for (size_t i = 0; i < COUNT; i++)
        pthread_join(threads[i], NULL);
    semctl(semaphores, 0, IPC_RMID);
    printf("ok %ld %llu\n", atomic_load(&rounds), (unsigned long long)atomic_load(&worst));
    return 0;
}
