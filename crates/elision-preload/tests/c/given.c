/* What is in memory after blocks were freed, in MiB more than at first. */
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#define MIB (1l << 20)

static long resident(void) {
    FILE *file = fopen("/proc/self/statm", "r");
    long size, pages;
    if (!file || fscanf(file, "%ld %ld", &size, &pages) != 2)
        exit(1);
    fclose(file);
    return pages * 4096;
}

static long at_first;

static void *block(long mib) {
    void *block = memset(malloc(mib * MIB), 7, mib * MIB);
    __asm__ volatile("" : : "r"(block) : "memory"); /* so that it is not left out */
    return block;
}

static void say(const char *when) { printf("%s: %ld\n", when, (resident() - at_first + MIB / 2) / MIB); }

int main(void) {
    free(memset(malloc(1000), 7, 1000));
    printf("\n");
    at_first = resident();
    void *first = block(20), *second = block(10), *third = block(5);
    say("three");
    free(second);
    say("one freed");
    free(third), free(first);
    say("all freed");
    free(block(10));
    say("another");
    first = realloc(block(20), 5 * MIB);
    say("one that has shrunk");
    free(first);
    say("and was freed");
    first = block(40);
    free(first);
    say("a large one");
    malloc_trim(0);
    say("trimmed");
    printf("%d\n", mallopt(M_MMAP_THRESHOLD, 64 * MIB));
    free(block(10));
    say("with too high a threshold");
    printf("%d\n", mallopt(M_MMAP_THRESHOLD, MIB));
    first = block(8);
    say("of what was kept");
    free(first);
    say("and freed once more");
    malloc_trim(0);
    free(block(10)), free(block(12));
    say("with a threshold");
    struct rlimit limit = {1l << 40, 1l << 40};
    printf("%d\n", setrlimit(RLIMIT_DATA, &limit));
    free(block(10));
    say("under a limit");
    return 0;
}
