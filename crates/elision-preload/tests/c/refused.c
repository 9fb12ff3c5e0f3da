/* Calls that fail, in whole or in part, and which call it is that says so. */
#include "effects.h"
#include <linux/fs.h>
#include <sys/ioctl.h>

static volatile int limit_signals;
static void on_limit(int number) { (void)number, limit_signals++; }

/* A file of SIZE, read whole through its only description and written back once, so that further writes are elided. */
static int followed(unsigned char *p) {
    THIRD(MAKE, "file", 0, SIZE, 1);
    int fd = open("file", O_RDWR);
    SAY(pread(fd, p, SIZE, 0));
    SAY(pwrite(fd, p, SIZE, 0));
    return fd;
}

static void bad_descriptors(void) {
    THIRD(MAKE, "file", 0, SIZE, 1);
    unsigned char *p = memory(SIZE);
    int reads = open("file", O_RDONLY), path = open("file", O_PATH);
    SAY(read(reads, p, SIZE));
    SAY(write(reads, p, SIZE));
    SAY(pwrite(reads, p, SIZE, 0));
    SAY(read(path, p, SIZE));
    SAY(pwrite(path, p, SIZE, 0));
    SAY(ftruncate(reads, 5));
    SAY(close(reads));
    SAY(pread(reads, p, SIZE, 0));
    SAY(pwrite(reads, p, SIZE, 0));
    SAY(close(reads));
    int writes = open("file", O_WRONLY);
    SAY(read(writes, p, SIZE));
    SAY(pwrite(writes, p, SIZE, 0));
    close(writes);
    int directory = open(".", O_RDONLY);
    SAY(read(directory, p, SIZE));
    SAY(pread(directory, p, SIZE, 0));
    SAY(open(".", O_RDWR));
    SAY(open("none", O_RDWR));
    SAY(open("file/below", O_RDWR));
    TELL(are_bytes(p, SIZE, 0, 1));
}

