// A synchronous write of a vector, of a file that was read: how many calls it takes, and what is in the file then.
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#define PIECES 16
#define PIECE (64 << 10)

static unsigned long calls(void) {
    char line[100];
    unsigned long n = 0;
    FILE *io = fopen("/proc/self/io", "r");
    while (io && fgets(line, sizeof line, io))
        sscanf(line, "syscw: %lu", &n);
    if (io)
        fclose(io);
    return n;
}

int main(int count, char **words) {
    int fd = open(words[count - 1], O_RDWR | O_CREAT | O_TRUNC, 0600);
    static unsigned char some[PIECES * PIECE], now[PIECES * PIECE];
    memset(some, 5, sizeof some);
    if (write(fd, some, sizeof some) != sizeof some)
        return 1;
    close(fd), fd = open(words[count - 1], O_RDWR | O_SYNC);
    struct iovec vector[PIECES];
    for (int i = 0; i < PIECES; i++) {
        // Apart from each other.
        vector[i] = (struct iovec){aligned_alloc(4096, PIECE), PIECE};
        if (pread(fd, vector[i].iov_base, PIECE, i * PIECE) != PIECE)
            return 2;
        ((unsigned char *)vector[i].iov_base)[5000 + i] = some[i * PIECE + 5000 + i] = 7;
    }
    unsigned long begun = calls();
    if (pwritev(fd, vector, PIECES, 0) != sizeof some)
        return 3;
    unsigned long made = calls() - begun;
    int other = open(words[count - 1], O_RDONLY);
    for (size_t at = 0; at < sizeof now; at += 1000)
        if (pread(other, now + at, at + 1000 > sizeof now ? sizeof now - at : 1000, at) <= 0)
            return 4;
    printf("%lu calls, %s\n", made, memcmp(some, now, sizeof now) ? "other bytes" : "the same bytes");
    return 0;
}
