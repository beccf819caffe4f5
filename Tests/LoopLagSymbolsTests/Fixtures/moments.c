/* The moments at which stacks are hard to unwind; the tests stop here with a debugger. */
#define _GNU_SOURCE
#include <alloca.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define NOINLINE __attribute__((noinline, noclone))

static volatile long sink;

NOINLINE long leaf(long value)
{
    char block[128];
    memset(block, (int)value, sizeof block);
    return block[value & 127] + sink;
}

NOINLINE long middle(long value)
{
    return leaf(value + 1) + sink;
}

NOINLINE static void handler(int number)
{
    sink += middle(number);
}

NOINLINE static long interrupted(void)
{
    raise(SIGUSR1);
    return sink;
}

NOINLINE long stacked(int bytes)
{
    char *block = alloca((size_t)bytes);
    memset(block, 1, (size_t)bytes);
    return middle(block[bytes / 2]) + block[1];
}

NOINLINE long through_stub(void)
{
    return (long)getppid() + sink;
}

NOINLINE long clocked(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_nsec + sink;
}

int main(int count, char **words)
{
    const char *word = count > 1 ? words[1] : "leaf";
    if (strcmp(word, "leaf") == 0) sink += middle(count);
    if (strcmp(word, "stub") == 0) sink += through_stub();
    if (strcmp(word, "alloca") == 0) sink += stacked(700 + count);
    if (strcmp(word, "clock") == 0) sink += clocked();
    if (strcmp(word, "signal") == 0) {
        struct sigaction action = {.sa_handler = handler};
        sigaction(SIGUSR1, &action, NULL);
        sink += interrupted();
    }
    printf("%ld\n", sink & 1);
    return 0;
}
