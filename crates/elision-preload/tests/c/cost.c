/* What small calls cost, in nanoseconds each: the least of several rounds. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e9 + t.tv_nsec;
}

#define COST(call)                                                                                               \
    do {                                                                                                         \
        double least = 1e18;                                                                                     \
        for (int round = 0; round < 30; round++) {                                                               \
            double start = now();                                                                                \
            for (int i = 0; i < 20000; i++)                                                                      \
                call;                                                                                            \
            double each = (now() - start) / 20000;                                                               \
            if (each < least)                                                                                    \
                least = each;                                                                                    \
        }                                                                                                        \
        printf("%-44s %8.1f\n", #call, least);                                                                   \
    } while (0)

int main(void) {
    static char buf[64];
    struct stat st;
    struct iovec v[2] = {{buf, 32}, {buf + 32, 32}};
    static struct iovec w[2] = {{buf, 32}, {buf + 32, 32}};
    int zero = open("/dev/zero", O_RDONLY), null = open("/dev/null", O_WRONLY);
    int file = open("cost of", O_RDWR | O_CREAT, 0600);
    pwrite(file, buf, 64, 0);
    COST(read(-1, buf, 64));
    COST(write(-1, buf, 64));
    COST(read(zero, buf, 64));
    COST(write(null, buf, 64));
    COST(pread(file, buf, 64, 0));
    COST(pwrite(file, buf, 64, 0));
    COST(readv(zero, v, 2));
    COST(writev(null, v, 2));
    COST(writev(null, w, 2));
    COST(lseek(file, 0, SEEK_SET));
    COST(fstat(file, &st));
    COST(close(dup(file)));
    COST(close(open("cost of", O_RDONLY)));
    COST(close(open("cost of", O_RDWR)));
    unlink("cost of");
    return 0;
}
