/* Forks COUNT children while threads spin and the list of loaded objects keeps changing, and counts the children that
 * hang. A child needs the loader's lock, as a server's worker does when it loads a module after the fork; a lock that
 * some other thread of the parent held at the fork is held in the child for ever.
 *
 *   fork_storm COUNT LIBRARY   prints `forked COUNT hung HUNG failed FAILED` and exits with 0 when none did
 *
 * Only this thread loads and unloads: whatever lock a child finds taken was taken by a thread this program did not make.
 */
#include "host.h"

#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <sys/wait.h>

enum { BATCH = 8, CHILD_SECONDS = 10 };

static void *spinner(void *unused) {
    (void)unused;
    for (;;) host_spin(1000000);
    return NULL;
}

static void load_once(const char *library) {
    void *handle = dlopen(library, RTLD_NOW);
    if (!handle) {
        fprintf(stderr, "host: %s\n", dlerror());
        _exit(2);
    }
    dlclose(handle);
}

/* Every other child is a worker of its own, with a wait and a clean exit; the rest only load something, as a child does
 * before it executes another program. */
static void run_child(int epoll, const char *library, int is_worker) {
    struct epoll_event event;
    if (is_worker) epoll_wait(epoll, &event, 1, 0);
    load_once(library);
    if (is_worker) exit(0);
    _exit(0);
}

/* One fork; the child's pid. */
static pid_t spawn(int epoll, const char *library, int is_worker) {
    load_once(library);
    pid_t child = fork();
    host_check(child >= 0, "fork");
    if (child == 0) run_child(epoll, library, is_worker);
    return child;
}

int main(int argc, char **argv) {
    if (argc != 3) return 64;
    int count = atoi(argv[1]);
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    host_check(epoll >= 0, "epoll_create1");
    struct epoll_event event;
    epoll_wait(epoll, &event, 1, 0);
    for (int i = 0; i < 2; i++) {
        pthread_t thread;
        host_check(pthread_create(&thread, NULL, spinner, NULL) == 0, "pthread_create");
    }

    int hung = 0, failed = 0;
    for (int done = 0; done < count; done += BATCH) {
        pid_t children[BATCH];
        int batch = count - done < BATCH ? count - done : BATCH;
        for (int i = 0; i < batch; i++) children[i] = spawn(epoll, argv[2], i & 1);
        uint64_t deadline = host_now() + CHILD_SECONDS * 1000000000ull;
        for (int i = 0; i < batch; i++) {
            int status = 0;
            pid_t ended;
            while ((ended = waitpid(children[i], &status, WNOHANG)) == 0 && host_now() < deadline) usleep(200);
            if (ended == 0) {
                hung++;
                kill(children[i], SIGKILL);
                waitpid(children[i], &status, 0);
            } else if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
                failed++;
            }
        }
        epoll_wait(epoll, &event, 1, 0);
    }
    printf("forked %d hung %d failed %d\n", count, hung, failed);
    fflush(stdout);
    _exit(hung || failed ? 1 : 0);
}
