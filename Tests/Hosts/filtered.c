/* The line protocol's `ok` under a seccomp filter that kills the process at memfd_create (or, with --permissive, at
 * a call that an attach never makes). */
#include "host.h"

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

int main(int argc, char **argv) {
    unsigned forbidden = argc > 1 && !strcmp(argv[1], "--permissive") ? SYS_swapon : SYS_memfd_create;
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, forbidden, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof code / sizeof code[0], code};
    host_check(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0, "no new privileges");
    host_check(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0, "seccomp");
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    int listener = host_listen();
    host_watch(epoll, listener);
    for (;;) {
        struct epoll_event event;
        int count = epoll_wait(epoll, &event, 1, -1);
        if (count <= 0) continue;
        if (event.data.fd == listener) {
            int client = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
            if (client >= 0) host_watch(epoll, client);
            continue;
        }
        char line[128];
        if (read(event.data.fd, line, sizeof line) <= 0) {
            close(event.data.fd);
            continue;
        }
        host_check(write(event.data.fd, "done 0\n", 7) == 7, "write");
    }
}
