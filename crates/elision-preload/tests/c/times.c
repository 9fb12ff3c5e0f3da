/* What a read or write leaves on the file besides bytes: times, mode, holes, and what waits to be written. */
#include "effects.h"
#include <linux/magic.h>
#include <sys/vfs.h>
#include <sys/xattr.h>
#include <time.h>

static struct stat before;

static void note(const char *path) { stat(path, &before); }

static int later(struct timespec a, struct timespec b) {
    return a.tv_sec > b.tv_sec || (a.tv_sec == b.tv_sec && a.tv_nsec > b.tv_nsec);
}

static void moved(int line, const char *path) {
    struct stat now;
    stat(path, &now);
    printf("%d: access %d, modification %d, change %d\n", line, later(now.st_atim, before.st_atim),
           later(now.st_mtim, before.st_mtim), later(now.st_ctim, before.st_ctim));
    before = now;
}
#define MOVED(path) moved(__LINE__, path)

/* Access and modification times of long ago, by name. */
static void long_ago(const char *path) {
    struct timespec times[2] = {{1000000000, 5}, {1000000001, 5}};
    utimensat(AT_FDCWD, path, times, 0);
    note(path);
}

static int read_whole(const char *path, int flags, unsigned char *p) {
    int fd = open(path, flags);
    if (fd < 0 || read(fd, p, SIZE) != SIZE)
        printf("a short read\n");
    return fd;
}

/* Until the clock by which files are stamped, which moves in steps and may be a step behind, has moved for certain. */
static void tick(void) {
    struct timespec a, b;
    for (int steps = 0; steps < 3; steps++) {
        clock_gettime(CLOCK_REALTIME_COARSE, &a);
        do {
            usleep(500);
            clock_gettime(CLOCK_REALTIME_COARSE, &b);
        } while (!later(b, a));
    }
}

static void modified(void) {
    THIRD(MAKE, "file", 0, SIZE, 1);
    unsigned char *p = memory(SIZE);
    long_ago("file");
    int fd = read_whole("file", O_RDWR, p);
    MOVED("file");
    for (int i = 0; i < 4; i++) {
        tick();
        if (i == 3)
            p[100 * PAGE] ^= 1;
        SAY(pwrite(fd, p, SIZE, 0));
        MOVED("file");
    }
    tick();
    SAY(pwrite(fd, p + 10 * PAGE, 20 * PAGE, 10 * PAGE));
    MOVED("file");
    long_ago("file");
    SAY(pwrite(fd, p, SIZE, 0));
    MOVED("file");
    SAY(fsync(fd));
    MOVED("file");
    close(fd);
    MOVED("file");
    TELL(are_bytes(p, PAGE, 0, 1));
}

/* A read counts as an access at the time of the read, and at no other. */
static void accessed(int flags) {
    THIRD(MAKE, "file", 0, SIZE, 1);
    unsigned char *p = memory(2 * SIZE);
    long_ago("file");
    int fd = read_whole("file", O_RDONLY | flags, p);
    MOVED("file");
    tick();
    SAY(pread(fd, p + SIZE + 4096 - SIZE % 4096, 64 * PAGE, 0));
    MOVED("file");
    tick();
    printf("%llx\n", digest(p, SIZE));
    MOVED("file");
    /* Put back, as backups do; then somebody changes the file. */
    long_ago("file");
    tick();
    struct stat old = before;
    THIRD(WRITE, "file", 5 * PAGE, PAGE, 2);
    struct stat now;
    stat("file", &now);
    printf("after another's write: access %d\n", later(now.st_atim, old.st_atim));
    TELL(are_bytes(p, SIZE, 0, 1));
    long_ago("file");
    close(fd);
    MOVED("file");
    fd = read_whole("file", O_RDWR | flags, p);
    MOVED("file");
    long_ago("file");
    p[PAGE] ^= 1;
    tick();
    SAY(pwrite(fd, p, SIZE, 0));
    stat("file", &now);
    printf("after our write: access %d\n", later(now.st_atim, before.st_atim));
    long_ago("file");
    tick();
    SAY(ftruncate(fd, SIZE));
    stat("file", &now);
    printf("after our truncation: access %d\n", later(now.st_atim, before.st_atim));
    SAY(pread(fd, p, SIZE, 0));
    long_ago("file");
    tick();
    SAY(madvise(p, SIZE, MADV_DODUMP));
    MOVED("file");
    close(fd);
    MOVED("file");
    THIRD(APPEND, "file", 0, PAGE, 2);
    stat("file", &now);
    printf("after another's: access %d\n", later(now.st_atim, before.st_atim));
}

