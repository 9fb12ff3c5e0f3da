/* Reads a file piece by piece, into a buffer that grows as it has to; changes it, and writes it back.
 *
 *     slurps FILE */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static int wrong(const char *what) {
    perror(what);
    return 1;
}

int main(int count, char **arguments) {
    int fd = count == 2 ? open(arguments[1], O_RDWR) : -1;
    if (fd < 0)
        return wrong("open");
    size_t room = 0, len = 0;
    unsigned char *bytes = NULL;
    for (;;) {
        if (len == room && !(bytes = realloc(bytes, room = room ? 2 * room : 8 << 20)))
            return wrong("realloc");
        ssize_t got = read(fd, bytes + len, room - len);
        if (got < 0)
            return wrong("read");
        if (got == 0)
            break;
        len += got;
    }
    for (int i = 0; i < 10; i++)
        printf("%d\n", bytes[len / 10 * i]);
    for (int i = 1; i <= 3; i++)
        bytes[len / 4 * i] ^= 255;
    if (pwrite(fd, bytes, len, 0) != (ssize_t)len)
        return wrong("pwrite");
    free(bytes);
    return 0;
}
