/* Threads that block in every kind of call, each below frames of every shape. Prints "ready" when all are blocked.
 *
 * Built by the tests with and without frame pointers; a thread's stack must be the same with rbp and without. */
#define _GNU_SOURCE
#include <alloca.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define NOINLINE __attribute__((noinline, noclone))

typedef long (*leaf)(void);
static volatile long sink;
static pthread_mutex_t never = PTHREAD_MUTEX_INITIALIZER;

NOINLINE static long in_nanosleep(void)
{
    struct timespec t = {1000, 0};
    return nanosleep(&t, NULL) + sink;
}

NOINLINE static long in_usleep(void)
{
    return usleep(900000000) + sink;
}

NOINLINE static long in_pipe_read(void)
{
    int ends[2];
    char byte;
    if (pipe(ends) != 0) return 1;
    return read(ends[0], &byte, 1) + sink;
}

NOINLINE static long in_recv(void)
{
    int ends[2];
    char bytes[64];
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends) != 0) return 1;
    return recv(ends[0], bytes, sizeof bytes, 0) + sink;
}

NOINLINE static long in_poll(void)
{
    struct pollfd fd = {.fd = eventfd(0, 0), .events = POLLIN};
    return poll(&fd, 1, -1) + sink;
}

NOINLINE static long in_select(void)
{
    fd_set set;
    int fd = eventfd(0, 0);
    FD_ZERO(&set);
    FD_SET(fd, &set);
    return select(fd + 1, &set, NULL, NULL, NULL) + sink;
}

NOINLINE static long in_epoll(void)
{
    struct epoll_event event;
    return epoll_wait(epoll_create1(0), &event, 1, -1) + sink;
}

NOINLINE static long in_mutex(void)
{
    return pthread_mutex_lock(&never) + sink;
}

NOINLINE static long in_condition(void)
{
    pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
    pthread_cond_t condition = PTHREAD_COND_INITIALIZER;
    pthread_mutex_lock(&mutex);
    return pthread_cond_wait(&condition, &mutex) + sink;
}

NOINLINE static long in_semaphore(void)
{
    sem_t semaphore;
    sem_init(&semaphore, 0, 0);
    return sem_wait(&semaphore) + sink;
}

NOINLINE static long in_child(void)
{
    pid_t child = fork();
    if (child == 0) {
        for (;;) pause();
    }
    return waitpid(child, NULL, 0) + sink;
}

NOINLINE static long in_sigsuspend(void)
{
    sigset_t all;
    sigfillset(&all);
    return sigsuspend(&all) + sink;
}

NOINLINE static long in_flock(void)
{
    char path[] = "/tmp/looplag-symbols-XXXXXX";
    int fd = mkstemp(path);
    int other = open(path, O_RDWR);
    unlink(path);
    flock(fd, LOCK_EX);
    return flock(other, LOCK_EX) + sink;
}

NOINLINE static long in_fgets(void)
{
    int ends[2];
    char line[64];
    if (pipe(ends) != 0) return 1;
    return (fgets(line, sizeof line, fdopen(ends[0], "r")) != NULL) + sink;
}

/* The frame that needs rbp holds memory of a size that no prologue knows, full of older frames. */
NOINLINE static long in_nanosleep_alloca(void)
{
    struct timespec t = {1000, 0};
    char *block = alloca((size_t)(900 + (sink & 1)));
    block[sink & 7] = 1;
    return nanosleep(&t, NULL) + block[3];
}

NOINLINE static long in_read_alloca(void)
{
    int ends[2];
    char *bytes = alloca((size_t)(2000 + (sink & 1)));
    if (pipe(ends) != 0) return 1;
    return read(ends[0], bytes, 10) + bytes[3];
}

NOINLINE static long in_poll_large(void)
{
    struct pollfd fds[300];
    fds[0] = (struct pollfd){.fd = eventfd(0, 0), .events = POLLIN};
    return poll(fds, 1, -1) + fds[sink & 7].revents;
}

/* ---- shapes ---- */

NOINLINE static long through_pointer(leaf call) { return call() + sink; }

