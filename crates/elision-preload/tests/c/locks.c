/* Locks, leases, owners and watches of files that memory stands for. */
#include "effects.h"
#include <poll.h>
#include <sys/inotify.h>

static int lock(int fd, int command, short type, off_t start, off_t len) {
    struct flock lock = {.l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = len};
    return fcntl(fd, command, &lock);
}

/* A lock of the process: it stays while files are read and written, and goes with any descriptor of the file. */
static void of_the_process(void) {
    THIRD(MAKE, "file", 0, SIZE, 1);
    unsigned char *p = memory(SIZE);
    int fd = open("file", O_RDWR), other = open("other", O_RDWR | O_CREAT, 0600);
    SAY(lock(fd, F_SETLK, F_WRLCK, 0, 100));
    SAY(pread(fd, p, SIZE, 0));
    SAY(pwrite(fd, p, SIZE, 0));
    THIRD(LOCK, "file", 0, 10, 0);
    THIRD(LOCK, "file", 100, 10, 0);
    SAY(pwrite(fd, p, SIZE, 0));
    SAY(pwrite(other, p, SIZE, 0));
    THIRD(LOCK, "file", 0, 10, 0);
    THIRD(WRITE, "file", 50 * PAGE, 10, 2);
    THIRD(LOCK, "file", 0, 10, 0);
    SAY(pread(fd, p, SIZE, 0));
    SAY(lock(fd, F_SETLK, F_UNLCK, 0, 0));
    THIRD(LOCK, "file", 0, 10, 0);
    SAY(lock(fd, F_SETLK, F_WRLCK, 0, 100));
    /* Traditionally lost with this. */
    close(open("file", O_RDONLY));
    THIRD(LOCK, "file", 0, 10, 0);
    close(fd);
    THIRD(LOCK, "file", 0, 10, 0);
}

/* Locks of the description: they go with the last of its descriptors. */
static void of_the_description(void) {
    THIRD(MAKE, "file", 0, SIZE, 1);
    unsigned char *p = memory(SIZE);
    for (int flags = O_RDONLY; flags <= O_RDWR; flags += O_RDWR - O_RDONLY) {
        int fd = open("file", flags), copy;
        SAY(lock(fd, F_OFD_SETLK, flags == O_RDWR ? F_WRLCK : F_RDLCK, 0, 100));
        SAY(pread(fd, p, SIZE, 0));
        THIRD(LOCK, "file", 0, 10, 0);
        SAY(pread(fd, p, SIZE, 0));
        if (flags == O_RDWR)
            SAY(pwrite(fd, p, SIZE, 0));
        copy = dup(fd);
        close(fd);
        THIRD(LOCK, "file", 0, 10, 0);
        close(copy);
        THIRD(LOCK, "file", 0, 10, 0);
        fd = open("file", flags);
        SAY(pread(fd, p, SIZE, 0));
        SAY(flock(fd, LOCK_EX));
        THIRD(FLOCK, "file", 0, 0, 0);
        THIRD(FLOCK, "file", 0, 0, 1);
        SAY(pread(fd, p, SIZE, 0));
        close(fd);
        THIRD(FLOCK, "file", 0, 0, 0);
        TELL(are_bytes(p, SIZE, 0, 1));
        fd = open("file", flags);
        SAY(flock(fd, LOCK_SH));
        SAY(pread(fd, p, SIZE, 0));
        THIRD(FLOCK, "file", 0, 0, 0);
        SAY(flock(fd, LOCK_UN));
        THIRD(FLOCK, "file", 0, 0, 0);
        close(fd);
    }
}

/* A program's own leases, which can be asked for and taken as if nothing had been read. */
static void leases(void) {
    THIRD(MAKE, "file", 0, SIZE, 1);
    unsigned char *p = memory(SIZE);
    signal(SIGIO, SIG_IGN);
    int fd = open("file", O_RDWR);
    SAY(pread(fd, p, SIZE, 0));
    SAY(fcntl(fd, F_GETLEASE));
    SAY(fcntl(fd, F_GETOWN));
    SAY(fcntl(fd, F_GETSIG));
    SAY(pread(fd, p, SIZE, 0));
    SAY(fcntl(fd, F_SETLEASE, F_WRLCK));
    SAY(fcntl(fd, F_GETLEASE));
    SAY(pread(fd, p, SIZE, 0));
    SAY(pwrite(fd, p, SIZE, 0));
    SAY(fcntl(fd, F_SETLEASE, F_UNLCK));
    close(fd);
    fd = open("file", O_RDONLY);
    SAY(pread(fd, p, SIZE, 0));
    SAY(fcntl(fd, F_GETLEASE));
    SAY(fcntl(fd, F_SETLEASE, F_RDLCK));
    SAY(fcntl(fd, F_GETLEASE));
    SAY(fcntl(fd, F_SETLEASE, F_UNLCK));
    SAY(pread(fd, p, SIZE, 0));
    SAY(fcntl(fd, F_SETLEASE, F_WRLCK));
    SAY(fcntl(fd, F_GETLEASE));
    SAY(fcntl(fd, F_SETLEASE, F_UNLCK));
    TELL(are_bytes(p, SIZE, 0, 1));
    close(fd);
}

