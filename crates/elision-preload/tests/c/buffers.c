/* Memory that was read into, used in other ways: by other system calls, in part, in two places at once. */
#include "effects.h"
#include <linux/futex.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <sys/random.h>

/* Does the file hold these bytes? Asked in small pieces, of which none is deferred. */
static int file_is(const char *path, const unsigned char *p, size_t len) {
    unsigned char some[4000];
    int fd = open(path, O_RDONLY), good = 1;
    for (size_t at = 0; at < len; at += sizeof some) {
        size_t now = len - at < sizeof some ? len - at : sizeof some;
        good &= pread(fd, some, now, at) == (ssize_t)now && !memcmp(some, p + at, now);
    }
    close(fd);
    return good;
}

/* What the kernel stores on behalf of other calls is stored: into pages that are deferred, and into pages that are
 * followed after a write. */
static void stored_into(void) {
    THIRD(MAKE, "file", 0, SIZE, 1);
    unsigned char *p = memory(SIZE);
    int fd = open("file", O_RDWR), pair[2], ends[2];
    socketpair(AF_UNIX, SOCK_DGRAM, 0, pair);
    pipe(ends);
    symlink("a link to nothing", "link");
    SAY(pread(fd, p, SIZE, 0));
    for (int round = 0; round < 3; round++) {
        size_t at = (10 + round) * PAGE;
        SAY(getrandom(p + at, 3000, 0));
        SAY(readlink("link", (char *)p + at + 20 * PAGE, 1000));
        SAY(getcwd((char *)p + at + 30 * PAGE, 1000) != NULL);
        memset(p + at + 30 * PAGE, round, 1000);
        send(pair[0], "sent and received", 17, 0);
        SAY(recv(pair[1], p + at + 40 * PAGE - 5, 100, 0));
        write(ends[1], "through a pipe", 14);
        SAY(read(ends[0], p + at + 50 * PAGE - 5, 100));
        struct pollfd *polled = (struct pollfd *)(p + at + 60 * PAGE);
        *polled = (struct pollfd){.fd = ends[1], .events = POLLOUT};
        SAY(poll(polled, 1, 0));
        SAY(polled->revents);
        SAY(fstat(fd, (struct stat *)(p + at + 70 * PAGE)));
        memset(p + at + 70 * PAGE, round, sizeof(struct stat));
        struct msghdr *message = (struct msghdr *)(p + at + 80 * PAGE);
        struct iovec *vector = (struct iovec *)(p + at + 90 * PAGE);
        *vector = (struct iovec){p + at + 100 * PAGE, 3000};
        memset(message, 0, sizeof *message);
        message->msg_iov = vector, message->msg_iovlen = 1;
        SAY(sendmsg(pair[0], message, 0));
        vector->iov_base = p + at + 110 * PAGE + 5;
        SAY(recvmsg(pair[1], message, 0));
        struct timespec *time = (struct timespec *)(p + at + 120 * PAGE);
        SAY(syscall(SYS_clock_gettime, CLOCK_MONOTONIC, time));
        SAY(pwrite(fd, p, SIZE, 0));
        /* While it is open for writing, our own small reads are what can be asked without changing anything. */
        unsigned char some[4000];
        int good = 1;
        for (size_t from = 0; from < SIZE; from += sizeof some) {
            size_t now = SIZE - from < sizeof some ? SIZE - from : sizeof some;
            good &= pread(fd, some, now, from) == (ssize_t)now && !memcmp(some, p + from, now);
        }
        TELL(good);
    }
    close(fd);
    TELL(file_is("file", p, SIZE));
}