/* Memory that is not there, or not to be written, or not to be read, in the middle and at either end. */
static void bad_memory(void) {
    unsigned char *p = memory(SIZE + PAGE);
    int fd = followed(p);
    for (int which = 0; which < 6; which++) {
        p = memory(SIZE + PAGE);
        SAY(pread(fd, p, SIZE, 0));
        unsigned char *at = which % 3 == 0 ? p : which % 3 == 1 ? p + 100 * PAGE : p + 255 * PAGE;
        if (which < 3)
            munmap(at, PAGE);
        else
            mprotect(at, PAGE, PROT_NONE);
        SAY(lseek(fd, 0, SEEK_SET));
        SAY(write(fd, p, SIZE));
        WHERE(fd);
        SAY(lseek(fd, 0, SEEK_SET));
        SAY(read(fd, p, SIZE));
        WHERE(fd);
        mmap(at, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
        SAY(pread(fd, p, SIZE, 0));
        TELL(are_bytes(p, SIZE, 0, 1));
        SAY(pwrite(fd, p, SIZE, 0));
    }
    /* May be read from, not into. */
    mprotect(p + 50 * PAGE, PAGE, PROT_READ);
    SAY(pwrite(fd, p, SIZE, 0));
    SAY(pread(fd, p, SIZE, 0));
    mprotect(p, PAGE, PROT_READ);
    SAY(pread(fd, p, SIZE, 0));
    close(fd);
    THIRD(SUM, "file", 0, 0, 0);
}

static void bad_places(void) {
    unsigned char *p = memory(SIZE);
    int fd = followed(p);
    SAY(pread(fd, p, SIZE, -1));
    SAY(pwrite(fd, p, SIZE, -1));
    SAY(pwrite(fd, p, SIZE, LONG_MIN));
    SAY(pread(fd, p, SIZE, LONG_MAX));
    SAY(lseek(fd, -1, SEEK_SET));
    SAY(pwrite(fd, p, SIZE, LONG_MAX) < 0);
    SAY(pwrite(fd, p, SIZE, LONG_MAX - SIZE) < 0);
    SAY(pwrite(fd, p, SIZE, 0));
    /* The kernel looks at all of what is named before it moves a byte, though it never moves more than 2 GiB. */
    struct iovec over[2] = {{p, 100 * PAGE}, {p + 100 * PAGE, 100 * PAGE}};
    SAY(preadv(fd, over, 2, LONG_MAX - 150 * PAGE));
    SAY(pwritev(fd, over, 2, LONG_MAX - 150 * PAGE) < 0);
    unsigned char *big = memory(1l << 31);
    SAY(pread(fd, big, SSIZE_MAX, 0));
    SAY(pread(fd, big, SIZE, 0));
    SAY(pwrite(fd, big, SSIZE_MAX, 0));
    close(fd);
    THIRD(SUM, "file", 0, 0, 0);
}

/* The limit on the size of files: before, within, and behind what is written. */
static void size_limit(void) {
    unsigned char *p = memory(2 * SIZE);
    int fd = followed(p);
    signal(SIGXFSZ, on_limit);
    static const long limits[] = {0, 5, 10 * PAGE, 10 * PAGE + 7, 255 * PAGE, 256 * PAGE, SIZE - 1, SIZE, SIZE + 1, SIZE + PAGE};
    for (size_t i = 0; i < sizeof limits / sizeof *limits; i++) {
        struct rlimit limit = {limits[i], RLIM_INFINITY};
        setrlimit(RLIMIT_FSIZE, &limit);
        limit_signals = 0;
        p[3 * PAGE] ^= 1, p[200 * PAGE] ^= 1;
        SAY(lseek(fd, 0, SEEK_SET));
        SAY(write(fd, p, SIZE));
        WHERE(fd);
        SAY(pwrite(fd, p, SIZE, PAGE));
        SAY(pwrite(fd, p, SIZE, limits[i]));
        SAY(ftruncate(fd, SIZE));
        printf("%d signals\n", limit_signals);
        limit.rlim_cur = RLIM_INFINITY;
        setrlimit(RLIMIT_FSIZE, &limit);
        SAY(pread(fd, p, SIZE, 0));
        printf("%llx\n", digest(p, SIZE));
        SAY(pwrite(fd, p, SIZE, 0));
    }
    close(fd);
    THIRD(SUM, "file", 0, 0, 0);
}

/* A sealed file in memory: nothing that was read changes, and nothing more is written. */
static void sealed(void) {
    unsigned char *p = memory(SIZE), *q = memory(SIZE);
    int fd = memfd_create("sealed", MFD_ALLOW_SEALING);
    bytes_at(p, SIZE, 0, 1);
    SAY(write(fd, p, SIZE));
    SAY(pread(fd, p, SIZE, 0));
    char name[64];
    snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
    int again = open(name, O_RDWR), reads = open(name, O_RDONLY);
    SAY(pread(reads, q, SIZE, 0));
    close(again);
    SAY(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW));
    SAY(ftruncate(fd, SIZE - PAGE));
    SAY(pwrite(fd, p, SIZE, 0));
    SAY(pwrite(fd, p, SIZE, PAGE));
    SAY(pwrite(fd, p, SIZE, SIZE));
    SAY(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE));
    SAY(pwrite(fd, p, SIZE, 0));
    SAY(write(fd, p, SIZE));
    WHERE(fd);
    SAY(pread(reads, q, SIZE, 0));
    SAY(pread(fd, q, SIZE, 0));
    TELL(are_bytes(p, SIZE, 0, 1) && are_bytes(q, SIZE, 0, 1));
    /* The descriptor gone, what was read stays. */
    close(fd);
    close(reads);
    TELL(are_bytes(p, SIZE, 0, 1) && are_bytes(q, SIZE, 0, 1));
}

/* A file in memory, read through a description that cannot write, and written to through the one that made it: which the
 * kernel does not count as open for writing. */
static void unnamed(void) {
    unsigned char *p = memory(SIZE), *q = memory(SIZE);
    int fd = memfd_create("unnamed", 0);
    bytes_at(p, SIZE, 0, 1);
    SAY(write(fd, p, SIZE));
    char name[64];
    snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
    int reads = open(name, O_RDONLY);
    SAY(pread(reads, q, SIZE, 0));
    SAY(pwrite(fd, "changed", 7, 5 * PAGE));
    TELL(are_bytes(q, SIZE, 0, 1));
    SAY(ftruncate(fd, 20 * PAGE));
    TELL(are_bytes(q, SIZE, 0, 1));
    SAY(pread(reads, q, SIZE, 0));
    close(reads);
    close(fd);
    printf("%llx\n", digest(q, SIZE));
}

static int attribute(const char *path, int set) {
    int fd = open(path, O_RDONLY), flags = 0, result = ioctl(fd, FS_IOC_GETFLAGS, &flags);
    flags = set ? flags | set : flags & ~(FS_APPEND_FL | FS_IMMUTABLE_FL);
    if (result == 0)
        result = ioctl(fd, FS_IOC_SETFLAGS, &flags);
    close(fd);
    return result;
}

