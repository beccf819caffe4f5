/* A host that is hard on whoever brings code into it: one epoll loop with the line protocol (`ok` only), beside threads
 * that allocate and free all the time, take the loader's lock by dlopen and dl_iterate_phdr, and come and go.
 *
 *   crowd [--threads COUNT]
 */
#include "host.h"

#include <dlfcn.h>
#include <link.h>
#include <pthread.h>

static int look(struct dl_phdr_info *info, size_t size, void *context) {
    (void)info;
    (void)size;
    ++*(int *)context;
    return 0;
}

static void *allocate(void *seed) {
    unsigned number = (unsigned)(uintptr_t)seed;
    void *held[64] = {0};
    for (;;) {
        number = number * 1103515245u + 12345u;
        unsigned place = number >> 16 & 63;
        free(held[place]);
        held[place] = malloc(16 + (number >> 8 & 0xfff));
        host_check(held[place] != NULL, "malloc");
    }
    return NULL;
}

static void *load(void *unused) {
    (void)unused;
    for (;;) {
        void *library = dlopen("libm.so.6", RTLD_NOW | RTLD_LOCAL);
        int objects = 0;
        dl_iterate_phdr(look, &objects);
        if (library != NULL) dlclose(library);
        usleep(100);
    }
    return NULL;
}

static void *brief(void *unused) {
    (void)unused;
    free(malloc(100));
    return NULL;
}

static void *come_and_go(void *unused) {
    (void)unused;
    for (;;) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, brief, NULL) == 0) pthread_join(thread, NULL);
        usleep(200);
    }
    return NULL;
}

int main(int argc, char **argv) {
    int threads = 3;
    for (int i = 1; i + 1 < argc; i++)
        if (!strcmp(argv[i], "--threads")) threads = atoi(argv[i + 1]);
    pthread_t thread;
    for (int i = 0; i < threads; i++) host_check(pthread_create(&thread, NULL, allocate, (void *)(uintptr_t)i) == 0, "pthread_create");
    host_check(pthread_create(&thread, NULL, load, NULL) == 0, "pthread_create");
    host_check(pthread_create(&thread, NULL, come_and_go, NULL) == 0, "pthread_create");
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    int listener = host_listen();
    host_watch(epoll, listener);
    for (;;) {
        struct epoll_event event;
        int count = epoll_wait(epoll, &event, 1, 1000);
        host_check(count >= 0, "epoll_wait");
        if (count == 0) continue;
        if (event.data.fd == listener) {
            int client = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
            if (client >= 0) host_watch(epoll, client);
            continue;
        }
        char line[128];
        ssize_t length = read(event.data.fd, line, sizeof line);
        if (length <= 0) {
            close(event.data.fd);
            continue;
        }
        free(malloc((size_t)length * 100));
        host_check(write(event.data.fd, "done 0\n", 7) == 7, "write");
    }
}