/* What other calls take out of it is what was read. */
static void taken_from(void) {
    THIRD(MAKE, "file", 0, SIZE, 1);
    unsigned char *p = memory(SIZE), got[PAGE];
    int fd = open("file", O_RDWR), ends[2], pair[2], status;
    pipe(ends);
    socketpair(AF_UNIX, SOCK_STREAM, 0, pair);
    SAY(pread(fd, p, SIZE, 0));
    SAY(write(ends[1], p + 3 * PAGE, 3000));
    SAY(read(ends[0], got, PAGE));
    TELL(are_bytes(got, 3000, 3 * PAGE, 1));
    SAY(write(ends[1], p + 10 * PAGE, 15 * PAGE));
    SAY(send(pair[0], p + 30 * PAGE, 15 * PAGE, 0));
    /* Already taken: what happens to the file now is nothing to them. */
    THIRD(WRITE, "file", 0, SIZE, 2);
    unsigned char *q = memory(16 * PAGE);
    SAY(read(ends[0], q, 15 * PAGE));
    TELL(are_bytes(q, 15 * PAGE, 10 * PAGE, 1));
    SAY(recv(pair[1], q, 15 * PAGE, MSG_WAITALL));
    TELL(are_bytes(q, 15 * PAGE, 30 * PAGE, 1));
    SAY(pread(fd, p, SIZE, 0));
    int other = open("other", O_RDWR | O_CREAT, 0600);
    SAY(pwrite(other, p, SIZE, 0));
    SAY(pwrite(other, p, SIZE, 0));
    p[7 * PAGE] ^= 1;
    SAY(pwrite(other, p, SIZE, 0));
    SAY(pwrite(fd, p, SIZE, PAGE));
    SAY(pwrite(other, p, SIZE, 100));
    close(other);
    THIRD(SUM, "other", 0, 0, 0);
    THIRD(SUM, "file", 0, 0, 0);
    SAY(pread(fd, p, SIZE, 0));
    THIRD(PEEK, "", (long)(p + 50 * PAGE), 100 * PAGE, 0);
    THIRD(POKE, "", (long)(p + 80 * PAGE + 5), 2 * PAGE, 3);
    SAY(pwrite(fd, p, SIZE, 0));
    THIRD(POKE, "", (long)(p + 90 * PAGE + 5), 2 * PAGE, 4);
    SAY(pwrite(fd, p, SIZE, 0));
    close(fd);
    THIRD(SUM, "file", 0, 0, 0);
    /* Names and arguments. */
    fd = open("text", O_RDWR | O_CREAT | O_TRUNC, 0600);
    unsigned char *text = memory(4 * PAGE);
    strcpy((char *)text, "file");
    strcpy((char *)text + PAGE, "/bin/sh");
    strcpy((char *)text + 2 * PAGE, "exit 7");
    SAY(write(fd, text, 4 * PAGE));
    close(fd);
    fd = open("text", O_RDONLY);
    text = memory(4 * PAGE);
    SAY(read(fd, text, 4 * PAGE));
    SAY(access((char *)text, R_OK));
    pid_t child = fork();
    if (child == 0) {
        char *arguments[] = {"sh", "-c", (char *)text + 2 * PAGE, NULL};
        execv((char *)text + PAGE, arguments);
        _exit(1);
    }
    waitpid(child, &status, 0);
    SAY(WEXITSTATUS(status));
}

/* Pages lent to a pipe stay what they were when they were lent, until the program itself stores into them. */
static void lent(void) {
    THIRD(MAKE, "file", 0, SIZE, 1);
    unsigned char *p = memory(SIZE), *q = memory(16 * PAGE);
    int fd = open("file", O_RDONLY), ends[2];
    pipe(ends);
    SAY(pread(fd, p, SIZE, 0));
    struct iovec v = {p + 10 * PAGE, 15 * PAGE};
    SAY(vmsplice(ends[1], &v, 1, 0));
    THIRD(WRITE, "file", 0, SIZE, 2);
    SAY(read(ends[0], q, 15 * PAGE));
    TELL(are_bytes(q, 15 * PAGE, 10 * PAGE, 1));
    SAY(pread(fd, p, SIZE, 0));
    v.iov_base = p + 10 * PAGE;
    SAY(syscall(SYS_vmsplice, ends[1], &v, 1l, 0l));
    THIRD(WRITE, "file", 0, SIZE, 3);
    SAY(read(ends[0], q, 15 * PAGE));
    TELL(are_bytes(q, 15 * PAGE, 10 * PAGE, 2));
    /* What is read into them shows in what was lent. */
    SAY(vmsplice(ends[1], &v, 1, 0));
    SAY(pread(fd, p, SIZE, 0));
    SAY(read(ends[0], q, 15 * PAGE));
    TELL(are_bytes(q, 15 * PAGE, 10 * PAGE, 3));
}

/* Sent without a copy: until the kernel says that it is done, the bytes are those of the call. (Over the loopback it copies
 * after all, so this shows only that nothing else is amiss.) */