static void access_time(void) { accessed(0); }
static void no_access_time(void) { accessed(O_NOATIME); }

static void mode_of(int line, const char *path) {
    struct stat st;
    stat(path, &st);
    printf("%d: mode %o\n", line, st.st_mode);
}

/* Set-uid and set-gid bits fall with the write of an ordinary user, elided or not. */
static void set_ids(void) {
    as_ordinary_user("set_ids");
    THIRD(MAKE, "file", 0, SIZE, 1);
    unsigned char *p = memory(SIZE);
    for (int i = 0; i < 4; i++) {
        static const mode_t modes[] = {06775, 04755, 02755, 02644};
        SAY(chmod("file", modes[i]));
        mode_of(__LINE__, "file");
        int fd = read_whole("file", O_RDWR, p);
        mode_of(__LINE__, "file");
        SAY(pwrite(fd, p, SIZE, 0));
        mode_of(__LINE__, "file");
        SAY(chmod("file", modes[i]));
        SAY(pwrite(fd, p + 10 * PAGE, 20 * PAGE, 10 * PAGE));
        mode_of(__LINE__, "file");
        close(fd);
    }
}

/* Root's write leaves the mode alone and takes the file's capabilities away. */
static void capabilities(void) {
    THIRD(MAKE, "file", 0, SIZE, 1);
    unsigned char *p = memory(SIZE);
    /* Version 2, effective, with the capability to bind low ports. */
    static const unsigned value[5] = {0x02000001, 1 << 10, 0, 0, 0};
    unsigned found[5];
    if (setxattr("file", "security.capability", value, sizeof value, 0) != 0) {
        printf("skipped: files here cannot be given capabilities\n");
        return;
    }
    chmod("file", 06755);
    int fd = read_whole("file", O_RDWR, p);
    SAY(getxattr("file", "security.capability", found, sizeof found));
    SAY(pwrite(fd, p, SIZE, 0));
    SAY(getxattr("file", "security.capability", found, sizeof found));
    mode_of(__LINE__, "file");
    close(fd);
}

/* Where the file has data, and how much room it takes up. */
static void holes_of(int fd) {
    fsync(fd);
    struct stat st;
    fstat(fd, &st);
    printf("%ld blocks:", (long)st.st_blocks);
    off_t at = 0;
    for (int i = 0; i < 20 && at < st.st_size; i++) {
        off_t data = lseek(fd, at, SEEK_DATA);
        if (data < 0)
            break;
        at = lseek(fd, data, SEEK_HOLE);
        printf(" %ld-%ld", (long)data, (long)at);
    }
    printf("\n");
}

/* A file with holes, and one with room set aside; written back whole, and in parts. */
static void holes_in(int first, int end) {
    unsigned char *p = memory(SIZE);
    for (int which = first; which < end; which++) {
        unlink("file");
        THIRD(MAKE, "file", 0, 64 * PAGE, 1);
        THIRD(TRUNCATE, "file", 0, SIZE, 0);
        THIRD(WRITE, "file", 192 * PAGE, 32 * PAGE, 1);
        int fd = open("file", O_RDWR);
        if (which == 2)
            SAY(fallocate(fd, 0, 64 * PAGE, 100 * PAGE) == 0);
        if (which == 3)
            SAY(fallocate(fd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, 10 * PAGE, 10 * PAGE) == 0);
        holes_of(fd);
        SAY(pread(fd, p, SIZE, 0));
        /* Of room set aside ext4 says that there is data where a page of it is in memory: here it may not be. */
        if (which != 2)
            holes_of(fd);
        if (which == 1)
            p[100 * PAGE + 5] = 1;
        if (which < 4)
            SAY(pwrite(fd, p, SIZE, 0));
        else
            SAY(pwrite(fd, p, 64 * PAGE, 0));
        holes_of(fd);
        for (int i = 0; i < 3; i++)
            SAY(pwrite(fd, p, SIZE, 0));
        holes_of(fd);
        if (which == 0) {
            /* A hole that is made while memory stands for what was there. */
            SAY(pread(fd, p, SIZE, 0));
            SAY(fallocate(fd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, 20 * PAGE, 10 * PAGE) == 0);
            TELL(are_bytes(p, 64 * PAGE, 0, 1));
            holes_of(fd);
            SAY(pwrite(fd, p, SIZE, 0));
            holes_of(fd);
        }
        close(fd);
        THIRD(SUM, "file", 0, 0, 0);
    }
}

