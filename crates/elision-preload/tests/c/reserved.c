/* Reserves address space, as many terabytes as it is told, and uses the heap and files as ever. */
#define _GNU_SOURCE
#include "say.h"
#include <fcntl.h>
#include <malloc.h>
#include <sys/mman.h>

void __libc_free(void *);
void *__libc_realloc(void *, size_t);

enum { MIB = 1 << 20 };

/* Grows and shrinks a block that holds what a file says. */
static void grown(int fd, size_t size) {
    unsigned char *block = malloc(size);
    SAY(pread(fd, block, size, 0) == (ssize_t)size);
    SUM(block, size);
    SAY(malloc_usable_size(block) >= size);
    block = realloc(block, 3 * size);
    SUM(block, size);
    memset(block + size, 3, 2 * size);
    block = __libc_realloc(block, 2 * size);
    SUM(block, 2 * size);
    SAY(pwrite(fd, block, size, 0) == (ssize_t)size);
    block = realloc(block, size / 2);
    SUM(block, size / 2);
    free(block);
}

int main(int count, char **arguments) {
    size_t length = (size_t)(count > 1 ? atoi(arguments[1]) : 0) << 40;
    /* So that libc maps what is large, also after large blocks were freed. */
    mallopt(M_MMAP_THRESHOLD, 128 << 10);
    if (length)
        SAY(mmap(NULL, length, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0) != MAP_FAILED);
    int fd = open("data", O_RDWR | O_CREAT, 0600);
    static unsigned char bytes[MIB];
    for (int i = 0; i < 4; i++) {
        fill(bytes, MIB, i);
        write(fd, bytes, MIB);
    }
    for (size_t size = 1000; size < 4 * MIB; size = size * 5 + 7)
        grown(fd, size);
    unsigned char *mapped = mmap(NULL, MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    SAY(pread(fd, mapped, MIB, 0));
    SUM(mapped, MIB);
    SAY(munmap(mapped, MIB));
    void *kept[100];
    for (int round = 0; round < 5; round++) {
        for (int i = 0; i < 100; i++)
            memset(kept[i] = malloc((i + 1) * 10000), i, 1);
        for (int i = 0; i < 100; i++)
            (i % 2 ? free : __libc_free)(kept[i]);
    }
    puts("done");
    return 0;
}