/* Made immutable, or for appending only, between the read and the write. */
static void attributes(void) {
    unsigned char *p = memory(SIZE);
    int fd = followed(p);
    p[9 * PAGE] ^= 1;
    if (attribute("file", FS_IMMUTABLE_FL) != 0) {
        printf("skipped: files here cannot be made immutable\n");
        return;
    }
    SAY(pread(fd, p + 128 * PAGE, 20 * PAGE, 128 * PAGE));
    SAY(lseek(fd, 0, SEEK_SET));
    SAY(write(fd, p, SIZE));
    WHERE(fd);
    SAY(pwrite(fd, p + 128 * PAGE, 20 * PAGE, 128 * PAGE));
    SAY(ftruncate(fd, SIZE));
    int other = open("file", O_RDONLY);
    SAY(pread(other, p + 64 * PAGE, 20 * PAGE, 64 * PAGE));
    SAY(open("file", O_RDWR));
    close(other);
    attribute("file", 0);
    SAY(pread(fd, p + 128 * PAGE, 20 * PAGE, 128 * PAGE));
    attribute("file", FS_APPEND_FL);
    SAY(open("file", O_RDWR));
    SAY(pwrite(fd, p + 128 * PAGE, 20 * PAGE, 128 * PAGE));
    SAY(ftruncate(fd, SIZE));
    attribute("file", 0);
    SAY(pwrite(fd, p, SIZE, 0));
    close(fd);
    THIRD(SUM, "file", 0, 0, 0);
}

/* On a file system with room for 512 pages: a file with holes is written back, and grows. */
static void no_room(void) {
    unsigned char *p = memory(4 * SIZE);
    THIRD(MAKE, "file", 0, 100 * PAGE, 1);
    THIRD(TRUNCATE, "file", 0, 700 * PAGE, 0);
    int fd = open("file", O_RDWR);
    SAY(pread(fd, p, 700 * PAGE, 0));
    p[4 * PAGE] ^= 1;
    SAY(pwrite(fd, p, 100 * PAGE, 0));
    SAY(lseek(fd, 0, SEEK_SET));
    SAY(write(fd, p, 700 * PAGE));
    WHERE(fd);
    SAY(write(fd, p, 64 * PAGE));
    WHERE(fd);
    THIRD(SUM, "file", 0, 0, 0);
    SAY(ftruncate(fd, 100 * PAGE));
    SAY(pread(fd, p, 700 * PAGE, 0));
    SAY(pwrite(fd, p, 700 * PAGE, 0));
    SAY(pwrite(fd, p, 700 * PAGE, 0));
    p[90 * PAGE] ^= 1;
    /* What is there already can be written to a full file system. */
    SAY(pwrite(fd, p, 100 * PAGE, 0));
    SAY(fsync(fd));
    struct stat st;
    fstat(fd, &st);
    printf("%ld blocks\n", (long)st.st_blocks);
    close(fd);
    THIRD(SUM, "file", 0, 0, 0);
}

/* Where a quota ends at 400 pages. How many of them the file system takes for itself is its own business. Without any left it
 * refuses even what needs no more room. */
static void no_quota(void) {
    unsigned char *p = memory(1024 * PAGE);
    THIRD(MAKE, "file", 0, 256 * PAGE, 1);
    int fd = open("file", O_RDWR);
    SAY(read(fd, p, 256 * PAGE));
    p[4 * PAGE] ^= 1;
    SAY(pwrite(fd, p, 256 * PAGE, 0));
    SAY(fsync(fd));
    long done = pwrite(fd, p, 1024 * PAGE, 0);
    TELL(done > 350 * PAGE && done <= 400 * PAGE);
    SAY(pwrite(fd, p, 512 * PAGE, 512 * PAGE));
    p[90 * PAGE] ^= 1;
    SAY(pwrite(fd, p, 256 * PAGE, 0));
    SAY(pwrite(fd, p, 256 * PAGE, 0));
    SAY(lseek(fd, 600 * PAGE, SEEK_SET));
    SAY(write(fd, p, 64 * PAGE));
    WHERE(fd);
    SAY(fsync(fd));
    SAY(ftruncate(fd, 256 * PAGE));
    close(fd);
    THIRD(SUM, "file", 0, 0, 0);
}

/* On a file system that is only to be read by the time the file is. */
static void read_only(void) {
    unsigned char *p = memory(SIZE);
    int fd = open("file", O_RDONLY);
    SAY(read(fd, p, SIZE));
    TELL(are_bytes(p, SIZE, 0, 1));
    SAY(write(fd, p, SIZE));
    SAY(open("file", O_RDWR));
    SAY(open("file", O_WRONLY | O_TRUNC));
    SAY(truncate("file", 0));
    SAY(open("new", O_WRONLY | O_CREAT, 0600));
    TELL(are_bytes(p, SIZE, 0, 1));
}

static const struct row rows[] = {
    {"bad_descriptors", bad_descriptors}, {"bad_memory", bad_memory}, {"bad_places", bad_places},
    {"size_limit", size_limit}, {"sealed", sealed}, {"unnamed", unnamed}, {"attributes", attributes}, {"no_room", no_room},
    {"no_quota", no_quota}, {"read_only", read_only}, {0},
};

int main(int count, char **arguments) { return run_row(count, arguments, rows); }