/* To look at memory that a hole was read into fills no hole. */
static void holes_read(void) {
    unsigned char *p = memory(SIZE), *q = memory(SIZE);
    long sum = 0;
    THIRD(MAKE, "full", 0, SIZE, 1);
    THIRD(MAKE, "file", 0, 64 * PAGE, 1);
    THIRD(TRUNCATE, "file", 0, SIZE, 0);
    int fd = open("file", O_RDONLY), full = open("full", O_RDONLY);
    holes_of(fd);
    SAY(read(fd, p, SIZE));
    SAY(read(full, q, SIZE));
    for (size_t at = 0; at < SIZE; at += PAGE)
        sum += p[at] + q[at];
    printf("%ld\n", sum);
    holes_of(fd);
}

static void holes(void) { holes_in(0, 4); }
/* After a write of a part that has none. */
static void holes_behind(void) {
    holes_in(4, 5);
    /* One that our own write makes, behind what it had. */
    unsigned char *p = memory(SIZE);
    unlink("file");
    THIRD(MAKE, "file", 0, 64 * PAGE, 1);
    int fd = open("file", O_RDWR);
    SAY(pread(fd, p, 64 * PAGE, 0));
    SAY(pwrite(fd, p, 64 * PAGE, 0));
    SAY(pwrite(fd, p, 10 * PAGE, 128 * PAGE));
    SAY(pread(fd, p, SIZE, 0));
    for (int i = 0; i < 3; i++)
        SAY(pwrite(fd, p, 138 * PAGE, 0));
    holes_of(fd);
    close(fd);
}

/* Room set aside that was never written to is data after a write, of whatever bytes. */
static void set_aside(void) {
    unsigned char *p = memory(SIZE);
    int fd = open("file", O_RDWR | O_CREAT, 0600);
    struct statfs system;
    if (!fstatfs(fd, &system) && system.f_type == TMPFS_MAGIC) {
        printf("skipped: tmpfs says only to one who seeks what was set aside\n");
        return;
    }
    SAY(fallocate(fd, 0, 0, SIZE));
    SAY(pread(fd, p, SIZE, 0));
    SAY(pwrite(fd, p, SIZE, 0));
    fsync(fd);
    SAY(posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED));
    holes_of(fd);
    close(fd);
}

/* Pages of the file that are not on the disk yet, by cachestat(2). */
static long waiting(int fd) {
    uint64_t range[2] = {0, 0}, counts[5];
    long failed = syscall(451, fd, range, counts, 0);
    return failed ? -1 : (long)(counts[1] + counts[2]);
}

/* A write that waits for the disk waits for all of its bytes, those included that were written before and are not
 * there yet. */
static void synchronous(void) {
    unsigned char *p = memory(SIZE);
    for (int which = 0; which < 3; which++) {
        unlink("file");
        /* In parts: what was written at once may go to the disk at once, however little of it is waited for. */
        asked(MAKE, "file", 0, PAGE, 1);
        for (int part = 0; part < 17; part++)
            asked(APPEND, "file", 0, part < 16 ? 15 * PAGE : SIZE - 241 * PAGE, 1);
        int fd = open("file", O_RDWR | (which == 0 ? O_DSYNC : which == 1 ? O_SYNC : 0));
        SAY(pread(fd, p, SIZE, 0));
        SAY(pwrite(fd, p, SIZE, 0));
        if (which == 2)
            SAY(fdatasync(fd));
        printf("after: %ld\n", waiting(fd));
        close(fd);
    }
}

static const struct row rows[] = {
    {"modified", modified}, {"access_time", access_time}, {"no_access_time", no_access_time},
    {"set_ids", set_ids}, {"capabilities", capabilities}, {"holes_read", holes_read}, {"holes", holes}, {"holes_behind", holes_behind}, {"set_aside", set_aside}, {"synchronous", synchronous}, {0},
};

int main(int count, char **arguments) { return run_row(count, arguments, rows); }