static void sent_uncopied(void) {
    THIRD(MAKE, "file", 0, SIZE, 1);
    unsigned char *p = memory(SIZE), *q = memory(16 * PAGE);
    int fd = open("file", O_RDONLY), one = 1, listener = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in place = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof place;
    SAY(pread(fd, p, SIZE, 0));
    bind(listener, (void *)&place, sizeof place);
    listen(listener, 1);
    getsockname(listener, (void *)&place, &len);
    int from = socket(AF_INET, SOCK_STREAM, 0);
    SAY(setsockopt(from, SOL_SOCKET, SO_ZEROCOPY, &one, sizeof one));
    SAY(connect(from, (void *)&place, sizeof place));
    int to = accept(listener, NULL, NULL);
    SAY(send(from, p + 10 * PAGE, 8 * PAGE, MSG_ZEROCOPY));
    THIRD(WRITE, "file", 0, SIZE, 2);
    SAY(recv(to, q, 8 * PAGE, MSG_WAITALL));
    TELL(are_bytes(q, 8 * PAGE, 10 * PAGE, 1));
}

/* A word in it that threads wait on, whatever becomes of the page meanwhile. */
static int *word;
static volatile int went_on;
static void *wake(void *unused) {
    asked(WRITE, "file", 0, SIZE, 2);
    while (!went_on) {
        __atomic_store_n(word, 1, __ATOMIC_SEQ_CST);
        syscall(SYS_futex, word, FUTEX_WAKE, 1, NULL, NULL, 0);
        usleep(200);
    }
    return unused;
}

static void waited_on(void) {
    THIRD(MAKE, "file", 0, SIZE, 1);
    unsigned char *p = memory(SIZE);
    int fd = open("file", O_RDONLY);
    SAY(pread(fd, p, SIZE, 0));
    for (int which = 0; which < 2; which++) {
        word = (int *)(p + 20 * PAGE * (which + 1));
        if (which == 0)
            *word = 0;
        int value = *word;
        if (value == 1)
            value = *word = 5;
        pthread_t waker;
        went_on = 0;
        pthread_create(&waker, NULL, wake, NULL);
        while (syscall(SYS_futex, word, FUTEX_WAIT, value, NULL, NULL, 0) != 0 && errno == EINTR)
            ;
        went_on = 1;
        pthread_join(waker, NULL);
        SAY(*word);
        SAY(pread(fd, p, SIZE, 0));
    }
}

/* Two buffers of one region, a buffer of two regions, a region written to another place, and odd places. */
static void overlapping(void) {
    THIRD(MAKE, "file", 0, SIZE, 1);
    unsigned char *p = memory(SIZE), *q = memory(SIZE + PAGE);
    int fd = open("file", O_RDWR);
    SAY(pread(fd, p, SIZE, 0));
    SAY(pread(fd, q, SIZE, 0));
    p[5 * PAGE] ^= 1;
    SAY(pwrite(fd, p, SIZE, 0));
    TELL(are_bytes(q, SIZE, 0, 1));
    SAY(pwrite(fd, q, 100 * PAGE, 0));
    TELL(are_bytes(q, SIZE, 0, 1) && p[5 * PAGE] != q[5 * PAGE]);
    SAY(pwrite(fd, p, 100 * PAGE, 0));
    /* Shifted within the file, over itself. */
    SAY(pwrite(fd, q, 100 * PAGE, 10 * PAGE));
    TELL(are_bytes(q, SIZE, 0, 1));
    SAY(pread(fd, q, 100 * PAGE, 20 * PAGE));
    SAY(pwrite(fd, q, 100 * PAGE, PAGE));
    SAY(pwrite(fd, q, 100 * PAGE, 20 * PAGE));
    printf("%llx %llx\n", digest(p, SIZE), digest(q, SIZE));
    /* A second read over the first, in part. */
    SAY(pread(fd, p + 50 * PAGE, 100 * PAGE, 0));
    SAY(pread(fd, p + 30 * PAGE, 40 * PAGE, 30 * PAGE));
    SAY(pwrite(fd, p, SIZE, 0));
    printf("%llx\n", digest(p, SIZE));
    /* Odd places, whose ends are copied. */
    SAY(pread(fd, q + 100, 100 * PAGE, 100));
    q[50 * PAGE] ^= 1;
    SAY(pwrite(fd, q + 100, 100 * PAGE, 100));
    SAY(pread(fd, q + 100, 100 * PAGE, 0));
    SAY(pwrite(fd, q + 100, 100 * PAGE, 4196));
    SAY(pwrite(fd, q, 100 * PAGE, 1));
    printf("%llx\n", digest(q, SIZE));
    close(fd);
    THIRD(SUM, "file", 0, 0, 0);
}

