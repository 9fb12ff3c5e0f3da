/* Byte counts, file positions, and who shares them. */
#include "effects.h"
#include <pthread.h>

static void end_of_file(void) {
    THIRD(MAKE, "file", 0, SIZE, 1);
    unsigned char *p = memory(2 * SIZE);
    int fd = open("file", O_RDONLY);
    memset(p, 0xab, 2 * SIZE);
    SAY(read(fd, p, 2 * SIZE));
    WHERE(fd);
    TELL(are_bytes(p, SIZE, 0, 1));
    int kept = 1;
    for (size_t i = SIZE; i < 2 * SIZE; i++)
        kept &= p[i] == 0xab;
    TELL(kept);
    SAY(read(fd, p, SIZE));
    SAY(read(fd, p, 1));
    SAY(pread(fd, p, SIZE, 100 * PAGE));
    SAY(pread(fd, p, SIZE, SIZE - 1));
    SAY(pread(fd, p, SIZE, SIZE));
    SAY(pread(fd, p, SIZE, 1ll << 50));
    WHERE(fd);
    THIRD(TRUNCATE, "file", 0, 64 * PAGE, 0);
    SAY(pread(fd, p, SIZE, 0));
    TELL(are_bytes(p, 64 * PAGE, 0, 1));
    SAY(read(fd, p, SIZE));
    SAY(lseek(fd, 0, SEEK_SET));
    SAY(read(fd, p, 64 * PAGE));
    SAY(read(fd, p, SIZE));
    SAY(lseek(fd, 0, SEEK_END));
}

static void duplicates_share(void) {
    THIRD(MAKE, "file", 0, SIZE, 1);
    unsigned char *p = memory(SIZE);
    int fd = open("file", O_RDWR), copy = dup(fd), other = open("file", O_RDONLY);
    close(other);
    SAY(read(fd, p, 64 * PAGE));
    WHERE(copy);
    SAY(read(copy, p + 64 * PAGE, SIZE - 64 * PAGE));
    WHERE(fd);
    TELL(are_bytes(p, SIZE, 0, 1));
    p[70 * PAGE] ^= 1;
    SAY(lseek(copy, 64 * PAGE, SEEK_SET));
    SAY(write(fd, p + 64 * PAGE, 100 * PAGE));
    WHERE(copy);
    SAY(write(copy, p + 164 * PAGE, SIZE - 164 * PAGE));
    WHERE(fd);
    SAY(write(copy, p, 1));
    WHERE(fd);
    close(fd);
    WHERE(copy);
    SAY(read(copy, p, SIZE));
    close(copy);
    THIRD(SUM, "file", 0, 0, 0);
}

static void forks_share(void) {
    THIRD(MAKE, "file", 0, SIZE, 1);
    unsigned char *p = memory(SIZE);
    int fd = open("file", O_RDONLY), status;
    SAY(read(fd, p, 64 * PAGE));
    pid_t child = fork();
    if (child == 0) {
        WHERE(fd);
        SAY(read(fd, p + 64 * PAGE, 64 * PAGE));
        TELL(are_bytes(p, 128 * PAGE, 0, 1));
        _exit(0);
    }
    waitpid(child, &status, 0);
    WHERE(fd);
    SAY(read(fd, p + 128 * PAGE, SIZE));
    TELL(are_bytes(p, 64 * PAGE, 0, 1) && are_bytes(p + 128 * PAGE, SIZE - 128 * PAGE, 128 * PAGE, 1));
    WHERE(fd);
}

/* One description, two threads: every byte is read once. */
static int shared;
static unsigned char *pieces[2];
static void *take(void *which) {
    intptr_t mine = (intptr_t)which;
    long sum = 0;
    for (;;) {
        ssize_t got = read(shared, pieces[mine], 16 * PAGE);
        if (got <= 0)
            return (void *)sum;
        sum += got;
        /* The first word of a page names its place. */
        uint64_t first;
        memcpy(&first, pieces[mine], sizeof first);
    }
}

static void threads_share(void) {
    THIRD(MAKE, "file", 0, SIZE, 1);
    for (int i = 0; i < 2; i++)
        pieces[i] = memory(16 * PAGE);
    shared = open("file", O_RDONLY);
    pthread_t threads[2];
    long sum = 0;
    for (intptr_t i = 0; i < 2; i++)
        pthread_create(&threads[i], NULL, take, (void *)i);
    for (int i = 0; i < 2; i++) {
        void *got;
        pthread_join(threads[i], &got);
        sum += (long)got;
    }
    printf("%ld bytes in all\n", sum);
    WHERE(shared);
}

