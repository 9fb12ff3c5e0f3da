/* read and write in all their names: values, errors, positions, contents. */
#define _GNU_SOURCE
#include "say.h"
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>

enum { BIG = 1 << 20, SIZE = 3 * BIG + 1234 };

/* What glibc's headers turn read and pread into when they know how much room there is. */
ssize_t __read_chk(int, void *, size_t, size_t);
ssize_t __pread_chk(int, void *, size_t, off_t, size_t);
ssize_t __pread64_chk(int, void *, size_t, off_t, size_t);
int __open_2(const char *, int);
int __open64_2(const char *, int);
int __openat_2(int, const char *, int);
int __openat64_2(int, const char *, int);

static void on_limit(int signal) { write(1, "SIGXFSZ\n", 8); (void)signal; }

int main(void) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    unsigned char *bytes = malloc(SIZE), *buf = malloc(SIZE + 4096);
    unsigned char *map = mmap(NULL, 4 * BIG, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    fill(bytes, SIZE, 1);
    memset(buf, 0, SIZE + 4096);

    int fd = open("data", O_RDWR | O_CREAT | O_TRUNC, 0640);
    struct stat st;
    fstat(fd, &st);
    printf("mode %o\n", st.st_mode);
    SAY(write(fd, bytes, SIZE));
    WHERE(fd);
    SAY(read(fd, buf, BIG));
    SAY(lseek(fd, 4096, SEEK_SET));
    SAY(read(fd, map, BIG));
    SUM(map, BIG);
    WHERE(fd);
    SAY(read(fd, buf, SIZE));
    SUM(buf, SIZE);
    SAY(read(fd, buf, BIG));
    SAY(lseek(fd, 10 * BIG, SEEK_SET));
    SAY(read(fd, buf, BIG));
    SAY(pread(fd, map, 2 * BIG, SIZE - BIG));
    SAY(pread64(fd, map, 2 * BIG, 8192));
    SUM(map, 2 * BIG);
    SAY(pread(fd, map, BIG, -1));
    SAY(pread(fd, map, BIG, 1ll << 62));
    SAY(pread(fd, map, (size_t)-1, 0));
    SAY(read(fd, map, (size_t)1 << 63));
    SAY(read(fd, NULL, BIG));
    /* Pointers to nothing, in each call whose arguments are looked at before it is made. */
    void *volatile none = NULL;
    struct rlimit now;
    SAY(readv(fd, none, 2));
    SAY(writev(fd, none, 2));
    SAY(preadv(fd, none, 2, 0));
    SAY(pwritev(fd, none, 2, 0));
    SAY(setrlimit(RLIMIT_DATA, none));
    SAY(prlimit(0, RLIMIT_AS, none, &now));
    SAY(prlimit(0, RLIMIT_AS, (void *)8, none));
    SAY(syscall(SYS_openat2, AT_FDCWD, "data", none, 24l));
    SAY(syscall(SYS_writev, fd, none, 2l));
    SAY(read(fd, (void *)8, BIG));
    SAY(pread(fd, (void *)8, BIG, 0));
    SAY(pwrite(fd, (void *)8, BIG, 0));
    SAY(pwrite(fd, bytes, BIG, -1));
    SAY(write(fd, NULL, 0));
    SAY(read(-1, buf, BIG));
    SAY(write(-1, buf, BIG));
    SAY(read(999, buf, BIG));
    SAY(__read_chk(fd, buf, BIG, SIZE));
    SAY(lseek(fd, 0, SEEK_SET));
    SAY(__read_chk(fd, buf, BIG, SIZE));
    SAY(__pread_chk(fd, buf, BIG, 77, SIZE));
    SAY(__pread64_chk(fd, buf, BIG, 77, SIZE));
    SUM(buf, BIG);

    /* A hole in the buffer's memory. */
    munmap(map + BIG, 4096);
    SAY(pread(fd, map, 2 * BIG, 0));
    SUM(map, BIG);
    SAY(pwrite(fd, map, 2 * BIG, 100));
    mmap(map + BIG, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    SAY(pread(fd, map, 2 * BIG, 0));

    /* Vectors. */
    struct iovec v[4] = {{buf, 10}, {map, BIG / 2}, {buf + 16, 0}, {buf + 32, BIG}};
    SAY(lseek(fd, 5, SEEK_SET));
    SAY(readv(fd, v, 4));
    WHERE(fd);
    SUM(buf, BIG + 32);
    SAY(readv(fd, v + 1, 1));
    WHERE(fd);
    SAY(preadv(fd, v, 4, 4096));
    SAY(preadv64(fd, v, 4, SIZE - BIG));
    SAY(preadv(fd, v, 4, -1));
    SAY(preadv2(fd, v, 4, -1, 0));
    SAY(preadv2(fd, v, 4, 123, 0));
    SAY(preadv2(fd, v, 4, 123, 0x4000));
    SAY(preadv64v2(fd, v, 4, 123, RWF_NOWAIT) >= -1);
    WHERE(fd);
    SAY(readv(fd, v, 0));
    SAY(readv(fd, v, -1));
    SAY(readv(fd, v, 5000));
    SAY(readv(fd, NULL, 2));
    SAY(readv(fd, (void *)16, 2));
    struct iovec *heap = malloc(sizeof v);
    memcpy(heap, v, sizeof v);
    SAY(preadv(fd, heap, 4, 0));
    struct iovec bad[3] = {{buf, BIG}, {(void *)8, BIG}, {buf, BIG}};
    SAY(preadv(fd, bad, 3, 0));
    bad[1] = (struct iovec){buf, (size_t)-5};
    SAY(preadv(fd, bad, 3, 0));
    bad[1] = (struct iovec){(void *)-4096l, 8192};
    SAY(preadv(fd, bad, 3, 0));
    SAY(lseek(fd, 1000, SEEK_SET));
    SAY(writev(fd, v, 4));
    WHERE(fd);
    SAY(pwritev(fd, v, 4, 2 * BIG));
    SAY(pwritev64(fd, v, 1, 3));
    SAY(pwritev2(fd, v, 4, -1, 0));
    SAY(pwritev2(fd, v, 4, 50, RWF_DSYNC));
    SAY(pwritev64v2(fd, v, 2, 51, 0));
    SAY(pwritev64v2(fd, v, 2, 51, 0x4000));
    SAY(writev(fd, (void *)16, 2));
    WHERE(fd);

    /* Descriptors that are no files, or not open for this. */
    int reads = open("data", O_RDONLY), writes = open64("data", O_WRONLY), dir = open(".", O_RDONLY | O_DIRECTORY);
    SAY(write(reads, buf, BIG));
    SAY(read(writes, buf, BIG));
    SAY(read(dir, buf, BIG));
    SAY(write(dir, buf, BIG));
    SAY(read(reads, map, BIG / 2));
    WHERE(reads);
    int path = open("data", O_PATH);
    SAY(read(path, buf, BIG));
    int zero = open("/dev/zero", O_RDWR), null = open("/dev/null", O_RDWR), proc = open("/proc/self/status", O_RDONLY);
    SAY(read(zero, map, BIG / 2));
    SAY(readv(zero, v, 2));
    SAY(write(null, buf, BIG));
    SAY(writev(null, v, 4));
    SAY(read(null, buf, BIG));
    SAY(read(proc, map, BIG / 2) > 100);
    SAY(open("none", O_RDONLY));
    SAY(__open_2("data", O_RDONLY) > 0);
    SAY(__open64_2("data", O_RDWR) > 0);
    SAY(__openat_2(AT_FDCWD, "data", O_RDONLY) > 0);
    SAY(__openat64_2(dir, "data", O_RDWR) > 0);
    SAY(openat(dir, "made", O_CREAT | O_RDWR, 0600) > 0);
    SAY(openat64(dir, "made", O_CREAT | O_EXCL | O_RDWR, 0600));
    SAY(creat("made2", 0604) > 0);
    SAY(creat64("made2", 0604) > 0);
    stat("made2", &st);
    printf("mode %o\n", st.st_mode);
    int hidden = open(".", O_TMPFILE | O_RDWR, 0600);
    if (hidden >= 0) {
        SAY(write(hidden, bytes, BIG));
        SAY(pread(hidden, map, BIG, 0));
    }

    /* Pipes: what is there is what is read, in one call or a vector. */
    int ends[2];
    pipe(ends);
    SAY(write(ends[1], bytes, 5000));
    SAY(read(ends[0], buf, BIG));
    SAY(write(ends[1], bytes, 5000));
    struct iovec p[2] = {{buf, 100}, {buf + 100, BIG}};
    SAY(readv(ends[0], p, 2));
    SAY(pread(ends[0], buf, BIG, 0));
    SAY(pwrite(ends[1], buf, BIG, 0));
    signal(SIGPIPE, SIG_IGN);
    close(ends[0]);
    SAY(write(ends[1], buf, BIG));

    /* Appending. */
    int append = open("log", O_RDWR | O_CREAT | O_APPEND, 0600);
    SAY(write(append, bytes, BIG));
    SAY(lseek(append, 0, SEEK_SET));
    SAY(write(append, bytes, 100));
    WHERE(append);
    SAY(pwrite(append, bytes, BIG, 5));
    SAY(pwritev(append, v, 4, 5));
    SAY(lseek(append, 0, SEEK_END));
    SAY(pread(append, map, BIG, BIG / 2));
    SUM(map, BIG);

    /* Truncation, by descriptor, by path, and by opening. */
    SAY(ftruncate(fd, 2 * BIG));
    SAY(ftruncate64(fd, 2 * BIG + 7));
    SAY(truncate("data", 2 * BIG + 5));
    SAY(pread(fd, map, BIG, 2 * BIG - 100));
    SAY(open("log", O_RDONLY | O_TRUNC) > 0);
    SAY(lseek(append, 0, SEEK_END));
    SAY(posix_fallocate(fd, 0, 2 * BIG + 4096));
    SAY(fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, 3 * BIG));
    SAY(fallocate64(-1, 0, 0, 3 * BIG));
    SAY(lseek(fd, 0, SEEK_END));
    off_t from = 10;
    SAY(copy_file_range(fd, &from, append, NULL, BIG, 0));
    from = 0;
    int made = open("made", O_RDWR);
    SAY(sendfile(made, fd, &from, BIG));
    SAY(lseek(made, 0, SEEK_END));

    /* The limit on a file's size. */
    signal(SIGXFSZ, on_limit);
    struct rlimit limit;
    getrlimit(RLIMIT_FSIZE, &limit);
    limit.rlim_cur = BIG;
    setrlimit(RLIMIT_FSIZE, &limit);
    SAY(pwrite(made, bytes, BIG, BIG - 1000));
    SAY(pwrite(made, bytes, BIG, BIG));
    struct iovec q[2] = {{bytes, BIG / 2}, {bytes, BIG}};
    SAY(pwritev(made, q, 2, 0));
    SAY(pwritev(made, q, 2, BIG / 2));
    return 0;
}