/* Read into a mapping of the very file, and written from one. */
static void into_itself(void) {
    THIRD(MAKE, "file", 0, SIZE, 1);
    int fd = open("file", O_RDWR);
    unsigned char *p = memory(SIZE);
    unsigned char *private = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    SAY(pread(fd, p, SIZE, 0));
    SAY(pread(fd, private, 100 * PAGE, 50 * PAGE));
    TELL(are_bytes(private, 100 * PAGE, 50 * PAGE, 1) && are_bytes(private + 100 * PAGE, SIZE - 100 * PAGE, 100 * PAGE, 1));
    SAY(pwrite(fd, private, SIZE, 0));
    SAY(pread(fd, p, SIZE, 0));
    printf("%llx\n", digest(p, SIZE));
    unsigned char *shared = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    SAY(pread(fd, shared, 100 * PAGE, 20 * PAGE));
    SAY(pread(fd, shared + 100 * PAGE, 50 * PAGE, 90 * PAGE));
    SAY(pwrite(fd, shared + 10 * PAGE, 50 * PAGE, 12 * PAGE));
    printf("%llx\n", digest(shared, SIZE));
    printf("%llx\n", digest(p, SIZE));
    shared[3 * PAGE] ^= 1;
    SAY(pwrite(fd, p, SIZE, 0));
    printf("%llx\n", digest(shared, SIZE));
    close(fd);
    THIRD(SUM, "file", 0, 0, 0);
}

/* Memory given back, moved, locked and protected between the read and the write. */
static void reshaped(void) {
    THIRD(MAKE, "file", 0, SIZE, 1);
    for (int which = 0; which < 9; which++) {
        unsigned char *p = which < 7 ? memory(SIZE) : aligned_alloc(PAGE, SIZE + PAGE), *old = p;
        int fd = open("file", O_RDWR);
        SAY(pread(fd, p, SIZE, 0));
        p[200 * PAGE] ^= 1;
        if (which % 2)
            SAY(pwrite(fd, p, SIZE, 0));
        switch (which) {
        case 0:
        case 1:
            SAY(madvise(p + 10 * PAGE, 100 * PAGE, MADV_DONTNEED));
            TELL(p[20 * PAGE] == 0 && p[109 * PAGE + 5] == 0 && p[110 * PAGE] != 0);
            break;
        case 2:
        case 3:
            p = mremap(p, SIZE, 4 * SIZE, MREMAP_MAYMOVE);
            SAY(p != MAP_FAILED);
            break;
        case 4:
            SAY(mlock(p, 50 * PAGE));
            SAY(munlock(p, 50 * PAGE));
            break;
        case 5:
            SAY(mprotect(p, 100 * PAGE, PROT_READ));
            SAY(pwrite(fd, p, SIZE, 0));
            SAY(mprotect(p, 100 * PAGE, PROT_READ | PROT_WRITE));
            p[7 * PAGE] ^= 1;
            break;
        case 6:
            SAY(madvise(p, SIZE, MADV_FREE));
            memset(p, 6, SIZE);
            break;
        case 7:
            p = realloc(p, 8 * SIZE);
            break;
        case 8:
            free(p);
            p = aligned_alloc(PAGE, SIZE + PAGE);
            memset(p, 8, SIZE);
            break;
        }
        SAY(pwrite(fd, p, SIZE, 0));
        p[201 * PAGE] ^= 1;
        SAY(pwrite(fd, p, SIZE, 0));
        close(fd);
        THIRD(SUM, "file", 0, 0, 0);
        THIRD(REWRITE, "file", 0, SIZE, 1);
        printf("%d: %llx\n", which, digest(p, SIZE));
        if (which < 7)
            munmap(p, p == old ? SIZE : 4 * SIZE);
        else
            free(p);
    }
}

static const struct row rows[] = {
    {"stored_into", stored_into}, {"taken_from", taken_from}, {"lent", lent}, {"sent_uncopied", sent_uncopied},
    {"waited_on", waited_on}, {"overlapping", overlapping}, {"into_itself", into_itself}, {"reshaped", reshaped}, {0},
};

int main(int count, char **arguments) { return run_row(count, arguments, rows); }