/* Appending descriptions write at the end whatever their position, which moves there. */
static void appending(void) {
    THIRD(MAKE, "file", 0, SIZE, 1);
    unsigned char *p = memory(SIZE);
    int fd = open("file", O_RDWR | O_APPEND);
    SAY(read(fd, p, SIZE));
    TELL(are_bytes(p, SIZE, 0, 1));
    p[5] ^= 1;
    SAY(lseek(fd, 0, SEEK_SET));
    SAY(write(fd, p, 64 * PAGE));
    WHERE(fd);
    THIRD(SUM, "file", 0, 0, 0);
    SAY(pwrite(fd, p, 64 * PAGE, 0));
    WHERE(fd);
    THIRD(SUM, "file", 0, 0, 0);
    SAY(fcntl(fd, F_SETFL, 0));
    SAY(pwrite(fd, p, 64 * PAGE, 0));
    SAY(fcntl(fd, F_SETFL, O_APPEND));
    SAY(pwrite(fd, p, 64 * PAGE, 0));
    THIRD(SUM, "file", 0, 0, 0);
}

/* What is read while it grows, shrinks, and grows again. */
static void short_reads(void) {
    THIRD(MAKE, "file", 0, SIZE, 1);
    unsigned char *p = memory(2 * SIZE);
    int fd = open("file", O_RDONLY);
    for (int i = 0; i < 4; i++) {
        SAY(lseek(fd, 10 * PAGE, SEEK_SET));
        SAY(read(fd, p, 2 * SIZE));
        WHERE(fd);
        printf("%llx\n", digest(p, 2 * SIZE));
        if (i == 0)
            THIRD(TRUNCATE, "file", 0, 50 * PAGE + 7, 0);
        if (i == 1)
            THIRD(APPEND, "file", 0, 30 * PAGE, 2);
        if (i == 2)
            THIRD(TRUNCATE, "file", 0, 10 * PAGE, 0);
    }
}

/* Vectors of big and small pieces, at the position and elsewhere. */
static void vectors(void) {
    THIRD(MAKE, "file", 0, SIZE, 1);
    unsigned char *p = memory(SIZE + PAGE), small[100];
    int fd = open("file", O_RDWR);
    struct iovec v[3] = {{p, 64 * PAGE}, {p + 64 * PAGE, 100 * PAGE}, {p + 164 * PAGE, 93 * PAGE}};
    struct iovec w[3] = {{p, 64 * PAGE}, {small, 100}, {p + 65 * PAGE, 10 * PAGE}};
    SAY(readv(fd, v, 3));
    WHERE(fd);
    TELL(are_bytes(p, SIZE, 0, 1));
    SAY(preadv(fd, w, 3, 0));
    WHERE(fd);
    TELL(are_bytes(small, 100, 64 * PAGE, 1) && are_bytes(p + 65 * PAGE, 10 * PAGE, 64 * PAGE + 100, 1));
    SAY(preadv(fd, v, 3, 0));
    p[3] ^= 1, p[100 * PAGE] ^= 1;
    SAY(lseek(fd, 0, SEEK_SET));
    SAY(writev(fd, v, 3));
    WHERE(fd);
    v[2].iov_len = 92 * PAGE + 123;
    SAY(pwritev(fd, v, 3, 0));
    THIRD(SUM, "file", 0, 0, 0);
}

/* Descriptions with O_DIRECT, aligned and not, before and after the file was read otherwise. */
static void direct(void) {
    THIRD(MAKE, "file", 0, SIZE, 1);
    unsigned char *p = memory(SIZE + PAGE), *q = memory(SIZE + PAGE);
    int fd = open("file", O_RDONLY);
    SAY(read(fd, p, SIZE));
    close(fd);
    int raw = open("file", O_RDWR | O_DIRECT);
    TELL(raw >= 0);
    TELL(are_bytes(p, SIZE, 0, 1));
    if (raw < 0)
        return;
    SAY(pread(raw, q, 64 * PAGE, 0));
    TELL(are_bytes(q, 64 * PAGE, 0, 1));
    SAY(pread(raw, q, SIZE + PAGE, 0));
    SAY(pread(raw, q, 64 * PAGE, 200 * PAGE));
    ssize_t odd = pread(raw, q + 1, 64 * PAGE, 0), place = pread(raw, q, 64 * PAGE, 3);
    printf("misaligned: %zd %zd\n", odd, place);
    /* From memory that stands for the file, through a description that goes past the page cache. */
    p[10 * PAGE] ^= 1;
    SAY(pwrite(raw, p, 64 * PAGE, 0));
    SAY(pwrite(raw, p, 64 * PAGE, 64 * PAGE));
    TELL(!memcmp(p, q, 10 * PAGE));
    close(raw);
    THIRD(SUM, "file", 0, 0, 0);
    TELL(are_bytes(p + 64 * PAGE, SIZE - 64 * PAGE, 64 * PAGE, 1));
    /* Read past the page cache into memory that is followed for another write. */
    fd = open("file", O_RDWR);
    SAY(pread(fd, p, SIZE, 0));
    SAY(pwrite(fd, p, SIZE, 0));
    THIRD(MAKE, "other", 0, SIZE, 7);
    raw = open("other", O_RDONLY | O_DIRECT);
    SAY(pread(raw, p + 20 * PAGE, 30 * PAGE, 20 * PAGE));
    SAY(pwrite(fd, p, SIZE, 0));
    close(fd);
    THIRD(SUM, "file", 0, 0, 0);
}