static volatile int signals;
static void count(int number) { (void)number, signals++; }

/* Whoever asked for signals about a description gets none because of us. */
static void owners(void) {
    THIRD(MAKE, "file", 0, SIZE, 1);
    unsigned char *p = memory(SIZE);
    signal(SIGIO, count);
    signal(SIGUSR1, count);
    for (int round = 0; round < 2; round++) {
        int fd = open("file", O_RDWR);
        if (round == 0)
            SAY(pread(fd, p, SIZE, 0));
        SAY(fcntl(fd, F_SETOWN, getpid()));
        SAY(fcntl(fd, F_SETSIG, SIGUSR1));
        SAY(pread(fd, p, SIZE, 0));
        TELL(fcntl(fd, F_GETOWN) == getpid());
        SAY(fcntl(fd, F_GETSIG) == SIGUSR1);
        THIRD(WRITE, "file", 0, PAGE, 1);
        SAY(pread(fd, p, SIZE, 0));
        THIRD(SUM, "file", 0, 0, 0);
        TELL(fcntl(fd, F_GETOWN) == getpid());
        printf("%d signals\n", signals);
        close(fd);
    }
}

/* One's own opens that do not want to wait. */
static void impatient(void) {
    THIRD(MAKE, "file", 0, SIZE, 1);
    unsigned char *p = memory(SIZE);
    int fd = open("file", O_RDONLY), other;
    SAY(pread(fd, p, SIZE, 0));
    SAY((other = open("file", O_WRONLY | O_NONBLOCK)) >= 0);
    if (other >= 0)
        SAY(pwrite(other, "x", 1, 0));
    close(other);
    SAY(pread(fd, p, SIZE, 0));
    SAY((other = openat(AT_FDCWD, "file", O_RDWR | O_NONBLOCK | O_CREAT, 0600)) >= 0);
    close(other);
    SAY(pread(fd, p, SIZE, 0));
    SAY((other = open("file", O_RDWR | O_NONBLOCK | O_TRUNC)) >= 0);
    close(other);
    close(fd);
    /* The write lease, which any open breaks. */
    THIRD(REWRITE, "file", 0, SIZE, 1);
    fd = open("file", O_RDWR);
    SAY(pread(fd, p, SIZE, 0));
    SAY((other = open("file", O_RDONLY | O_NONBLOCK)) >= 0);
    SAY(read(other, p, 10));
    close(other);
    SAY(pread(fd, p, SIZE, 0));
    SAY((other = open("file", O_WRONLY | O_NONBLOCK)) >= 0);
    close(other);
    close(fd);
}

/* The events that somebody who watches the file waits for: that it was written to, and that the writer is done. */
static void watched(void) {
    THIRD(MAKE, "file", 0, SIZE, 1);
    unsigned char *p = memory(SIZE);
    int watch = inotify_init1(IN_NONBLOCK);
    inotify_add_watch(watch, "file", IN_MODIFY | IN_CLOSE_WRITE | IN_ATTRIB);
    for (int round = 0; round < 3; round++) {
        int fd = open("file", O_RDWR);
        pread(fd, p, SIZE, 0);
        if (round == 1)
            p[100 * PAGE] ^= 1;
        if (round < 2)
            pwrite(fd, p, SIZE, 0);
        close(fd);
        unsigned mask = 0;
        char events[4096];
        ssize_t got = read(watch, events, sizeof events);
        for (ssize_t at = 0; at < got;) {
            struct inotify_event *event = (struct inotify_event *)(events + at);
            mask |= event->mask;
            at += sizeof *event + event->len;
        }
        printf("modified %d, closed %d\n", !!(mask & IN_MODIFY), !!(mask & IN_CLOSE_WRITE));
    }
}

/* Many small writes to what was read as a whole: nobody else has to wait for that, after a while, nor do they cost what they did. */
static void many_small_writes(void) {
    THIRD(MAKE, "file", 0, SIZE, 1);
    unsigned char *p = memory(SIZE);
    int fd = open("file", O_RDWR), failed = 0;
    SAY(pread(fd, p, SIZE, 0));
    for (int i = 0; i < 300; i++)
        failed += pwrite(fd, "small", 5, i % PAGES * PAGE + 7) != 5;
    SAY(failed);
    THIRD(OPEN_NOW, "file", 0, 0, 0);
    TELL(are_bytes(p, SIZE, 0, 1));
    SAY(pread(fd, p, SIZE, 0));
    SAY(memcmp(p + 7, "small", 5));
    THIRD(SUM, "file", 0, 0, 0);
    SAY(pwrite(fd, p, SIZE, 0));
    THIRD(SUM, "file", 0, 0, 0);
    close(fd);
}

static const struct row rows[] = {
    {"of_the_process", of_the_process}, {"of_the_description", of_the_description}, {"leases", leases},
    {"owners", owners}, {"impatient", impatient}, {"watched", watched},
    {"many_small_writes", many_small_writes}, {0},
};

int main(int count, char **arguments) { return run_row(count, arguments, rows); }
