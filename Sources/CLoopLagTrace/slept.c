/* How long a thread has been off the processor: what an interrupted wait with a time-out has already waited. Called by
 * inject.c before it stops the thread; reads procfs, and moves the calling thread between processors for a moment.
 */
#include "inject.h"

#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* se.exec_start of a `sched` file, in nanoseconds; -1 where the kernel does not show it. */
static int64_t last_ran(const char *path) {
    FILE *file = fopen(path, "re");
    if (file == NULL) return -1;
    char line[256];
    int64_t answer = -1;
    while (answer < 0 && fgets(line, sizeof line, file) != NULL) {
        long long whole = 0, part = 0;
        if (sscanf(line, "se.exec_start : %lld.%6lld", &whole, &part) == 2) answer = whole * 1000000 + part;
    }
    fclose(file);
    return answer;
}

/* The processor that a thread last ran on: field 39 of its stat. */
static int last_processor(pid_t pid, pid_t tid) {
    char path[64], text[1024];
    snprintf(path, sizeof path, "/proc/%d/task/%d/stat", pid, tid);
    FILE *file = fopen(path, "re");
    if (file == NULL) return -1;
    size_t count = fread(text, 1, sizeof text - 1, file);
    fclose(file);
    text[count] = 0;
    char *field = strrchr(text, ')');
    for (int number = 2; field != NULL && number < 39; number++) {
        field = strchr(field + 1, ' ');
    }
    return field != NULL ? atoi(field + 1) : -1;
}

/* Each processor's clock of tasks leaves out the time that others stole from it, so only one and the same processor's
 * may be compared: for a moment this thread moves there. */
int64_t lag_inject_slept_ns(pid_t pid, pid_t tid) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/task/%d/sched", pid, tid);
    int processor = last_processor(pid, tid);
    cpu_set_t before, there;
    if (processor < 0 || processor >= CPU_SETSIZE || sched_getaffinity(0, sizeof before, &before) != 0) return -1;
    CPU_ZERO(&there);
    CPU_SET(processor, &there);
    if (sched_setaffinity(0, sizeof there, &there) != 0) return -1;
    int64_t then = last_ran(path);
    sched_yield();
    int64_t now = last_ran("/proc/thread-self/sched");
    bool is_same = last_processor(pid, tid) == processor && last_ran(path) == then;
    (void)sched_setaffinity(0, sizeof before, &before);
    return is_same && then >= 0 && now >= then ? now - then : -1;
}