NOINLINE static long through_alloca(leaf call, int bytes)
{
    char *block = alloca((size_t)bytes);
    memset(block, 7, (size_t)bytes);
    long value = through_pointer(call);
    return value + block[bytes / 2];
}

NOINLINE static long through_large_frame(leaf call)
{
    char block[6000];
    memset(block, 9, sizeof block);
    long value = call();
    return value + block[sink & 1023];
}

NOINLINE static long through_varargs(leaf call, int count, ...)
{
    va_list arguments;
    long sum = 0;
    va_start(arguments, count);
    for (int i = 0; i < count; i++) sum += va_arg(arguments, long);
    va_end(arguments);
    return call() + sum;
}

static __thread leaf sorted_call;

static int compare(const void *a, const void *b)
{
    if (sorted_call) sink += sorted_call();
    return *(const int *)a - *(const int *)b;
}

NOINLINE static long through_qsort(leaf call)
{
    int values[4] = {4, 3, 2, 1};
    sorted_call = call;
    qsort(values, 4, sizeof values[0], compare);
    return values[0];
}

NOINLINE static long through_recursion(leaf call, int depth)
{
    if (depth == 0) return call() + sink;
    return through_recursion(call, depth - 1) + depth;
}

/* Values that look like stack and code addresses lie about. */
NOINLINE static long through_decoys(leaf call)
{
    void *volatile decoys[32];
    for (int i = 0; i < 32; i++)
        decoys[i] = i & 1 ? (void *)((char *)through_alloca + 40) : (void *)&decoys[(i + 6) & 31];
    long value = through_recursion(call, 2);
    return value + (decoys[sink & 31] != NULL);
}

/* Calls that come and go before the one that blocks: their frames stay in the memory below. */
NOINLINE static long leave_old_frames(int depth)
{
    char block[48];
    memset(block, depth, sizeof block);
    if (depth == 0) return getppid() + block[sink & 7];
    return leave_old_frames(depth - 1) + block[sink & 31];
}

struct job {
    leaf call;
    int shape;
    const char *name;
};

NOINLINE static long run_job(struct job *job)
{
    switch (job->shape) {
    case 0: return through_pointer(job->call);
    case 1: return through_alloca(job->call, 700);
    case 2: return through_large_frame(job->call);
    case 3: return through_varargs(job->call, 3, 1l, 2l, 3l);
    case 4: return through_qsort(job->call);
    case 5: return through_recursion(job->call, 9);
    default: return through_decoys(job->call);
    }
}

static void *thread_main(void *argument)
{
    struct job *job = argument;
    leave_old_frames(40);
    pthread_setname_np(pthread_self(), job->name);
    sink += run_job(job);
    return NULL;
}

int main(void)
{
    static const struct {
        leaf call;
        const char *name;
    } leaves[] = {
        {in_nanosleep, "nanosleep"}, {in_usleep, "usleep"}, {in_pipe_read, "read"}, {in_recv, "recv"},
        {in_poll, "poll"}, {in_select, "select"}, {in_epoll, "epoll"}, {in_mutex, "mutex"},
        {in_condition, "condition"}, {in_semaphore, "semaphore"}, {in_child, "child"},
        {in_sigsuspend, "sigsuspend"}, {in_flock, "flock"}, {in_fgets, "fgets"},
        {in_nanosleep_alloca, "nanosleep-a"}, {in_read_alloca, "read-a"}, {in_poll_large, "poll-l"},
    };
    const int kinds = sizeof leaves / sizeof leaves[0];
    pthread_attr_t small;
    pthread_mutex_lock(&never);
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 256 * 1024);
    for (int i = 0; i < kinds; i++) {
        for (int shape = 0; shape < 7; shape++) {
            pthread_t thread;
            struct job *job = malloc(sizeof *job);
            if (job == NULL) return 1;
            *job = (struct job){leaves[i].call, shape, leaves[i].name};
            if (pthread_create(&thread, &small, thread_main, job) != 0) return 1;
        }
    }
    puts("ready");
    fflush(stdout);
    for (;;) pause();
}