enum { MEETINGS = 100, PIECE = 8 * PAGE };
static pthread_barrier_t meeting;
static int shared_descriptor;

/* Writes to the same places as the other thread, at the same moments, other bytes. */
static void *meets(void *number) {
    unsigned char *p = memory(2 * PIECE);
    memset(p, 'a' + (long)number, 2 * PIECE);
    struct iovec pieces[2] = {{p, PIECE}, {p + PIECE, PIECE}};
    for (int i = 0; i < MEETINGS; i++) {
        pthread_barrier_wait(&meeting);
        if (pwritev(shared_descriptor, pieces, 2, i * 2l * PIECE) != 2 * PIECE)
            exit(1);
    }
    return NULL;
}

/* A vector is written as a whole: what is there afterwards is the one's or the other's, and not some of each. */
static void vectors_of_threads(void) {
    THIRD(MAKE, "file", 0, SIZE, 1);
    unsigned char *p = memory(MEETINGS * 2 * PIECE);
    shared_descriptor = open("file", O_RDWR);
    SAY(pread(shared_descriptor, p, SIZE, 0));
    pthread_barrier_init(&meeting, NULL, 2);
    pthread_t threads[2];
    for (long i = 0; i < 2; i++)
        pthread_create(&threads[i], NULL, meets, (void *)i);
    for (int i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
    SAY(pread(shared_descriptor, p, MEETINGS * 2 * PIECE, 0));
    int mixed = 0;
    for (int i = 0; i < MEETINGS; i++)
        mixed += memcmp(p + i * 2 * PIECE, p + i * 2 * PIECE + 1, 2 * PIECE - 1) != 0;
    SAY(mixed);
    close(shared_descriptor);
}

/* Alters some pages of what the file has, and saves them: more calls than one, in the drop-in's hands. */
static int saves(int fd, unsigned char *p, int round) {
    for (int page = 0; page < PAGES; page += 4)
        p[page * PAGE] = round;
    return pwrite(fd, p, SIZE, 0) != SIZE;
}

/* Of two writes to the whole file: does it have all of one, and none of the other? */
static int has_one(int fd, const unsigned char *p, unsigned seed) {
    static unsigned char now[SIZE];
    if (pread(fd, now, SIZE, 0) != SIZE)
        exit(1);
    return !memcmp(now, p, SIZE) || are_bytes(now, SIZE, 0, seed);
}

/* Somebody else writes to the file while it is saved. The kernel lets one come after the other. */
static void writes_of_processes(void) {
    unsigned char *p = memory(SIZE);
    int mixed = 0, failed = 0;
    for (int round = 0; round < 60; round++) {
        /* If he comes first each time, nothing is elided: in some rounds he comes after it. */
        int after = round % 16 == 15;
        /* A file that is altered again and again would soon be read at once. */
        char name[8];
        sprintf(name, "%d", round);
        failed += asked(MAKE, name, 0, SIZE, 1).result != SIZE;
        int fd = open(name, O_RDWR);
        failed += pread(fd, p, SIZE, 0) != SIZE;
        if (!after)
            ask(WRITE, name, 0, SIZE, 2);
        failed += saves(fd, p, round);
        if (after)
            ask(WRITE, name, 0, SIZE, 2);
        failed += answer().result != SIZE;
        mixed += !has_one(fd, p, 2);
        close(fd);
    }
    SAY(mixed);
    SAY(failed);
}

static volatile int other_is_done, saved;

static void *writes_whole(void *unused) {
    static unsigned char bytes[SIZE];
    bytes_at(bytes, SIZE, 0, 2);
    for (int i = 0; i < 60; i++) {
        pthread_barrier_wait(&meeting);
        for (int pause = 0; pause < i * 1000; pause++)
            __asm__ volatile("pause");
        while (i % 16 == 15 && saved < i)
            sched_yield();
        if (pwrite(shared_descriptor, bytes, SIZE, 0) != SIZE)
            exit(1);
        pthread_barrier_wait(&meeting);
    }
    return unused;
}

/* The same of two threads, and one descriptor. */
static void writes_of_threads(void) {
    unsigned char *p = memory(SIZE);
    int mixed = 0, failed = 0;
    pthread_barrier_init(&meeting, NULL, 2);
    pthread_t thread;
    pthread_create(&thread, NULL, writes_whole, NULL);
    for (int round = 0; round < 60; round++) {
        char name[8];
        sprintf(name, "%d", round);
        failed += asked(MAKE, name, 0, SIZE, 1).result != SIZE;
        shared_descriptor = open(name, O_RDWR);
        failed += pread(shared_descriptor, p, SIZE, 0) != SIZE;
        pthread_barrier_wait(&meeting);
        failed += saves(shared_descriptor, p, round);
        saved = round;
        pthread_barrier_wait(&meeting);
        mixed += !has_one(shared_descriptor, p, 2);
        close(shared_descriptor);
    }
    pthread_join(thread, NULL);
    SAY(mixed);
    SAY(failed);
}

static void *writes_on(void *unused) {
    static unsigned char bytes[SIZE];
    for (int i = 0; !other_is_done; i++) {
        memset(bytes, 'a' + i % 26, SIZE);
        if (pwrite(shared_descriptor, bytes, SIZE, 0) != SIZE)
            exit(1);
        usleep(500);
    }
    return unused;
}

/* Where the file system sees to it that a read has all of a write, or nothing (XFS), it still has: in a plain read, whose last bytes
 * are a part of a page, and in one of several pieces. */
static void reads_of_threads(void) {
    int atomic = on_xfs(".");
    for (int pieces = 1; pieces < 3; pieces++) {
        unsigned char *p = memory(SIZE);
        memset(p, 'a', SIZE);
        int torn = 0;
        shared_descriptor = open("file", O_RDWR | O_CREAT, 0600);
        SAY(pwrite(shared_descriptor, p, SIZE, 0));
        other_is_done = 0;
        pthread_t thread;
        pthread_create(&thread, NULL, writes_on, NULL);
        for (int round = 0; round < 2000; round++) {
            struct iovec vector[2] = {{p, SIZE / PAGE / 2 * PAGE}, {p + SIZE / PAGE / 2 * PAGE, SIZE - SIZE / PAGE / 2 * PAGE}};
            long got = pieces == 1 ? pread(shared_descriptor, p, SIZE, 0) : preadv(shared_descriptor, vector, 2, 0);
            if (got != SIZE)
                exit(1);
            torn += p[0] != p[SIZE - 1] || p[SIZE / 2 - 2 * PAGE] != p[SIZE / 2 + 2 * PAGE];
        }
        other_is_done = 1;
        pthread_join(thread, NULL);
        SAY(atomic && torn);
        close(shared_descriptor);
    }
}

/* The same of a read while another process writes. (Elsewhere a read may be torn, and a tenth of the rounds tells whether one fails.) */
static void reads_beside_processes(void) {
    int atomic = on_xfs("."), torn = 0, failed = 0;
    unsigned char *p = memory(SIZE);
    THIRD(MAKE, "file", 0, SIZE, 0);
    for (int round = 1; round < (atomic ? 400 : 40); round++) {
        ask(WRITE, "file", 0, SIZE, round);
        for (int pause = 0; pause < round % 100 * 1000; pause++)
            __asm__ volatile("pause");
        for (int again = 0; again < 8; again++) {
            int fd = open("file", O_RDONLY);
            failed += pread(fd, p, SIZE, 0) != SIZE;
            torn += !are_bytes(p, SIZE, 0, round) && !are_bytes(p, SIZE, 0, round - 1);
            close(fd);
        }
        failed += answer().result != SIZE;
    }
    SAY(atomic && torn);
    SAY(failed);
}

static const struct row rows[] = {
    {"end_of_file", end_of_file}, {"duplicates_share", duplicates_share}, {"forks_share", forks_share},
    {"threads_share", threads_share}, {"appending", appending}, {"short_reads", short_reads},
    {"vectors", vectors}, {"vectors_of_threads", vectors_of_threads}, {"writes_of_threads", writes_of_threads},
    {"writes_of_processes", writes_of_processes}, {"reads_of_threads", reads_of_threads},
    {"reads_beside_processes", reads_beside_processes}, {"direct", direct}, {0},
};

int main(int count, char **arguments) { return run_row(count, arguments, rows); }
