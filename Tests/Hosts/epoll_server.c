/* A one-thread epoll server with a line protocol; every handler answers `done NANOSECONDS`, by its own clock.
 *
 *   ok            does nothing
 *   sleep MS      one usleep; ` interrupted` follows when a signal cut it short
 *   spin MS       burns CPU
 *   nest MS       waits for MS on a second epoll descriptor, ten waits inside one iteration
 *   reopen        closes the loop's own epoll descriptor and makes another, mostly of the same number
 *   storm COUNT   from now on, COUNT iterations of 5 to 15 ms with a wait of 1 ms after each: signals meant for an
 *                 iteration must not hit the wait behind it
 *   eintr         answers `done COUNT`, the waits that came back with EINTR so far
 *
 *   epoll_server [--strict] [--nondumpable] [--workers COUNT]
 *     --strict       exits with 9 at the first EINTR from epoll_wait
 *     --nondumpable  may not read its own /proc/self/task/TID/syscall (prctl PR_SET_DUMPABLE 0)
 *     --workers      forks COUNT more servers, each with a loop and a port of its own
 */
#include "host.h"

#include <sys/prctl.h>

static int strict;
static int loop;
static int listener;
static int clients[64];
static int client_count;
static uint64_t interrupted_waits;
static long storm_left;

static int wait_once(int epoll, struct epoll_event *events, int capacity, int timeout) {
    int count = epoll_wait(epoll, events, capacity, timeout);
    if (count >= 0) return count;
    host_check(errno == EINTR, "epoll_wait");
    interrupted_waits++;
    if (strict) {
        fprintf(stderr, "host: epoll_wait was interrupted\n");
        exit(9);
    }
    return 0;
}

/* The stack of a stall is to show these names. */
__attribute__((noinline)) static int handle_sleep(long milliseconds) {
    return usleep((useconds_t)milliseconds * 1000);
}

__attribute__((noinline)) static void handle_nested(long milliseconds) {
    int inner = epoll_create1(EPOLL_CLOEXEC);
    host_check(inner >= 0, "epoll_create1");
    for (int i = 0; i < 10; i++) {
        struct epoll_event event;
        wait_once(inner, &event, 1, (int)(milliseconds / 10));
    }
    close(inner);
}

static void reopen(void) {
    close(loop);
    loop = epoll_create1(EPOLL_CLOEXEC);
    host_check(loop >= 0, "epoll_create1");
    host_watch(loop, listener);
    for (int i = 0; i < client_count; i++) host_watch(loop, clients[i]);
}

static void answer(int client, const char *line) {
    char word[16] = "";
    long number = 0;
    char reply[96];
    int interrupted = 0;
    uint64_t start = host_now();
    if (sscanf(line, "%15s %ld", word, &number) < 1 || number < 0 || number > 60000) word[0] = 0;
    if (!strcmp(word, "sleep")) {
        interrupted = handle_sleep(number) != 0;
    } else if (!strcmp(word, "spin")) {
        host_spin((uint64_t)number * 1000000u);
    } else if (!strcmp(word, "nest")) {
        handle_nested(number);
    } else if (!strcmp(word, "reopen")) {
        reopen();
    } else if (!strcmp(word, "storm")) {
        storm_left = number;
    } else if (!strcmp(word, "eintr")) {
        snprintf(reply, sizeof reply, "done %llu\n", (unsigned long long)interrupted_waits);
        host_check(write(client, reply, strlen(reply)) > 0, "write");
        return;
    } else if (strcmp(word, "ok")) {
        snprintf(reply, sizeof reply, "error: not a command\n");
        host_check(write(client, reply, strlen(reply)) > 0, "write");
        return;
    }
    snprintf(reply, sizeof reply, "done %llu%s\n", (unsigned long long)(host_now() - start),
             interrupted ? " interrupted" : "");
    host_check(write(client, reply, strlen(reply)) > 0, "write");
}

static void drop(int client) {
    for (int i = 0; i < client_count; i++) {
        if (clients[i] == client) clients[i--] = clients[--client_count];
    }
    close(client);
}

static void serve(int descriptor) {
    if (descriptor == listener) {
        int client = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        if (client < 0) return;
        if (client_count == 64) {
            close(client);
            return;
        }
        clients[client_count++] = client;
        host_watch(loop, client);
        return;
    }
    /* A test's line arrives in one piece. */
    char line[128];
    ssize_t length = read(descriptor, line, sizeof line - 1);
    if (length <= 0) {
        drop(descriptor);
        return;
    }
    line[length] = 0;
    answer(descriptor, line);
}

int main(int argc, char **argv) {
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--strict")) strict = 1;
        if (!strcmp(argv[i], "--workers") && i + 1 < argc) {
            for (int left = atoi(argv[++i]); left > 0 && fork() != 0; left--) {
            }
        }
        if (!strcmp(argv[i], "--nondumpable")) host_check(prctl(PR_SET_DUMPABLE, 0) == 0, "prctl");
    }
    loop = epoll_create1(EPOLL_CLOEXEC);
    host_check(loop >= 0, "epoll_create1");
    listener = host_listen();
    host_watch(loop, listener);
    for (;;) {
        struct epoll_event events[16];
        int storming = storm_left > 0;
        int count = wait_once(loop, events, 16, storming ? 1 : -1);
        for (int i = 0; i < count; i++) serve(events[i].data.fd);
        if (storming) host_spin(5000000u + (uint64_t)(--storm_left % 100) * 100000u);
    }
}
