/* Files that can never change, read whole; beside reads that are too small to be deferred.
 *
 *     immutable file PATH      prints a sum of its bytes
 *     immutable sealed SEALS   a memory file with these seals, which is then changed in every way; prints what came of each */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096

static unsigned char *bytes, *right;
static size_t size;

static void need(int good, const char *what) {
    if (!good) {
        printf("%s: %s\n", what, strerror(errno));
        exit(1);
    }
}

static void whole(int fd) {
    struct stat st;
    need(!fstat(fd, &st), "fstat");
    size = st.st_size;
    need((bytes = malloc(size)) && (right = malloc(size)), "malloc");
    need(pread(fd, bytes, size, 0) == (ssize_t)size, "pread");
}

static void altered(size_t first, size_t step) {
    for (size_t at = first * PAGE; at < size; at += step * PAGE)
        bytes[at] = right[at] = ~right[at];
}

static void compare(const char *when) {
    for (size_t at = 0; at < size; at++)
        if (bytes[at] != right[at]) {
            printf("%s: other bytes at %zu\n", when, at);
            exit(1);
        }
}

static void file(const char *path) {
    int fd = open(path, O_RDONLY);
    need(fd >= 0, path);
    whole(fd);
    for (size_t at = 0; at < size; at += PAGE / 2)
        need(pread(fd, right + at, size - at < PAGE / 2 ? size - at : PAGE / 2, at) > 0, "small pread");
    need(!close(fd), "close");
    compare("read");
    altered(0, 7);
    pid_t child = fork();
    if (!child) {
        compare("in a child");
        altered(1, 5);
        compare("altered in a child");
        /* The same again: its helper has the file, too. */
        fd = open(path, O_RDONLY);
        need(pread(fd, bytes, size, 0) == (ssize_t)size, "pread");
        altered(1, 5);
        altered(0, 7);
        compare("read in a child");
        exit(0);
    }
    int status;
    need(waitpid(child, &status, 0) == child && !status, "child");
    altered(3, 11);
    compare("in the end");
    unsigned long sum = 0;
    for (size_t at = 0; at < size; at++)
        sum = sum * 31 + bytes[at];
    printf("%lx\n", sum);
}

static void sealed(const char *seals) {
    int add = 0, fd = memfd_create("file", MFD_ALLOW_SEALING);
    need(fd >= 0, "memfd_create");
    for (int at = 0; at < 100; at++) {
        unsigned char page[PAGE];
        memset(page, at + 1, PAGE);
        need(write(fd, page, PAGE) == PAGE, "write");
    }
    unsigned char *shared = mmap(NULL, 100 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    for (const char *seal = seals; *seal; seal++)
        add |= *seal == 'w' ? F_SEAL_WRITE : *seal == 's' ? F_SEAL_SHRINK : *seal == 'g' ? F_SEAL_GROW : F_SEAL_FUTURE_WRITE;
    if (add & F_SEAL_WRITE) {
        printf("with a mapping: %d\n", fcntl(fd, F_ADD_SEALS, add));
        munmap(shared, 100 * PAGE);
        shared = NULL;
    }
    need(!fcntl(fd, F_ADD_SEALS, add), "F_ADD_SEALS");
    whole(fd);
    for (size_t at = 0; at < size; at++)
        right[at] = at / PAGE + 1;
    if (shared)
        memset(shared, 200, size);
    printf("write: %zd\n", pwrite(fd, "other", 5, 5 * PAGE));
    printf("hole: %d\n", fallocate(fd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, 0, 50 * PAGE));
    printf("shrink: %d\n", ftruncate(fd, 7 * PAGE));
    printf("grow: %d\n", ftruncate(fd, 200 * PAGE));
    compare("read");
    altered(0, 3);
    compare("altered");
}

int main(int count, char **arguments) {
    need(count == 3, "arguments");
    if (!strcmp(arguments[1], "sealed"))
        sealed(arguments[2]);
    else
        file(arguments[2]);
    printf("good\n");
}
