// Reads a file into memory of both kinds, and saves it.
#include <fcntl.h>
#include <sys/mman.h>

#include "say.h"

#define LEN (1 << 20)

int main(void) {
    unsigned char *mapped = mmap(NULL, LEN, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    unsigned char *allocated = malloc(LEN);
    fill(allocated, LEN, 7);
    int fd = open("file", O_RDWR | O_CREAT | O_TRUNC, 0644);
    SAY(write(fd, allocated, LEN));
    memset(allocated, 0, LEN);
    SAY(pread(fd, mapped, LEN, 0));
    SAY(pread(fd, allocated, LEN, 0));
    SUM(mapped, LEN);
    SUM(allocated, LEN);
    mapped[5000] ^= 1;
    SAY(pwrite(fd, mapped, LEN, 0));
    SAY(close(fd));
    return 0;
}
