/* What the C hosts share: clocks, a loopback listener and a line at a time. Each host is one .c file, compiled by the
 * tests; it knows nothing of LoopLag. */
#ifndef LOOPLAG_TEST_HOST_H
#define LOOPLAG_TEST_HOST_H

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static inline uint64_t host_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static inline void host_spin(uint64_t nanoseconds) {
    uint64_t end = host_now() + nanoseconds;
    while (host_now() < end) {
    }
}

static inline void host_check(int ok, const char *what) {
    if (ok) return;
    fprintf(stderr, "host: %s: %s\n", what, strerror(errno));
    exit(1);
}

/* Listens on a free port of 127.0.0.1 and says so on standard output. */
static inline int host_listen(void) {
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    host_check(listener >= 0, "socket");
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t length = sizeof address;
    host_check(bind(listener, (struct sockaddr *)&address, length) == 0, "bind");
    host_check(listen(listener, 64) == 0, "listen");
    host_check(getsockname(listener, (struct sockaddr *)&address, &length) == 0, "getsockname");
    printf("listening on raw=%d\n", ntohs(address.sin_port));
    fflush(stdout);
    return listener;
}

static inline void host_watch(int epoll, int descriptor) {
    struct epoll_event event = {.events = EPOLLIN, .data = {.fd = descriptor}};
    host_check(epoll_ctl(epoll, EPOLL_CTL_ADD, descriptor, &event) == 0, "epoll_ctl");
}

#endif
